"""Remove units and keep the network consistent: the weakest of every group, layer by layer or all at once.

What must go together is found in channels.py and groups.py, how many go in allocation.py, the tensors are cut in
surgery.py.
"""

from __future__ import annotations

import difflib
import fnmatch
import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from prune_fe.errors import InputError
from prune_fe.pruning.budget import Stock, by_budget, by_rank, by_ratio, kept_units, levels
from prune_fe.pruning.cut import Cutter, Kept, copied, randomise
from prune_fe.pruning.groups import Group, find_groups
from prune_fe.scoring.scores import Scores, architecture
from prune_fe.tracing.dependency_graph import trace
from prune_fe.tracing.feature_maps import evaluating, find_convolutions

TOLERANCE = {torch.float64: 1e-8}
"""Of the largest output: how far a network may be from its masked original to count as cut correctly."""

PIXELS = 4096
"""How many places of images a network is tried out on at least, if 16 images have as many."""

BUDGET = 0.01
"""How close a budget has to be met, as a share of it."""

Scope = Literal["all", "inner"]
Reduction = Literal["mean", "max", "min"]
Ranking = Literal["layer", "global"]
Ratio = float | Mapping[str, float]
Rescore = Callable[[nn.Module, tuple[str, ...]], Scores]
After = Callable[[nn.Module, tuple["Step", ...]], None]


@dataclass(frozen=True)
class Step:
    """What was asked of one group of layers and what was done.

    units: of the group; a layer may have more, in other groups. asked and count: how many of them were to go, and went.
    removed and kept: layer -> unit numbers of the network that prune() was given, ascending. left: why fewer went than
    were asked for, or none. also: modules without scores that lost the same outputs.
    """

    layers: tuple[str, ...]
    units: int
    asked: int
    count: int
    removed: Mapping[str, tuple[int, ...]]
    kept: Mapping[str, tuple[int, ...]] = field(repr=False)
    left: str | None = None
    also: tuple[str, ...] = ()


