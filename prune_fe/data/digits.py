"""scikit-learn's scanned digits: a data set that needs no file."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from prune_fe.data.assemble import Reading
from prune_fe.data.datasets import InMemory
from prune_fe.data.options import VALIDATION, DataOptions
from prune_fe.data.preprocessing import Preprocessing
from prune_fe.data.splits import Splits, check_split, hold_out
from prune_fe.data.transforms import Normalise
from prune_fe.options import Size, validate_value

NORMALISED = ((0.5,), (0.5,))
"""Mean and standard deviation that map pixel values from 0 to 1 onto −1 to 1."""


def load(options: DataOptions, *, reading: Reading) -> Splits:
    """Read the images for `prune_fe.data.registry.load_data`."""
    return _read(reading.steps, reading.validation, reading.seed, reading.images_per_class)


def digits(
    size: int = 32, validation: float = VALIDATION, seed: int = 0, images_per_class: int | None = None
) -> Splits:
    """Return scikit-learn's 1,797 scanned digits (8×8 pixels, one channel), enlarged to size×size.

    Every fifth image is a test image.

    Args:
        size: Height and width of the images, in pixels.
        validation: Share of the training images of each class that is held out for validation.
        seed: Decides which images are drawn and held out.
        images_per_class: At most this many training images of each class are used; None means all.
    """
    mean, std = NORMALISED
    steps = Preprocessing(validate_value(Size, size, "size"), mean=mean, std=std)
    check_split(validation, seed, images_per_class)
    return _read(steps, validation, seed, images_per_class)


def _read(steps: Preprocessing, validation: float, seed: int, images_per_class: int | None) -> Splits:
    """Return the digits, resized and normalised as `steps` says."""
    from sklearn.datasets import load_digits

    size, normalised = steps.size, (steps.mean, steps.std)
    scans = load_digits()
    pixels = torch.from_numpy(scans.images).float()[:, None] * (255 / 16)  # the scans have values from 0 to 16
    pixels = torch.nn.functional.interpolate(pixels, (size, size), mode="bilinear", align_corners=False)
    pixels, targets = pixels.round().to(torch.uint8), scans.target.tolist()
    classes = tuple(str(name) for name in scans.target_names)

    def subset(indices: Sequence[int]) -> InMemory:
        return InMemory(pixels[list(indices)], [targets[i] for i in indices], classes, Normalise(*normalised))

    train = subset([index for index in range(len(targets)) if index % 5])
    test = subset(range(0, len(targets), 5))
    splits = Splits(train, train, test, classes, 1, size, normalised, stored_sizes=((8, 8),))
    return hold_out(splits, validation, seed, images_per_class)
