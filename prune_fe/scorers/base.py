"""The interface of a scorer: its settings, a measurement that adds up over batches, and a score per unit.

To write a scorer, subclass `MapScorer`, `GradientScorer`, `WeightScorer` or, for anything else, `Scorer`:

    >>> @dataclass(frozen=True)
    ... class LargestWeight(WeightScorer):
    ...     def score_layer(self, layer, weight):
    ...         return LayerScore(weight.abs().flatten(1).amax(dim=1))
    >>> net = nn.Sequential(nn.Conv2d(1, 2, 1, bias=False))
    >>> _ = net[0].weight.data.copy_(torch.tensor([-3.0, 2.0]).view(2, 1, 1, 1))
    >>> LargestWeight().score(net, [Layer("0", 2, (0, 0))], {})["0"].keep.tolist()
    [3.0, 2.0]

What such a scorer gets of a layer, besides the maps (images, units, height, width) and the filters (units, channels,
height, width) of a convolution over two dimensions:

- linear layer (option `linear`): its outputs (images, units, positions, 1), where the positions are the tokens or
  pixels that the layer reads one by one, 1 for features; its weights (units, inputs, 1, 1).
- convolution over one or three dimensions: its outputs (images, units, positions, 1); its filters (units, channels,
  length, 1) or (units, channels, depth · height · width, 1).
- transposed convolution: maps; the filters of its output channels, (units, channels, height, width).
- layer whose rows are windows of an image: the positions of all windows of the image in one.
- layer that runs several times: the outputs of each run, so that its sums are those over the images and the runs; but
  one gradient for all runs.

A scorer that needs more, such as square maps, says so in `why_unfit`.
"""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, Self, get_args

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from prune_fe.errors import InputError, PruneFEError, describe_error
from prune_fe.scorers.counts import Counts
from prune_fe.tracing.layers import Layer
from prune_fe.tracing.nested import Inputs
from prune_fe.tracing.weights import all_finite


@dataclass(frozen=True)
class Rows:
    """A bounded list of rows, one per image; `+` appends the rows of the other.

    The only measurement that grows with the number of images.

    Attributes:
        values: The rows, shape (images, …).
        max_rows: Largest number of rows; more raise InputError.
    """

    values: Tensor
    max_rows: int

    def __post_init__(self) -> None:
        if len(self.values) > self.max_rows:
            raise InputError(
                f"each image leaves a row, at most {self.max_rows} are kept (setting rows); take fewer samples"
            )

    def __add__(self, other: Rows) -> Rows:
        return Rows(torch.cat([self.values, other.values]), self.max_rows)


Sums = dict[str, Tensor | Rows | Counts]
"""A measurement. Every entry is a sum or a count over images, so that batches and processes are merged by `+` alone."""


@dataclass(frozen=True)
class LayerScore:
    """The scores of the units of one layer.

    Attributes:
        keep: The score of each unit, shape (units,), finite. Units with the lowest scores are pruned first.
        raw: Quantities that the scores are computed from, by name with the unit of measure: (units,) or
            (classes, units).
    """

    keep: Tensor
    raw: Mapping[str, Tensor] = field(default_factory=dict)


