"""What every scorer is: settings, a measurement that adds up, and a score."""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Self

from torch import Tensor, nn

from prune_fe.errors import InputError
from prune_fe.layers import Layer

Sums = dict[str, Tensor]
"""Every entry is a sum or a count over images: batches and processes merge with `+` and nothing else."""


@dataclass(frozen=True)
class LayerScore:
    """keep: (units,), higher = keep, finite. raw: quantity -> (units,) or (classes, units)."""

    keep: Tensor
    raw: Mapping[str, Tensor] = field(default_factory=dict)


class Scorer(ABC):
    """A criterion. A subclass is a frozen dataclass of its settings and holds no data."""

    needs_data: ClassVar[bool] = True

    @classmethod
    def with_settings(cls, name: str, settings: Mapping[str, Any]) -> Self:
        """The scorer with these settings; InputError for one that it does not have."""
        allowed = [entry.name for entry in dataclasses.fields(cls)]  # type: ignore[arg-type]
        for key in settings:
            if key not in allowed:
                raise InputError(f"scorer {name!r} has no setting {key!r}; it has {', '.join(allowed) or 'none'}")
        return cls(**settings)

    def check(self, layers: Sequence[Layer]) -> None:  # noqa: B027 - most scorers judge any layer
        """Raise InputError for a layer that this scorer cannot judge, before any image is read."""

    def measure(self, maps: Tensor, labels: Tensor, classes: int) -> Sums:
        """What one batch adds. maps: (images, units, height, width), labels: (images,) int64 in [0, classes)."""
        raise TypeError(f"{type(self).__name__} reads no maps")

    @abstractmethod
    def score(self, model: nn.Module, layers: Sequence[Layer], sums: Mapping[str, Sums]) -> dict[str, LayerScore]:
        """Layer name -> score. sums: layer name -> the total of measure() over all images."""


class MapScorer(Scorer):
    """Judges each layer by its maps alone."""

    @abstractmethod
    def measure(self, maps: Tensor, labels: Tensor, classes: int) -> Sums: ...

    @abstractmethod
    def score_layer(self, sums: Sums) -> LayerScore: ...

    def score(self, model: nn.Module, layers: Sequence[Layer], sums: Mapping[str, Sums]) -> dict[str, LayerScore]:
        return {layer.name: self.score_layer(sums[layer.name]) for layer in layers}


class WeightScorer(Scorer):
    """Judges each layer by its filters alone: (units, channels, height, width)."""

    needs_data: ClassVar[bool] = False

    @abstractmethod
    def score_layer(self, layer: Layer, weight: Tensor) -> LayerScore: ...

    def score(self, model: nn.Module, layers: Sequence[Layer], sums: Mapping[str, Sums]) -> dict[str, LayerScore]:
        scores = {}
        for layer in layers:
            module = model.get_submodule(layer.name)
            if not isinstance(module, nn.Conv2d):
                raise InputError(f"layer {layer.name!r} is a {type(module).__name__} and has no filters of its own")
            scores[layer.name] = self.score_layer(layer, module.weight.detach().double())
        return scores
