"""CIFAR-10 (Krizhevsky 2009)."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch

from prune_fe.data.datasets import InMemory
from prune_fe.data.options import VALIDATION, DataOptions
from prune_fe.data.registry import Progress
from prune_fe.data.splits import Splits, check_split, hold_out
from prune_fe.data.transforms import Normalise
from prune_fe.errors import DataError, first_line
from prune_fe.file_types import require_path
from prune_fe.options import Size, validate_value

if TYPE_CHECKING:
    from torchvision.datasets import CIFAR10

CIFAR_MEAN, CIFAR_STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)


def load(options: DataOptions, *, seed: int, progress: Progress | None) -> Splits:
    """Read the images for `prune_fe.data.registry.load_data`."""
    assert options.path is not None
    return cifar10(options.path, options.size, options.validation, seed, options.images_per_class)


def cifar10(
    path: str | Path, size: int = 32, validation: float = VALIDATION, seed: int = 0, images_per_class: int | None = None
) -> Splits:
    """Return CIFAR-10 from a folder in torchvision's format; the first call downloads it.

    Args:
        path: The folder that holds `cifar-10-batches-py`.
        size: Height and width of the images, in pixels; other sizes than 32 are resized.
        validation: Share of the training images of each class that is held out for validation.
        seed: Decides which images are drawn and held out.
        images_per_class: At most this many training images of each class are used; None means all.

    Raises:
        DataError: The images cannot be read or downloaded.
    """
    from torchvision.datasets import CIFAR10

    size = validate_value(Size, size, "size")
    check_split(validation, seed, images_per_class)
    root = require_path(path)
    download = not (root / CIFAR10.base_folder).exists()
    try:
        parts = [CIFAR10(root, train=is_train, download=download) for is_train in (True, False)]
    except (OSError, RuntimeError) as error:
        raise DataError(f"{root}: CIFAR-10 can be neither read nor downloaded ({first_line(error)})") from error
    train, test = (_decode(part, size) for part in parts)
    return hold_out(
        Splits(train, train, test, train.classes, 3, size, (CIFAR_MEAN, CIFAR_STD)), validation, seed, images_per_class
    )


def _decode(images: CIFAR10, size: int) -> InMemory:
    """Return torchvision's CIFAR-10 with its images resized to size×size."""
    from torchvision.transforms.v2 import functional

    pixels = torch.from_numpy(images.data).permute(0, 3, 1, 2).contiguous()
    if size != pixels.shape[-1]:
        pixels = torch.stack([functional.resize(image, [size, size], antialias=True) for image in pixels])
    return InMemory(pixels, images.targets, images.classes, Normalise(CIFAR_MEAN, CIFAR_STD))
