"""Data sets of torchvision that keep their images in files, by name; to add one, add it to `SETS` and the registry."""

from __future__ import annotations

import os
from array import array
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from prune_fe.data.assemble import Reading, make_splits, skip_unreadable
from prune_fe.data.image_files import FileStatus, ImageFiles
from prune_fe.data.options import DataOptions
from prune_fe.data.splits import Splits
from prune_fe.data.texts import PackedTexts
from prune_fe.data.transforms import read_image, read_image_fast
from prune_fe.errors import DataError, EnvironmentFault, first_line


class ImageSet(NamedTuple):
    """A data set of `torchvision.datasets`.

    Attributes:
        kind: Name of its class.
        train: Its parts with training and validation images.
        test: Its part with test images.
    """

    kind: str
    train: tuple[str, ...]
    test: str = "test"


SETS: Mapping[str, ImageSet] = {
    # Their own validation images are training images here, of which validation images are held out.
    "flowers102": ImageSet("Flowers102", ("train", "val")),
    "food101": ImageSet("Food101", ("train",)),
    "oxford-pets": ImageSet("OxfordIIITPet", ("trainval",)),
    "dtd": ImageSet("DTD", ("train", "val")),
}


def load(options: DataOptions, *, reading: Reading) -> Splits:
    """Read the images for `prune_fe.data.registry.load_data`; the first call downloads them.

    Raises:
        DataError: The images can be neither read nor downloaded.
    """
    from torchvision import datasets

    assert options.path is not None
    root, chosen = Path(options.path), SETS[options.source]
    kind = getattr(datasets, chosen.kind)
    read = read_image_fast if options.decoder == "torchvision" else read_image
    try:
        train, test = (_list_images(kind, root, parts, read) for parts in (chosen.train, (chosen.test,)))
    except OSError as error:
        raise DataError(f"{root}: {chosen.kind} cannot be read ({error})") from error
    train, test, skipped = skip_unreadable(train, test, options.skip_bad, str(root), ("train", "test"))
    return make_splits(train, test, reading, skipped)


def _list_images(kind: Any, root: Path, parts: Sequence[str], read: Callable[[str], Any]) -> ImageFiles:
    """Return the image files of some parts of a data set, ordered by class and name."""
    every = [_open_set(kind, root, part) for part in parts]
    try:
        # They have no public list of their files.
        files = [(Path(file), label) for one in every for file, label in zip(_files(one), one._labels, strict=True)]
    except AttributeError as error:
        raise EnvironmentFault(
            f"torchvision's {kind.__name__} does not list its files as version 0.26 does ({error})"
        ) from error
    classes = getattr(every[0], "classes", None) or [str(number) for number in sorted({label for _, label in files})]
    status, labels = FileStatus(), array("q")
    for file, label in files:
        status.add(os.stat(file))
        labels.append(label)
    names = PackedTexts(file.relative_to(root).as_posix() for file, _ in files)
    return ImageFiles(root, classes, names, labels, status, read, read).in_order_of_names()


def _open_set(kind: Any, root: Path, part: str) -> Any:
    """Return a part of a data set, which is downloaded if it is not there.

    Raises:
        DataError: It is not there and cannot be downloaded.
    """
    try:
        return kind(root, part)
    except (OSError, RuntimeError):  # not there
        try:
            return kind(root, part, download=True)
        except (OSError, RuntimeError) as error:
            raise DataError(
                f"{root}: {kind.__name__} can be neither read nor downloaded ({first_line(error)})"
            ) from error


def _files(images: Any) -> Iterable[str | Path]:
    files: Iterable[str | Path] = images._image_files if hasattr(images, "_image_files") else images._images
    return files
