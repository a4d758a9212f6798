"""Remove units and keep the network consistent: the only file that knows torch-pruning.

torch-pruning's dependency graph says what must change together; which units go is decided here.
"""

from __future__ import annotations

import copy
import difflib
import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from prune_fe.errors import InputError
from prune_fe.layers import evaluating, find_convolutions
from prune_fe.scores import Scores, architecture, weakest

WITH_UNITS = (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)

Coupled = Literal["mean", "leave"]
Ratio = float | Mapping[str, float]
Rescore = Callable[[nn.Module, tuple[str, ...]], Scores]


@dataclass(frozen=True)
class Group:
    """Layers whose units can only go together: one convolution, or several that a residual sum or a depthwise
    convolution ties unit by unit. layers: names in the order they run, `units` units each.

    blocks: how many equal blocks a grouped convolution or a group norm divides the units into; every block must lose
    the units at the same places. residual: more than one of the layers mixes channels. fault: why the group cannot
    be pruned, or None. also: modules without scores whose outputs go with these units, such as the gates of
    squeeze-and-excite blocks.
    """

    layers: tuple[str, ...]
    units: int
    blocks: int = 1
    residual: bool = False
    fault: str | None = None
    also: tuple[str, ...] = ()


@dataclass(frozen=True)
class Step:
    """What was asked of one group and what was done. removed and kept hold unit numbers of the network that prune()
    was given, ascending; left says why nothing was removed; also: modules without scores that lost the same outputs."""

    layers: tuple[str, ...]
    units: int
    asked: int
    removed: tuple[int, ...]
    kept: tuple[int, ...]
    left: str | None = None
    also: tuple[str, ...] = ()


@dataclass(frozen=True)
class Pruned:
    model: nn.Module
    steps: tuple[Step, ...]


def prune(
    model: nn.Module,
    scores: Scores,
    ratio: Ratio = 0.5,
    example: Tensor | None = None,
    *,
    coupled: Coupled = "mean",
    rescore: Rescore | None = None,
    after: Callable[[nn.Module, Step], None] | None = None,
) -> Pruned:
    """Remove the weakest units of every layer, from shallow to deep, from a copy of `model`.

    A layer of n units keeps floor((1 − ratio) · n), at least one. ratio: the share removed, in [0, 1), or layer name
    -> share (the other layers keep all). scores: from prune_fe.score; layers without scores are left alone. rescore:
    a function (model so far, layer names) -> Scores that is asked anew before each layer is pruned. coupled: units
    that a residual sum ties together go by the mean of their layers' scores, or are left alone. after: called with
    the model so far when a layer has lost units. The layers that make the model's outputs are never pruned.

    example: one input (images, channels, height, width); the pruned model is checked to run on it and to return the
    same shape. Raises InputError when nothing at all could be removed although it was asked for.
    """
    if not isinstance(example, Tensor):
        raise InputError("prune() needs example=, one input of the model as a tensor (1, channels, height, width)")
    if not isinstance(scores, Scores):
        raise InputError(f"scores is a {type(scores).__name__}; prune() needs what prune_fe.score returns")
    if scores.provenance.get("architecture_sha256", architecture(model)) != architecture(model):
        raise InputError(
            f"scores are of another network ({scores.provenance.get('model')}, {len(scores.keep)} layers): its modules "
            "or their settings differ; score this one"
        )
    if coupled not in get_args(Coupled):
        raise InputError(f"coupled is {coupled!r}, allowed are {', '.join(get_args(Coupled))}")
    surgery = Surgery(model, example)
    shares = _shares(ratio, surgery.groups)
    steps = []
    for group in surgery.groups:
        share = shares[group.layers[0]]
        asked = group.units - kept_units(group.units, share, group.blocks)
        units: list[int] = []
        left = group.fault
        if coupled == "leave" and group.residual:
            left = "coupled by a residual sum"
        elif asked == 0:
            left = f"ratio {share:g} removes none of {group.units} units" + _in_blocks(group)
        scored = tuple(layer for layer in group.layers if layer in scores.keep)
        if left is None and not scored:
            left = "not scored"
        if left is None:
            now = scores if rescore is None else rescore(surgery.model, scored)
            units = _weakest(group, now, scored, asked)
            surgery.remove(group, units)
        kept = tuple(sorted(set(range(group.units)) - set(units)))
        steps.append(Step(group.layers, group.units, asked, tuple(sorted(units)), kept, left, group.also))
        if after is not None and units:
            surgery.freeze()
            after(surgery.model, steps[-1])
            surgery.thaw()
    wanted = any(ratio.values()) if isinstance(ratio, Mapping) else ratio > 0
    if wanted and not any(step.removed for step in steps):
        reasons = "; ".join(f"{step.layers[0]}: {step.left}" for step in steps) or "no layer but the output's"
        raise InputError(f"nothing could be pruned ({reasons})")
    return Pruned(surgery.finish(), tuple(steps))


