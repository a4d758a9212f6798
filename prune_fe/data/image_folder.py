"""A folder of classes, train/<class>/* and val/<class>/*, or a tar file of such a folder."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from prune_fe.data.archive import unpack
from prune_fe.data.assemble import Reading, make_splits, skip_unreadable
from prune_fe.data.image_files import ImageFiles, describe_left_out, find_image_files, refuse_repeated_files
from prune_fe.data.options import MEMORY_GIB, VALIDATION, DataOptions
from prune_fe.data.preprocessing import Preprocessing
from prune_fe.data.registry import Progress
from prune_fe.data.splits import Splits, check_split
from prune_fe.data.transforms import read_image, read_image_fast
from prune_fe.data.validation_images import with_validation_folder
from prune_fe.errors import DataError
from prune_fe.file_types import require_path
from prune_fe.options import Natural, NonNegative, Size, validate_value


def load(options: DataOptions, *, reading: Reading) -> Splits:
    """Read the images for `prune_fe.data.registry.load_data`."""
    assert options.path is not None
    read = read_image_fast if options.decoder == "torchvision" else read_image
    return read_folder(Path(options.path), reading, read, options.skip_bad, options.classes)


def folder(
    path: str | Path,
    size: int,
    validation: float | str | Path = VALIDATION,
    seed: int = 0,
    memory_gib: float = MEMORY_GIB,
    progress: Progress | None = None,
    images_per_class: int | None = None,
    skip_bad: int = 0,
    classes: int | Sequence[str] | None = None,
) -> Splits:
    """Return the images of path/train/<class>/* and path/val/<class>/*, as RGB, upright, resized to size×size.

    The images of val/ are the test images; the validation images are held out of those of train/. A warning names files
    that are left out because of their format, and validation images that are trained on instead because a training
    image has the same content.

    Args:
        path: The folder, or a tar file of it, which the first call unpacks into a folder next to it.
        size: Height and width of the images, in pixels.
        validation: Share of the training images of each class that is held out for validation; or a folder of
            validation images <class>/* with the same classes, or a tar file of one.
        seed: Decides which images are drawn and held out.
        memory_gib: Images that take at most this much memory are decoded once, others each time they are read.
        progress: Called with (images decoded, all images) where they are decoded once.
        images_per_class: At most this many training images of each class are used; None means all. The others are not
            decoded.
        skip_bad: At most this many images that cannot be read are left out, and listed in `Splits.skipped`. All images
            are decoded once more to find them.
        classes: Read only so many classes, taken at equal distances from the sorted names, or those of these names;
            None means all.

    Raises:
        InputError: A number is out of range, or there is no such class.
        DataError: A folder, a class or an image is missing or cannot be read; a file is there twice; a test image has
            the content of a training image.
    """
    steps = Preprocessing(validate_value(Size, size, "size"))
    memory_gib = validate_value(NonNegative, memory_gib, "memory_gib")
    own = require_path(validation) if isinstance(validation, str | Path) else None
    share = 0.0 if isinstance(validation, str | Path) else validation
    check_split(share, seed, images_per_class)
    reading = Reading(
        steps=steps,
        validation=share,
        seed=seed,
        memory_gib=memory_gib,
        images_per_class=images_per_class,
        progress=progress,
    )
    skip_bad = validate_value(Natural, skip_bad, "skip_bad")
    splits = read_folder(require_path(path), reading, read_image, skip_bad, classes)
    if own is None:
        return splits
    return with_validation_folder(splits, own, reading, read_image, skip_bad=skip_bad, some_classes=classes is not None)


def read_folder(
    path: Path,
    reading: Reading,
    read: Callable[[str], Any],
    skip_bad: int = 0,
    classes: int | Sequence[str] | None = None,
) -> Splits:
    """Return the images of a folder or a tar file; see `folder`.

    Args:
        path: The folder or file.
        reading: How the images are read.
        read: Function that reads an image file.
        skip_bad: As in `folder`.
        classes: As in `folder`.
    """
    root = unpack(path)
    train, test = (_image_files(root / part, read, classes) for part in ("train", "val"))
    refuse_repeated_files(train, test)
    if left_out := [f"{part.root.name}/{name}" for part in (train, test) for name in part.left_out]:
        warnings.warn(f"{root}: {len(left_out)} files are no images: {describe_left_out(left_out)}", stacklevel=3)
    train, test, skipped = skip_unreadable(train, test, skip_bad, str(root))
    for part in (train, test):
        _require_images(part)
    if odd := sorted(set(train.classes) ^ set(test.classes)):
        has, lacks = ("train", "val") if odd[0] in train.classes else ("val", "train")
        raise DataError(f"{root}: class {odd[0]!r} is in {has}, but not in {lacks}")
    return make_splits(train, test, reading, skipped)


def _image_files(root: Path, read: Callable[[str], Any], classes: int | Sequence[str] | None) -> ImageFiles:
    """Return the image files of `root`, of all classes or of some."""
    if not root.is_dir():
        raise DataError(
            f"{root}: no such folder; expected {root.parent}/train/<class>/* and {root.parent}/val/<class>/*"
        )
    return find_image_files(root, read, read, classes)


def _require_images(files: ImageFiles) -> None:
    """Raise DataError, naming the class, where a class has no image."""
    counts = Counter(files.targets)
    for label, name in enumerate(files.classes):
        if not counts[label]:
            others = [path for path in files.left_out if path.startswith(f"{name}/")]
            more = f"; files that are no images: {describe_left_out(others)}" if others else ""
            raise DataError(f"{files.root}: class {name!r}: 0 images, at least 1 is needed{more}")
