"""Run hand-written norms and layers of a masked network so that masked channels do not count in what they compute.

A hand-written norm computes means over the channels, in which masked channels would count as zeros. Here the functions
that compute such statistics receive the kept channels only. A hand-written layer may change its weights before it uses
them, such as a convolution that standardises each filter, and the weights of masked inputs would count there. Here it
uses the weights that the pruned layer computes, after they were compared with its own. Everything else in such code
runs unchanged. `tracing/own_code.py` finds these norms and layers.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from prune_fe.errors import InputError
from prune_fe.pruning.cut import AxisKey, KeptChannels
from prune_fe.pruning.pooled_weights import PooledLayer
from prune_fe.tracing.dependency_graph import Axis
from prune_fe.tracing.ops import plain_name
from prune_fe.tracing.own_code import LAYER_FUNCTIONS, MIXING_NORMS, STATISTIC_FUNCTIONS, is_own_layer

TOLERANCE = {torch.float64: 1e-8}
"""Largest difference to the masked network's outputs, or between weights, that counts as equal, by dtype.

It is a share of the largest value.
"""

DEFAULT_TOLERANCE = 1e-3
"""The tolerance for dtypes of less precision."""

ROUNDINGS = 8
"""This many times the relative error of one rounding is tolerated between weights too, for half precision."""

SAME_SIZE = 0.01
"""Weights that change by no more than this share when they are doubled count as standardised.

