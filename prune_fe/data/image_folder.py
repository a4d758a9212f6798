"""A folder of classes, train/<class>/* and val/<class>/*, or a tar file of such a folder."""

from __future__ import annotations

import itertools
from collections import Counter
from pathlib import Path
from typing import Any

from prune_fe.data.archive import unpack
from prune_fe.data.datasets import DecodedWhenDrawn
from prune_fe.data.options import MEMORY_GIB, VALIDATION, DataOptions
from prune_fe.data.registry import Progress
from prune_fe.data.splits import Splits, hold_out
from prune_fe.data.transforms import IMAGENET_MEAN, IMAGENET_STD, Normalise, ResizeToPixels, read_image
from prune_fe.errors import DataError


def load(options: DataOptions, *, seed: int, progress: Progress | None) -> Splits:
    """Read the images for `prune_fe.data.registry.load_data`."""
    assert options.path is not None
    limit = options.images_per_class
    return folder(options.path, options.size, options.validation, seed, options.memory_gib, progress, limit)


def folder(
    path: str | Path,
    size: int,
    validation: float = VALIDATION,
    seed: int = 0,
    memory_gib: float = MEMORY_GIB,
    progress: Progress | None = None,
    images_per_class: int | None = None,
) -> Splits:
    """Return the images of path/train/<class>/* and path/val/<class>/*, as RGB, resized to size×size.

    The images of val/ are the test images; the validation images are held out of those of train/.

    Args:
        path: The folder, or a tar file of it, which the first call unpacks into a folder next to it.
        size: Height and width of the images, in pixels.
        validation: Share of the training images of each class that is held out for validation.
        seed: Decides which images are drawn and held out.
        memory_gib: Images that take at most this much memory are decoded once, others each time they are read.
        progress: Called with (images decoded, all images) where they are decoded once.
        images_per_class: At most this many training images of each class are used; None means all. The others are not
            decoded.

    Raises:
        DataError: A folder, a class or an image is missing or cannot be read.
    """
    root = unpack(Path(path))
    train, test = _image_folder(root / "train", size), _image_folder(root / "val", size)
    if train.classes != test.classes:
        odd = sorted(set(train.classes) ^ set(test.classes))[0]
        raise DataError(f"{root}: class {odd!r} is in train or in val, but not in both")
    n_decoded, normalise = itertools.count(1), Normalise(IMAGENET_MEAN, IMAGENET_STD)

    def count_decoded() -> None:
        if progress is not None:
            progress(next(n_decoded), total)

    counts = Counter(train.targets).values()
    total = len(test) + sum(count if images_per_class is None else min(count, images_per_class) for count in counts)
    if total * 3 * size * size <= memory_gib * 2**30:
        train, test = (DecodedWhenDrawn(part, ResizeToPixels(size), normalise) for part in (train, test))
        test.decode(range(len(test)), count_decoded)
    splits = Splits(train, train, test, tuple(train.classes), 3, size, (IMAGENET_MEAN, IMAGENET_STD))
    return hold_out(splits, validation, seed, images_per_class, count_decoded)


def _image_folder(root: Path, size: int) -> Any:
    """Return torchvision's ImageFolder of `root`, in which every class has an image."""
    from torchvision.datasets import ImageFolder
    from torchvision.transforms import v2

    if not root.is_dir():
        raise DataError(
            f"{root}: no such folder; expected {root.parent}/train/<class>/* and {root.parent}/val/<class>/*"
        )
    try:
        transform = v2.Compose([ResizeToPixels(size), Normalise(IMAGENET_MEAN, IMAGENET_STD)])
        images = ImageFolder(root, transform=transform, loader=read_image, allow_empty=True)
    except FileNotFoundError as error:
        raise DataError(f"{root}: {error}") from error
    if empty := sorted(set(range(len(images.classes))) - set(images.targets)):
        raise DataError(f"{root}: class {images.classes[empty[0]]!r}: 0 images, at least 1 is needed")
    return images
