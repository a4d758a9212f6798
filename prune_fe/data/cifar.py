"""CIFAR-10 and CIFAR-100 (Krizhevsky 2009)."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch

from prune_fe.data.assemble import Reading
from prune_fe.data.datasets import InMemory
from prune_fe.data.options import VALIDATION, DataOptions
from prune_fe.data.preprocessing import Preprocessing
from prune_fe.data.splits import Splits, check_split, hold_out
from prune_fe.data.transforms import Normalise
from prune_fe.errors import DataError, first_line
from prune_fe.file_types import require_path
from prune_fe.options import Size, validate_value

if TYPE_CHECKING:
    from torchvision.datasets import CIFAR10

CIFAR_MEAN, CIFAR_STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
"""Mean and standard deviation of CIFAR-10; those of CIFAR-100 are in the registry of sources."""


def load(options: DataOptions, *, reading: Reading) -> Splits:
    """Read the images for `prune_fe.data.registry.load_data`."""
    assert options.path is not None
    return _read(options.source, Path(options.path), reading)


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
    steps = Preprocessing(validate_value(Size, size, "size"), mean=CIFAR_MEAN, std=CIFAR_STD)
    check_split(validation, seed, images_per_class)
    reading = Reading(steps=steps, validation=validation, seed=seed, images_per_class=images_per_class)
    return _read("cifar10", require_path(path), reading)


def _read(source: str, root: Path, reading: Reading) -> Splits:
    """Return CIFAR-10 or CIFAR-100 from torchvision's folder `root`."""
    from torchvision.datasets import CIFAR10, CIFAR100

    kind, name = {"cifar10": (CIFAR10, "CIFAR-10"), "cifar100": (CIFAR100, "CIFAR-100")}[source]
    steps, download = reading.steps, not (root / kind.base_folder).exists()
    try:
        parts = [kind(root, train=is_train, download=download) for is_train in (True, False)]
    except (OSError, RuntimeError) as error:
        raise DataError(f"{root}: {name} can be neither read nor downloaded ({first_line(error)})") from error
    train, test = (_decode(part, steps) for part in parts)
    splits = Splits(train, train, test, train.classes, 3, steps.size, (steps.mean, steps.std), stored_sizes=((32, 32),))
    return hold_out(splits, reading.validation, reading.seed, reading.images_per_class)


def _decode(images: CIFAR10, steps: Preprocessing) -> InMemory:
    """Return torchvision's CIFAR with its images resized and normalised."""
    from torchvision.transforms.v2 import functional

    pixels, size = torch.from_numpy(images.data).permute(0, 3, 1, 2).contiguous(), steps.size
    if size != pixels.shape[-1]:
        pixels = torch.stack([functional.resize(image, [size, size], antialias=True) for image in pixels])
    return InMemory(pixels, images.targets, images.classes, Normalise(steps.mean, steps.std))
