"""Which units a network has, and how their maps are read and masked.

The map of a unit is the one the next layer consumes: after the norm and the activation that belong to the
convolution, before pooling, concatenation or a residual sum. A module hook alone cannot find that point
(activations may be functions, work in place or serve several layers), so the network is watched while it runs:
a convolution's output is followed through the torch functions that receive it. Any network that runs can be read.
"""

from __future__ import annotations

import difflib
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from numbers import Integral
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm
from torch.overrides import TorchFunctionMode

from prune_fe.errors import InputError

NORMS = frozenset({F.batch_norm, F.group_norm, F.layer_norm, F.instance_norm, torch.batch_norm, torch.group_norm})
ACTIVATIONS = frozenset(
    {
        F.relu,
        F.relu_,
        F.relu6,
        F.leaky_relu,
        F.leaky_relu_,
        F.elu,
        F.elu_,
        F.celu,
        F.selu,
        F.rrelu,
        F.gelu,
        F.silu,
    }
    | {F.mish, F.hardswish, F.hardtanh, F.hardtanh_, F.hardsigmoid, F.prelu, F.softplus, F.sigmoid, F.tanh}
    | {torch.relu, torch.relu_, torch.sigmoid, torch.sigmoid_, torch.tanh, torch.tanh_, torch.prelu}
    | {Tensor.relu, Tensor.relu_, Tensor.sigmoid, Tensor.sigmoid_, Tensor.tanh, Tensor.tanh_}
    | {torch.clamp, torch.clamp_, torch.clamp_min, torch.clamp_min_, Tensor.clamp, Tensor.clamp_, Tensor.clamp_min}
    | {Tensor.clamp_min_, torch.clip, torch.clip_, Tensor.clip, Tensor.clip_}
    | {F.threshold, F.softsign, F.logsigmoid, F.hardshrink, F.softshrink, F.tanhshrink}
)
IDENTITIES = frozenset(
    {F.dropout, F.dropout2d, F.alpha_dropout, F.feature_alpha_dropout}
    | {Tensor.contiguous, Tensor.to, Tensor.float, Tensor.half, Tensor.bfloat16, Tensor.type}
)
"""What leaves a map a map in evaluation mode; it may stand anywhere on the way."""

FOLLOWED = NORMS | ACTIVATIONS | IDENTITIES
POOLINGS = frozenset({F.adaptive_avg_pool2d, F.adaptive_max_pool2d, torch.mean, torch.amax, Tensor.mean, Tensor.amax})
"""Global poolings. A local one that happens to leave 1×1 makes no gate of the convolutions behind it."""

ReadMaps = Callable[["Layer", Tensor], None]


@dataclass(frozen=True)
class Layer:
    """The units of one module: the channels of its output, read `steps` torch functions later.

    `steps` counts the norm, the activation and what changes nothing between the module `name` and the point where
    its maps are read and masked; `map_size` is the (height, width) of a map on the example that the layer was found
    with; `norm` is the name of the batch norm among these steps. With `at_input` the maps are what the module is
    given, as features (images, units) or maps.
    """

    name: str
    units: int
    map_size: tuple[int, int]
    steps: int = 0
    norm: str | None = None
    at_input: bool = False


def find_layers(
    model: nn.Module, example: Tensor | tuple[Any, ...], names: Sequence[str] | None = None
) -> tuple[Layer, ...]:
    """The layers of `model` in the order they run, found by running it once on `example`.

    Without `names`: every nn.Conv2d that runs once on a map. (A convolution behind a global pooling, as in the gate
    of a squeeze-and-excite block, is a linear layer on pooled features: it has no map to judge.) With `names`: these
    modules; one that is no convolution, such as a residual block, is read at its output as well.

    Raises InputError for a name that does not exist, does not run, runs more than once or gives no maps.
    """
    if names is None:
        return find_convolutions(model, example)[0]
    if isinstance(names, str) or not names:
        raise InputError(f"layers is {names!r}; it must be a list of names")
    modules = dict(model.named_modules())
    for name in names:
        if name not in modules:
            raise InputError(f"layer {name!r}: the model has no such module; {_nearest(name, modules)}")
    watched = {name: modules[name] for name in names}
    found, faults = _survey(model, example, watched).layers(watched)
    if faults:
        raise InputError("; ".join(faults))
    return found


