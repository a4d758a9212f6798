"""Find the layers of a network whose units have maps.

The map of a unit is read behind the norm and the activation that belong to the convolution, and before pooling,
concatenation or a residual sum. A module hook alone cannot find that point, because activations may be functions, work
in place or serve several layers. Therefore the network runs once, and the output of each convolution is followed
through the torch functions that receive it. This works for any network that runs.
"""

from __future__ import annotations

import difflib
import warnings
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.weak import WeakIdKeyDictionary

from prune_fe.errors import InputError
from prune_fe.tracing.nested import Inputs, describe, run, tensors_in
from prune_fe.tracing.ops import Function, Kind, Trait, functions
from prune_fe.tracing.watching import Watch, evaluating
from prune_fe.tracing.weights import require_example, require_network

NORMS = functions(Kind.NORM)
ACTIVATIONS = functions(Kind.ACTIVATION)
IDENTITIES = functions(Kind.IDENTITY)
MAP_STEPS = NORMS | ACTIVATIONS | IDENTITIES
"""The functions that may stand between a convolution and its map."""

GLOBAL_POOLINGS = functions(traits=Trait.POOLS_GLOBALLY)


@dataclass(frozen=True)
class Layer:
    """A module with units, which are the channels of its output, and the point where their maps are read.

    Attributes:
        name: The module's name in the network.
        units: Number of its units.
        map_size: (height, width) of a map for the example that `find_layers` ran the network on.
        steps: Number of norms, activations and identities between the module and the point where its maps are read and
            masked.
        norm: Name of the batch norm among these steps, or None.
        at_input: Whether the maps are the module's input instead: features (images, units), or maps.
        is_activated: Whether an activation is among these steps. (That a block ends with one is not known.)
    """

    name: str
    units: int
    map_size: tuple[int, int]
    steps: int = 0
    norm: str | None = None
    at_input: bool = False
    is_activated: bool = field(default=False, compare=False)


def find_layers(model: nn.Module, example: Inputs, names: Sequence[str] | None = None) -> tuple[Layer, ...]:
    """Find the layers of a network by running it once.

    Args:
        model: The network. It is run in evaluation mode and left as it was.
        example: Inputs of the network: a tensor (images, channels, height, width), a tuple of positional arguments, or
            a dict of keyword arguments.
        names: Names of modules. One that is no convolution, such as a residual block, is read at its output as well.
            None for every nn.Conv2d that runs once on a map. (A convolution behind a global pooling, as in the gate of
            a squeeze-and-excite block, is a linear layer on pooled features: it has no map.)

    Returns:
        The layers in the order in which they run.

    Raises:
        InputError: A name does not exist, does not run, runs more than once or gives no maps; or the network does not
            run on the example.
    """
    require_network(model)
    if names is None:
        return find_convolutions(model, example)[0]
    if not isinstance(names, Sequence) or isinstance(names, str) or not names:
        raise InputError(f"layers is {names!r}; it must be a list of names")
    modules = dict(model.named_modules())
    for name in names:
        if name not in modules:
            raise InputError(f"layer {name!r}: the model has no such module; {suggest_names(name, modules)}")
    watched = {name: modules[name] for name in names}
    layers, faults = _survey(model, example, watched).layers(watched)
    if faults:
        raise InputError("; ".join(faults))
    return layers


def find_convolutions(model: nn.Module, example: Inputs) -> tuple[tuple[Layer, ...], frozenset[str]]:
    """Find the convolutions of a network, with a warning about those that have no maps.

    Args:
        model: The network.
        example: Inputs of the network.

    Returns:
        What `find_layers` returns without names, and the names of the convolutions that run more than once.
    """
    watched = _modules_with_units(model)
    survey = _survey(model, example, watched)
    layers, faults = survey.layers(watched)
    if faults:
        warnings.warn("left out: " + "; ".join(faults), stacklevel=3)
    shared = frozenset(name for name, runs in survey.runs.items() if runs > 1)
    return tuple(layer for layer in layers if layer.name not in survey.gates), shared