@dataclass(frozen=True)
class Pruned:
    """steps: a group each, in the order the layers run. macs, parameters: the shares that are left, multiply-adds of
    convolutions and linear layers. notes: what else the user should know."""

    model: nn.Module = field(repr=False)
    steps: tuple[Step, ...]
    macs: float
    parameters: float
    notes: tuple[str, ...]
    cutter: Cutter = field(repr=False)
    kept: Kept = field(repr=False)

    def surviving(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The part that is left of tensors shaped like the original's parameters or buffers of these names: of
        momentum buffers, moving averages, masks."""
        whole = self.cutter.everything()
        for name, tensor in tensors.items():
            if name not in self.cutter.shapes or tensor.shape != self.cutter.shapes[name]:
                known = self.cutter.shapes.get(name)
                wanted = f"the original's is {tuple(known)}" if known is not None else "the original has none"
                raise InputError(f"{name!r} is {tuple(tensor.shape)}, {wanted}")
        return {name: self.cutter.select(name, tensor, whole, self.kept) for name, tensor in tensors.items()}

    def difference(self, model: nn.Module, images: Tensor) -> tuple[float, float]:
        """(largest difference between the outputs of the pruned network and of `model`, the original, with the same
        units masked; largest output). images: (n, channels, height, width)."""
        return self.cutter.difference(model, self.model, self.kept, images)


def prune(
    model: nn.Module,
    scores: Scores,
    ratio: Ratio | None = None,
    example: Tensor | None = None,
    *,
    target_macs: float | None = None,
    target_params: float | None = None,
    ranking: Ranking = "layer",
    scope: Scope = "all",
    reduction: Reduction = "mean",
    round_to: int = 1,
    protect: Sequence[str] = (),
    rounds: int | Literal["layers"] = 1,
    rescore: Rescore | None = None,
    after: After | None = None,
    carry: dict[str, Tensor] | None = None,
) -> Pruned:
    """Remove the weakest units from a copy of `model`.

    How many: `ratio` is the share removed, in [0, 1); a layer of n units keeps floor((1 − ratio) · n), at least one.
    Or layer name or pattern -> share, names before patterns; the other layers keep all. Default 0.5. Or a budget:
    `target_macs` or `target_params`, the share of the multiply-adds or parameters to be left, met within 1 % where
    the network's widths allow it. round_to: the widths that are left are multiples of it, if that means fewer go.

    Which: ranking "layer" takes the same share of every layer; "global" the weakest of all layers, by scores brought
    to mean 0 and deviation 1 in each group, at most 90 % of one. Equal scores go in the order of their numbers.
    Units that residual sums tie together go by the mean, max or min of their layers' scores (`reduction`), or stay
    (scope "inner"). protect: names or patterns of layers whose outputs stay.

    When: rounds=n takes n steps towards the goal, rounds="layers" a step a group from shallow to deep. Before each
    but the first rescore(model so far, layer names) gives new scores; after each after(model so far, steps) is called.
    carry: parameter name -> a tensor of its shape, such as its momentum; cut in the dict whenever the parameter is,
    so that after() may use and replace it. An error puts back what was there.

    scores: from prune_fe.score; layers without scores are left alone. example: one input (1, channels, height,
    width), which the network is followed with. Layers that make the outputs are never pruned. Raises InputError when
    nothing at all could be removed although it was asked for. `model` is not changed.
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
    protect = [protect] if isinstance(protect, str) else protect or ()
    goal = _Goal(ratio, target_macs, target_params, ranking, scope, reduction, round_to, tuple(protect), rounds)
    carry = {} if carry is None else carry
    refuse_unlike_weights(carry, model, "carry")
    carried = dict(carry)
    try:
        return _Pruning(goal, Surgery(model, example, carry), scores).run(rescore, after)
    except BaseException:
        carry.clear()
        carry.update(carried)
        raise


@dataclass(frozen=True)
class _Goal:
    """What prune() was asked for, checked."""

    ratio: Ratio | None
    target_macs: float | None
    target_params: float | None
    ranking: Ranking
    scope: Scope
    reduction: Reduction
    round_to: int
    protect: tuple[str, ...]
    rounds: int | Literal["layers"]

    def __post_init__(self) -> None:
        given = [name for name in ("ratio", "target_macs", "target_params") if getattr(self, name) is not None]
        if len(given) > 1:
            raise InputError(f"{' and '.join(given)} were given; prune() follows one of them")
        for name, kinds in (("ranking", Ranking), ("scope", Scope), ("reduction", Reduction)):
            if getattr(self, name) not in get_args(kinds):
                raise InputError(f"{name} is {getattr(self, name)!r}, allowed are {', '.join(get_args(kinds))}")
        if not all(isinstance(pattern, str) for pattern in self.protect):
            raise InputError(f"protect is {self.protect!r}, it must be a list of names or patterns")
        if isinstance(self.ratio, Mapping) and not all(isinstance(name, str) for name in self.ratio):
            raise InputError("ratio: its keys must be names of layers or patterns")
        for name in ("target_macs", "target_params"):
            share = getattr(self, name)
            if share is not None and not (_is_number(share) and 0 < share <= 1):
                raise InputError(f"{name} is {share!r}, it must be a number in (0, 1], the share that is left")
        if type(self.round_to) is not int or self.round_to < 1:
            raise InputError(f"round_to is {self.round_to!r}, it must be a whole number of at least 1")
        if self.rounds != "layers" and (type(self.rounds) is not int or self.rounds < 1):
            raise InputError(f"rounds is {self.rounds!r}, it must be a whole number of at least 1, or 'layers'")
        for layer, share in self.ratio.items() if isinstance(self.ratio, Mapping) else [(None, self.ratio)]:
            if share is not None and not (_is_number(share) and 0 <= share < 1):
                where = "" if layer is None else f" of layer {layer!r}"
                raise InputError(f"ratio{where} is {share!r}, it must be a number in [0, 1), the share removed")
        if isinstance(self.ratio, Mapping) and self.ranking == "global":
            raise InputError("ranking 'global' takes one ratio for all layers, not one for each")

    @property
    def budget(self) -> tuple[int, float] | None:
        """(0 for multiply-adds, 1 for parameters; the share to be left)."""
        if self.target_macs is not None:
            return 0, self.target_macs
        return None if self.target_params is None else (1, self.target_params)

    @property
    def share(self) -> Ratio:
        return 0.5 if self.ratio is None else self.ratio

    @property
    def is_something(self) -> bool:
        if self.budget is not None:
            return self.budget[1] < 1
        return any(self.share.values()) if isinstance(self.share, Mapping) else self.share > 0


class _Pruning:
    """One call of prune(): what has gone of every group so far, and why the rest stays."""

    def __init__(self, goal: _Goal, surgery: Surgery, scores: Scores) -> None:
        self.goal, self.surgery, self.groups = goal, surgery, surgery.groups
        self.protected = _matching(goal.protect, surgery.layers, "protect: no layer is called")
        self.ratios = self._ratios()
        self.left = [self._reason_to_stay(group, scores) for group in self.groups]
        self.open = [number for number, reason in enumerate(self.left) if reason is None]
        self.gone: list[list[int]] = [[] for _ in self.groups]
        shared = goal.budget is not None or goal.ranking == "global"  # then it turns out how many are due
        self.asked = [
            0 if shared else len(group.units) - kept_units(len(group.units), ratio, group.blocks)
            for group, ratio in zip(self.groups, self.ratios, strict=True)
        ]
        self.first = self.scores = scores

    def run(self, rescore: Rescore | None, after: After | None) -> Pruned:
        by_layer = self.goal.rounds == "layers"
        self._settle(self._chosen(self.open, self._due(Fraction(1))))  # before anything is trained
        count = len(self.open) if self.goal.rounds == "layers" else self.goal.rounds
        due = self._due(Fraction(1))
        for number in range(count):
            groups = self.open[number : number + 1] if by_layer else self.open
            if rescore is not None and number:
                names = tuple(layer for g in groups for layer in self.groups[g].layers if layer in self.first.keep)
                self.scores = self.surgery.in_original_numbers(rescore(self.surgery.model, names), names)
            if not by_layer:
                due = self._due(Fraction(number + 1, count))
            steps = self._remove(self._settle(self._chosen(groups, due)))
            if after is not None and steps:
                after(self.surgery.model, steps)
        steps = tuple(map(self._step, range(len(self.groups))))
        if self.goal.is_something and not any(self.gone):
            reasons = "; ".join(f"{step.layers[0]}: {step.left}" for step in steps) or "no layer but the output's"
            raise InputError(f"nothing could be pruned ({reasons})")
        macs, parameters = self._shares()
        notes = tuple(self._notes(macs, parameters))
        return Pruned(self.surgery.model, steps, macs, parameters, notes, self.surgery.cutter, self.surgery.kept)

    def _chosen(self, groups: Iterable[int], due: Mapping[int, int]) -> dict[int, list[int]]:
        """Group -> its places that are to go now."""
        found = {}
        for number in groups:
            group = self.groups[number]
            ranked = group.ranked(self._keep(group), self.gone[number])
            places = [place for cell in ranked for place in cell[: due[number] // group.blocks]]
            found[number] = [place for place in places if place not in self.gone[number]]
        return {number: places for number, places in found.items() if places}

    def _settle(self, chosen: dict[int, list[int]]) -> dict[int, list[int]]:
        """What of this can go: all of it, or what is left when groups stay that would not come out right."""
        units = {n: [self.groups[n].units[place] for place in places] for n, places in chosen.items()}
        for number, reason in self.surgery.guilty(units).items():
            self.left[number] = reason
            self.open = [other for other in self.open if other != number]
            del chosen[number]
        return chosen

    def _ratios(self) -> list[float]:
        """The share to remove of each group, where no budget says otherwise."""
        ratio = self.goal.share
        if not isinstance(ratio, Mapping):
            return [float(ratio)] * len(self.groups)
        _matching(
            ratio, [layer for group in self.groups for layer in group.layers], "ratio: nothing to prune is called"
        )
        found = []
        for group in self.groups:
            asked = {ratio[layer] for layer in group.layers if layer in ratio} or {
                share for pattern, share in ratio.items() if fnmatch.filter(group.layers, pattern)
            }
            if len(asked) > 1:
                raise InputError(f"ratio: {', '.join(group.layers)} go together, but are asked for {sorted(asked)}")
            found.append(float(asked.pop()) if asked else 0.0)
        return found

    def _reason_to_stay(self, group: Group, scores: Scores) -> str | None:
        if group.fault is not None:
            return group.fault
        if not self.protected.isdisjoint(group.layers):
            return "protected"
        if self.goal.scope == "inner" and group.residual:
            return "coupled by a residual sum"
        return None if any(layer in scores.keep for layer in group.layers) else "not scored"

    def _due(self, share: Fraction) -> dict[int, int]:
        """How many units of each open group are to be gone when this share of the way is behind."""
        keeps = {number: self._keep(self.groups[number]) for number in self.open}
        stocks = [self._stock(number, keeps[number]) for number in self.open]
        if self.goal.budget is not None:
            which, target = self.goal.budget
            ranked = [self.groups[number].ranked(keeps[number], self.gone[number]) for number in self.open]
            order = [
                [
                    self.groups[number].units[place] for row in zip(*cells, strict=False) for place in row
                ]  # cells in turn
                for number, cells in zip(self.open, ranked, strict=True)
            ]

            def left(counts: Sequence[int]) -> float:
                gone = [unit for units, count in zip(order, counts, strict=True) for unit in units[:count]]
                return self.surgery.cutter.shares(gone)[which]

            counts = by_budget(stocks, left, 1 - (1 - target) * float(share), ranked=self.goal.ranking == "global")
        elif self.goal.ranking == "global":
            total = Fraction(str(self.goal.share)) * share * sum(stock.units for stock in stocks)
            counts = by_rank(stocks, math.floor(total))
        else:
            wanted = [(self.asked[number], self.groups[number].blocks) for number in self.open]
            counts = by_ratio(stocks, [Fraction(blocks * math.floor(share * (n // blocks))) for n, blocks in wanted])
        if self.goal.budget is not None or self.goal.ranking == "global":
            for number, count in zip(self.open, counts, strict=True):
                self.asked[number] = count
        return dict(zip(self.open, counts, strict=True))

    def _stock(self, number: int, keep: np.ndarray) -> Stock:
        group, deviation = self.groups[number], keep.std()
        normal = (keep - keep.mean()) / deviation if deviation > 0 else np.zeros(len(keep))
        ranked = group.ranked(keep, self.gone[number])
        free = min(map(len, ranked))
        weakness = np.repeat(np.mean([normal[cell[:free]] for cell in ranked], axis=0), group.blocks)
        possible = [n for n in levels(len(keep), group.blocks, self.goal.round_to) if n <= free * group.blocks]
        return Stock(len(keep), tuple(possible), len(self.gone[number]), tuple(np.maximum.accumulate(weakness)))

    def _keep(self, group: Group) -> np.ndarray:
        """(units,): the scores, reduced over the layers of the group."""
        rows = []
        for layer, of in group.members.items():
            if layer not in self.scores.keep:
                continue
            keep = np.asarray(self.scores.keep[layer], float)
            if keep.shape != (self.surgery.widths[layer],):
                got = f"{len(keep)} units" if keep.ndim == 1 else f"shape {keep.shape}"
                raise InputError(
                    f"layer {layer!r}: scores of {got}, the model has {self.surgery.widths[layer]}; "
                    "they belong to another model"
                )
            rows.append([np.mean(keep[list(numbers)]) if numbers else np.nan for numbers in of])
        reduce: Any = {"mean": np.nanmean, "max": np.nanmax, "min": np.nanmin}[self.goal.reduction]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # units without a score in any layer are NaN
            found = reduce(np.array(rows), axis=0)
        return np.where(np.isnan(found), np.nanmax(found), found)

    def _remove(self, chosen: Mapping[int, list[int]]) -> tuple[Step, ...]:
        self.surgery.remove(self.groups[number].units[p] for number, places in chosen.items() for p in places)
        for number, places in chosen.items():
            self.gone[number] += places
        return tuple(map(self._step, chosen))

    def _step(self, number: int) -> Step:
        group, gone = self.groups[number], set(self.gone[number])
        asked, left = self.asked[number], self.left[number]
        if left is None and len(gone) < asked:
            multiples = f"widths are multiples of {self.goal.round_to}"
            left = multiples if self.goal.round_to > 1 else "each of its parts keeps a unit"
        if left is None and not gone:
            by_ratio = self.goal.budget is None and self.goal.ranking == "layer"
            what = (
                f"ratio {self.ratios[number]:g}" if by_ratio else f"the {'budget' if self.goal.budget else 'ranking'}"
            )
            parts = f" in {group.blocks} blocks" if group.blocks > 1 else ""
            left = f"{what} removes none of {len(group.units)} units{parts}"
        rest = [place for place in range(len(group.units)) if place not in gone]
        return Step(
            group.layers, len(group.units), asked, len(gone), group.numbers(gone), group.numbers(rest), left, group.also
        )

    def _shares(self) -> tuple[float, float]:
        """(multiply-adds, parameters) that are left."""
        gone = [g.units[place] for g, places in zip(self.groups, self.gone, strict=True) for place in places]
        return self.surgery.cutter.shares(gone)

    def _notes(self, *shares: float) -> Iterator[str]:
        if self.goal.budget is not None:
            which, target = self.goal.budget
            if abs(shares[which] - target) > BUDGET * target:
                what = ("multiply-adds", "parameters")[which]
                yield f"{shares[which]:.1%} of the {what} are left, not {target:.1%}: what can go allows nothing nearer"
        if changed := [f"{module}.{name}".lstrip(".") for module, name in self.surgery.cutter.sizes]:
            yield f"sizes in the network's code were changed too: {', '.join(changed)}"
        for layer in sorted(self.protected):
            if lost := self.surgery.inputs_lost(layer):
                yield f"layer {layer!r} is protected: its outputs stay, {lost} of its inputs went with what makes them"


class Surgery:
    """A copy of a network that loses units.

    groups: what can go, in the order it runs, each tried out on a copy with random weights: a group that cannot go, or
    whose removal is not what masking it would be, has a fault. layers: the names of the convolutions; widths: of them.
    """

    def __init__(self, model: nn.Module, example: Tensor, carry: dict[str, Tensor] | None = None) -> None:
        if not example.numel():
            raise InputError(f"example is empty: {tuple(example.shape)}; it is one image (1, channels, height, width)")
        self._carry = {} if carry is None else carry
        _refuse_computed_weights(model)
        self._whole, self._image = _stand_in(model, example)
        self.layers = [layer.name for layer in find_convolutions(self._whole, self._image)[0]]
        self.channels = trace(self._whole, self._image)
        randomise(self._whole)
        self.cutter = Cutter(self._whole, self.channels)
        modules = dict(model.named_modules())
        self.widths = {layer: modules[layer].out_channels for layer in self.layers}
        self._gone: set[int] = set()
        self._sound: set[tuple[frozenset[int], int]] = set()  # what was tried out before, with how many sizes in code
        self.groups = self._tried(find_groups(self._whole, self.channels, self.layers))
        self.model = copied(model)
        self.kept = self.cutter.everything()

    def remove(self, units: Iterable[int]) -> None:
        """Remove these units (numbers of Channels.unit) everywhere."""
        self._gone.update(units)
        after = self.cutter.without(self._gone)
        refuse_unlike_weights(self._carry, self.model, "carry")
        for name, tensor in self._carry.items():
            self._carry[name] = self.cutter.select(name, tensor, self.kept, after)
        self.cutter.cut(self.model, self.kept, after)
        self.kept = after

    def in_original_numbers(self, scores: Scores, layers: Sequence[str]) -> Scores:
        """Scores of the network as it is now, as scores of the whole one; what is gone gets the lowest."""
        if not isinstance(scores, Scores) or (missing := [layer for layer in layers if layer not in scores.keep]):
            what = f"no scores of {missing[0]!r}" if isinstance(scores, Scores) else f"a {type(scores).__name__}"
            raise InputError(f"rescore() returned {what}; it is asked for Scores of {', '.join(layers)}")
        keep = {}
        for layer in layers:
            values, left = scores.keep[layer], self.kept[self._outputs(layer)]
            if len(values) != len(left):
                raise InputError(f"layer {layer!r}: scores of {len(values)} units, it has {len(left)} left")
            keep[layer] = np.full(self.widths[layer], values.min())
            keep[layer][left] = values
        return replace(scores, keep=keep, raw={})

    def inputs_lost(self, layer: str) -> int:
        key = (layer, "in") if (layer, "in") in self.kept else (layer, "both")
        return len(self.cutter.axes[key].names) - len(self.kept[key]) if key in self.kept else 0

    def guilty(self, units: Mapping[int, Sequence[int]]) -> dict[int, str]:
        """Units that are to go, by group -> the groups with which the network would not come out right, and why."""
        if self._fault([unit for of in units.values() for unit in of]) is None:
            return {}
        sound: list[int] = []
        found = {}
        for number, of in units.items():
            reason = self._fault([*sound, *of])
            if reason is None:
                sound += of
            else:
                found[number] = reason
        return found

    def _outputs(self, layer: str) -> tuple[str, str]:
        return (layer, "out") if (layer, "out") in self.cutter.axes else (layer, "both")

    def _tried(self, groups: tuple[Group, ...]) -> tuple[Group, ...]:
        """The groups, with a fault for each of which a half, drawn at random, cannot go."""
        halves = {}
        for number, group in enumerate(groups):
            if group.fault is None:
                ranked = group.ranked(np.random.default_rng(number).permutation(len(group.units)))
                half = min(len(group.units) // group.blocks // 2, *map(len, ranked))
                halves[number] = [group.units[place] for cell in ranked for place in cell[:half]]
        if self._fault([unit for of in halves.values() for unit in of]) is None:
            return groups
        self.cutter.sizes = dict(self.cutter.candidates)
        faults = self.guilty(halves)
        self._forget_sizes([unit for number, of in halves.items() if number not in faults for unit in of])
        return tuple(replace(group, fault=faults.get(number, group.fault)) for number, group in enumerate(groups))

    def _forget_sizes(self, units: Sequence[int]) -> None:
        """Numbers in the network's code stay as they are when these units can go without changing them."""
        modules, needed = dict(self._whole.named_modules()), dict(self.cutter.sizes)
        gone = set(units)
        for kind in dict.fromkeys((type(modules[name]), attribute) for name, attribute in needed):
            of_kind = {key for key in needed if (type(modules[key[0]]), key[1]) == kind}
            parts = [part for key in of_kind for part in needed[key] if not isinstance(part, int)]
            if gone.isdisjoint(unit for part in parts for unit in part.tolist()):
                continue  # nothing can be told
            self.cutter.sizes = {key: of for key, of in needed.items() if key not in of_kind}
            if self._fault(units) is None:
                needed = self.cutter.sizes
        self.cutter.sizes = needed

    def _fault(self, units: Sequence[int]) -> str | None:
        """Why these units, beside those that are gone, cannot be removed."""
        away = frozenset(self._gone).union(units)
        if (away, len(self.cutter.sizes)) in self._sound:
            return None
        before, after = self.cutter.everything(), self.cutter.without(away)
        twin = copied(self._whole)
        try:
            self.cutter.cut(twin, before, after)
            difference, scale = self.cutter.difference(self._whole, twin, after, self._image)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # the network's own code may raise what it likes
            first = (str(error).splitlines() or [type(error).__name__])[0]
            return f"without some of its units the network does not run: {first}"
        if not difference <= TOLERANCE.get(self._image.dtype, 1e-3) * scale:
            share = f"the outputs differ by {difference:.2g} of {scale:.2g}"
            return f"removing its units is not masking them ({share}): some code mixes channels in a way not known"
        self._sound.add((away, len(self.cutter.sizes)))
        return None


def _stand_in(model: nn.Module, example: Tensor) -> tuple[nn.Module, Tensor]:
    """A copy that can be tried out, and images for it: on the CPU and in double precision, where its code lets it.
    Small images are many, so that no unit is zero on all of them."""
    many = min(max(len(example), PIXELS // max(math.prod(example.shape[2:]), 1)), 16)
    images = torch.randn((many, *example.shape[1:]), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for count in (many, len(example)):
        twin = copied(model)
        try:
            twin.to("cpu", torch.float64)
            with evaluating(twin), torch.no_grad():
                twin(images[:count])
            return twin, images[:count]
        except (RuntimeError, TypeError, ValueError, NotImplementedError):
            continue
    weight = next(model.parameters(), example)
    return copied(model), images[: len(example)].to(weight.device, weight.dtype)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _matching(patterns: Iterable[str], layers: Sequence[str], otherwise: str) -> set[str]:
    """The layers that the patterns match; each must match one."""
    for pattern in patterns:
        if not fnmatch.filter(layers, pattern):
            close = difflib.get_close_matches(pattern, layers, n=3)
            hint = f"near it are {', '.join(close)}" if close else f"there are {', '.join(list(layers)[:5])} and others"
            raise InputError(f"{otherwise} {pattern!r}; {hint}")
    return {layer for layer in layers for pattern in patterns if fnmatch.fnmatchcase(layer, pattern)}


def _refuse_computed_weights(model: nn.Module) -> None:
    for name, module in model.named_modules():
        own = dict(module.named_parameters(recurse=False))
        if parametrize.is_parametrized(module) or {"weight_g", "weight_orig"} & set(own):
            raise InputError(f"layer {name!r}: its weight is computed (weight_norm or the like); remove that first")


def refuse_unlike_weights(tensors: Mapping[str, Tensor], model: nn.Module, what: str) -> None:
    """InputError for a tensor that is not shaped like the parameter of `model` it is named after."""
    weights = dict(model.named_parameters())
    for name, tensor in tensors.items():
        if name not in weights:
            raise InputError(f"{what}: {type(model).__name__} has no parameter {name!r}")
        shape = tuple(tensor.shape) if isinstance(tensor, Tensor) else type(tensor).__name__
        if shape != tuple(weights[name].shape):
            raise InputError(f"{what} of parameter {name!r} is {shape}, the parameter {tuple(weights[name].shape)}")
