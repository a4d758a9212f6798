"""A random order of the units: the control that every comparison needs."""

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Self

import torch
from torch import nn

from prune_fe.errors import InputError
from prune_fe.scorers.base import LayerScore, Scorer, Sums
from prune_fe.tracing.layers import Layer
from prune_fe.tracing.nested import Inputs


@dataclass(frozen=True)
class Random(Scorer):
    """Random: the scores are a random permutation of 0, …, units − 1.

    It depends on the seed, the name of the layer and its number of units only.

    Attributes:
        seed: Seed of the permutation.
    """

    seed: int = 0
    needs_data: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if type(self.seed) is not int:
            raise InputError(f"random: seed is {self.seed!r}, allowed are whole numbers")

    def for_seed(self, seed: int) -> Self:
        """Return the scorer with this seed."""
        return replace(self, seed=seed)

    def score(
        self, model: nn.Module, layers: Sequence[Layer], sums: Mapping[str, Sums], example: Inputs | None = None
    ) -> dict[str, LayerScore]:
        """Return a random permutation for each layer."""
        scores = {}
        for layer in layers:
            # A generator for each layer: its order does not depend on which layers are scored beside it.
            generator = torch.Generator().manual_seed(zlib.crc32(f"{self.seed}/{layer.name}".encode()))
            scores[layer.name] = LayerScore(torch.randperm(layer.units, generator=generator).double())
        return scores
