"""Run a network once and record what becomes of the outputs of its layers."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
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
from prune_fe.tracing.weights import require_example

NORMS = functions(Kind.NORM)
ACTIVATIONS = functions(Kind.ACTIVATION)
IDENTITIES = functions(Kind.IDENTITY)
MAP_STEPS = NORMS | ACTIVATIONS | IDENTITIES
"""The functions that may stand between a layer and its map."""

GLOBAL_POOLINGS = functions(traits=Trait.POOLS_GLOBALLY)


def survey(model: nn.Module, example: Inputs, watched: Mapping[str, nn.Module]) -> Survey:
    """Run the network on the example and record which functions receive the outputs of the watched modules.

    Args:
        model: The network. It is run in evaluation mode and left as it was.
        example: Inputs of the network.
        watched: Name -> module, for the modules whose outputs are followed.

    Raises:
        InputError: The network does not run on the example.
    """
    norms = {name: module for name, module in model.named_modules() if isinstance(module, _BatchNorm)}
    recorder = Survey(norms.keys() - watched.keys())
    require_example(example)
    try:
        with evaluating(model), torch.no_grad(), recorder.watching(norms | dict(watched)):
            run(model, example)
    except Exception as error:  # a network's code may raise anything at a wrong input
        raise InputError(f"{type(model).__name__} does not run on an input of {describe(example)}: {error}") from error
    return recorder


@dataclass(eq=False)
class LayerRun:
    """What became of the output of a module in one run.

    Attributes:
        shapes: The shape of stage 0, 1, …
        functions: The function that made stage 1, 2, …
        uses: How often each stage was used.
    """

    shapes: list[torch.Size]
    functions: list[Function] = field(default_factory=list)
    uses: dict[int, int] = field(default_factory=dict)

    @property
    def steps(self) -> int:
        """The stage that is the map: the first that is used several times, or else the last."""
        last = len(self.shapes) - 1
        return next((stage for stage in range(last) if self.uses.get(stage, 0) != 1), last)


class Survey(Watch):
    """Records for each watched module the stages of its output, and how often each stage is used.

    Stage 0 is the module's output, and each norm, activation or identity that follows makes the next stage.

    Attributes:
        runs: Watched module -> its runs, in the order in which the modules ran first.
        gates: Layers whose inputs are globally pooled features only.
        norm_of: Layer -> the batch norm that receives its output; the first, if there are several.
        several_norms: Layers whose runs are received by different batch norms.
        read: id() of every parameter that a function received.
    """

    def __init__(self, norms: Collection[str] = ()) -> None:
        super().__init__()
        self.runs: dict[str, list[LayerRun]] = {}
        self.gates: set[str] = set()
        self.read: set[int] = set()
        # Batch norms are watched only to find out which layer's output they receive.
        self._norms = frozenset(norms)
        self.norm_of: dict[str, str] = {}
        self.several_norms: set[str] = set()
        # Weak keys: a map that the network no longer holds takes no memory, and its id() cannot be mistaken.
        self._stages_of: Any = WeakIdKeyDictionary()  # tensor -> (name, run, stage)
        self._pooled: Any = WeakIdKeyDictionary()

    def after_module(self, name: str, inputs: tuple[Any, ...], output: Any) -> None:
        """Record a run of a module and make its output stage 0."""
        with torch._C.DisableTorchFunction():
            self._note_run(name, inputs, output)

    def _note_run(self, name: str, inputs: tuple[Any, ...], output: Any) -> None:
        value = inputs[0] if inputs and isinstance(inputs[0], Tensor) else None
        if name in self._norms:
            for layer, _, _ in self._stages_of.get(value, ()) if value is not None else ():
                if self.norm_of.setdefault(layer, name) != name:
                    self.several_norms.add(layer)
            return
        runs = self.runs.setdefault(name, [])
        runs.append(LayerRun([output.shape] if isinstance(output, Tensor) else []))
        if not isinstance(output, Tensor):
            return
        if value is not None and value in self._pooled and output.ndim == 4:
            self.gates.add(name)
            self._pooled[output] = True
        self._stages_of.setdefault(output, []).append((name, runs[-1], 0))

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        # An operator in place moves its tensor to the next stage, so look the stages up before the call.
        stages_of = [(value, list(self._stages_of.get(value, ()))) for value in tensors_in((args, kwargs))]
        output = func(*args, **(kwargs or {}))
        with torch._C.DisableTorchFunction():  # what follows is no part of the network
            self.read |= {id(value) for value, _ in stages_of if isinstance(value, nn.Parameter)}
            self._note_use(func, args, stages_of, output)
        return output

    def _note_use(
        self, func: Any, args: Any, stages_of: Sequence[tuple[Tensor, Sequence[tuple[str, LayerRun, int]]]], output: Any
    ) -> None:
        """Record what a function made of some tensors, which were at these stages before it was called."""
        # A question about the shape or the values is no use of a map.
        if all(value.ndim == 0 or value.dtype == torch.bool for value in tensors_in(output)):
            return
        self._note_pooling(func, [value for value, _ in stages_of], output)
        for value, stages in stages_of:
            for name, followed, stage in stages:
                uses = followed.uses[stage] = followed.uses.get(stage, 0) + 1
                if uses == 1 and args and value is args[0] and _is_next_step(followed, func):
                    self._add_stage(name, followed, stage, func, value, output)

    def _note_pooling(self, func: Any, inputs: Sequence[Tensor], output: Any) -> None:
        """Remember an output that is globally pooled, or computed from globally pooled features only."""
        maps = [value for value in inputs if value.ndim == 4 and not isinstance(value, nn.Parameter)]
        pooled = func in GLOBAL_POOLINGS or (maps and all(value in self._pooled for value in maps))
        if pooled and isinstance(output, Tensor) and tuple(output.shape[2:]) == (1, 1):
            self._pooled[output] = True

    def _add_stage(self, name: str, run: LayerRun, stage: int, func: Any, value: Tensor, output: Tensor) -> None:
        run.shapes.append(output.shape)
        run.functions.append(func)
        if output is value:  # in place: from now on the tensor is the later stage
            self._stages_of[value].remove((name, run, stage))
        self._stages_of.setdefault(output, []).append((name, run, stage + 1))


def _is_next_step(run: LayerRun, func: Any) -> bool:
    """Return whether a function belongs to the map: a layer has at most one norm and one activation."""
    if func in IDENTITIES:
        return True
    kind = next((kind for kind in (NORMS, ACTIVATIONS) if func in kind), None)
    return kind is not None and not any(earlier in kind for earlier in run.functions)
