"""Validation images of the user's own, in place of a share of the training or test images."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from prune_fe.data.archive import unpack
from prune_fe.data.assemble import Reading, require_all_classes, set_steps, skip_unreadable
from prune_fe.data.datasets import DecodedWhenDrawn
from prune_fe.data.equal_images import find_shared_images
from prune_fe.data.image_files import ImageFiles, describe_left_out, find_image_files
from prune_fe.data.splits import Splits
from prune_fe.data.transforms import Normalise, ToPixels
from prune_fe.errors import DataError
from prune_fe.io import shorten


def with_validation_folder(
    splits: Splits,
    path: Path,
    reading: Reading,
    read: Callable[[str], Any],
    *,
    skip_bad: int = 0,
    some_classes: bool = False,
) -> Splits:
    """Return the splits with the images of path/<class>/* as validation images.

    Args:
        splits: The images, with none of the training images held out.
        path: A folder of classes, or a tar file of one.
        reading: How the images are read.
        read: Function that reads an image file.
        skip_bad: At most this many images that cannot be read are left out, those of `splits` included.
        some_classes: Whether `splits` has only some of the classes of its source; the folder's other classes are then
            left out.

    Raises:
        DataError: The folder is missing, its classes are not those of the training images, an image cannot be read, or
            one has the content of a training or a test image.
    """
    files = _find_validation_files(path, splits.classes, read, some_classes=some_classes)
    if files.left_out:
        left_out = describe_left_out(files.left_out)
        warnings.warn(f"{files.root}: {len(files.left_out)} files are no images: {left_out}", stacklevel=3)
    nothing = files.select([])
    files, _, skipped = skip_unreadable(files, nothing, skip_bad - len(splits.skipped), str(files.root))
    require_all_classes(files, "validation")
    for data, name, advice in (
        (splits.train.dataset, "training", "remove them from one of the two"),  # type: ignore[attr-defined]
        (splits.test, "test", "validation_from: test takes a share of the test images instead"),
    ):
        if shared := find_shared_images(files, data):
            raise DataError(
                f"{len(shared)} validation images are {name} images too, with the same content: {shorten(shared)}; "
                f"{advice}"
            )
    names = tuple(f"validation/{name.partition('/')[2]}" for name in skipped)
    return replace(splits, validation=_decode_if_it_fits(files, splits, reading), skipped=splits.skipped + names)


def _find_validation_files(
    path: Path, classes: tuple[str, ...], read: Callable[[str], Any], *, some_classes: bool
) -> ImageFiles:
    """Return the image files of a folder, with the classes of the training images in the order of these."""
    root = unpack(path)
    names = sorted(entry.name for entry in root.iterdir() if entry.is_dir())
    differ = set(classes) - set(names) if some_classes else set(classes) ^ set(names)
    if differ:
        inner = next((part for part in ("val", "validation", "valid", "test") if part in names), None)
        hint = f"; is it {path / inner}?" if inner is not None and path.is_dir() else ""
        differences = _describe_differences(classes, names)
        raise DataError(f"{path}: its folders are not the classes of the training images: {differences}{hint}")
    files = find_image_files(root, read, read, classes)
    # The classes of the training images need not be sorted by name.
    label_of = {name: label for label, name in enumerate(classes)}
    files.labels = torch.tensor([label_of[files.classes[label]] for label in files.targets], dtype=torch.int64)
    files.classes = classes
    return files.in_order_of_names()


def _describe_differences(classes: Sequence[str], names: Sequence[str]) -> str:
    """Return which classes have no folder, and which folders are no class."""
    missing = [name for name in classes if name not in names]
    extra = [name for name in names if name not in classes]
    parts = [f"{shorten(missing)} missing"] if missing else []
    return "; ".join([*parts, *([f"{shorten(extra)} only there"] if extra else [])])


def _decode_if_it_fits(files: ImageFiles, splits: Splits, reading: Reading) -> ImageFiles | DecodedWhenDrawn:
    """Return the images, kept decoded in memory if those of the other parts are and all fit into it together."""
    files, steps = set_steps(files, reading), reading.steps
    total: int = sum(len(part) for part in (splits.train, splits.test, files))  # type: ignore[arg-type, misc]
    if not isinstance(splits.test, DecodedWhenDrawn) or total * 3 * steps.size**2 > reading.memory_gib * 2**30:
        return files
    decoded = DecodedWhenDrawn(files, ToPixels(steps), Normalise(steps.mean, steps.std))
    decoded.decode(range(len(files)))
    return decoded
