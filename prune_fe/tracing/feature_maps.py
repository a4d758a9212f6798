"""Read, change and mask the feature maps of a network while it runs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from numbers import Integral
from typing import Any

import torch
from torch import Tensor, nn

from prune_fe.errors import InputError
from prune_fe.tracing.layers import Layer, suggest_names
from prune_fe.tracing.survey import MAP_STEPS
from prune_fe.tracing.watching import Watch
from prune_fe.tracing.weights import require_network

MapReader = Callable[[Layer, Tensor], None]
"""Function of a layer and its maps."""

MapChange = Callable[[Layer, Tensor, bool], Tensor]
"""Function from a layer, its maps and whether they were made in place to the maps that replace them."""


def observe(
    model: nn.Module, layers: Iterable[Layer], read: MapReader, gates: dict[str, Tensor] | None = None
) -> AbstractContextManager[None]:
    """Return a context in which every forward pass calls `read(layer, maps)` as soon as the maps exist.

    Args:
        model: The network.
        layers: Its layers to read, from `find_layers`.
        read: Receives the layer and its maps, (images, units, height, width), in every run of the layer. The network
            continues with this tensor and may overwrite it later, so `read` must not keep it without a copy.
        gates: Filled with layer name -> gate, (images, units) ones that the maps are multiplied by (Molchanov et al.
            2019). The gradient of a loss with respect to a gate changes no parameter's gradient. Gradients have to be
            enabled.
    """

    def read_and_gate(layer: Layer, maps: Tensor, in_place: bool) -> Tensor:
        read(layer, layer.maps_of(maps.detach()))
        if gates is None or layer.at_input:
            return maps
        if layer.name not in gates:  # a layer that runs several times has one gate
            gates[layer.name] = maps.new_ones((len(maps) // layer.rows, layer.units), requires_grad=True)
        return maps * layer.over_units(gates[layer.name], maps)

    return follow(model, layers, read_and_gate)


def follow(model: nn.Module, layers: Iterable[Layer], change: MapChange) -> AbstractContextManager[None]:
    """Return a context in which the network continues with `change(layer, maps, in_place)` instead of a layer's maps.

    Args:
        model: The network.
        layers: The layers whose maps are changed.
        change: Receives the layer, its maps in the shape that they have in the network, and whether an in-place
            function computed them. In that case the network may go on with the tensor it already has and ignore the
            returned one. The result for a layer `at_input` is not used.
    """
    require_network(model)
    return _Follower(_require_layers(layers), change).watching(dict(model.named_modules()))


def _require_layers(layers: Any) -> list[Layer]:
    """Return layers as a list, after checking that they are."""
    listed = list(layers) if isinstance(layers, Iterable) else [layers]
    if wrong := [layer for layer in listed if not isinstance(layer, Layer)]:
        raise InputError(f"layers holds a {type(wrong[0]).__name__}; it must be a list of what find_layers returns")
    return listed


def mask(model: nn.Module, layers: Iterable[Layer], units: Mapping[str, Sequence[int]]) -> AbstractContextManager[None]:
    """Return a context in which the maps of some units are zero where they are read.

    Masking a unit equals removing it, unless a norm comes later (as in DenseNet, ConvNeXt or behind a GroupNorm), which
    turns the zero into something else. With gradients enabled, the masked maps are new tensors: a network that works in
    place and drops the return value does not see them.

    Args:
        model: The network.
        layers: Its layers, from `find_layers`.
        units: Layer name -> unit numbers.

    Raises:
        InputError: There is no such layer or unit.
    """

    def zero(layer: Layer, maps: Tensor, in_place: bool) -> Tensor:
        index = torch.as_tensor(list(units[layer.name]), dtype=torch.int64, device=maps.device)
        # After an in-place function the network may ignore the return value, so the maps are changed in place as well.
        # Autograd forbids that for a tensor that it has saved for a gradient.
        dim = layer.channel_dim
        if in_place and not maps.requires_grad:
            return maps.index_fill_(dim, index, 0)
        return maps.index_fill(dim, index, 0)

    by_name = {layer.name: layer for layer in _require_layers(layers)}
    for name in units:
        if name not in by_name:
            raise InputError(f"layer {name!r}: not among the layers given; {suggest_names(name, by_name)}")
        for unit in units[name]:
            if isinstance(unit, bool) or not isinstance(unit, Integral):
                raise InputError(f"layer {name!r}: {unit!r} is no unit number")
            if not 0 <= unit < by_name[name].units:
                raise InputError(f"layer {name!r}: no unit {unit}, it has {by_name[name].units}")
    return follow(model, [by_name[name] for name in units], zero)


class _Follower(Watch):
    """Follows the output of each layer for its number of steps and then hands it to `change`."""

    def __init__(self, layers: Iterable[Layer], change: MapChange) -> None:
        super().__init__()
        self.layers: dict[str, list[Layer]] = {}
        for layer in layers:
            self.layers.setdefault(layer.name, []).append(layer)
        self.change = change
        # Tensors by id(). The stored reference keeps a tensor alive, so that no other one can get its id.
        self.in_progress: dict[int, list[tuple[Tensor, Layer, int]]] = {}

    @contextmanager
    def watching(self, modules: Mapping[str, nn.Module]) -> Iterator[None]:
        """Watch the modules of the layers only, and keep no map afterwards."""
        try:
            with super().watching({name: modules[name] for name in self.layers}):
                yield
        finally:
            self.in_progress.clear()

    def after_module(self, name: str, inputs: tuple[Any, ...], output: Any) -> Any:
        """Begin to follow the output of a layer."""
        for layer in self.layers[name]:
            if layer.at_input:
                self.change(layer, inputs[0], False)
            else:
                output = self._advance(layer, output, 0, in_place=False)
        return output

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        # Look the input up before the call, because an in-place function returns the same tensor.
        followed = self.in_progress.pop(id(args[0]), []) if args and func in MAP_STEPS else []
        output = func(*args, **(kwargs or {}))
        in_place = bool(args) and output is args[0]
        for _, layer, steps in followed:
            output = self._advance(layer, output, steps + 1, in_place)
        return output

    def _advance(self, layer: Layer, value: Tensor, steps: int, in_place: bool) -> Tensor:
        """Return the value that the network continues with: the changed map at the last step, else the value itself."""
        if steps == layer.steps:
            return self.change(layer, value, in_place)
        self.in_progress.setdefault(id(value), []).append((value, layer, steps))
        return value