Code adds a small number to the standard deviation that it divides by, so that doubling them changes them a little.
"""


class OwnCodeFault(InputError):
    """The code of a layer changes its weights in a way that cannot be compared, such as by mixing those of units."""


@dataclass
class _Frame:
    """A module that runs.

    Attributes:
        statistics: Number of a call -> (dimension counted from the end, kept channels, channels of the whole network).
        weights: For each of the next calls of the layer's function, the function that replaces its weights.
        shape: The shape of the whole layer's weights; None for a module that is no layer.
        calls: The number of calls so far that may compute statistics.
    """

    statistics: Mapping[int, tuple[int, Tensor, int]] = field(default_factory=dict)
    weights: list[Callable[[Tensor], Tensor]] = field(default_factory=list)
    shape: torch.Size | None = None
    calls: int = 0


class MaskedCode(TorchFunctionMode):
    """Changes what functions receive in the hand-written norms and layers of a masked network."""

    def __init__(self, model: nn.Module, pruned: nn.Module, axes: Mapping[AxisKey, Axis], kept: KeptChannels) -> None:
        """Find the norms and layers with code of their own that lose channels.

        Args:
            model: The whole network.
            pruned: The network without the channels that are not kept.
            axes: The axes of the whole network's dependency graph.
            kept: The channels that stay.
        """
        super().__init__()
        self._modules, self._twins = dict(model.named_modules()), dict(pruned.named_modules())
        self._frames: list[_Frame] = []
        # Module -> number of the run -> what its frame has as `statistics`.
        self._statistics: dict[str, dict[int, dict[int, tuple[int, Tensor, int]]]] = {}
        self._layers: dict[str, _Layer] = {}
        for (name, side), axis in axes.items():
            if len(kept[name, side]) == len(axis.channels):
                continue
            if axis.call is not None:
                run, call = axis.call
                entry = axis.dim, torch.from_numpy(kept[name, side]), len(axis.channels)
                self._statistics.setdefault(name, {}).setdefault(run, {})[call] = entry
            elif isinstance(self._modules[name], PooledLayer):
                continue  # Its code is not torch's, but computes what torch's layer computes.
            elif side in ("in", "out", "both") and is_own_layer(self._modules[name]):
                ends = [end if (name, end) in axes else "both" for end in ("in", "out")]
                inputs, outputs = (kept[name, end] for end in ends)
                layer = _Layer(name, self._modules[name], self._twins[name], inputs, outputs, axes[name, ends[0]].dim)
                self._layers[name] = layer

    @contextmanager
    def running(self) -> Iterator[None]:
        """Change what the functions receive, for the duration of a context."""
        if not self._statistics and not self._layers:
            yield
            return
        with ExitStack() as stack:
            begins = {name: self._begin_norm(name) for name in self._statistics}
            begins |= {name: self._begin_layer(layer) for name, layer in self._layers.items()}
            for name, begin in begins.items():
                self._watch(stack, name, begin)
                # What a module inside calls is not counted as a call of the outer one.
                for child in (key for key in self._modules if key.startswith(f"{name}.") and key not in begins):
                    self._watch(stack, child, lambda args, kwargs: _Frame())
            stack.enter_context(self)
            yield

    def _watch(self, stack: ExitStack, name: str, begin: Callable[[Any, Any], _Frame]) -> None:
        """Add a frame while a module runs."""

        def enter(module: nn.Module, args: Any, kwargs: Any) -> None:
            # Pushed first: what begins the frame runs code itself, and `leave` is called if that fails.
            self._frames.append(_Frame())
            self._frames[-1] = begin(args, kwargs)

        def leave(module: nn.Module, args: Any, output: Any) -> None:
            self._frames.pop()

        module = self._modules[name]
        # The hooks of the network's own run inside, because the functions that they call were counted.
        before = module.register_forward_pre_hook(enter, prepend=True, with_kwargs=True)
        after = module.register_forward_hook(leave, always_call=True)
        stack.callback(before.remove)
        stack.callback(after.remove)

    def _begin_norm(self, name: str) -> Callable[[Any, Any], _Frame]:
        runs = itertools.count()
        return lambda args, kwargs: _Frame(self._statistics[name].get(next(runs), {}))

    def _begin_layer(self, layer: _Layer) -> Callable[[Any, Any], _Frame]:
        def begin(args: Any, kwargs: Any) -> _Frame:
            with torch._C.DisableTorchFunction():
                shape = layer.module.weight.shape
            return _Frame(weights=layer.replacements(args, kwargs), shape=shape)

        return begin

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs, name = kwargs or {}, plain_name(func)
        frame = self._frames[-1] if self._frames else None
        if frame is None:
            return func(*args, **kwargs)
        if name in STATISTIC_FUNCTIONS:
            frame.calls += 1
            if frame.calls - 1 in frame.statistics:
                return _call_on_kept(func, args, kwargs, *frame.statistics[frame.calls - 1])
        if name in LAYER_FUNCTIONS and frame.weights:
            weight = _weight_in(args, kwargs)
            if weight.shape == frame.shape:
                changed = frame.weights.pop(0)(weight)
                if len(args) > 1:
                    args = (args[0], changed, *args[2:])
                else:
                    kwargs = kwargs | {"weight": changed}
        return func(*args, **kwargs)


def _weight_in(args: Sequence[Any], kwargs: Mapping[str, Any]) -> Tensor:
    return args[1] if len(args) > 1 else kwargs["weight"]


def _call_on_kept(func: Any, args: Any, kwargs: Any, dim: int, kept: Tensor, channels: int) -> Any:
    """Call a function that computes statistics over channels on the kept ones.

    Args:
        func: The function.
        args: Its positional arguments.
        kwargs: Its keyword arguments.
        dim: The dimension of the channels, counted from the end.
        kept: The indices of the kept channels, (kept,).
        channels: The number of channels of the whole network.

    Returns:
        What the function returns; for a norm function with all channels, of which the removed ones are zero.
    """
    value = args[0] if args else kwargs["input"]
    if value.ndim < -dim or value.shape[dim] != channels:
        return func(*args, **kwargs)
    kept, is_norm = kept.to(value.device), plain_name(func) in MIXING_NORMS

    def of_kept(entry: Any) -> Any:
        if entry is value:
            return value.index_select(dim, kept)
        if not is_norm:
            return entry
        if isinstance(entry, Tensor) and tuple(entry.shape) == (channels,):
            return entry.index_select(0, kept)
        if isinstance(entry, tuple | list) and -dim <= len(entry):  # the shape that is normalised over
            return [len(kept) if place == len(entry) + dim else size for place, size in enumerate(entry)]
        return entry

    output = func(*map(of_kept, args), **{key: of_kept(entry) for key, entry in kwargs.items()})
    return torch.zeros_like(value).index_copy(dim, kept, output) if is_norm else output


@dataclass(frozen=True)
class _Layer:
    """A hand-written layer before and after pruning.

    Attributes:
        name: Its name in both networks.
        module: The whole layer.
        twin: The pruned layer.
        inputs: The indices of the kept inputs, (kept inputs,), ascending.
        outputs: The indices of the kept outputs, (kept outputs,), ascending.
        dim: The dimension of the inputs in the layer's input, counted from the end.
    """

    name: str
    module: Any
    twin: nn.Module
    inputs: NDArray[np.int64]
    outputs: NDArray[np.int64]
    dim: int

    def replacements(self, args: Any, kwargs: Any) -> list[Callable[[Tensor], Tensor]]:
        """Return, for each call of the layer's function, a function from the whole layer's weights to the masked ones.

        Args:
            args: The layer's positional arguments.
            kwargs: Its keyword arguments.

        Raises:
            OwnCodeFault: The pruned layer calls its function more or less often.
        """
        pruned = _computed_weights(self.twin, *self._without_removed(args, kwargs))
        changed = self._weights_times(-3, 1, args, kwargs)
        doubled = self._weights_times(1, 2, args, kwargs)
        if not len(pruned) == len(changed) == len(doubled):
            raise OwnCodeFault(f"{self._who()}, whose code depends on the number of its units")
        return [partial(self._mask_weights, *weights) for weights in zip(pruned, changed, doubled, strict=True)]

    def _who(self) -> str:
        return f"layer {self.name!r} is a {type(self.module).__name__}"

    def _without_removed(self, args: Any, kwargs: Any) -> tuple[Any, Any]:
        """Return the arguments of the pruned layer."""
        positions = torch.from_numpy(self.inputs)
        value = args[0] if args else next(iter(kwargs.values()))
        chosen = value.index_select(self.dim, positions.to(value.device))
        return ((chosen, *args[1:]), kwargs) if args else (args, kwargs | {next(iter(kwargs)): chosen})

    def _weights_times(self, removed: float, kept: float, args: Any, kwargs: Any) -> list[Tensor]:
        """Return the weights that the whole layer computes from its weights times a factor.

        Args:
            removed: The factor for the weights of the removed outputs.
            kept: The factor for those of the kept outputs.
            args: The layer's positional arguments.
            kwargs: Its keyword arguments.
        """
        weight = self.module.weight
        saved = weight.detach().clone()
        factors = weight.new_full((len(weight), *(1,) * (weight.ndim - 1)), removed)
        factors[torch.from_numpy(self.outputs).to(weight.device)] = kept
        try:
            weight.data.mul_(factors)
            return _computed_weights(self.module, args, kwargs)
        finally:
            weight.data.copy_(saved)

    def _mask_weights(self, new: Tensor, changed: Tensor, doubled: Tensor, weight: Tensor) -> Tensor:
        """Return weights of the whole layer's shape: those that the pruned layer computes, and zero for the rest.

        Args:
            new: The weights that the pruned layer computes.
            changed: Those that the whole layer computes when the weights of the removed outputs are changed.
            doubled: Those that the whole layer computes when the weights of the kept outputs are doubled.
            weight: Those that the whole layer computes.

        Raises:
            OwnCodeFault: The weights of a kept output depend on other outputs, or on the inputs in an unknown way.
        """
        rows, columns = self._positions(weight)
        old = weight[rows[:, None], columns]
        if not _are_equal(old, changed[rows[:, None], columns]):
            raise OwnCodeFault(f"{self._who()}, whose code computes the weights of a unit from those of others")
        # If no input is removed, the weights of a unit must not change. Otherwise the layer's code may have centred
        # them anew, which shifts them, and scaled them anew, if they are standardised: doubling them changes nothing.
        if columns.shape[1] == weight.shape[1]:
            is_same = _are_equal(old, new)
        elif _are_equal(weight[rows], doubled[rows], SAME_SIZE):
            is_same = _are_alike(_centre(old), _centre(new))
        else:
            is_same = _are_equal(_centre(old), _centre(new))
        if not is_same:
            raise OwnCodeFault(f"{self._who()}, whose weights depend on its inputs in a way not known")
        return torch.zeros_like(weight).index_put((rows[:, None], columns), new)

    def _positions(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Return the kept rows of the weights, (outputs,), and the kept columns of each, (outputs, inputs)."""
        size, groups = weight.shape[1], getattr(self.module, "groups", 1)
        group_of = self.outputs // (len(weight) // groups)
        columns = [self.inputs[self.inputs // size == group] % size for group in group_of]
        rows = torch.from_numpy(self.outputs).to(weight.device)
        return rows, torch.from_numpy(np.stack(columns)).to(weight.device)


class _WeightRecorder(TorchFunctionMode):
    """Records the weights of one shape that functions of layers receive."""

    def __init__(self, shape: torch.Size) -> None:
        super().__init__()
        self.shape, self.weights = shape, list[Tensor]()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if plain_name(func) in LAYER_FUNCTIONS:
            weight = _weight_in(args, kwargs or {})
            if weight.shape == self.shape:
                self.weights.append(weight)
        return func(*args, **(kwargs or {}))


def _computed_weights(module: Any, args: Any, kwargs: Any) -> list[Tensor]:
    """Run the code of a layer and return the weights that it uses, in the order of the calls."""
    recorder = _WeightRecorder(module.weight.shape)
    with recorder:
        module.forward(*args, **kwargs)
    return recorder.weights


def _tolerance(tensor: Tensor) -> float:
    return TOLERANCE.get(tensor.dtype, max(DEFAULT_TOLERANCE, ROUNDINGS * torch.finfo(tensor.dtype).eps))


def _are_equal(old: Tensor, new: Tensor, tolerance: float | None = None) -> bool:
    limit = (_tolerance(old) if tolerance is None else tolerance) * old.abs().max()
    return old.shape == new.shape and bool((old - new).abs().max() <= limit)


def _centre(weight: Tensor) -> Tensor:
    """Return the weights of each output without their mean, (outputs, weights)."""
    return weight.flatten(1) - weight.flatten(1).mean(1, keepdim=True)


def _are_alike(old: Tensor, new: Tensor) -> bool:
    """Return whether the weights of each output, (outputs, weights), are equal but for a positive factor."""
    if old.shape != new.shape:
        return False
    sizes = [weight.norm(dim=1, keepdim=True) for weight in (old, new)]
    return bool((old * sizes[1] - new * sizes[0]).abs().max() <= _tolerance(old) * (sizes[0] * sizes[1]).max())