def find_convolutions(model: nn.Module, example: Tensor | tuple[Any, ...]) -> tuple[tuple[Layer, ...], frozenset[str]]:
    """(what find_layers finds without names, the names of the convolutions that run more than once)."""
    watched = _convolutions_of(model)
    finder = _survey(model, example, watched)
    found, faults = finder.layers(watched)
    if faults:
        warnings.warn("left out: " + "; ".join(faults), stacklevel=3)
    shared = frozenset(name for name, runs in finder.runs.items() if runs > 1)
    return tuple(layer for layer in found if layer.name not in finder.gates), shared


def _convolutions_of(model: nn.Module) -> dict[str, nn.Conv2d]:
    found = {name: module for name, module in model.named_modules() if isinstance(module, nn.Conv2d)}
    if not found:
        raise InputError(f"{type(model).__name__} has no nn.Conv2d: there are no units to score or to prune")
    return found


def _survey(model: nn.Module, example: Tensor | tuple[Any, ...], watched: Mapping[str, nn.Module]) -> _Finder:
    norms = {name: module for name, module in model.named_modules() if isinstance(module, _BatchNorm)}
    finder = _Finder(norms.keys() - watched.keys())
    inputs = example if isinstance(example, tuple) else (example,)
    try:
        with evaluating(model), torch.no_grad(), finder.watching(norms | dict(watched)):
            model(*inputs)
    except Exception as error:  # networks raise what they like at a wrong input
        shapes = ", ".join(str(tuple(value.shape)) for value in inputs if isinstance(value, Tensor))
        raise InputError(f"{type(model).__name__} does not run on an input of {shapes or inputs}: {error}") from error
    return finder


def find_response(model: nn.Module, example: Tensor) -> Layer:
    """What the classifier is given: the final response layer of Yu et al. 2018.

    InputError when the last layer with weights that runs is not linear.
    """
    weighted = {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear | nn.Conv2d)}
    runs = _survey(model, example, weighted).runs
    last = next((name for name in reversed(runs) if name in weighted), None)
    module = weighted.get(last or "")
    if not isinstance(module, nn.Linear) or runs[str(last)] > 1:
        what = f"layer {last!r} is a {type(module).__name__}" if module is not None else "there is none"
        raise InputError(f"the final responses are what a linear classifier is given at the network's end; {what}")
    return Layer(str(last), module.in_features, (1, 1), at_input=True)


def convolutions(model: nn.Module, names: Sequence[str] | None = None) -> tuple[Layer, ...]:
    """The convolutions as layers without running the model, in the order of its modules.

    Enough for scorers that read weights; their maps are not known (map_size is (0, 0)) and cannot be read.
    """
    modules = _convolutions_of(model)
    for name in names or ():
        if name not in modules:
            raise InputError(f"layer {name!r}: the model has no such convolution; {_nearest(name, modules)}")
    return tuple(Layer(name, modules[name].out_channels, (0, 0)) for name in (modules if names is None else names))


def observe(model: nn.Module, layers: Iterable[Layer], read: ReadMaps, gates: dict[str, Tensor] | None = None) -> Any:
    """A context in which every forward pass of `model` calls read(layer, maps) as soon as the maps exist.

    maps: (images, units, height, width), the tensor that the network goes on to use: it may be overwritten later,
    so take what is needed at once.

    gates: where to put a gate for each layer, (images, units) ones that the maps are multiplied with (Molchanov et
    al. 2019): the gradient of a loss with respect to a gate can be had without touching a parameter. Needs
    gradients on.
    """

    def keep(layer: Layer, maps: Tensor, in_place: bool) -> Tensor:
        read(layer, maps.detach())
        if gates is None or layer.at_input:
            return maps
        gate = gates[layer.name] = maps.new_ones(maps.shape[:2], requires_grad=True)
        return maps * gate[:, :, None, None]

    return follow(model, layers, keep)


def follow(model: nn.Module, layers: Iterable[Layer], act: Callable[[Layer, Tensor, bool], Tensor]) -> Any:
    """A context in which the network goes on with act(layer, maps, in_place) instead of the maps of each layer.

    in_place: the maps were written over what they were computed from, and the network may use them without having
    been handed them. What act returns for a layer `at_input` is ignored.
    """
    return _Follower(layers, act).watching(dict(model.named_modules()))


