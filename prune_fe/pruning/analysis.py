"""Analyse a network before it is pruned: its groups, the index mapping of its tensors, and what can be removed."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import combinations

import numpy as np
import torch
from torch import nn
from torch.nn.modules.conv import _ConvNd

from prune_fe.errors import InputError
from prune_fe.pruning.cut import Cutter, find_code_sizes
from prune_fe.pruning.groups import Group, GroupId, find_groups
from prune_fe.pruning.joined_graph import join_graphs, tie_as_traced
from prune_fe.pruning.options import Engine
from prune_fe.pruning.remaining_cost import RemainingCost
from prune_fe.pruning.torch_pruning_engine import ADVICE, build_graph, can_cut
from prune_fe.pruning.verify import Trial, Verifier, draw_inputs, make_verifier, randomise, verification_copy
from prune_fe.tracing.branches import follow_training, keep_unreached
from prune_fe.tracing.channel_ids import IdArray
from prune_fe.tracing.channel_tracer import ChannelTracer
from prune_fe.tracing.copying import convert, copy_sharing_weights, restoring_weights
from prune_fe.tracing.dependency_graph import BalanceConstraint, DependencyGraph, SetId
from prune_fe.tracing.layers import Layer, count_units, find_layers_with_units
from prune_fe.tracing.nested import Inputs, count_rows, move
from prune_fe.tracing.weights import require_example


@dataclass(frozen=True)
class Analysis:
    """What pruning knows about the architecture of a network.

    Attributes:
        layers: Names of the layers whose units can be scored, in the order in which they run.
        widths: Layer -> number of its units.
        groups: The groups, in the order in which they run; a GroupId is an index of it. A group of which no half,
            drawn at random, could be removed has a reason.
        cutter: The index mapping of the tensors.
        cost: The multiply-adds and parameters that remain without some coupled sets.
        verifier: Checks removals on a copy of the network.
        outputs: Module that is no layer, such as a residual block -> the coupled set of each channel of its output, for
            the modules with scores whose channels could be followed.
        has_branches: Whether the network takes other branches in training.
    """

    layers: tuple[str, ...]
    widths: Mapping[str, int]
    groups: tuple[Group, ...]
    cutter: Cutter
    cost: RemainingCost
    verifier: Verifier
    outputs: Mapping[str, IdArray] = field(default_factory=dict)
    has_branches: bool = False

    @property
    def all_widths(self) -> dict[str, int]:
        """Layer, or module of `outputs` -> number of its units."""
        return {**self.widths, **{name: len(sets) for name, sets in self.outputs.items()}}


def analyse(
    model: nn.Module,
    example: Inputs,
    linear: Collection[str] = (),
    engine: Engine = "trace",
    scored: Collection[str] = (),
) -> Analysis:
    """Find the groups of a network, and test on a copy which of them can be pruned.

    Args:
        model: A network that returns tensors.
        example: Inputs of the network.
        linear: Names of the linear layers and gates whose units may be removed. Those of other linear layers and gates
            are removed only where they are tied to units of other layers.
        engine: What finds the groups: prune_fe's own trace, or torch-pruning.
        scored: Names of the layers and other modules, such as residual blocks, that have scores.

    Raises:
        InputError: The network cannot be copied or run, returns no tensor, or runs none of its layers; or torch-pruning
            cannot build its graph.
        EnvironmentFault: The engine is torch-pruning, which is not installed.
    """
    require_example(example)
    modules = dict(model.named_modules())
    blocks = [name for name in scored if name in modules and not isinstance(modules[name], _ConvNd | nn.Linear)]
    tracing = _trace_quickly(model, example, blocks) or _trace_verification_copy(model, example, blocks)
    traced, found, own_graph, verifier = tracing
    graph = own_graph
    if engine == "torch-pruning":
        graph = join_graphs(build_graph(model, example, found.has_branches), own_graph, traced)
    if not graph.axes:
        raise InputError(f"{type(model).__name__} runs none of its layers on the example: nothing can be pruned")
    names = tuple(layer.name for layer in found.layers if not layer.is_linear or layer.name in linear)
    if any(layer.is_linear for layer in found.layers if layer.name in linear):
        names = _with_unseen_layers(names, graph)
    trial = _GroupTrial(traced, graph, names, verifier)
    if engine == "torch-pruning":
        trial = _find_trial_that_can_be_cut(trial, own_graph, partial(can_cut, model, example, found.has_branches))
    if ties := _find_possible_ties(trial):
        tied = trial.with_graph(trial.graph.with_constraints(ties))
        trial = max(trial, tied, key=lambda each: each.count_sets())
    groups, cutter = trial.groups, trial.cutter
    if engine == "torch-pruning":
        pairs = zip(groups, trial.found_groups, strict=True)
        groups = tuple(
            group if group.reason == before.reason else replace(group, reason=f"{group.reason}; {ADVICE}")
            for group, before in pairs
        )
    widths = {layer: len(cutter.axis_sets.get((layer, "out"), ())) or count_units(modules[layer]) for layer in names}
    cost = RemainingCost(traced, cutter)
    return Analysis(names, widths, groups, cutter, cost, verifier, trial.graph.outputs, found.has_branches)


def _with_unseen_layers(names: Sequence[str], graph: DependencyGraph) -> tuple[str, ...]:
    """Insert the layers whose weights code passes to functions, so that they do not run, into those that run."""
    order = list(dict.fromkeys(name for name, _ in graph.axes))
    every = list(names)
    for name in dict.fromkeys(name for (name, side), axis in graph.axes.items() if axis.in_weights and side == "out"):
        if name not in every:
            later = set(order[order.index(name) :])
            index = next((index for index, other in enumerate(every) if other in later), len(every))
            every.insert(index, name)
    return tuple(every)


@dataclass(frozen=True)
class _Found:
    """What the runs of a network show beside its graph.

    Attributes:
        layers: The layers that have units.
        has_branches: Whether the network takes other branches in training.
    """

    layers: tuple[Layer, ...]
    has_branches: bool


_Trace = tuple[nn.Module, _Found, DependencyGraph, Verifier]
"""A copy of a network that has run, what the runs showed, the dependency graph, and the verifier."""


def _trace_quickly(model: nn.Module, example: Inputs, outputs: Sequence[str]) -> _Trace | None:
    """Trace a copy that has the network's own weights, and return None if it does not run on random inputs."""
    traced = copy_sharing_weights(model)
    try:
        weights = convert(traced, "cpu").parameters()
        dtype = next((weight.dtype for weight in weights if weight.is_floating_point()), torch.float32)
        inputs, tracer = move(draw_inputs(example), dtype=dtype), ChannelTracer(traced, outputs)
        with restoring_weights(traced):
            found = _follow(traced, inputs, tracer)
        verifier = make_verifier(model, example, traced, tracer, found.has_branches)
    except (InputError, RuntimeError, TypeError, ValueError, NotImplementedError):
        return None
    return traced, found, tracer.build_graph(count_rows(inputs)), verifier