def find_response(model: nn.Module, example: Inputs) -> Layer:
    """Find the final response layer (Yu et al. 2018): what the linear classifier reads.

    Args:
        model: The network.
        example: Inputs of the network.

    Returns:
        The input of the last layer with weights that runs.

    Raises:
        InputError: That layer is not linear, or runs more than once.
    """
    weighted = {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear | nn.Conv2d)}
    runs = _survey(model, example, weighted).runs
    last = next((name for name in reversed(runs) if name in weighted), None)
    module = weighted.get(last or "")
    if not isinstance(module, nn.Linear) or runs[str(last)] > 1:
        last_layer = f"layer {last!r} is a {type(module).__name__}" if module is not None else "there is none"
        raise InputError(f"the final responses are what a linear classifier reads at the network's end; {last_layer}")
    return Layer(str(last), module.in_features, (1, 1), at_input=True)


def list_convolutions(model: nn.Module, names: Sequence[str] | None = None) -> tuple[Layer, ...]:
    """Return convolutions as layers without running the network, for scorers that read weights only.

    Args:
        model: The network.
        names: Names of convolutions; None for all.

    Returns:
        Layers in the order of `names`, or of the network's modules. Their maps cannot be read: map_size is (0, 0).

    Raises:
        InputError: The network has no such convolution, or none at all.
    """
    modules = _modules_with_units(model)
    for name in names or ():
        if name not in modules:
            raise InputError(f"layer {name!r}: the model has no such convolution; {suggest_names(name, modules)}")
    return tuple(Layer(name, modules[name].out_channels, (0, 0)) for name in (modules if names is None else names))


def suggest_names(name: str, known: Iterable[str]) -> str:
    """Return a hint for an unknown module.

    Args:
        name: The unknown name.
        known: The names of the modules that exist.

    Returns:
        Up to three similar names, because networks have too many modules to list them all.
    """
    close = difflib.get_close_matches(name, list(known), n=3, cutoff=0.4)
    return f"did you mean {' or '.join(map(repr, close))}?" if close else "model.named_modules() lists them"


def _modules_with_units(model: nn.Module) -> dict[str, nn.Conv2d]:
    convolutions = {name: module for name, module in model.named_modules() if isinstance(module, nn.Conv2d)}
    if not convolutions:
        raise InputError(f"{type(model).__name__} has no nn.Conv2d: there are no units to score or to prune")
    return convolutions


def _survey(model: nn.Module, example: Inputs, watched: Mapping[str, nn.Module]) -> _Survey:
    """Run the network on the example and record which functions receive the outputs of the watched modules."""
    norms = {name: module for name, module in model.named_modules() if isinstance(module, _BatchNorm)}
    survey = _Survey(norms.keys() - watched.keys())
    require_example(example)
    try:
        with evaluating(model), torch.no_grad(), survey.watching(norms | dict(watched)):
            run(model, example)
    except Exception as error:  # a network's code may raise anything at a wrong input
        raise InputError(f"{type(model).__name__} does not run on an input of {describe(example)}: {error}") from error
    return survey


