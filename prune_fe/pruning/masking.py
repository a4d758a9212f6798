"""Mask channels of a whole network: the definition of what a pruned network has to compute.

A network without some channels must return what the whole network returns with these channels masked.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from prune_fe.errors import InputError
from prune_fe.pruning.cut import AxisKey, KeptChannels
from prune_fe.pruning.masked_code import MaskedCode
from prune_fe.pruning.pooled_weights import PooledLayer
from prune_fe.tracing.copying import restoring_state
from prune_fe.tracing.dependency_graph import Axis
from prune_fe.tracing.nested import Inputs, compare_outputs, run, tensors_in
from prune_fe.tracing.own_code import is_own_layer
from prune_fe.tracing.shared_tensors import find_axis_tensors
from prune_fe.tracing.watching import evaluating, running_eagerly

PLAIN = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
"""Layers whose every output is a sum over the inputs. Derived classes do not count, because they may do more."""


@contextmanager
def masked(model: nn.Module, pruned: nn.Module, axes: Mapping[AxisKey, Axis], kept: KeptChannels) -> Iterator[None]:
    """Mask the channels that are not kept, for the duration of a context.

    Channels are set to zero at the outputs and at the inputs of every layer: an activation between two layers may turn
    a zero into something else, and masking a unit is defined on what the next layer reads.

    Layers that compute one channel from several (layer and group norms, standardised weights, gates over neighbouring
    channels) are replaced by those of the pruned network, whose statistics are those of the kept channels. Hand-written
    norms and layers run on all channels, but their statistics and weights are those of the kept channels
    (`masked_code.py`).

    Args:
        model: The whole network.
        pruned: The network without the channels.
        axes: The axes of the whole network's dependency graph.
        kept: The channels that stay.
    """
    modules, twins = dict(model.named_modules()), dict(pruned.named_modules())
    saved: list[tuple[Tensor, Tensor]] = []
    with ExitStack() as stack, torch.no_grad():
        for (name, side), axis in axes.items():
            if axis.call is not None:
                continue
            is_removed = np.ones(len(axis.channels), bool)
            is_removed[kept[name, side]] = False
            removed = np.flatnonzero(is_removed)
            module = modules[name]
            if axis.in_weights:
                for attribute, dim in find_axis_tensors(module, axis) if len(removed) else ():
                    tensor = getattr(module, attribute)
                    saved.append((tensor, tensor.detach().clone()))
                    tensor.index_fill_(dim, torch.from_numpy(removed).to(tensor.device), 0)
            elif side in ("out", "both") and _has_channel_mixing(module):
                # Norms and depthwise layers have one axis, which is that of their inputs too.
                inputs = kept.get((name, "in"), kept[name, side])
                substitute = _Substitute(twins[name], axis.dim, inputs, kept[name, side])
                stack.callback(module.register_forward_hook(substitute, with_kwargs=True).remove)
            elif side in ("out", "both") and len(removed):
                stack.callback(module.register_forward_hook(_Zeros(axis.dim, removed).in_output).remove)
            elif side == "in" and len(removed):
                zeros = _Zeros(axis.dim, removed)
                stack.callback(module.register_forward_pre_hook(zeros.in_input, with_kwargs=True).remove)
            elif side not in ("in", "out", "both") and len(removed):
                # A parameter that the module's code uses by itself passes through no hook.
                tensor = getattr(module, side)
                saved.append((tensor, tensor.detach().clone()))
                tensor.index_fill_(axis.dim, torch.from_numpy(removed).to(tensor.device), 0)
        stack.enter_context(MaskedCode(model, pruned, axes, kept).running())
        try:
            yield
        finally:
            for tensor, old in reversed(saved):  # One that has several axes was saved several times.
                tensor.copy_(old)


def largest_difference(
    model: nn.Module,
    pruned: nn.Module,
    axes: Mapping[AxisKey, Axis],
    kept: KeptChannels,
    inputs: Inputs,
    watch: AbstractContextManager[None] | None = None,
    mode: Callable[[nn.Module], AbstractContextManager[None]] = evaluating,
) -> tuple[float, float]:
    """Compare the outputs of a pruned network with those of the masked one.

    Where a network returns several tensors, the result is that of the tensor that differs most, as a share of its
    largest value. Outputs may show too little to compare: a detector may find nothing, a classifier may return the
    number of a class. Then the outputs of all layers that keep their units are compared as well.

    Args:
        model: The whole network.
        pruned: The network without the channels that are not kept.
        axes: The axes of the whole network's dependency graph.
        kept: The channels that the pruned network has.
        inputs: Inputs of both networks.
        watch: A context in which the pruned network runs.
        mode: Function from a network to a context that puts it in the mode in which it runs. Both networks draw the
            same random numbers.

    Returns:
        The largest absolute difference and the largest absolute output: removing equals masking where the first is
        small beside the second.

    Raises:
        InputError: The networks return different kinds of values, or tensors of different shapes, or nothing that can
            be compared.
    """
    with mode(model), mode(pruned), restoring_state(model), torch.no_grad(), running_eagerly():
        with watch or nullcontext(), _seeded():
            output = run(pruned, inputs)
        if not _shows_little(output):
            with masked(model, pruned, axes, kept), _seeded():
                expected = run(model, inputs)
            return compare_outputs(output, expected, "the pruned model")
        whole = [
            name for (name, side), axis in axes.items() if side == "out" and len(kept[name, side]) == len(axis.channels)
        ]
        with _recording(pruned, whole) as ours, _seeded():
            run(pruned, inputs)
        with masked(model, pruned, axes, kept), _recording(model, whole) as theirs, _seeded():
            expected = run(model, inputs)
    for name in whole:
        is_cut = (name, "in") in kept and len(kept[name, "in"]) != len(axes[name, "in"].channels)
        if is_cut and not any(map(Tensor.numel, ours[name])):
            raise InputError(f"layer {name!r} reads nothing when the inputs are random, so its cut cannot be verified")
    if not any(tensor.is_floating_point() and tensor.numel() for tensor in tensors_in(ours)):
        raise InputError("what the model returns for random inputs has no values to compare")
    return compare_outputs([output, ours], [expected, theirs], "the pruned model")


def _shows_little(output: Any) -> bool:
    """Return whether some tensor that a network returned is empty, or none has values that show small differences.

    Values that are all equal or all whole numbers, such as a mask of 0 and 1, show none.
    """
    tensors = tensors_in(output)
    if not all(tensor.numel() for tensor in tensors):
        return True
    return not any(tensor.is_complex() or (tensor.is_floating_point() and not _is_coarse(tensor)) for tensor in tensors)


def _is_coarse(tensor: Tensor) -> bool:
    """Return whether the values of a tensor are all equal, or all whole numbers."""
    is_constant = tensor.numel() > 1 and bool((tensor == tensor.flatten()[0]).all())
    return is_constant or bool((tensor == tensor.round()).all())


@contextmanager
def _recording(model: nn.Module, layers: Iterable[str]) -> Iterator[dict[str, list[Tensor]]]:
    """Record the outputs of layers, by name, for the duration of a context."""
    outputs: dict[str, list[Tensor]] = {}
    with ExitStack() as stack:
        for name in layers:
            outputs[name] = []
            hook = model.get_submodule(name).register_forward_hook(
                lambda _, inputs, output, name=name: outputs[name].extend(each.clone() for each in tensors_in(output))
            )
            stack.callback(hook.remove)
        yield outputs


@contextmanager
def _seeded() -> Iterator[None]:
    """Seed the random numbers of the CPU in the block, so that each block draws the same."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        yield