def _trace_verification_copy(model: nn.Module, example: Inputs, outputs: Sequence[str]) -> _Trace:
    """Trace the copy that removals are verified on."""
    twin, inputs = verification_copy(model, example)
    tracer = ChannelTracer(twin, outputs)
    found = _follow(twin, inputs, tracer)
    randomise(twin)
    verifier = Verifier(Trial(twin, inputs, has_branches=found.has_branches))
    return twin, found, tracer.build_graph(count_rows(inputs)), verifier


def _follow(model: nn.Module, inputs: Inputs, tracer: ChannelTracer) -> _Found:
    """Follow a network in evaluation and as in training."""
    # One run finds the layers and the graph.
    with tracer.tracing(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "left out: ", UserWarning)  # the steps name the layers without scores
        layers = find_layers_with_units(model, inputs, linear=True)
    has_branches = follow_training(tracer, inputs)
    keep_unreached(tracer, inputs)
    return _Found(layers, has_branches)


def _random_halves(groups: Sequence[Group]) -> dict[GroupId, list[SetId]]:
    """Draw half of the coupled sets of every group that can lose some."""
    return {
        GroupId(number): _random_half(group, seed=number) for number, group in enumerate(groups) if group.reason is None
    }


def _try_groups(
    verifier: Verifier, cutter: Cutter, groups: Sequence[Group], halves: Mapping[GroupId, Sequence[SetId]]
) -> tuple[tuple[Group, ...], Cutter]:
    """Verify the removal of a random half of every group.

    Returns:
        The groups, with a reason for those that failed, and a cutter that changes the sizes in the network's code that
        have to change.
    """
    # In most networks all groups pass at once, so that one forward pass is enough.
    if verifier.find_fault(cutter, [set_id for sets in halves.values() for set_id in sets]) is None:
        return tuple(groups), cutter
    # All candidates change at first: a group that fails even so fails for another reason.
    cutter = cutter.with_code_sizes(find_code_sizes(verifier.model, cutter.graph))
    failing = verifier.find_failing_groups(cutter, halves)
    cutter, failing = _without_wrong_sizes(verifier, cutter, halves, failing)
    sound = [set_id for number, sets in halves.items() if number not in failing for set_id in sets]
    tried = [replace(group, reason=failing.get(GroupId(number), group.reason)) for number, group in enumerate(groups)]
    return tuple(tried), _without_needless_sizes(verifier, cutter, sound)