def kept_units(units: int, ratio: float, blocks: int = 1) -> int:
    """floor((1 − ratio) · units), at least one; with blocks, that of each block.

    The ratio is the decimal that it is written as: 0.9 of 10 leaves 1, although (1 − 0.9) · 10 < 1 in binary.

    >>> kept_units(64, 0.4), kept_units(10, 0.9), kept_units(3, 0.99), kept_units(8, 0)
    (38, 1, 1, 8)
    """
    return blocks * max(math.floor((1 - Fraction(str(ratio))) * (units // blocks)), 1)


class Surgery:
    """A copy of a network that loses units group by group.

    groups: what can be pruned, in the order it runs. The graph behind it is built once; it stays valid while units
    are removed through it and while weights are trained in between.
    """

    def __init__(self, model: nn.Module, example: Tensor) -> None:
        import torch_pruning

        self._original = model
        self._example = example.detach().to(next(model.parameters()).device)
        layers, self._shared = find_convolutions(model, self._example)
        _refuse_computed_weights(model)
        self.model = copy.deepcopy(model)
        self.thaw()
        self._modules = dict(self.model.named_modules())
        with evaluating(self.model), torch.enable_grad():
            output = self.model(self._example)
            if not isinstance(output, Tensor):
                raise InputError(
                    f"the model returns a {type(output).__name__}; prune() needs one that returns a tensor"
                )
            self._shape = output.shape
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")  # what it does not know is checked by the forward pass in finish()
                    self._graph = torch_pruning.DependencyGraph().build_dependency(
                        self.model, example_inputs=(self._example,), verbose=False
                    )
            except Exception as error:  # it raises whatever went wrong inside
                name = type(model).__name__
                raise InputError(f"torch-pruning cannot follow {name}: {type(error).__name__}: {error}") from error
        self.groups = tuple(self._find_groups([layer.name for layer in layers], _output_weights(output)))

    def remove(self, group: Group, units: Sequence[int]) -> None:
        """Remove these units of `group`, and what depends on them everywhere."""
        expected = {name: self._modules[name].out_channels - len(units) for name in group.layers}
        try:
            self._coupled(self._modules[group.layers[0]], sorted(units)).prune()
        except Exception as error:  # it raises whatever went wrong inside
            raise InputError(f"layer {group.layers[0]!r}: torch-pruning cannot remove units: {error}") from error
        for name, count in expected.items():
            if self._modules[name].out_channels != count:
                got = self._modules[name].out_channels
                raise InputError(f"layer {name!r}: {count} units should be left, torch-pruning left {got}")

    def thaw(self) -> None:
        """torch-pruning follows gradients: a frozen weight is invisible to it."""
        self.model.requires_grad_(True)

    def freeze(self) -> None:
        """Train what the original trains, and nothing else."""
        frozen = {name for name, weight in self._original.named_parameters() if not weight.requires_grad}
        for name, weight in self.model.named_parameters():
            weight.requires_grad_(name not in frozen)
            weight.grad = None

    def finish(self) -> nn.Module:
        """The pruned network: it runs, returns the same shape, and trains the weights that it trained before."""
        self.freeze()
        try:
            with evaluating(self.model), torch.no_grad():
                shape = self.model(self._example).shape
        except RuntimeError as error:
            raise InputError(f"the pruned {type(self.model).__name__} does not run: {error}") from error
        if shape != self._shape:
            raise InputError(f"the pruned model returns {tuple(shape)}, the original {tuple(self._shape)}")
        return self.model

    def _coupled(self, module: nn.Module, units: Sequence[int]) -> Any:
        """torch-pruning's group: everything that changes when `module` loses these output channels."""
        pruner = self._graph.get_pruner_of_module(module)
        return self._graph.get_pruning_group(module, pruner.prune_out_channels, list(units))

    def _find_groups(self, names: Sequence[str], protected: set[int]) -> Iterator[Group]:
        name_of: dict[Any, str] = {module: name for name, module in self._modules.items()}
        listed, grouped = set(names), set[str]()
        for name in names:
            if name in grouped:
                continue
            root = self._modules[name]
            if root not in self._graph.module2node:
                raise InputError(f"layer {name!r}: torch-pruning does not find it in the graph of the model")
            items = list(self._coupled(root, range(root.out_channels)))
            outputs = [item for item in items if self._graph.is_out_channel_pruning_fn(item.dep.handler)]
            members = {name_of[m]: item for item in outputs if name_of.get(m := item.dep.target.module) in listed}
            grouped |= set(members)
            if any(id(weight) in protected for item in outputs for weight in _weights(item.dep.target.module)):
                continue  # these channels are the classes
            others = [name_of[m] for item in outputs if isinstance(m := item.dep.target.module, WITH_UNITS)]
            also = tuple(other for other in others if other not in members)
            yield Group(
                layers=tuple(sorted(members, key=names.index)),
                units=root.out_channels,
                blocks=_blocks([item.dep.target.module for item in items]),
                residual=sum(not _is_depthwise(self._modules[member]) for member in members) > 1,
                fault=_fault(root.out_channels, members, items, self._shared.intersection(also)),
                also=also,
            )


def _weakest(group: Group, scores: Scores, layers: Sequence[str], count: int) -> list[int]:
    """The units to remove: the weakest by the mean over these layers, and with blocks the weakest places."""
    for layer in layers:
        if len(scores.keep[layer]) != group.units:
            raise InputError(
                f"layer {layer!r}: scores of {len(scores.keep[layer])} units, the model has {group.units}; "
                "they belong to another model"
            )
    keep = np.mean([scores.keep[layer] for layer in layers], axis=0)
    places = weakest(keep.reshape(group.blocks, -1).mean(axis=0), count // group.blocks)
    size = group.units // group.blocks
    return [block * size + place for block in range(group.blocks) for place in places]


def _shares(ratio: Ratio, groups: Sequence[Group]) -> dict[str, float]:
    """First layer of each group -> the share to remove."""
    for layer, share in ratio.items() if isinstance(ratio, Mapping) else [(None, ratio)]:
        if isinstance(share, bool) or not isinstance(share, int | float) or not 0 <= share < 1:
            where = "" if layer is None else f" of layer {layer!r}"
            raise InputError(f"ratio{where} is {share!r}, it must be a number in [0, 1), the share removed")
    if not isinstance(ratio, Mapping):
        return {group.layers[0]: float(ratio) for group in groups}
    prunable = [layer for group in groups for layer in group.layers]
    for layer in ratio:
        if layer not in prunable:
            close = difflib.get_close_matches(layer, prunable, n=3)
            raise InputError(
                f"ratio: {layer!r} is no layer that can be pruned; near it are {', '.join(close) or 'none'}"
            )
    shares = {}
    for group in groups:
        asked = {ratio[layer] for layer in group.layers if layer in ratio}
        if len(asked) > 1:
            raise InputError(f"ratio: {', '.join(group.layers)} go together, but are asked for {sorted(asked)}")
        shares[group.layers[0]] = float(asked.pop()) if asked else 0.0
    return shares


def _in_blocks(group: Group) -> str:
    return f" in {group.blocks} blocks" if group.blocks > 1 else ""


def _weights(module: Any) -> list[nn.Parameter]:
    return list(module.parameters(recurse=False)) if isinstance(module, nn.Module) else []


def _refuse_computed_weights(model: nn.Module) -> None:
    for name, module in model.named_modules():
        own = dict(module.named_parameters(recurse=False))
        if parametrize.is_parametrized(module) or {"weight_g", "weight_orig"} & set(own):
            raise InputError(f"layer {name!r}: its weight is computed (weight_norm or the like); remove that first")


def _is_depthwise(module: Any) -> bool:
    return isinstance(module, nn.Conv2d) and 1 < module.groups == module.in_channels == module.out_channels


def _blocks(modules: Sequence[Any]) -> int:
    """Into how many equal blocks grouped convolutions and group norms divide the channels."""
    groups = [m.groups for m in modules if isinstance(m, nn.Conv2d) and not _is_depthwise(m)]
    return math.lcm(*groups, *(m.num_groups for m in modules if isinstance(m, nn.GroupNorm)))


def _fault(units: int, members: Mapping[str, Any], items: Sequence[Any], shared: frozenset[str]) -> str | None:
    for name in sorted(shared):
        return f"tied to layer {name!r}, which runs more than once"
    for name, item in members.items():
        if item.dep.target.module.out_channels != units:
            width = item.dep.target.module.out_channels
            return f"tied to layer {name!r}, which has {width} units, by a padding or a split"
        if sorted(zip(item.idxs, item.root_idxs, strict=True)) != [(i, i) for i in range(units)]:
            return f"tied to a part of the units of {name!r} by a concatenation"
    for item in items:
        if _blocks([item.dep.target.module]) > 1 and list(item.idxs) != list(item.root_idxs):
            return "a grouped convolution or a group norm behind a concatenation"
    return None


def _output_weights(output: Tensor) -> set[int]:
    """ids of the weights that act last before `output`, found by walking back through autograd's graph."""
    found: set[int] = set()
    visited, front = set(), [output.grad_fn]
    while front:
        node = front.pop()
        if node is None or node in visited:
            continue
        visited.add(node)
        before = [function for function, _ in node.next_functions if function is not None]
        weights = [leaf for function in before for leaf in _leaves(function)]
        found |= {id(weight) for weight in weights}
        # a scale or a norm is no layer: what acts before it makes the same channels
        front += [] if any(weight.ndim > 1 for weight in weights) else before
    return found


def _leaves(node: Any) -> list[Tensor]:
    """The weight behind an AccumulateGrad node, directly or behind one transposition."""
    if hasattr(node, "variable"):
        return [node.variable]
    if type(node).__name__ in ("TBackward0", "TransposeBackward0", "PermuteBackward0"):
        return [f.variable for f, _ in node.next_functions if f is not None and hasattr(f, "variable")]
    return []