def mask(model: nn.Module, layers: Iterable[Layer], units: Mapping[str, Sequence[int]]) -> Any:
    """A context in which the maps of `units` (layer name -> unit numbers) are zero where they are read.

    Masking a unit equals removing it, unless a norm comes later (as in DenseNet, ConvNeXt or behind a GroupNorm),
    which turns the zero into something else. With gradients on, the masked maps are new tensors: a network that
    works in place and drops the return value does not see them.
    """

    def zero(layer: Layer, maps: Tensor, in_place: bool) -> Tensor:
        index = torch.as_tensor(list(units[layer.name]), dtype=torch.int64, device=maps.device)
        # What worked in place may be used without its return value; autograd forbids to change it afterwards.
        return maps.index_fill_(1, index, 0) if in_place and not maps.requires_grad else maps.index_fill(1, index, 0)

    every = {layer.name: layer for layer in layers}
    for name in units:
        if name not in every:
            raise InputError(f"layer {name!r}: not among the layers given; {_nearest(name, every)}")
        for unit in units[name]:
            if isinstance(unit, bool) or not isinstance(unit, Integral):
                raise InputError(f"layer {name!r}: {unit!r} is no unit number")
            if not 0 <= unit < every[name].units:
                raise InputError(f"layer {name!r}: no unit {unit}, it has {every[name].units}")
    return follow(model, [every[name] for name in units], zero)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode inside; afterwards every module is in the mode it was in."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


class _Watch(TorchFunctionMode, ABC):
    """Runs beside a network: sees the output of some modules, and every torch function."""

    @abstractmethod
    def after_module(self, name: str, inputs: tuple[Any, ...], output: Any) -> Any:
        """What a module's forward hook does."""

    @contextmanager
    def watching(self, modules: Mapping[str, nn.Module]) -> Iterator[None]:
        with ExitStack() as stack:
            for name, module in modules.items():
                handle = module.register_forward_hook(
                    lambda _, args, kwargs, output, name=name: self.after_module(
                        name, (*args, *kwargs.values()), output
                    ),
                    with_kwargs=True,
                )
                stack.callback(handle.remove)
            stack.enter_context(self)
            yield


class _Follower(_Watch):
    """Follows the output of each layer for its number of steps and hands it to `act`."""

    def __init__(self, layers: Iterable[Layer], act: Callable[[Layer, Tensor, bool], Tensor]) -> None:
        super().__init__()
        self.by_name: dict[str, list[Layer]] = {}
        for layer in layers:
            self.by_name.setdefault(layer.name, []).append(layer)
        self.act = act
        self.on_the_way: dict[int, list[tuple[Tensor, Layer, int]]] = {}

    @contextmanager
    def watching(self, modules: Mapping[str, nn.Module]) -> Iterator[None]:
        try:
            with super().watching({name: modules[name] for name in self.by_name}):
                yield
        finally:
            self.on_the_way.clear()

    def after_module(self, name: str, inputs: tuple[Any, ...], output: Any) -> Any:
        for layer in self.by_name[name]:
            if layer.at_input:
                self.act(layer, inputs[0], False)
            else:
                output = self._arrive(layer, output, 0, in_place=False)
        return output

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        ways = self.on_the_way.pop(id(args[0]), []) if args and func in FOLLOWED else []
        output = func(*args, **(kwargs or {}))
        in_place = bool(args) and output is args[0]
        for _, layer, steps in ways:
            output = self._arrive(layer, output, steps + 1, in_place)
        return output

    def _arrive(self, layer: Layer, value: Tensor, steps: int, in_place: bool) -> Tensor:
        if steps == layer.steps:
            return self.act(layer, value, in_place)
        # The reference keeps the id from being used again.
        self.on_the_way.setdefault(id(value), []).append((value, layer, steps))
        return value


