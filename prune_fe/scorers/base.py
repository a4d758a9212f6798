"""What every scorer is: settings, a measurement that adds up, and a score."""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from prune_fe.errors import InputError
from prune_fe.tracing.feature_maps import Layer


@dataclass(frozen=True)
class Rows:
    """One row an image; `+` puts rows below rows. The one measurement that grows with the number of images, to no
    more than `most`."""

    values: Tensor
    most: int

    def __post_init__(self) -> None:
        if len(self.values) > self.most:
            raise InputError(
                f"each image leaves a row, at most {self.most} are kept (setting rows); take fewer samples"
            )

    def __add__(self, other: Rows) -> Rows:
        return Rows(torch.cat([self.values, other.values]), self.most)


Sums = dict[str, Tensor | Rows]
"""Every entry is a sum or a count over images: batches and processes merge with `+` and nothing else."""


@dataclass(frozen=True)
class LayerScore:
    """keep: (units,), higher = keep, finite. raw: quantity -> (units,) or (classes, units)."""

    keep: Tensor
    raw: Mapping[str, Tensor] = field(default_factory=dict)


class Scorer(ABC):
    """A criterion. A subclass is a frozen dataclass of its settings and holds no data."""

    needs_data: ClassVar[bool] = True
    needs_example: ClassVar[bool] = False
    """Whether the network must run once, be it on zeros, to know what follows which convolution."""
    needs_gradients: ClassVar[bool] = False
    compares_classes: ClassVar[bool] = False
    """Whether a score for one class needs images of the others too; `for_class` then says which class is meant."""

    def for_seed(self, seed: int) -> Self:
        """Return this scorer with the seed of a run: itself, unless it draws random numbers."""
        return self

    def for_class(self, label: int) -> Self:
        """Return this scorer for the study of one class: itself, unless it compares classes."""
        return self

    @classmethod
    def with_settings(cls, name: str, settings: Mapping[str, Any]) -> Self:
        """The scorer with these settings; InputError for one that it does not have."""
        allowed = [entry.name for entry in dataclasses.fields(cls)]  # type: ignore[arg-type]
        for key in settings:
            if key not in allowed:
                raise InputError(f"scorer {name!r} has no setting {key!r}; it has {', '.join(allowed) or 'none'}")
        return cls(**settings)

    @property
    def settings(self) -> dict[str, Any]:
        return {entry.name: getattr(self, entry.name) for entry in dataclasses.fields(self)}  # type: ignore[arg-type]

    def check(self, layers: Sequence[Layer], images: int = 0, labels: Collection[int] = ()) -> None:  # noqa: B027
        """Raise InputError for what this scorer cannot judge, before any image is read. images: how many there will
        be, labels: of which classes; 0 and () = not known."""

    def observed(self, model: nn.Module, layers: Sequence[Layer], example: Tensor) -> Sequence[Layer]:
        """The layers whose maps measure() is to see: those that are judged."""
        return layers

    def measure(self, maps: Tensor, labels: Tensor, classes: int) -> Sums:
        """What one batch adds. maps: (images, units, height, width), labels: (images,) int64 in [0, classes)."""
        raise TypeError(f"{type(self).__name__} reads no maps")

    def measure_gradients(self, gradients: Tensor) -> Sums:
        """What one batch adds, for a scorer that needs gradients. gradients: (images, units), of each image's own
        cross-entropy with respect to a factor 1 on the unit's map."""
        raise TypeError(f"{type(self).__name__} reads no gradients")

    @abstractmethod
    def score(
        self, model: nn.Module, layers: Sequence[Layer], sums: Mapping[str, Sums], example: Tensor | None = None
    ) -> dict[str, LayerScore]:
        """Layer name -> score. sums: layer name -> the total of measure() over all images. example: one image."""


class SumScorer(Scorer):
    """Judges each layer by its sums alone."""

    @abstractmethod
    def score_layer(self, sums: Any) -> LayerScore: ...

    def score(
        self, model: nn.Module, layers: Sequence[Layer], sums: Mapping[str, Sums], example: Tensor | None = None
    ) -> dict[str, LayerScore]:
        return {layer.name: self.score_layer(sums[layer.name]) for layer in layers}


class MapScorer(SumScorer):
    """Judges each layer by its maps alone."""

    @abstractmethod
    def measure(self, maps: Tensor, labels: Tensor, classes: int) -> Sums: ...


class GradientScorer(SumScorer):
    """Judges each layer by the gradients at its units alone."""

    needs_gradients: ClassVar[bool] = True

    @abstractmethod
    def measure_gradients(self, gradients: Tensor) -> Sums: ...


class WeightScorer(Scorer):
    """Judges each layer by its filters alone: (units, channels, height, width)."""

    needs_data: ClassVar[bool] = False

    @abstractmethod
    def score_layer(self, layer: Layer, weight: Tensor) -> LayerScore: ...

    def score(
        self, model: nn.Module, layers: Sequence[Layer], sums: Mapping[str, Sums], example: Tensor | None = None
    ) -> dict[str, LayerScore]:
        scores = {}
        for layer in layers:
            module = model.get_submodule(layer.name)
            if not isinstance(module, nn.Conv2d):
                raise InputError(f"layer {layer.name!r} is a {type(module).__name__} and has no filters of its own")
            scores[layer.name] = self.score_layer(layer, wide(module.weight))
        return scores


def map_totals(maps: Tensor, value: Callable[[Tensor], Tensor] = lambda pixels: pixels) -> Tensor:
    """Σ over the positions of value(maps), (images, units) float64 on the CPU.

    Image by image: a float64 copy of all maps would need twice their memory, and no image's total depends on the
    batch that it came in. InputError names a unit whose map is not finite.
    """
    if maps.device.type == "mps":  # which has no float64
        maps = maps.cpu()
    totals = torch.stack([value(image).sum(dim=(1, 2), dtype=torch.float64) for image in maps]).cpu()
    finite = totals.isfinite()
    if not finite.all():
        image, unit = (~finite).nonzero()[0].tolist()
        raise InputError(f"unit {unit}: the map of image {image} of the batch holds NaN or infinite values")
    return totals


def wide(values: Tensor) -> Tensor:
    """The values in float64, on their device or, if that is mps, which has none, on the CPU."""
    values = values.detach()
    return (values.cpu() if values.device.type == "mps" else values).double()


def one_of(scorer: str, setting: str, value: Any, allowed: Sequence[Any]) -> None:
    """InputError unless the setting's value is one of those allowed."""
    if value not in allowed:
        raise InputError(f"{scorer}: {setting} is {value!r}, allowed are {', '.join(map(str, allowed))}")
