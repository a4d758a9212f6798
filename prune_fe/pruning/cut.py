"""Take channels out of a network's tensors, keep count of those that are left, and check the result on the network.

Nothing here decides what goes. The check is the definition: a network without some channels must compute what the
whole network computes with these channels masked.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from prune_fe.errors import InputError
from prune_fe.tracing.dependency_graph import Axis, Channels
from prune_fe.tracing.feature_maps import evaluating

Key = tuple[str, str]
Kept = dict[Key, np.ndarray]
"""Axis -> the original numbers of the channels that are left, ascending."""

PLAIN = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


class Cutter:
    """Knows, for one architecture, which tensors have which channels along which dimension."""

    def __init__(self, model: nn.Module, channels: Channels) -> None:
        self.channels = channels
        self.axes = channels.axes
        self.units = {key: channels.unit[axis.names] for key, axis in self.axes.items()}
        modules = dict(model.named_modules())
        self.sides: dict[str, list[tuple[Key, int]]] = {}  # tensor name -> its axes and their dimensions
        for key, axis in self.axes.items():
            for attribute, dim in _tensors_of(modules[axis.module], axis):
                self.sides.setdefault(f"{axis.module}.{attribute}".lstrip("."), []).append((key, dim))
        owners: dict[int, str] = {}
        for name, parameter in model.named_parameters(remove_duplicate=False):
            first = owners.setdefault(id(parameter), name)
            if first != name and name in self.sides:
                raise InputError(f"parameter {name!r} is also {first!r}; shared weights cannot be pruned")
        self.shapes = {name: tensor.shape for name, tensor in _stored(model).items()}
        self.candidates = dict(_sizes_in_code(modules, channels))
        self.sizes: dict[tuple[str, str], list[Any]] = {}  # those of the candidates that have to change
        self._units = np.concatenate(list(self.units.values()))
        self._lengths = np.array([len(units) for units in self.units.values()])
        self._starts = np.cumsum(self._lengths) - self._lengths
        self._costs = [self._cost(model, channels.positions), self._cost(model, None)]

    def _cost(self, model: nn.Module, positions: Mapping[str, int] | None) -> tuple[np.ndarray, np.ndarray]:
        """(n,) numbers of parameters, or where positions are given of multiply-adds, of the whole network; and (n, 2)
        the axes that they shrink with: the number after the last axis stands for none."""
        order = {key: number for number, key in enumerate(self.axes)}
        costs, sides = [], []
        for name, weight in model.named_parameters():
            module, _, attribute = name.rpartition(".")
            if positions is None or (module in positions and attribute == "weight"):
                costs.append(weight.numel() * (1 if positions is None else positions[module]))
                sides.append(([order[key] for key, _ in self.sides.get(name, ())] + [len(order)] * 2)[:2])
        return np.array(costs, float), np.array(sides, int).reshape(-1, 2)

    def everything(self) -> Kept:
        return {key: np.arange(len(axis.names)) for key, axis in self.axes.items()}

    def without(self, gone: Iterable[int]) -> Kept:
        """What is left of every axis when these units (numbers of Channels.unit) are gone."""
        alive = np.ones(int(self.channels.unit.max()) + 1, bool)
        alive[list(gone)] = False
        return {key: np.flatnonzero(alive[units]) for key, units in self.units.items()}

    def shares(self, gone: Iterable[int]) -> tuple[float, float]:
        """(multiply-adds, parameters) without these units, as shares of the whole network's.

        Multiply-adds of convolutions and linear layers; products of matrices in the code are not counted.
        """
        alive = np.ones(int(self.channels.unit.max()) + 1)
        alive[list(gone)] = 0
        left = np.append(np.add.reduceat(alive[self._units], self._starts) / self._lengths, 1.0)
        macs, parameters = (float(cost @ left[sides].prod(axis=1) / cost.sum()) for cost, sides in self._costs)
        return macs, parameters

    def select(self, name: str, tensor: Tensor, before: Kept, after: Kept) -> Tensor:
        """What is left of a tensor that is shaped like parameter or buffer `name` with the channels of `before`."""
        for key, dim in self.sides.get(name, ()):
            axis, was, now = self.axes[key], before[key], after[key]
            if len(was) == len(now):
                continue
            places = torch.from_numpy(np.searchsorted(was, now)).to(tensor.device)
            if axis.blocks > 1 and axis.side == "in":  # each block of the outputs reads inputs of its own
                rows, columns = tensor.chunk(axis.blocks, 0), places.view(axis.blocks, -1) % (len(was) // axis.blocks)
                tensor = torch.cat([row.index_select(1, column) for row, column in zip(rows, columns, strict=True)])
            else:
                tensor = tensor.index_select(dim, places)
        return tensor

    def cut(self, model: nn.Module, before: Kept, after: Kept) -> None:
        """Take out of `model`, which has the channels of `before`, what is not in `after`."""
        changed = {key for key in after if len(after[key]) != len(before[key])}
        modules = dict(model.named_modules())
        for name, sides in self.sides.items():
            if changed.isdisjoint(key for key, _ in sides):
                continue
            owner, _, attribute = name.rpartition(".")
            old = getattr(modules[owner], attribute)
            new = self.select(name, old.detach(), before, after)
            if isinstance(old, nn.Parameter):
                setattr(modules[owner], attribute, nn.Parameter(new, old.requires_grad))
            else:
                modules[owner]._buffers[attribute] = new
        for name in {module for module, _ in changed}:
            sides_of = {key[1]: len(kept) for key, kept in after.items() if key[0] == name}
            _set_counts(modules[name], sides_of)
        alive = np.zeros(int(self.channels.unit.max()) + 1, bool)
        for key, kept in after.items():
            alive[self.units[key][kept]] = True
        for (name, attribute), parts in self.sizes.items():
            counts = [part if isinstance(part, int) else int(alive[part].sum()) for part in parts]
            old = getattr(modules[name], attribute)
            setattr(modules[name], attribute, type(old)(counts) if isinstance(old, list | tuple) else counts[0])

    @contextmanager
    def masked(self, model: nn.Module, pruned: nn.Module, kept: Kept) -> Iterator[None]:
        """Inside, the channels that are not in `kept` are zero where layers and norms give them, and where layers are
        given them: an activation may make something else of a zero, and a unit's map is what the next layer gets.

        What computes one channel from several (layer and group norms, standardised weights, gates over neighbouring
        channels) is asked of `pruned`, which has the others only: its statistics are those of what is left.
        """
        twins, state = dict(pruned.named_modules()), _stored(model)
        saved: dict[str, Tensor] = {}
        with ExitStack() as stack, torch.no_grad():
            for (name, side), axis in self.axes.items():
                gone = np.setdiff1d(np.arange(len(axis.names)), kept[name, side])
                module = model.get_submodule(name)
                twin = twins[name] if _mixes(module) else None
                if side in ("out", "both") and twin is not None:
                    inputs = kept.get((name, "in"), kept[name, side])
                    ask = _Ask(twin, axis.dim, inputs, kept[name, side])
                    stack.callback(module.register_forward_hook(ask, with_kwargs=True).remove)
                elif side in ("out", "both") and len(gone):
                    stack.callback(module.register_forward_hook(_Mask(axis.dim, gone).after).remove)
                elif side == "in" and len(gone):
                    mask = _Mask(axis.dim, gone).before
                    stack.callback(module.register_forward_pre_hook(mask, with_kwargs=True).remove)
                elif side not in ("in", "out", "both") and len(gone):
                    tensor = f"{name}.{side}".lstrip(".")
                    saved[tensor] = state[tensor].detach().clone()
                    state[tensor].index_fill_(axis.dim, torch.from_numpy(gone).to(state[tensor].device), 0)
            try:
                yield
            finally:
                for tensor, old in saved.items():
                    state[tensor].copy_(old)

    def difference(self, model: nn.Module, pruned: nn.Module, kept: Kept, example: Tensor) -> tuple[float, float]:
        """(largest absolute difference between the outputs of `pruned` and of the masked `model`, largest absolute
        output): removing is masking when the first is small beside the second."""
        with evaluating(model), evaluating(pruned), torch.no_grad():
            found = pruned(example)
            with self.masked(model, pruned, kept):
                wanted = model(example)
        if found.shape != wanted.shape:
            raise InputError(f"the pruned model returns {tuple(found.shape)}, the original {tuple(wanted.shape)}")
        return float((found - wanted).abs().max()), float(wanted.abs().max())


class _Mask:
    """Forward hooks that put zeros where channels are gone."""

    def __init__(self, dim: int, gone: np.ndarray) -> None:
        self.dim, self.gone = dim, torch.from_numpy(gone)

    def zero(self, value: Tensor) -> Tensor:
        return value.index_fill(self.dim, self.gone.to(value.device), 0)

    def before(self, _: nn.Module, args: Any, kwargs: Any) -> tuple[Any, Any]:
        return _with_input(args, kwargs, self.zero)

    def after(self, _: nn.Module, args: Any, output: Tensor) -> Tensor:
        return self.zero(output)


class _Ask:
    """A forward hook that gives what `twin`, which has a part of the channels, makes of them, and zeros elsewhere."""

    def __init__(self, twin: nn.Module, dim: int, inputs: np.ndarray, outputs: np.ndarray) -> None:
        self.twin, self.dim = twin, dim
        self.inputs, self.outputs = torch.from_numpy(inputs), torch.from_numpy(outputs)

    def __call__(self, _: nn.Module, args: Any, kwargs: Any, output: Tensor) -> Tensor:
        args, kwargs = _with_input(args, kwargs, lambda v: v.index_select(self.dim, self.inputs.to(v.device)))
        value = self.twin(*args, **kwargs)
        return torch.zeros_like(output).index_copy(self.dim, self.outputs.to(output.device), value)


def _with_input(args: Any, kwargs: Any, change: Callable[[Tensor], Tensor]) -> tuple[Any, Any]:
    """The arguments of a layer, with what it is given changed."""
    if args:
        return (change(args[0]), *args[1:]), kwargs
    first = next(iter(kwargs))
    return args, kwargs | {first: change(kwargs[first])}


def randomise(model: nn.Module, seed: int = 0) -> None:
    """Weights and statistics with which every channel matters: a layer that is initialised to zero hides mistakes."""
    generator = torch.Generator().manual_seed(seed)

    def uniform(tensor: Tensor, low: float, high: float) -> None:
        tensor.copy_(torch.empty(tensor.shape).uniform_(low, high, generator=generator))

    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.endswith("bias"):
                uniform(weight, -0.2, 0.2)
            elif sum(size > 1 for size in weight.shape) > 1:
                scale = (2 * len(weight) / weight.numel()) ** 0.5
                weight.copy_(torch.empty(weight.shape).normal_(0, scale, generator=generator))
            else:
                uniform(weight, 0.5, 1.5)
        for module in model.modules():
            if isinstance(module, _NormBase) and module.running_mean is not None and module.running_var is not None:
                uniform(module.running_mean, -0.2, 0.2)
                uniform(module.running_var, 0.5, 1.5)


def _tensors_of(module: nn.Module, axis: Axis) -> Iterator[tuple[str, int]]:
    """(attribute, dimension) of the tensors of `module` that have the channels of `axis`."""
    count = len(axis.names)
    own = [
        (name, tensor) for name, tensor in (*module._parameters.items(), *module._buffers.items()) if tensor is not None
    ]
    if axis.side not in ("in", "out", "both"):
        yield axis.side, axis.dim
        return
    transposed = isinstance(module, _ConvTransposeNd) and axis.side != "both"
    for name, tensor in own:
        if name == "weight" and isinstance(module, _ConvNd | nn.Linear):
            dim = int((axis.side == "in") != transposed)
            if axis.side != "in" or tensor.shape[dim] * axis.blocks == count:  # else each input has its own outputs
                yield name, dim
        elif axis.side != "in":
            wide = [dim for dim, size in enumerate(tensor.shape) if size > 1]
            if len(wide) == 1 and tensor.shape[wide[0]] == count:
                yield name, wide[0]


def _set_counts(module: nn.Module, sizes: Mapping[str, int]) -> None:
    """The attributes that say how many channels a module has."""
    both = sizes.get("both", 0)
    if isinstance(module, _ConvNd):
        depthwise = both or (module.groups > 1 and module.groups == module.in_channels)
        module.in_channels, module.out_channels = both or sizes["in"], both or sizes["out"]
        module.groups = module.in_channels if depthwise else module.groups
    elif isinstance(module, nn.Linear):
        module.in_features, module.out_features = sizes["in"], sizes["out"]
    elif both:
        for attribute in ("num_features", "num_channels", "num_parameters"):
            if isinstance(getattr(module, attribute, None), int):
                setattr(module, attribute, both)
        if hasattr(module, "normalized_shape"):
            module.normalized_shape = (both,)  # type: ignore[assignment]


def _mixes(module: nn.Module) -> bool:
    """Computes one output channel from several, beyond what removing a filter's inputs does."""
    return type(module) not in PLAIN and not isinstance(module, _NormBase | nn.PReLU)