class Scorer(ABC):
    """A pruning criterion.

    A subclass is a frozen dataclass. Its fields are the settings, and it holds no data: `measure` turns a batch into
    sums, the caller adds these up, and `score` turns the totals into scores.
    """

    needs_data: ClassVar[bool] = True
    """Whether the scorer reads images; if not, its sums are empty."""
    needs_example: ClassVar[bool] = False
    """Whether the network must run once, on an image or on zeros, to know what follows each layer."""
    needs_gradients: ClassVar[bool] = False
    """Whether `measure_gradients` is called for each batch in place of `measure`."""
    compares_classes: ClassVar[bool] = False
    """Whether a score for one class needs images of the others too; `for_class` then says which class is meant."""
    later_settings: ClassVar[Mapping[str, Any]] = {}
    """Setting that a later version added -> the value at which the scores are those of the earlier versions. At this
    value the setting does not enter the key of stored scores, so that scores of earlier versions are found again."""

    @classmethod
    def with_settings(cls, name: str, settings: Mapping[str, Any]) -> Self:
        """Return a scorer with these settings.

        Args:
            name: Name of the scorer in error messages.
            settings: Values by name of the setting; those left out have their defaults.

        Raises:
            InputError: The scorer has no such setting, or a value is not allowed.
        """
        allowed = [entry.name for entry in _fields(cls, name)]
        for key in settings:
            if key not in allowed:
                raise InputError(f"scorer {name!r} has no setting {key!r}; it has {', '.join(allowed) or 'none'}")
        for entry in _fields(cls, name):
            needs_value = entry.default is dataclasses.MISSING and entry.default_factory is dataclasses.MISSING
            if entry.init and needs_value and entry.name not in settings:
                raise InputError(f"scorer {name!r} has no default for its setting {entry.name!r}; give it a value")
        return cls(**settings)

    @property
    def settings(self) -> dict[str, Any]:
        """The settings by name."""
        return {entry.name: getattr(self, entry.name) for entry in _fields(type(self), type(self).__name__)}

    def for_seed(self, seed: int) -> Self:
        """Return this scorer with the seed of a run: itself, unless it draws random numbers."""
        return self

    def for_class(self, label: int) -> Self:
        """Return this scorer for the study of one class: itself, unless it compares classes."""
        return self

    def keep_of_class(self, raw: Mapping[str, Tensor], row: int, images: int) -> Tensor | None:
        """Return the scores of one class, higher = keep, from the quantities of all classes.

        Args:
            raw: The quantities of one layer, as in a `LayerScore`.
            row: The class's row in the quantities that are known for each class.
            images: Number of images of the class, or more.

        Returns:
            (units,); None if the scorer keeps nothing for each class.
        """
        return None

    def why_unfit(self, layer: Layer) -> str | None:
        """Return why the scorer cannot score a layer that has no map, or runs several times; None if it can.

        Such a layer is left out, with this reason, unless it was asked for by name.
        """
        if layer.rows == 0 and self.needs_data:
            return "it is not known which image a row of its output belongs to"
        return None

    def check(self, layers: Sequence[Layer], images: int = 0, labels: Collection[int] = ()) -> None:  # noqa: B027
        """Raise an error if this scorer cannot score the layers on the images, before any image is read.

        Args:
            layers: The layers to be scored.
            images: How many images will be read, 0 if that is not known.
            labels: The classes of these images, empty if that is not known.

        Raises:
            InputError: The scorer cannot score these layers on these images.
            EnvironmentFault: A library that the settings need is not installed.
        """

    def observed_layers(self, model: nn.Module, layers: Sequence[Layer], example: Inputs) -> Sequence[Layer]:
        """Return the layers whose maps `measure` reads: by default those that are scored."""
        return layers

    def measure(self, maps: Tensor, labels: Tensor, classes: int) -> Sums:
        """Return what one batch adds to the sums of one layer.

        Args:
            maps: Feature maps, (images, units, height, width). The outputs of a layer without maps, such as a linear
                layer on tokens, are (images, units, positions, 1).
            labels: The class of each image, (images,) int64 in [0, classes).
            classes: Number of classes.
        """
        raise TypeError(f"{type(self).__name__} reads no maps")

    def measure_gradients(self, gradients: Tensor) -> Sums:
        """Return what one batch adds to the sums of one layer, for a scorer that needs gradients.

        Args:
            gradients: (images, units), the derivative of each image's own cross-entropy with respect to a factor by
                which the unit's outputs are multiplied, at factor 1: at all positions and in all runs of the layer.
        """
        raise TypeError(f"{type(self).__name__} reads no gradients")

    @abstractmethod
    def score(
        self, model: nn.Module, layers: Sequence[Layer], sums: Mapping[str, Sums], example: Inputs | None = None
    ) -> dict[str, LayerScore]:
        """Return the scores of every layer.

        Args:
            model: The network.
            layers: The layers to be scored.
            sums: For each observed layer, the total of `measure` over all images.
            example: One image, (1, channels, height, width).

        Returns:
            Scores by name of the layer.
        """


class SumScorer(Scorer):
    """A scorer that scores each layer from the sums of this layer alone."""

    @abstractmethod
    def score_layer(self, sums: Any) -> LayerScore:
        """Return the scores of a layer from its total over all images."""

    def score(
        self, model: nn.Module, layers: Sequence[Layer], sums: Mapping[str, Sums], example: Inputs | None = None
    ) -> dict[str, LayerScore]:
        """Return the scores of every layer, each from its own sums."""
        scores = {}
        for layer in layers:
            with explain_faults(self, layer.name):
                scores[layer.name] = self.score_layer(sums[layer.name])
        return scores