class _GroupTrial:
    """The groups of a dependency graph, after the removal of a random half of each was tried on a copy of the network.

    Attributes:
        graph: The graph.
        found_groups: The groups as the graph has them.
        groups: The same groups, with a reason for those that failed.
        halves: Index of a group -> the half of its coupled sets whose removal was tried.
        cutter: A cutter that changes the sizes in the network's code that have to change.
    """

    def __init__(
        self,
        traced: nn.Module,
        graph: DependencyGraph,
        names: Sequence[str],
        verifier: Verifier,
        only: Collection[SetId] | None = None,
    ) -> None:
        """Find the groups of some layers, and try to remove half of each.

        Args:
            traced: The network, or a copy of it.
            graph: The graph.
            names: The names of the layers.
            verifier: Checks removals.
            only: Leave out the groups that have none of these coupled sets; None for all groups.
        """
        self.graph, self._shared = graph, (traced, names, verifier)
        groups = find_groups(traced, graph, names)
        self.found_groups = tuple(group for group in groups if only is None or not set(only).isdisjoint(group.sets))
        self.halves = _random_halves(self.found_groups)
        self.groups, self.cutter = _try_groups(verifier, Cutter(traced, graph), self.found_groups, self.halves)

    def with_graph(self, graph: DependencyGraph, only: Collection[SetId] | None = None) -> _GroupTrial:
        """Make the trial of another graph of the same network; `only` is that of `__init__`."""
        traced, names, verifier = self._shared
        return _GroupTrial(traced, graph, names, verifier, only)

    @property
    def removed(self) -> list[SetId]:
        """The coupled sets in the halves of the groups that passed."""
        return [set_id for number, sets in self.halves.items() if not self.groups[number].reason for set_id in sets]

    @property
    def failed_sets(self) -> list[SetId]:
        """Coupled sets of the groups whose trial failed. Groups with fixed sets, which can lose none, are left out."""
        fixed = self.graph.fixed_sets.keys()
        failed = [group.sets for group in self.groups if group.reason and fixed.isdisjoint(group.sets)]
        return [set_id for sets in failed for set_id in sets]

    def count_sets(self) -> int:
        """Return the number of coupled sets in groups that can lose some."""
        return sum(len(group.sets) for group in self.groups if group.reason is None)

    def count_removed_units(self) -> int:
        """Return the number of output channels, of layers and norms, in the halves of the groups that passed."""
        outputs = [sets for (_, side), sets in self.cutter.axis_sets.items() if side in ("out", "both")]
        return int(np.isin(np.concatenate(outputs), self.removed).sum())


def _find_trial_that_can_be_cut(
    trial: _GroupTrial, own_graph: DependencyGraph, can_be_cut: Callable[[Cutter, Sequence[SetId]], bool]
) -> _GroupTrial:
    """Return a trial whose groups torch-pruning cuts as was verified.

    If groups failed, the graph is tried again with more of their channels coupled, as in prune_fe's own graph. That
    trial is returned if it removes more units and torch-pruning can cut it. If torch-pruning cannot cut the first trial
    either, the sizes in the network's code are left as they are. The groups that need other sizes then fail and keep
    their units, so that the other groups can be pruned.

    Args:
        trial: The trial of torch-pruning's graph, joined with prune_fe's own.
        own_graph: prune_fe's own graph.
        can_be_cut: Whether torch-pruning removes coupled sets as a cutter does.
    """
    if failed := trial.failed_sets:
        graph = tie_as_traced(trial.graph, own_graph, failed)
        # Those that failed are tried first: a trial of all groups takes long if each has to be tried by itself.
        if trial.with_graph(graph, only=graph.coupled_set[np.isin(trial.graph.coupled_set, failed)].tolist()).removed:
            tied = trial.with_graph(graph)
            if tied.count_removed_units() > trial.count_removed_units() and can_be_cut(tied.cutter, tied.removed):
                return tied
    if not trial.cutter.code_sizes or can_be_cut(trial.cutter, trial.removed):
        return trial
    return trial.with_graph(replace(trial.graph, counted_sets=()))