class _Zeros:
    """Forward hooks that set channels to zero."""

    def __init__(self, dim: int, channels: NDArray[np.int64]) -> None:
        self.dim, self.channels = dim, torch.from_numpy(channels)

    def _fill(self, value: Tensor) -> Tensor:
        return value.index_fill(self.dim, self.channels.to(value.device), 0)

    def in_input(self, _: nn.Module, args: Any, kwargs: Any) -> tuple[Any, Any]:
        return _with_input(args, kwargs, self._fill)

    def in_output(self, _: nn.Module, args: Any, output: Tensor) -> Tensor:
        return self._fill(output)


class _Substitute:
    """A forward hook that returns the output of a pruned layer, with zeros for the removed channels."""

    def __init__(self, twin: nn.Module, dim: int, inputs: NDArray[np.int64], outputs: NDArray[np.int64]) -> None:
        self.twin, self.dim = twin, dim
        self.inputs, self.outputs = torch.from_numpy(inputs), torch.from_numpy(outputs)

    def __call__(self, _: nn.Module, args: Any, kwargs: Any, output: Tensor) -> Tensor:
        args, kwargs = _with_input(args, kwargs, lambda v: v.index_select(self.dim, self.inputs.to(v.device)))
        value = self.twin(*args, **kwargs)
        return torch.zeros_like(output).index_copy(self.dim, self.outputs.to(output.device), value)


def _with_input(args: Any, kwargs: Any, change: Callable[[Tensor], Tensor]) -> tuple[Any, Any]:
    """Return the arguments of a layer with its first one changed, whether it is named or not."""
    if args:
        return (change(args[0]), *args[1:]), kwargs
    first = next(iter(kwargs))
    return args, kwargs | {first: change(kwargs[first])}


def _has_channel_mixing(module: nn.Module) -> bool:
    """Return whether an output of a layer depends on removed channels in other ways than by a sum over its inputs."""
    if is_own_layer(module):
        return False
    return type(module) not in PLAIN and not isinstance(module, _NormBase | nn.PReLU | PooledLayer)