class MapScorer(SumScorer):
    """A scorer that scores each layer from its feature maps alone."""

    @abstractmethod
    def measure(self, maps: Tensor, labels: Tensor, classes: int) -> Sums:
        """Return what one batch adds to the sums of one layer; see `Scorer.measure`."""


Read = Literal["map", "before_norm"]


@dataclass(frozen=True, kw_only=True)
class ActivationScorer(MapScorer):
    """A scorer of maps with the setting `read`, which says where in the network they are read.

    Attributes:
        read: "map" reads the unit's map, behind the norm and the activation that follow the layer. "before_norm" reads
            the output of the layer itself, and sets its negative values to 0, as NNI does (github.com/microsoft/nni,
            v2.5, `ActivationPruner`: a hook on the convolution, followed by its `activation='relu'`), so that a batch
            norm between the layer and its activation plays no part.
    """

    label: ClassVar[str]
    """The name of the scorer, for messages."""

    read: Read = "map"
    later_settings: ClassVar[Mapping[str, Any]] = {"read": "map"}

    def __post_init__(self) -> None:
        check_choice(self.label, "read", self.read, get_args(Read))

    def observed_layers(self, model: nn.Module, layers: Sequence[Layer], example: Inputs) -> Sequence[Layer]:
        """Return the layers, with `read: before_norm` without the steps that follow them."""
        return layers if self.read == "map" else [dataclasses.replace(layer, steps=0) for layer in layers]

    def measure(self, maps: Tensor, labels: Tensor, classes: int) -> Sums:
        """Return what one batch adds to the sums of one layer; see `Scorer.measure`."""
        return self.measure_maps(maps if self.read == "map" else maps.relu(), labels, classes)

    @abstractmethod
    def measure_maps(self, maps: Tensor, labels: Tensor, classes: int) -> Sums:
        """Return what one batch adds to the sums of one layer, from the maps that `read` names."""


class GradientScorer(SumScorer):
    """A scorer that scores each layer from the gradients at its units alone."""

    needs_gradients: ClassVar[bool] = True

    @abstractmethod
    def measure_gradients(self, gradients: Tensor) -> Sums:
        """Return what one batch adds to the sums of one layer; see `Scorer.measure_gradients`."""


class WeightScorer(Scorer):
    """A scorer that scores each layer from its filters alone."""

    needs_data: ClassVar[bool] = False

    @abstractmethod
    def score_layer(self, layer: Layer, weight: Tensor) -> LayerScore:
        """Return the scores of a layer from its filters.

        Args:
            layer: The layer.
            weight: (units, channels, height, width) float64. Those of a linear layer are (units, inputs, 1, 1), of a
                convolution over one dimension (units, channels, length, 1), and over three dimensions (units, channels,
                depth · height · width, 1).
        """

    def score(
        self, model: nn.Module, layers: Sequence[Layer], sums: Mapping[str, Sums], example: Inputs | None = None
    ) -> dict[str, LayerScore]:
        """Return the scores of every layer, each from its own filters.

        Raises:
            InputError: A layer is neither a convolution nor linear.
        """
        scores = {}
        for layer in layers:
            module = model.get_submodule(layer.name)
            filters = by_filter(module, weight_of(module, layer.name))
            with explain_faults(self, layer.name):
                scores[layer.name] = self.score_layer(layer, filters)
        return scores


def weight_of(module: nn.Module, name: str) -> Tensor:
    """Return the weight of a convolution or linear layer.

    Args:
        module: The layer.
        name: Its name, for the error message.

    Raises:
        InputError: The module is neither.
    """
    if not isinstance(module, _ConvNd | nn.Linear):
        raise InputError(f"layer {name!r} is a {type(module).__name__} and has no filters of its own")
    return module.weight


def by_filter(module: nn.Module, values: Tensor) -> Tensor:
    """Return one value for each weight of a convolution or linear layer as (units, channels, height, width) float64.

    Args:
        module: The layer.
        values: The weight of the layer, or values of its shape.
    """
    weight = to_float64(values)
    if isinstance(module, _ConvTransposeNd):  # (inputs, units / groups, …), the units of a group beside its inputs
        by_group = weight.reshape(module.groups, -1, *weight.shape[1:])
        weight = by_group.transpose(1, 2).reshape(module.out_channels, -1, *weight.shape[2:])
    return weight if weight.ndim == 4 else weight.reshape(*weight.shape[:2], -1, 1)