def _find_possible_ties(trial: _GroupTrial) -> list[BalanceConstraint]:
    """Return the possible constraints whose absence may be the reason why groups failed."""
    sets = trial.failed_sets
    return [entry for entry in trial.graph.possible_constraints if np.isin(np.concatenate(entry[0]), sets).any()]


def _random_half(group: Group, seed: int) -> list[SetId]:
    """Draw half of the coupled sets of a group, the same share of each block."""
    scores = np.random.default_rng(seed).permutation(len(group.sets)).astype(float)
    order = group.removal_order(scores)
    half = min(len(group.sets) // group.step // 2, group.count_steps(order))
    return [group.sets[position] for block in group.take_steps(order, 0, half) for position in block]


def _without_needless_sizes(verifier: Verifier, cutter: Cutter, removed: Sequence[SetId]) -> Cutter:
    """Return a cutter that changes only those attributes that have to change when the coupled sets are removed.

    Attributes of the same name in modules of the same class are tested together.
    """
    for kind, counted in _sets_by_kind(verifier, cutter).items():
        if counted.isdisjoint(removed):
            continue  # Nothing that these attributes count is removed, so that a trial would show nothing.
        without = _without_kinds(verifier, cutter, {kind})
        if verifier.find_fault(without, removed) is None:
            cutter = without
    return cutter


def _without_wrong_sizes(
    verifier: Verifier, cutter: Cutter, sets_of: Mapping[GroupId, Sequence[SetId]], failing: dict[GroupId, str]
) -> tuple[Cutter, dict[GroupId, str]]:
    """Try whether groups fail because the cutter changes attributes that equal a number of channels by chance.

    Args:
        verifier: Checks removals.
        cutter: A cutter that changes all attributes that may count channels.
        sets_of: Group -> the coupled sets to remove from it.
        failing: Group -> why it fails with this cutter.

    Returns:
        A cutter that changes fewer attributes, and the groups that fail with it.
    """
    tried: set[frozenset[_AttributeKind]] = set()
    for group in list(failing):
        counted = _sets_by_kind(verifier, cutter)
        kinds = frozenset(kind for kind, sets in counted.items() if not sets.isdisjoint(sets_of[group]))
        if group not in failing or kinds in tried:
            continue
        tried.add(kinds)
        sound = [set_id for number, sets in sets_of.items() if number not in failing for set_id in sets]
        in_order = [kind for kind in counted if kind in kinds]
        for dropped in [{kind} for kind in in_order] + [set(pair) for pair in combinations(in_order, 2)]:
            without = _without_kinds(verifier, cutter, dropped)
            if verifier.find_fault(without, [*sound, *sets_of[group]]) is None:
                cutter, failing = without, verifier.find_failing_groups(without, sets_of)
                break
    return cutter, failing


_AttributeKind = tuple[type[nn.Module], str]
"""A class of modules, and the name of an attribute."""


def _sets_by_kind(verifier: Verifier, cutter: Cutter) -> dict[_AttributeKind, set[SetId]]:
    """Return the kinds of the attributes that a cutter changes -> the coupled sets that they count."""
    modules = dict(verifier.model.named_modules())
    sets: dict[_AttributeKind, set[SetId]] = {}
    for (name, attribute), parts in cutter.code_sizes.items():
        counted = sets.setdefault((type(modules[name]), attribute), set())
        counted.update(set_id for part in parts if not isinstance(part, int) for set_id in part.tolist())
    return sets


def _without_kinds(verifier: Verifier, cutter: Cutter, kinds: Collection[_AttributeKind]) -> Cutter:
    """Return a cutter that does not change the attributes of some kinds."""
    modules = dict(verifier.model.named_modules())
    sizes = cutter.code_sizes.items()
    return cutter.with_code_sizes({key: parts for key, parts in sizes if (type(modules[key[0]]), key[1]) not in kinds})
