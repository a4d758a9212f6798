"""Parquet files with columns of images and labels, through Hugging Face `datasets`: a folder, a file or the hub."""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from prune_fe.data.assemble import Reading, make_splits, skip_unreadable
from prune_fe.data.options import DataOptions
from prune_fe.data.registry import HUB, is_on_hub
from prune_fe.data.splits import Splits
from prune_fe.data.stored_images import StoredImages
from prune_fe.data.transforms import decode_image, decode_image_fast
from prune_fe.errors import DataError, EnvironmentFault, first_line

TEST_PARTS = ("val", "validation", "valid", "test")
"""What the part with the test images is called; the first one with labels is taken."""

LABEL_COLUMNS = ("label", "labels", "fine_label", "target")
"""What the column of labels is called."""

MAX_CLASSES = 10**6
"""Labels are below this number."""


class ParquetImages(StoredImages):
    """The images of a part of a Hugging Face data set, ordered by class and name.

    Args:
        rows: The data set, of which `datasets` keeps the file open.
        column: Name of the column of images, which are not decoded by `datasets`.
        classes: The name of each class.
        labels: The label of each row.
        decode: Function from an encoded image and its name to the image.
    """

    per_image = (*StoredImages.per_image, "row_of")

    def __init__(
        self, rows: Any, column: str, classes: Sequence[str], labels: Sequence[int], decode: Callable[[bytes, str], Any]
    ) -> None:
        self.rows, self.column, self.decode = rows, column, decode
        self.row_of = torch.arange(len(labels))
        names, sizes = _names_and_sizes(rows, column)
        super().__init__(classes, torch.tensor(labels, dtype=torch.int64), names, torch.tensor(sizes))

    def load(self, index: int) -> Any:
        """Return an image as `decode` gives it."""
        return self.decode(self.read_bytes(index), self.where(index))

    def read_bytes(self, index: int, count: int | None = None) -> bytes:
        """Return the first `count` bytes of an encoded image; None is all of them."""
        cell = self.rows.data.column(self.column)[int(self.row_of[index])]
        content: bytes = cell["bytes"].as_buffer()[:count].to_pybytes()
        return content

    def where(self, index: int) -> str:
        """Return the name of an image, with its row."""
        return f"row {int(self.row_of[index])} ({self.names[index]})"


def load(options: DataOptions, *, reading: Reading) -> Splits:
    """Read the images for `prune_fe.data.registry.load_data`.

    Raises:
        EnvironmentFault: `datasets` is not installed, or the hub cannot be reached.
        DataError: Files or columns are missing, or hold something else.
    """
    parts = _open(options)
    names = options.splits or _choose_parts(parts, options)
    for name in names:
        if name not in parts:
            raise DataError(f"{options.path}: no part {name!r}; there are {', '.join(parts)}")
    image, label = options.columns or _choose_columns(parts[names[0]], str(options.path))
    decode = decode_image_fast if options.decoder == "torchvision" else decode_bytes
    train_rows, test_rows = (_without_decoding(parts[name], image, str(options.path)) for name in names)
    classes, labels = _read_labels([parts[name] for name in names], label, str(options.path))
    train, test = (
        ParquetImages(rows, image, classes, own, decode).in_order_of_names()
        for rows, own in zip((train_rows, test_rows), labels, strict=True)
    )
    train, test, skipped = skip_unreadable(train, test, options.skip_bad, str(options.path), names)
    return make_splits(train, test, reading, skipped)


def decode_bytes(content: bytes, where: str) -> Any:
    """Return the PIL image of an encoded one; see `decode_image`."""
    return decode_image(io.BytesIO(content), where)


def _open(options: DataOptions) -> dict[str, Any]:
    """Return the parts of the data set by name."""
    try:
        import datasets
    except ImportError:
        raise EnvironmentFault("source parquet needs Hugging Face datasets: pip install 'prune-fe[parquet]'") from None
    path = str(options.path)
    had_bars = not datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    try:
        if is_on_hub(path):
            return dict(datasets.load_dataset(path.removeprefix(HUB).removeprefix("datasets/").strip("/")))
        place = Path(path)
        if not place.exists():
            raise DataError(f"{path}: no such folder or file; {HUB}OWNER/NAME is a data set on the Hugging Face hub")
        if place.is_dir() and not any(place.rglob("*.parquet")):
            raise DataError(f"{path}: no .parquet files there")
        where = {"data_dir": path} if place.is_dir() else {"data_files": path}
        return dict(datasets.load_dataset("parquet", **where))
    except DataError:
        raise
    except OSError as error:
        kind = EnvironmentFault if is_on_hub(path) else DataError
        raise kind(f"{path}: cannot be read ({first_line(error)})") from error
    except Exception as error:  # datasets and pyarrow raise nearly everything at a damaged file.
        raise DataError(f"{path}: not parquet files that can be read ({first_line(error)})") from error
    finally:
        if had_bars:
            datasets.enable_progress_bars()