def split_layers(scorer: Scorer, layers: Sequence[Layer]) -> tuple[tuple[Layer, ...], dict[str, str]]:
    """Return the layers that a scorer can score, and the name of each of the others -> why it cannot.

    Layers with maps that run once are never left out: what is wrong with one of them is an error of `check`.

    Args:
        scorer: The scorer.
        layers: The layers, in the order in which they run.
    """
    unfit: dict[str, str] = {}
    for layer in layers:
        if not layer.has_map or layer.runs > 1:
            with explain_faults(scorer, layer.name):
                reason = scorer.why_unfit(layer)
            if reason is not None:
                unfit[layer.name] = reason
    return tuple(layer for layer in layers if layer.name not in unfit), unfit


@contextmanager
def explain_faults(scorer: Scorer, layer: str | None = None) -> Iterator[None]:
    """Turn what a scorer of the user's own raises in the block into an InputError that names it and the layer.

    Args:
        scorer: The scorer. What prune_fe's own scorers raise is left as it is.
        layer: Name of the layer, if it is known.
    """
    try:
        yield
    except (MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # code that is not ours may raise anything
        if is_built_in(scorer):
            raise
        name, text = f"scorer {type(scorer).__name__!r}", describe_error(error)
        if isinstance(error, PruneFEError):
            text = str(error)
            if text.startswith(name):
                raise
        where = "" if layer is None or text.startswith(f"layer {layer!r}") else f"layer {layer!r}: "
        raise InputError(f"{name}, {where}{text}" if where else f"{name}: {text}") from error


def is_built_in(scorer: Scorer) -> bool:
    """Return whether a scorer is one of prune_fe's own."""
    return type(scorer).__module__.startswith("prune_fe.")


def _fields(scorer_class: type[Scorer], name: str) -> tuple[dataclasses.Field[Any], ...]:
    """Return the fields of a class of scorers; one without settings need be no dataclass.

    Raises:
        InputError: It has an `__init__`, whose arguments would not be recorded as settings.
    """
    if dataclasses.is_dataclass(scorer_class):
        return dataclasses.fields(scorer_class)
    if scorer_class.__init__ is not object.__init__:
        raise InputError(
            f"scorer {name!r} has an __init__: make its class a frozen dataclass, whose fields are recorded as settings"
        )
    return ()


def sum_over_positions(maps: Tensor, value: Callable[[Tensor], Tensor] = lambda pixels: pixels) -> Tensor:
    """Return the sum of `value(maps)` over the positions of every map.

    Args:
        maps: Feature maps, (images, units, height, width).
        value: Elementwise function of one image's maps.

    Returns:
        (images, units) float64 on the CPU.

    Raises:
        InputError: A map is not finite; the message names the unit.
    """
    if maps.device.type == "mps":  # which has no float64
        maps = maps.cpu()
    # Image by image: a float64 copy of all maps would need twice their memory, and no image's total depends on the
    # batch that it came in.
    totals = torch.stack([value(image).sum(dim=(1, 2), dtype=torch.float64) for image in maps]).cpu()
    finite = totals.isfinite()
    if not finite.all():
        image, unit = (~finite).nonzero()[0].tolist()
        raise InputError(f"unit {unit}: the map of image {image} of the batch holds NaN or infinite values")
    return totals


def require_finite(maps: Tensor) -> None:
    """Raise the error of `sum_over_positions` if a map is not finite, in a small part of its time."""
    if not all_finite(maps):
        sum_over_positions(maps)


def to_float64(values: Tensor) -> Tensor:
    """Return the values in float64, detached, on their device; from mps, which has no float64, on the CPU."""
    values = values.detach()
    return (values.cpu() if values.device.type == "mps" else values).double()


def check_choice(scorer: str, setting: str, value: Any, allowed: Sequence[Any]) -> None:
    """Raise InputError unless the value of a setting is one of those allowed."""
    if value not in allowed:
        raise InputError(f"{scorer}: {setting} is {value!r}, allowed are {', '.join(map(str, allowed))}")


def check_count(scorer: str, setting: str, value: Any, least: int) -> None:
    """Raise InputError unless the value of a setting is a whole number, and at least `least`."""
    if type(value) is not int or value < least:
        raise InputError(f"{scorer}: {setting} is {value!r}, allowed are whole numbers from {least}")
