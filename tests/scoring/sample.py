"""A network, images that are counted, and scores of them."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from prune_fe.scorers import SCORERS
from prune_fe.scoring.score import score_all
from prune_fe.scoring.scores import Scores

READERS = [name for name in SCORERS if SCORERS[name].needs_data]
BATCH = 4


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm1 = nn.Conv2d(2, 5, 3, padding=1), nn.BatchNorm2d(5)
        self.second, self.norm2 = nn.Conv2d(5, 4, 3), nn.BatchNorm2d(4)
        self.head, self.fails = nn.Linear(4, 3), False

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm1(self.first(x)))
        if self.fails:
            raise KeyboardInterrupt
        return self.head(torch.relu(self.norm2(self.second(x))).mean((2, 3)))


class Counting(Dataset[Any]):
    """23 images of three classes. reads: which ones were read; those from number `broken` on cannot be."""

    classes = ("cat", "dog", "cow")

    def __init__(self) -> None:
        self.images = torch.randn(23, 2, 9, 9, generator=torch.Generator().manual_seed(5))
        self.targets = [i % 3 for i in range(23)]
        self.reads: list[int] = []
        self.broken = 1000

    def __len__(self) -> int:
        return 23

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        if index >= self.broken:
            raise KeyboardInterrupt
        self.reads.append(index)
        return self.images[index], self.targets[index]


def scored(net: nn.Module, images: Counting, folder: Path | None, scorers: Any = READERS, **options: Any) -> Any:
    """The example is given, so that no image is read for it."""
    usual: dict[str, Any] = {"batch_size": BATCH, "example": images.images[:1]}
    return score_all(net, images, scorers, folder=folder, **usual | options)


def assert_same_bits(one: Scores, other: Scores) -> None:
    assert (one.scorer, one.classes, one.images, one.settings) == (
        other.scorer,
        other.classes,
        other.images,
        other.settings,
    )
    assert one.keep.keys() == other.keep.keys()
    assert one.raw.keys() == other.raw.keys()
    for layer in one.keep:
        np.testing.assert_array_equal(one.keep[layer], other.keep[layer])
        for quantity in one.raw:
            np.testing.assert_array_equal(one.raw[quantity][layer], other.raw[quantity][layer])


def interrupt(net: Net, images: Counting, folder: Path | None, scorers: Any = READERS, **options: Any) -> None:
    """After two batches, by an image that cannot be read; then the image is mended."""
    images.broken = 2 * BATCH + 2
    with pytest.raises(KeyboardInterrupt):
        scored(net, images, folder, scorers, **options)
    images.broken = 1000
    images.reads.clear()
