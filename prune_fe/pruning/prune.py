"""Remove the units with the lowest scores from a network, at once or in rounds.

Each round has three steps: plan which units every group loses (`plan.py`), verify on a copy with random weights that
removing them equals masking them (`verify.py`), and cut the tensors (`cut.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from fractions import Fraction
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from prune_fe.errors import InputError
from prune_fe.io import shorten
from prune_fe.options import validate_options
from prune_fe.pruning import torch_pruning_engine
from prune_fe.pruning.allocation import Allocation
from prune_fe.pruning.analysis import Analysis, analyse
from prune_fe.pruning.arguments import linear_layers, require_scored
from prune_fe.pruning.by_name import match_layers
from prune_fe.pruning.cut import refuse_unlike_weights
from prune_fe.pruning.groups import GroupId
from prune_fe.pruning.loss_curves import Sensitivity, check_sensitivity
from prune_fe.pruning.options import PruneOptions
from prune_fe.pruning.plan import plan_quotas, start_plan
from prune_fe.pruning.ranking import Array, units_with_scores, with_removed_units
from prune_fe.pruning.records import Pruned, Step, make_step
from prune_fe.pruning.remaining_cost import Resource
from prune_fe.pruning.weight_scores import find_other_layers, find_unseen_layers, score_by_weights
from prune_fe.scoring.scores import Scores
from prune_fe.tracing.copying import copy_sharing_weights, copy_without_last_run, own_weights
from prune_fe.tracing.nested import Inputs
from prune_fe.tracing.shared_tensors import find_shared_memory, full_name

TARGET_TOLERANCE = 0.01
"""Largest deviation from a target, as a share of it, that is accepted without a note."""

MOST_NOTES = 10
"""At most this many messages say which name or pattern decides for which layers."""

Rescore = Callable[[nn.Module, tuple[str, ...]], Scores]
"""Function from the network so far and names of layers to new scores of these layers."""

After = Callable[[nn.Module, tuple[Step, ...]], None]
"""Function that is called with the network so far and the steps of a round."""


def prune(
    model: nn.Module,
    scores: Scores,
    ratio: float | Mapping[str, float] | Literal["auto"] | None = None,
    example: Inputs | None = None,
    *,
    options: PruneOptions | Mapping[str, Any] | None = None,
    rescore: Rescore | None = None,
    after: After | None = None,
    carry: dict[str, Tensor] | None = None,
    sensitivity: Sensitivity | None = None,
    **settings: Any,
) -> Pruned:
    """Remove the units with the lowest scores from a copy of a network.

    Units that a residual sum, a gate, a depthwise convolution or shared weights tie together are removed together.
    Units with equal scores are removed in the order of their numbers. Layers without scores keep all units, and so do
    those that compute the network's outputs. Scores of a module that is no layer, such as a residual block, rank the
    units that its output is made of, where no layer of their group has scores. (Where the network's code reads the
    weights of a layer without calling it, as `nn.MultiheadAttention` does, no scorer sees its units: they are ranked by
    their weights, and a note says so.) Every removal is verified against the masked network first; a group that fails
    this keeps its units, and its step gives the reason. Feature maps and other tensors that the network keeps from its
    last run are not copied, unless its outputs depend on them.

    Args:
        model: The network; it is not changed. One in a wrapper, such as DistributedDataParallel or what torch.compile
            returns, is unwrapped (`prune_fe.tracing.wrappers.unwrap`), and the pruned network has no wrapper.
        scores: What prune_fe.score returned for it.
        ratio: The option `ratio`: share of the units to remove, in [0, 1), layer name or pattern -> share, or "auto".
        example: One input with which the network is analysed: a tensor (1, channels, height, width), a tuple of
            positional arguments, or a dict of keyword arguments. The network may return tensors in nested tuples,
            lists, dicts and dataclasses; each of them is compared.
        options: The options of pruning.
        rescore: Called before each round but the first with the network so far and the names of the layers that are
            pruned next; returns new scores of these layers.
        after: Called after each round in which units were removed, with the network so far and the steps of the
            groups that lost units.
        carry: Parameter name -> a tensor of its shape, such as its momentum. The tensors in the dict are cut whenever
            the parameters are, so that `after` can use and replace them. An error restores them.
        sensitivity: What prune_fe.sensitivity measured for the network and the scores; the ratio "auto" needs it.
        settings: Fields of PruneOptions by name, such as `target_macs=0.5` or `rounds=3`; they replace those of
            `options`.

    Returns:
        The pruned network, with a step for each group.

    Raises:
        InputError: An argument is wrong, the network cannot be analysed, or nothing could be removed although the
            options ask for it.
    """
    model = require_scored(model, scores, example, "prune()")
    assert example is not None
    if ratio is not None:
        settings["ratio"] = ratio
    checked = validate_options(PruneOptions, options, "prune()", **settings)
    carry = {} if carry is None else carry
    refuse_unlike_weights(carry, model, "carry")
    check_sensitivity(sensitivity, model, scores, checked)
    # The dict is the caller's: it is changed in place, and restored where anything fails.
    carried = dict(carry)
    try:
        source = copy_without_last_run(model, example)
        analysis = analyse(source, example, linear_layers(source, scores), checked.engine, scores.keep)
        pruning = _Pruning(source, analysis, scores, checked, carry, example)
        if sensitivity is not None:
            pruning.allocation = Allocation(sensitivity.curves_of(analysis.groups), sensitivity.loss, analysis.cost)
        return pruning.run(rescore, after)
    except BaseException:
        carry.clear()
        carry.update(carried)
        raise


class _Pruning:
    """One call of prune(): the copy that is cut, and the plan so far."""

    def __init__(
        self,
        model: nn.Module,
        analysis: Analysis,
        scores: Scores,
        options: PruneOptions,
        carry: dict[str, Tensor],
        example: Inputs,
    ) -> None:
        self.analysis, self.options, self.carry, self.example = analysis, options, carry, example
        self.allocation: Allocation | None = None
        self.scored_layers = frozenset(scores.keep)
        # The copy has its own weights from its first cut on: what is cut need not be copied before.
        self.original, self.model = model, copy_sharing_weights(model)
        self.kept = analysis.cutter.all_channels()
        self.unseen = find_unseen_layers(analysis.groups, analysis.cutter, list(scores.keep), analysis.layers)
        known = {**scores.keep, **self._score_unseen()}
        self.plan = start_plan(
            analysis.groups,
            analysis.all_widths,
            known,
            options,
            find_other_layers(self.analysis.groups, scores, self.unseen),
        )

    def run(self, rescore: Rescore | None, after: After | None) -> Pruned:
        """Remove the units in rounds."""
        self._set_quotas(Fraction(1))
        # Verify all rounds at once first, so that a group that fails is known before anything is cut or trained.
        failing = self._find_failing_groups(self.plan.open_groups)
        if failing:
            self.plan = self.plan.stopping(failing)
            self._set_quotas(Fraction(1))
        for number, groups in enumerate(self._rounds()):
            if not groups:
                break
            if rescore is not None and number > 0:
                self._update_scores(rescore, groups)
            # With one round, or one for each group, the quotas of the first scores hold.
            if isinstance(self.options.rounds, int) and self.options.rounds > 1:
                self._set_quotas(Fraction(number + 1, self.options.rounds))
            changed = self._remove(groups)
            if after is not None and changed:
                states = [self.plan.states[group] for group in changed]
                after(self.model, tuple(make_step(state, self.options, state.quota.asked) for state in states))
        return self._result()

    def _rounds(self) -> Iterator[list[GroupId]]:
        """Yield the groups that are pruned in each round."""
        if isinstance(self.options.rounds, int):
            for _ in range(self.options.rounds):
                yield self.plan.open_groups
        else:
            # The list is made once: a group that fails in its round must not change which group comes next.
            for group in self.plan.open_groups:
                yield [group]

    def _set_quotas(self, progress: Fraction) -> None:
        if self.allocation is not None:
            quotas = self.allocation.plan_quotas(self.plan, self.options, progress)
        else:
            quotas = plan_quotas(self.plan, self.options, progress, self.analysis.cost.share)
        self.plan = self.plan.with_quotas(quotas)

    def _find_failing_groups(self, groups: Sequence[GroupId]) -> dict[GroupId, str]:
        """Return those of some groups that cannot lose what their quotas say, and the reason."""
        added = self.plan.filling_quotas(groups).sets_added_since(self.plan)
        if not added:
            return {}
        return self.analysis.verifier.find_failing_groups(self.analysis.cutter, added, self.plan.removed_sets)

    def _remove(self, groups: Sequence[GroupId]) -> list[GroupId]:
        """Remove the units that the quotas of some groups ask for, and return the groups that lost any."""
        failing = self._find_failing_groups(groups)
        self.plan = self.plan.stopping(failing)
        planned = self.plan.filling_quotas([group for group in groups if group not in failing])
        changed = planned.sets_added_since(self.plan)
        self.plan = planned
        if changed:
            self._apply()
        return list(changed)

    def _apply(self) -> None:
        """Cut the network and the tensors of `carry` to what the plan keeps."""
        cutter, after = self.analysis.cutter, self.analysis.cutter.channels_without(self.plan.removed_sets)
        refuse_unlike_weights(self.carry, self.model, "carry")
        for name, tensor in self.carry.items():
            self.carry[name] = cutter.select(name, tensor, self.kept, after)
        if self.options.engine == "torch-pruning":
            has_branches = self.analysis.has_branches
            torch_pruning_engine.cut(cutter, self.model, self.kept, after, self.example, has_branches)
        else:
            cutter.cut(self.model, self.kept, after)
        own_weights(self.model, self.original)
        self.kept = after

    def _update_scores(self, rescore: Rescore, groups: Sequence[GroupId]) -> None:
        """Call `rescore` for the layers of some groups, and plan with the new scores."""
        own_weights(self.model, self.original)  # `rescore` may change them
        states = [self.plan.states[group] for group in groups]
        names = tuple(name for state in states for name in units_with_scores(state.group, self.scored_layers))
        scores = rescore(self.model, names)
        if not isinstance(scores, Scores):
            got = f"a {type(scores).__name__}"
            raise InputError(f"rescore() returned {got}; it is asked for Scores of {', '.join(names)}")
        layer_scores: dict[str, Array] = {}
        for layer in names:
            if layer not in scores.keep:
                raise InputError(
                    f"rescore() returned no scores of {layer!r}; it is asked for Scores of {', '.join(names)}"
                )
            values, kept = scores.keep[layer], self._kept_units(layer)
            if len(values) != len(kept):
                raise InputError(
                    f"rescore() returned {len(values)} scores of layer {layer!r}, which has {len(kept)} units"
                )
            layer_scores[layer] = with_removed_units(values, kept, self.analysis.all_widths[layer])
        layer_scores |= self._score_unseen()
        widths, others = self.analysis.all_widths, find_other_layers(self.analysis.groups, scores, self.unseen)
        self.plan = self.plan.with_scores(groups, layer_scores, widths, self.options, others)

    def _score_unseen(self) -> dict[str, Array]:
        """Return the scores of layers that no scorer sees, from the weights of the network so far."""
        return score_by_weights(self.model, self.unseen, self.kept, self.analysis.widths)

    def _kept_units(self, layer: str) -> NDArray[np.int64]:
        """Return the units that a layer, or another module with scores, has so far, ascending."""
        if layer in self.analysis.outputs:
            return np.flatnonzero(~np.isin(self.analysis.outputs[layer], self.plan.removed_sets))
        return self.kept[(layer, "out") if (layer, "out") in self.kept else (layer, "both")]

    def _result(self) -> Pruned:
        """Return the pruned network.

        Raises:
            InputError: Nothing was removed although the options ask for it.
        """
        states = self.plan.states
        steps = tuple(make_step(state, self.options, state.total_asked(self.options)) for state in states)
        removed = self.plan.removed_sets
        if self.options.removes_something and not removed:
            why = "; ".join(f"{step.layers[0]}: {step.left}" for step in steps) or "no layer but the output's"
            raise InputError(f"nothing could be pruned ({why})")
        own_weights(self.model, self.original)
        macs, parameters = (self.analysis.cost.share(resource, removed) for resource in get_args(Resource))
        return Pruned(
            model=self.model,
            steps=steps,
            macs=macs,
            parameters=parameters,
            notes=tuple(self._notes({"macs": macs, "parameters": parameters})),
            cutter=self.analysis.cutter,
            kept=self.kept,
        )

    def _notes(self, shares: Mapping[Resource, float]) -> Iterator[str]:
        """Yield messages for the user that no step contains.

        Args:
            shares: Resource -> share that remains.
        """
        if self.options.target is not None:
            resource, target = self.options.target
            share, what = shares[resource], {"macs": "multiply-adds", "parameters": "parameters"}[resource]
            if abs(share - target) > TARGET_TOLERANCE * target:
                given = [name for name in ("max_ratio", "protect") if getattr(self.options, name)]
                limits = " and ".join(["the network's widths", *given])
                yield f"{share:.1%} of the {what} are left, not {target:.1%}: {limits} allow nothing closer"
        if self.allocation is not None:
            yield from self.allocation.notes(self.plan)
        if changed := list(self._changed_sizes()):
            yield f"sizes in the network's code were changed too: {', '.join(changed)}"
        if self.unseen:
            more = f" and {len(self.unseen) - 2} more" if len(self.unseen) > 2 else ""
            yield (
                "code reads the weights of layers that do not run themselves, so that no scorer sees their units; they "
                f"were ranked by the L1 norms of their weights: {', '.join(self.unseen[:2])}{more}"
            )
        if unused := self._find_unused_scores():
            yield (
                f"the scores of {shorten(unused)} are not used: the units of these outputs have scores of layers, or "
                "could not be followed"
            )
        if parts := [why for state in self.plan.states if (why := state.explain_blocks(self.options))]:
            more = f"; and {len(parts) - 3} more" if len(parts) > 3 else ""
            yield f"equal parts lose equally many units: {'; '.join(parts[:3])}{more}"
        notes = [note for state in self.plan.states for note in state.notes]
        yield from notes[:MOST_NOTES]
        if len(notes) > MOST_NOTES:
            yield f"one name or pattern decides for {len(notes) - MOST_NOTES} more groups of layers that go together"
        for first, second in find_shared_memory(self.original):
            yield (
                f"parameters {first!r} and {second!r} have the same memory, but are not one parameter; each has its "
                "own memory in the pruned network"
            )
        for layer in sorted(match_layers(self.options.protect, list(self.analysis.widths))):
            if lost := self._count_removed_inputs(layer):
                yield (
                    f"layer {layer!r} is protected: its units stay, but {lost} of its inputs were removed with the "
                    "units that made them"
                )

    def _find_unused_scores(self) -> list[str]:
        """Return the modules that are no layers and whose scores ranked no units."""
        groups, modules = self.analysis.groups, dict(self.original.named_modules())
        used = {name for group in groups for name in units_with_scores(group, self.scored_layers)}
        return [
            repr(name)
            for name in sorted(self.scored_layers - used)
            if name in modules and not isinstance(modules[name], _ConvNd | nn.Linear)
        ]

    def _changed_sizes(self) -> Iterator[str]:
        """Yield the names of the attributes of modules that count channels and have another value now."""
        before, after = dict(self.original.named_modules()), dict(self.model.named_modules())
        for module, name in self.analysis.cutter.code_sizes:
            if getattr(before[module], name) != getattr(after[module], name):
                yield full_name((module, name))

    def _count_removed_inputs(self, layer: str) -> int:
        key = (layer, "in") if (layer, "in") in self.kept else (layer, "both")
        return len(self.analysis.cutter.axes[key].channels) - len(self.kept[key]) if key in self.kept else 0
