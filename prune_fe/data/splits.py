"""Training, validation and test images."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch.utils.data import Dataset, Subset

from prune_fe.data.datasets import DecodedWhenDrawn
from prune_fe.data.equal_images import separate_equal_images
from prune_fe.data.labels import image_labels
from prune_fe.data.preprocessing import Preprocessing
from prune_fe.errors import DataError
from prune_fe.options import Count, Seed, Share, validate_value


@dataclass(frozen=True)
class Splits:
    """The images of a data source, in three parts that share no image.

    Attributes:
        train: Images to train on and to score with.
        validation: Images held out of the training images, to choose an epoch by.
        test: Images that nothing is trained on or chosen by.
        classes: The name of each class; a label is an index into them.
        channels: Number of channels of an image.
        size: Height and width of an image, in pixels.
        normalised: (mean, standard deviation) of each channel that the images were normalised with, for pixel values
            from 0 to 1.
        images_per_class: The training and validation images were drawn from more, at most this many of each class;
            None means that all are used.
        skipped: Names of the images that could not be read and were left out.
        steps: How an image becomes the network's input; None means that it is resized to size×size.
        stored_sizes: (width, height) of some of the images as they are stored, in pixels.
    """

    train: Dataset[Any]
    validation: Dataset[Any]
    test: Dataset[Any]
    classes: tuple[str, ...]
    channels: int
    size: int
    normalised: tuple[tuple[float, ...], tuple[float, ...]] = ((0.0,), (1.0,))
    images_per_class: int | None = None
    skipped: tuple[str, ...] = ()
    steps: Preprocessing | None = None
    stored_sizes: tuple[tuple[int, int], ...] = ()

    @property
    def about(self) -> dict[str, Any]:
        """Classes, size and preprocessing of the images, which are saved with a network that was trained on them."""
        mean, std = self.normalised
        steps = (self.steps or Preprocessing(self.size, mean=mean, std=std)).about
        limit = {} if self.images_per_class is None else {"images_per_class": self.images_per_class}
        skipped = {"skipped_images": self.skipped} if self.skipped else {}
        about = {"classes": self.classes, "size": self.size, "channels": self.channels, "preprocessing": steps}
        return about | limit | skipped


def hold_out(
    splits: Splits,
    validation: float,
    seed: int,
    images_per_class: int | None = None,
    count_decoded: Callable[[], None] | None = None,
) -> Splits:
    """Return the same images with a share of the training images held out for validation.

    The result depends on the arguments alone: images that were held out or not drawn before are training images again
    first.

    Args:
        splits: The images; `splits.validation` is replaced.
        validation: Share of the training images of each class, from 0 to less than 1; of the drawn ones where not all
            are used.
        seed: Seed of the draws.
        images_per_class: At most this many images of each class are used, for training and validation together. None
            means all.
        count_decoded: Called after each drawn image that is decoded now.

    Raises:
        InputError: A number is out of range.
        DataError: No class has enough images for one to be held out, or a test image is a training image too.
    """
    check_split(validation, seed, images_per_class)
    every = splits.train.dataset if isinstance(splits.train, Subset) else splits.train
    labels = image_labels(every)
    drawn = draw_of_each_class(labels, splits.classes, images_per_class, seed)
    parts = split_by_class([labels[index] for index in drawn], validation, seed)
    train, held_out = separate_equal_images(every, splits.test, *([drawn[i] for i in part] for part in parts))
    if validation > 0 and not held_out:
        if not train:
            raise DataError("no training images")
        name = splits.classes[labels[train[0]]]
        raise DataError(f"class {name!r}: 1 training image, at least 2 are needed: one is held out for validation")
    if isinstance(every, DecodedWhenDrawn):
        every.decode(drawn, count_decoded)
    return replace(
        splits,
        train=Subset(every, train),
        validation=Subset(every, held_out),
        images_per_class=images_per_class,
    )


def hold_out_of_test(splits: Splits, share: float) -> Splits:
    """Return the same images with a share of the test images held out for validation, and none of the training images.

    The draw is the same for every seed, so that all networks of a run are tested on the same images.

    Args:
        splits: The images.
        share: Share of the test images of each class that become validation images.

    Raises:
        DataError: No class has two test images.
    """
    kept, held_out = split_by_class(image_labels(splits.test), share, seed=0)
    if not held_out:
        raise DataError("no class has 2 test images: of one, none can be held out for validation")
    # The training images that a source has held out for validation are trained on.
    return replace(
        with_all_training_images(splits), validation=Subset(splits.test, held_out), test=Subset(splits.test, kept)
    )


def with_all_training_images(splits: Splits, seed: int = 0) -> Splits:
    """Return the same images, none of the training images held out, with the validation images that there are.

    Args:
        splits: The images; where not all of a class are used, they are drawn again.
        seed: Seed of that draw.
    """
    return replace(hold_out(splits, 0.0, seed, splits.images_per_class), validation=splits.validation)


def check_split(validation: float, seed: int, images_per_class: int | None) -> None:
    """Check the arguments of `hold_out`.

    Raises:
        InputError: One is of a wrong type or out of range.
    """
    validate_value(Share, validation, "validation")
    validate_value(Seed, seed, "seed")
    if images_per_class is not None:
        validate_value(Count, images_per_class, "images_per_class")


def draw_of_each_class(labels: Sequence[int], classes: Sequence[str], number: int | None, seed: int) -> list[int]:
    """Draw images of each class at random.

    Which images of a class are drawn depends on the seed, the name of the class and the number of its images, but not
    on the other classes. More images of a class include those that a smaller `number` draws.

    Args:
        labels: The label of each image, an index into `classes`.
        classes: The name of each class.
        number: Images of each class; a class with fewer gives all of its images. None means all.
        seed: Seed of the draw.

    Returns:
        The indices of the drawn images, sorted.
    """
    if number is None:
        return list(range(len(labels)))
    label_tensor, drawn = torch.tensor(labels), []
    for label in sorted(set(labels)):
        members = (label_tensor == label).nonzero().flatten()
        digest = hashlib.sha256(f"{seed} {classes[label]}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
        drawn += members[torch.randperm(len(members), generator=generator)[:number]].tolist()
    return sorted(drawn)


def split_by_class(labels: Sequence[int], share: float, seed: int) -> tuple[list[int], list[int]]:
    """Split images at random into two parts, class by class.

    Args:
        labels: The label of each image.
        share: Share of each class that goes into the second part. It is rounded to whole images: at least one and
            never all of a class; of a class with a single image, none.
        seed: Seed of the draw.

    Returns:
        The indices of the images in the first part and in the second, each sorted.
    """
    generator = torch.Generator().manual_seed(seed)
    label_tensor, second = torch.tensor(labels), []
    for label in sorted(set(labels)):
        members = (label_tensor == label).nonzero().flatten()
        count = min(max(round(share * len(members)), 1), len(members) - 1) if share > 0 else 0
        second += members[torch.randperm(len(members), generator=generator)[:count]].tolist()
    chosen = set(second)
    return [index for index in range(len(labels)) if index not in chosen], sorted(second)