class _Finder(_Watch):
    """Records, for each watched module, what its output became and how often each stage was consumed."""

    def __init__(self, norms: Collection[str] = ()) -> None:
        super().__init__()
        self.norms = frozenset(norms)  # these are watched only to know which layer's output they are given
        self.norm_of: dict[str, str] = {}
        self.stages: dict[str, list[Tensor]] = {}  # the module's output, then after each norm or activation
        self.runs: dict[str, int] = {}
        self.gates: set[str] = set()  # layers that see nothing but globally pooled features
        self.pooled: dict[int, Tensor] = {}  # those features, by id; the reference keeps the id
        self.followed: dict[str, list[Callable[..., Any]]] = {}
        self.consumers: dict[tuple[str, int], int] = {}
        self.owner: dict[int, list[tuple[str, int]]] = {}  # id of a value -> the stages that it is

    def after_module(self, name: str, inputs: tuple[Any, ...], output: Any) -> None:
        if name in self.norms:
            for layer, _ in self.owner.get(id(inputs[0]), ()) if inputs else ():
                self.norm_of.setdefault(layer, name)
            return
        self.runs[name] = self.runs.get(name, 0) + 1
        if not isinstance(output, Tensor) or output.ndim != 4:
            self.stages[name] = []
            return
        if inputs and id(inputs[0]) in self.pooled:
            self.gates.add(name)
            self.pooled[id(output)] = output
        self.stages[name], self.followed[name] = [output], []
        self.owner.setdefault(id(output), []).append((name, 0))

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        before = [(value, list(self.owner.get(id(value), ()))) for value in tensors_in((args, kwargs))]
        output = func(*args, **(kwargs or {}))
        if all(value.ndim == 0 or value.dtype == torch.bool for value in tensors_in(output)):
            return output  # a question about the shape or the values consumes nothing
        maps = [value for value, _ in before if value.ndim == 4 and not isinstance(value, nn.Parameter)]
        pooled = func in POOLINGS or (maps and all(id(value) in self.pooled for value in maps))
        if pooled and isinstance(output, Tensor) and tuple(output.shape[2:]) == (1, 1):
            self.pooled[id(output)] = output
        for value, stages in before:
            for name, stage in stages:
                seen = self.consumers[name, stage] = self.consumers.get((name, stage), 0) + 1
                if seen == 1 and args and value is args[0] and self._belongs(name, func):
                    self._follow(name, stage, func, value, output)
        return output

    def _belongs(self, name: str, func: Any) -> bool:
        if func in IDENTITIES:
            return True
        kind = next((kind for kind in (NORMS, ACTIVATIONS) if func in kind), None)
        return kind is not None and not any(earlier in kind for earlier in self.followed[name])

    def _follow(self, name: str, stage: int, func: Any, value: Tensor, output: Tensor) -> None:
        self.stages[name].append(output)
        self.followed[name].append(func)
        if output is value:  # in place: what consumes it from now on consumes the later stage
            self.owner[id(value)].remove((name, stage))
        self.owner.setdefault(id(output), []).append((name, stage + 1))

    def layers(self, watched: Iterable[str]) -> tuple[tuple[Layer, ...], list[str]]:
        """The layers that can be read, in the order they ran, and what is wrong with the others."""
        found, faults = [], []
        for name in watched:
            runs = self.runs.get(name, 0)
            if runs != 1:
                times = f"runs {runs} times" if runs else "does not run"
                faults.append(f"layer {name!r} {times} in a forward pass, a layer must run once")
            elif not self.stages[name]:
                faults.append(f"layer {name!r} gives no maps of shape (images, units, height, width)")
            else:
                found.append(name)
        found.sort(key=list(self.runs).index)
        return tuple(self._layer(name) for name in found), faults

    def _layer(self, name: str) -> Layer:
        stages = self.stages[name]
        # A stage that several functions consume is the map itself, whatever one of them makes of it.
        steps = next((s for s in range(len(stages)) if self.consumers.get((name, s), 0) != 1), len(stages) - 1)
        _, units, height, width = stages[steps].shape
        normed = not NORMS.isdisjoint(self.followed[name][:steps])
        return Layer(name, units, (height, width), steps, self.norm_of.get(name) if normed else None)


def tensors_in(values: Any) -> list[Tensor]:
    """The tensors in nested lists, tuples and dicts, in their order."""
    if isinstance(values, Tensor):
        return [values]
    if isinstance(values, dict):
        values = values.values()
    elif not isinstance(values, tuple | list):
        return []
    return [tensor for value in values for tensor in tensors_in(value)]


def _nearest(name: str, names: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, list(names), n=3, cutoff=0.4)
    return f"did you mean {' or '.join(map(repr, close))}?" if close else "model.named_modules() lists them"
