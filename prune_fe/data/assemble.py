"""From the stored images of a source to its training, validation and test images; all sources of files share it."""

from __future__ import annotations

import itertools
import warnings
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import TypeVar

import torch

from prune_fe.data.datasets import DECODED_TOGETHER, DecodedWhenDrawn
from prune_fe.data.options import MEMORY_GIB, VALIDATION
from prune_fe.data.preprocessing import Preprocessing
from prune_fe.data.registry import Progress
from prune_fe.data.splits import Splits, hold_out
from prune_fe.data.stored_images import StoredImages
from prune_fe.data.transforms import Normalise, ToPixels, prepare
from prune_fe.errors import DataError
from prune_fe.io import shorten

Images = TypeVar("Images", bound=StoredImages)

N_MEASURED = 100
"""So many images are looked at to say how large they are."""


@dataclass(frozen=True, kw_only=True)
class Reading:
    """How stored images are read.

    Attributes:
        steps: How an image becomes a network's input.
        crops_in_training: Whether training reads random crops.
        validation: Share of the training images of each class that is held out for validation.
        seed: Decides which images are drawn and held out.
        memory_gib: Images that take at most this much memory are decoded once, others each time they are read.
        images_per_class: At most this many training images of each class are used; None means all.
        progress: Called with (images decoded, all images) where they are decoded once.
    """

    steps: Preprocessing
    crops_in_training: bool = False
    validation: float = VALIDATION
    seed: int = 0
    memory_gib: float = MEMORY_GIB
    images_per_class: int | None = None
    progress: Progress | None = None


def make_splits(train: StoredImages, test: StoredImages, reading: Reading, skipped: tuple[str, ...] = ()) -> Splits:
    """Return the splits of stored images: validation images are held out of the training images.

    Args:
        train: Training and validation images.
        test: Test images, of the same classes.
        reading: How they are read.
        skipped: Names of images that could not be read and are left out.

    Raises:
        DataError: The classes differ, a class has too few images, or a test image is a training image too.
    """
    require_equal_classes(train, test)
    steps, limit, progress = reading.steps, reading.images_per_class, reading.progress
    train, test = (set_steps(part, reading) for part in (train, test))
    n_decoded = itertools.count(1)

    def count_decoded() -> None:
        if progress is not None:
            progress(next(n_decoded), total)

    counts = Counter(train.targets).values()
    total = len(test) + sum(count if limit is None else min(count, limit) for count in counts)
    splits = Splits(
        train,
        train,
        test,
        train.classes,
        3,
        steps.size,
        (steps.mean, steps.std),
        skipped=skipped,
        steps=steps,
        stored_sizes=measure_sizes(train),
    )
    if total * 3 * steps.size**2 <= reading.memory_gib * 2**30:
        to_pixels, normalise = ToPixels(steps), Normalise(steps.mean, steps.std)
        decoded, tests = (DecodedWhenDrawn(part, to_pixels, normalise) for part in (train, test))
        tests.decode(range(len(tests)), count_decoded)
        splits = replace(splits, train=decoded, test=tests)
    return hold_out(splits, reading.validation, reading.seed, limit, count_decoded)


def set_steps(images: Images, reading: Reading) -> Images:
    """Set how stored images are read, and return them."""
    images.steps, images.transform = reading.steps, prepare(reading.steps)
    images.crops_in_training = reading.crops_in_training
    return images


def require_equal_classes(train: StoredImages, test: StoredImages) -> None:
    """Raise DataError, naming a class, unless training and test images have the same classes, and images of each."""
    for part, name in ((train, "training"), (test, "test")):
        require_all_classes(part, name)
    if train.classes != test.classes:
        odd = sorted(set(train.classes) ^ set(test.classes))
        if not odd:
            raise DataError("the classes of the training and the test images are the same in another order")
        has, lacks = ("training", "test") if odd[0] in train.classes else ("test", "training")
        raise DataError(f"class {odd[0]!r}: the {has} images have it, the {lacks} images do not")


def require_all_classes(images: StoredImages, name: str) -> None:
    """Raise DataError, naming a class, unless there is an image of each; `name` says which images they are."""
    counts = Counter(images.targets)
    if empty := [images.classes[label] for label in range(len(images.classes)) if not counts[label]]:
        raise DataError(f"class {empty[0]!r}: 0 {name} images, at least 1 is needed")


def skip_unreadable(
    train: Images, test: Images, limit: int, where: str, names: tuple[str, str] = ("train", "val")
) -> tuple[Images, Images, tuple[str, ...]]:
    """Return the images without those that cannot be read, and the names of these; all images are decoded for it.

    Args:
        train: Training and validation images.
        test: Test images.
        limit: At most so many may be left out; with 0 no image is decoded.
        where: Where the images come from, for messages.
        names: What the two parts are called.

    Raises:
        DataError: There are more than `limit`.
    """
    if not limit:
        return train, test, ()
    bad = [_find_unreadable(part) for part in (train, test)]
    skipped = tuple(
        f"{name}/{part.names[index]}"
        for name, part, indices in zip(names, (train, test), bad, strict=True)
        for index in indices
    )
    if len(skipped) > limit:
        raise DataError(f"{where}: {len(skipped)} images cannot be read, {limit} may be skipped: {shorten(skipped)}")
    if skipped:
        listed = ", ".join(skipped)
        warnings.warn(f"{where}: {len(skipped)} images cannot be read and are left out: {listed}", stacklevel=4)
    return train.without(bad[0]), test.without(bad[1]), skipped


def _find_unreadable(images: StoredImages) -> list[int]:
    """Return the indices of the images that cannot be decoded."""

    def find_in_part(start: int) -> list[int]:
        bad = []
        for index in range(start, min(start + DECODED_TOGETHER, len(images))):
            try:
                images.load(index)
            except DataError:
                bad.append(index)
        return bad

    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        parts = pool.map(find_in_part, range(0, len(images), DECODED_TOGETHER))
        return [index for part in parts for index in part]


def measure_sizes(images: StoredImages) -> tuple[tuple[int, int], ...]:
    """Return (width, height) of up to `N_MEASURED` images, spread over all; those that cannot be read are left out."""
    sizes = []
    for index in range(0, len(images), max(len(images) // N_MEASURED, 1)):
        try:
            sizes.append(images.pixel_size(index))
        except DataError:  # It is reported when the image is read, or skipped.
            continue
    return tuple(sizes[: N_MEASURED + 1])
