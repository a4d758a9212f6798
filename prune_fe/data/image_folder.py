"""A folder of classes, train/<class>/* and val/<class>/*, or a tar file of such a folder."""

from __future__ import annotations

import itertools
import warnings
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import torch

from prune_fe.data.archive import unpack
from prune_fe.data.datasets import DecodedWhenDrawn
from prune_fe.data.image_files import ImageFiles, describe_left_out, find_image_files, refuse_repeated_files
from prune_fe.data.options import MEMORY_GIB, VALIDATION, DataOptions
from prune_fe.data.registry import Progress
from prune_fe.data.splits import Splits, check_split, hold_out
from prune_fe.data.transforms import IMAGENET_MEAN, IMAGENET_STD, Normalise, ResizeToPixels, Steps, read_image
from prune_fe.errors import DataError
from prune_fe.file_types import require_path
from prune_fe.io import shorten
from prune_fe.options import Natural, NonNegative, Size, validate_value


def load(options: DataOptions, *, seed: int, progress: Progress | None) -> Splits:
    """Read the images for `prune_fe.data.registry.load_data`."""
    assert options.path is not None
    return folder(
        options.path,
        options.size,
        options.validation,
        seed,
        options.memory_gib,
        progress,
        options.images_per_class,
        options.skip_bad,
        options.classes,
    )


def folder(
    path: str | Path,
    size: int,
    validation: float = VALIDATION,
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
        validation: Share of the training images of each class that is held out for validation.
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
    size, skip_bad = validate_value(Size, size, "size"), validate_value(Natural, skip_bad, "skip_bad")
    memory_gib = validate_value(NonNegative, memory_gib, "memory_gib")
    check_split(validation, seed, images_per_class)
    root = unpack(require_path(path))
    train, test = (_image_files(root / part, size, classes) for part in ("train", "val"))
    refuse_repeated_files(train, test)
    if left_out := [f"{part.root.name}/{name}" for part in (train, test) for name in part.left_out]:
        warnings.warn(f"{root}: {len(left_out)} files are no images: {describe_left_out(left_out)}", stacklevel=2)
    skipped: tuple[str, ...] = ()
    if skip_bad:
        train, test, skipped = _skip_unreadable(root, train, test, skip_bad)
    for part in (train, test):
        _require_images(part)
    if train.classes != test.classes:
        odd = sorted(set(train.classes) ^ set(test.classes))[0]
        raise DataError(f"{root}: class {odd!r} is in train or in val, but not in both")
    n_decoded, normalise = itertools.count(1), Normalise(IMAGENET_MEAN, IMAGENET_STD)

    def count_decoded() -> None:
        if progress is not None:
            progress(next(n_decoded), total)

    counts = Counter(train.targets).values()
    total = len(test) + sum(count if images_per_class is None else min(count, images_per_class) for count in counts)
    splits = Splits(train, train, test, train.classes, 3, size, (IMAGENET_MEAN, IMAGENET_STD), skipped=skipped)
    if total * 3 * size * size <= memory_gib * 2**30:
        decoded, tests = (DecodedWhenDrawn(part, ResizeToPixels(size), normalise) for part in (train, test))
        tests.decode(range(len(tests)), count_decoded)
        splits = replace(splits, train=decoded, test=tests)
    return hold_out(splits, validation, seed, images_per_class, count_decoded)


def _image_files(root: Path, size: int, classes: int | Sequence[str] | None) -> ImageFiles:
    """Return the image files of `root`, of all classes or of some."""
    if not root.is_dir():
        raise DataError(
            f"{root}: no such folder; expected {root.parent}/train/<class>/* and {root.parent}/val/<class>/*"
        )
    transform = Steps((ResizeToPixels(size), Normalise(IMAGENET_MEAN, IMAGENET_STD)))
    return find_image_files(root, read_image, transform, classes)


def _require_images(files: ImageFiles) -> None:
    """Raise DataError, naming the class, where a class has no image."""
    counts = Counter(files.targets)
    for label, name in enumerate(files.classes):
        if not counts[label]:
            others = [path for path in files.left_out if path.startswith(f"{name}/")]
            more = f"; files that are no images: {describe_left_out(others)}" if others else ""
            raise DataError(f"{files.root}: class {name!r}: 0 images, at least 1 is needed{more}")


def _skip_unreadable(
    root: Path, train: ImageFiles, test: ImageFiles, limit: int
) -> tuple[ImageFiles, ImageFiles, tuple[str, ...]]:
    """Return the files without those that cannot be read, and the paths of these, relative to `root`.

    Raises:
        DataError: There are more than `limit`.
    """

    def is_readable(path: str) -> bool:
        try:
            read_image(path)
        except DataError:
            return False
        return True

    bad = list[str]()
    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        for part in (train, test):
            paths = [path for path, _ in part.samples]
            bad += [path for path, good in zip(paths, pool.map(is_readable, paths), strict=True) if not good]
    names = tuple(Path(path).relative_to(root).as_posix() for path in bad)
    if len(bad) > limit:
        raise DataError(f"{root}: {len(bad)} images cannot be read, {limit} may be skipped: {shorten(names)}")
    if bad:
        warnings.warn(f"{root}: {len(bad)} images cannot be read and are left out: {', '.join(names)}", stacklevel=3)
    unread = set(bad)
    train, test = (
        part.without(i for i, (path, _) in enumerate(part.samples) if path in unread) for part in (train, test)
    )
    return train, test, names