class _Survey(Watch):
    """Records for each watched module the stages of its output, and how often each stage is used.

    Stage 0 is the module's output, and each norm, activation or identity that follows makes the next stage.

    Attributes:
        runs: Module -> how often it ran, in the order of the first time.
        gates: Layers whose inputs are globally pooled features only.
    """

    def __init__(self, norms: Collection[str] = ()) -> None:
        super().__init__()
        self.runs: dict[str, int] = {}
        self.gates: set[str] = set()
        # Batch norms are watched only to find out which layer's output they receive.
        self._norms = frozenset(norms)
        self._norm_of: dict[str, str] = {}
        self._stages: dict[str, list[torch.Size]] = {}  # the shape of stage 0, 1, ...
        self._steps: dict[str, list[Function]] = {}  # the function that made stage 1, 2, ...
        self._uses: dict[tuple[str, int], int] = {}
        # Weak keys: a map that the network no longer holds takes no memory, and its id() cannot be mistaken.
        self._stages_of: Any = WeakIdKeyDictionary()
        self._pooled: Any = WeakIdKeyDictionary()

    def after_module(self, name: str, inputs: tuple[Any, ...], output: Any) -> None:
        """Record a run of a module and make its output stage 0."""
        with torch._C.DisableTorchFunction():
            self._note_run(name, inputs, output)

    def _note_run(self, name: str, inputs: tuple[Any, ...], output: Any) -> None:
        value = inputs[0] if inputs and isinstance(inputs[0], Tensor) else None
        if name in self._norms:
            for layer, _ in self._stages_of.get(value, ()) if value is not None else ():
                self._norm_of.setdefault(layer, name)
            return
        self.runs[name] = self.runs.get(name, 0) + 1
        if not isinstance(output, Tensor) or output.ndim != 4:
            self._stages[name] = []
            return
        if value is not None and value in self._pooled:
            self.gates.add(name)
            self._pooled[output] = True
        self._stages[name], self._steps[name] = [output.shape], []
        self._stages_of.setdefault(output, []).append((name, 0))

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        # An operator in place moves its tensor to the next stage, so look the stages up before the call.
        stages_of = [(value, list(self._stages_of.get(value, ()))) for value in tensors_in((args, kwargs))]
        output = func(*args, **(kwargs or {}))
        with torch._C.DisableTorchFunction():  # what follows is no part of the network
            self._note_use(func, args, stages_of, output)
        return output

    def _note_use(
        self, func: Any, args: Any, stages_of: Sequence[tuple[Tensor, Sequence[tuple[str, int]]]], output: Any
    ) -> None:
        """Record what a function made of some tensors, which were at these stages before it was called."""
        # A question about the shape or the values is no use of a map.
        if all(value.ndim == 0 or value.dtype == torch.bool for value in tensors_in(output)):
            return
        self._note_pooling(func, [value for value, _ in stages_of], output)
        for value, stages in stages_of:
            for name, stage in stages:
                uses = self._uses[name, stage] = self._uses.get((name, stage), 0) + 1
                if uses == 1 and args and value is args[0] and self._is_next_step(name, func):
                    self._add_stage(name, stage, func, value, output)

    def _note_pooling(self, func: Any, inputs: Sequence[Tensor], output: Any) -> None:
        """Remember an output that is globally pooled, or made of nothing else."""
        maps = [value for value in inputs if value.ndim == 4 and not isinstance(value, nn.Parameter)]
        pooled = func in GLOBAL_POOLINGS or (maps and all(value in self._pooled for value in maps))
        if pooled and isinstance(output, Tensor) and tuple(output.shape[2:]) == (1, 1):
            self._pooled[output] = True

    def _is_next_step(self, name: str, func: Any) -> bool:
        """Return whether a function belongs to the map: a layer has at most one norm and one activation."""
        if func in IDENTITIES:
            return True
        kind = next((kind for kind in (NORMS, ACTIVATIONS) if func in kind), None)
        return kind is not None and not any(earlier in kind for earlier in self._steps[name])

    def _add_stage(self, name: str, stage: int, func: Any, value: Tensor, output: Tensor) -> None:
        self._stages[name].append(output.shape)
        self._steps[name].append(func)
        if output is value:  # in place: from now on the tensor is the later stage
            self._stages_of[value].remove((name, stage))
        self._stages_of.setdefault(output, []).append((name, stage + 1))

    def layers(self, watched: Iterable[str]) -> tuple[tuple[Layer, ...], list[str]]:
        """Return the layers that have maps, in the order in which they ran, and what is wrong with the others."""
        readable, faults = [], []
        for name in watched:
            runs = self.runs.get(name, 0)
            if runs != 1:
                times = f"runs {runs} times" if runs else "does not run"
                faults.append(f"layer {name!r} {times} in a forward pass, a layer must run once")
            elif not self._stages[name]:
                faults.append(f"layer {name!r} gives no maps of shape (images, units, height, width)")
            else:
                readable.append(name)
        readable.sort(key=list(self.runs).index)
        return tuple(self._layer(name) for name in readable), faults

    def _layer(self, name: str) -> Layer:
        stages = self._stages[name]
        # A stage that is used several times is the map itself, whatever one of the uses makes of it.
        steps = next((step for step in range(len(stages)) if self._uses.get((name, step), 0) != 1), len(stages) - 1)
        _, units, height, width = stages[steps]
        functions_between = self._steps[name][:steps]
        norm = None if NORMS.isdisjoint(functions_between) else self._norm_of.get(name)
        is_activated = not ACTIVATIONS.isdisjoint(functions_between)
        return Layer(name, units, (height, width), steps, norm, is_activated=is_activated)