def _sizes_in_code(modules: Mapping[str, nn.Module], channels: Channels) -> Iterator[tuple[tuple[str, str], list[Any]]]:
    """(module, attribute) -> for each of its numbers the units that it counts, or the number when it counts none.

    Networks keep the sizes of their splits and views in attributes, such as `width` of Res2Net's blocks. A number that
    is the size of something that is split or viewed there is taken to be that size; Surgery tries it out.
    """
    uses: dict[str, list[np.ndarray]] = {}
    for name, units in channels.sizes:
        uses.setdefault(name, []).append(units)
    for name, counted in uses.items():
        sizes = [len(units) for units in counted]
        for attribute, value in vars(modules[name]).items():
            numbers = list(value) if isinstance(value, list | tuple) else [value]
            if not all(type(number) is int for number in numbers) or set(sizes).isdisjoint(numbers):
                continue
            start = next((i for i in range(len(sizes)) if sizes[i : i + len(numbers)] == numbers), None)
            if start is not None:
                yield (name, attribute), counted[start : start + len(numbers)]
            else:
                yield (name, attribute), [counted[sizes.index(n)] if n in sizes else n for n in numbers]


def copied(model: nn.Module) -> nn.Module:
    """A copy without gradients."""
    try:
        twin = copy.deepcopy(model)
    except Exception as error:  # modules may hold anything: locks, files, tensors of a graph
        raise InputError(f"{type(model).__name__} cannot be copied: {error}") from error
    for weight in twin.parameters():
        weight.grad = None
    return twin


def _stored(model: nn.Module) -> dict[str, Tensor]:
    return dict(model.named_parameters()) | dict(model.named_buffers())