def _choose_parts(parts: Mapping[str, Any], options: DataOptions) -> tuple[str, str]:
    """Return the names of the parts with the training and the test images; a warning names those that are not read."""
    there = ", ".join(parts)
    if "train" not in parts:
        raise DataError(f"{options.path}: no part 'train' among {there}; name the parts in data.splits")
    label = (options.columns or _choose_columns(parts["train"], str(options.path)))[1]
    _require_column(parts["train"], label, str(options.path))
    for name in TEST_PARTS:
        if name in parts and _has_labels(parts[name], label):
            if unread := sorted(set(parts) - {"train", name}):
                warnings.warn(
                    f"{options.path}: {', '.join(unread)} is not read (data.splits names parts)", stacklevel=5
                )
            return "train", name
    raise DataError(f"{options.path}: no part with test images and labels among {there}; name it in data.splits")


def _has_labels(rows: Any, column: str) -> bool:
    """Return whether a part has labels; test images whose labels are kept secret have −1."""
    return len(rows) > 0 and column in rows.features and rows.data.column(column)[0].as_py() not in (-1, None)


def _choose_columns(rows: Any, path: str) -> tuple[str, str]:
    """Return the names of the columns of images and of labels."""
    import datasets

    images = [name for name, feature in rows.features.items() if isinstance(feature, datasets.Image)]
    images = images or [name for name in rows.features if name in ("image", "img")]
    labels = [name for name in LABEL_COLUMNS if name in rows.features]
    if len(images) != 1 or not labels:
        there = ", ".join(rows.features)
        raise DataError(f"{path}: which columns hold images and labels? There are {there}; name them in data.columns")
    return images[0], labels[0]


def _require_column(rows: Any, column: str, path: str) -> None:
    """Raise DataError unless a data set has a column of this name."""
    if column not in rows.features:
        raise DataError(f"{path}: no column {column!r}; there are {', '.join(rows.features)}")


def _without_decoding(rows: Any, column: str, path: str) -> Any:
    """Return the data set with its images as bytes."""
    import datasets

    _require_column(rows, column, path)
    try:
        return rows.cast_column(column, datasets.Image(decode=False))
    except Exception as error:  # pyarrow's errors
        raise DataError(f"{path}: column {column!r} holds no images ({first_line(error)})") from error


def _names_and_sizes(rows: Any, column: str) -> tuple[list[str], list[int]]:
    """Return the name of each image, or its row where it has none, and the size of its bytes."""
    from pyarrow import compute

    cells = rows.data.column(column)
    sizes = compute.binary_length(compute.struct_field(cells, "bytes")).to_pylist()
    if None in sizes:
        raise DataError(f"row {sizes.index(None)} of {column!r} holds no image; files beside parquet are not read")
    names = compute.struct_field(cells, "path").to_pylist()
    digits = len(str(len(names)))
    if None in names or len(set(names)) < len(names):
        names = [f"{row:0{digits}}" for row in range(len(names))]
    return names, sizes


def _read_labels(parts: Sequence[Any], column: str, path: str) -> tuple[list[str], list[list[int]]]:
    """Return the names of the classes, and the label of each row of each part."""
    import datasets

    for rows in parts:
        _require_column(rows, column, path)
    columns = [rows.data.column(column).to_pylist() for rows in parts]
    values = {value for each in columns for value in each}
    feature = parts[0].features[column]
    if all(isinstance(value, str) for value in values):
        classes = sorted(values)
        label_of = {name: label for label, name in enumerate(classes)}
        return classes, [[label_of[value] for value in each] for each in columns]
    if not all(isinstance(value, int) and 0 <= value < MAX_CLASSES for value in values):
        odd = next(value for value in values if not (isinstance(value, int) and 0 <= value < MAX_CLASSES))
        raise DataError(f"{path}: column {column!r} holds {odd!r}; a label is a whole number from 0, or a name")
    if isinstance(feature, datasets.ClassLabel):
        return list(feature.names), columns
    count = max(values) + 1
    return [f"{number:0{len(str(count - 1))}}" for number in range(count)], columns
