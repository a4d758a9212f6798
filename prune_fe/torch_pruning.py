"""Prune by the scores of prune_fe with the pruners of torch-pruning, the package by Fang et al. (2023, "DepGraph").

A script that uses torch-pruning changes one line: the importance that its pruner gets.

    >>> import torch_pruning as tp
    >>> from prune_fe import score
    >>> model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 5, 3))
    >>> image = torch.zeros(1, 3, 16, 16)
    >>> importance = Importance(score(model, scorer="l1-filter"))
    >>> pruner = tp.pruner.BasePruner(model, (image,), importance, pruning_ratio=0.5, ignored_layers=[model[2]])
    >>> pruner.step()
    >>> model[0].out_channels, len(importance.kept(model)["0"])
    (4, 4)
"""

from __future__ import annotations

import types
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args
from weakref import WeakKeyDictionary, WeakSet

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from prune_fe.errors import InputError
from prune_fe.io import shorten
from prune_fe.pruning.options import Reduction
from prune_fe.pruning.ranking import REDUCTIONS, Array, normalise_scores
from prune_fe.scorers.tp_criteria import import_torch_pruning
from prune_fe.scoring.scores import Scores

tp = import_torch_pruning()

Unscored = Literal["keep", "error"]

Rescore = Callable[[nn.Module], Scores]
"""Function from the network so far to new scores of its units."""

TIE_STEP = 64
"""Equal scores are moved apart by this number of float64 numbers for each unit between them."""


@dataclass
class _Followed:
    """A layer of a network that torch-pruning prunes.

    Attributes:
        name: Its name among the scores.
        first: Number of its first unit if the units of all scored layers are numbered consecutively.
        units: The units that remain, by their numbers in the whole network, ascending.
        scores: Their scores.
    """

    name: str
    first: int
    units: NDArray[np.int64]
    scores: Array


class Importance(tp.importance.Importance):  # type: ignore[name-defined]
    """Tell a pruner of torch-pruning how important channels are by the scores of prune_fe.

    Any pruner takes it: BasePruner, which is also called MetaPruner and MagnitudePruner, with local, global and
    isomorphic ranking, `iterative_steps`, `round_to` and layers whose channels form groups. Channels with the lowest
    scores are pruned first.

    After each step the scores follow the channels that remain, also where the network was fine-tuned in between, or
    `rescore` computes new ones. Channels are followed from the first use of this object. A layer that lost channels
    unseen, such as by a group that was made before, is an error.

    torch-pruning's global ranking removes all channels with a score up to a threshold, so that equal scores are removed
    together, however many they are. Therefore equal scores become different ones here: each score is raised by the
    number of its unit (consecutive over all scored layers) times 64 times the distance to the next float64 number.
    Units with equal scores are then removed in the order of their numbers. The order of different scores within a group
    never changes; between groups, scores count as equal if they differ by less than about 1e-14 of their size times
    the number of units.

    Args:
        scores: What `prune_fe.score` returned for the network. None takes what `rescore` returns.
        reduction: How the scores of the layers that a residual sum, a gate or a depthwise convolution ties together
            become one: "mean", "max" or "min", as in `prune_fe.prune`. Layers without scores do not count.
        rescore: Function from the network so far to its `Scores`. It is called when a channel's importance is asked for
            after channels were removed: once for each step of a pruner.
        model: The network that was scored, if the pruner prunes a larger one that contains it, so that the names of
            the layers differ. By default the one that the pruner prunes.
        unscored: What happens to a group of which no layer has scores: "keep" leaves its channels, and warns;
            "error" raises InputError. (The pruner asks for no importance of its `ignored_layers`.)
        normalise: Whether the scores of each group get mean 0 and standard deviation 1 first. Without this a global
            ranking compares the scores of different layers as they are, and torch-pruning then removes nothing from a
            group whose channels are all below the threshold; with it, they are compared as `prune_fe.prune` does for
            `ranking="global"`.

    Raises:
        InputError: An argument is not allowed.
    """

    def __init__(
        self,
        scores: Scores | None = None,
        reduction: Reduction = "mean",
        *,
        rescore: Rescore | None = None,
        model: nn.Module | None = None,
        unscored: Unscored = "keep",
        normalise: bool = False,
    ) -> None:
        if scores is None and rescore is None:
            raise InputError("Importance needs scores, which prune_fe.score returns, or rescore=")
        if scores is not None and not isinstance(scores, Scores):
            raise InputError(f"scores is a {type(scores).__name__}; Importance needs what prune_fe.score returns")
        if rescore is not None and not callable(rescore):
            raise InputError(f"rescore is a {type(rescore).__name__}; it must be a function of the model")
        if model is not None and not isinstance(model, nn.Module):
            raise InputError(f"model is a {type(model).__name__}; it must be the network that was scored")
        for name, value, allowed in (
            ("reduction", reduction, get_args(Reduction)),
            ("unscored", unscored, get_args(Unscored)),
            ("normalise", normalise, (False, True)),
        ):
            if value not in allowed:
                raise InputError(f"{name} is {value!r}, allowed are {', '.join(map(repr, allowed))}")
        self.scores, self.reduction, self.rescore, self.model = scores, reduction, rescore, model
        self.unscored, self.normalise = unscored, normalise
        self._followed: WeakKeyDictionary[nn.Module, _Followed] = WeakKeyDictionary()
        self._stale: WeakSet[Any] = WeakSet()
        """The graphs through which channels were removed since the network was scored."""
        self._kept_groups: WeakSet[nn.Module] = WeakSet()
        """The roots of the groups that a warning said are kept."""

    def __call__(self, group: Any) -> Tensor | None:
        """Return the importance of each channel of a group, (channels,) float64, no two of them equal.

        Args:
            group: A `torch_pruning.Group` with all channels, or some.

        Returns:
            The importance of the channels in the order of the group's root; None, which tells a pruner to keep the
            group, where it has no scores.

        Raises:
            InputError: The scores belong to another network, channels were removed unseen, or the group has no scores
                and `unscored` is "error".
        """
        graph = group._DG
        self._watch(graph)
        if self.rescore is not None and graph in self._stale:
            self._score_again(graph)
        channels = {channel: position for position, channel in enumerate(group[0].idxs)}
        rows: list[tuple[_Followed, Array, Array]] = []
        for followed, item in self._scored_items(graph, group):
            units = self._units_by_position(item, channels)
            if units is not None:
                rows.append(
                    (followed, _mean_at(followed.scores, units), _mean_at(followed.first + followed.units, units))
                )
        if not rows:
            self._report_missing(graph, group)
            return None
        # The order in which the layers run, as in prune(): a mean depends on it by a rounding error.
        rows.sort(key=lambda row: row[0].first)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # numpy warns of positions that are NaN in every layer
            scores = REDUCTIONS[self.reduction](np.array([row for _, row, _ in rows]), axis=0)
            numbers = np.nanmin(np.array([row for _, _, row in rows]), axis=0)
        # A channel without a score stays as long as there are others.
        scores = np.where(np.isnan(scores), np.nanmax(scores), scores)
        numbers = np.where(np.isnan(numbers), np.nanmax(numbers) + 1 + np.arange(len(numbers)), numbers)
        if self.normalise:
            scores = normalise_scores(scores, np.ones(len(scores), dtype=bool))
        device = next(graph.model.parameters()).device
        values = torch.from_numpy(break_ties(scores, numbers.astype(np.int64)))
        return values.to("cpu" if device.type == "mps" else device)  # mps has no float64

    def kept(self, model: nn.Module) -> dict[str, list[int]]:
        """Return the channels that remain in a network that was pruned with this importance.

        Args:
            model: The network that the pruner pruned.

        Returns:
            Layer name -> the numbers that its channels had when this object was first used.
        """
        followed = (self._followed.get(module) for module in model.modules())
        return {each.name: each.units.tolist() for each in followed if each is not None}

    def _watch(self, graph: Any) -> None:
        """Follow what is pruned through a graph of torch-pruning, from its first use on."""
        if self in getattr(graph, "prune_fe_watchers", ()):
            return
        if self.scores is None:
            self.scores = self._call_rescore(graph)
        modules = dict((self.model or graph.model).named_modules())
        found = {name: modules[name] for name in self.scores.keep if modules.get(name) in graph.module2node}
        if not found:
            raise InputError(
                f"the scores are of {shorten(list(self.scores.keep))}, and {type(graph.model).__name__} runs no layer "
                "of such a name; where it contains the network that was scored, pass that one as model="
            )
        first = 0
        for name, scores in self.scores.keep.items():
            if name in found and found[name] not in self._followed:
                width = graph.get_out_channels(found[name])
                if width != len(scores):
                    raise InputError(
                        f"layer {name!r}: scores of {len(scores)} units, the model has {width}; they belong to another "
                        "model, or to this one before it was pruned"
                    )
                numbers = np.arange(width)
                self._followed[found[name]] = _Followed(name, first, numbers, np.asarray(scores, np.float64))
            first += len(scores)
        # This graph gets a method of its own, whose groups tell this object when they are pruned.
        graph.prune_fe_watchers = [*getattr(graph, "prune_fe_watchers", ()), self]
        graph.get_pruning_group = types.MethodType(_get_watched_group, graph)

    def _call_rescore(self, graph: Any) -> Scores:
        """Return what `rescore` returns for the network so far."""
        assert self.rescore is not None
        with torch.enable_grad():  # pruners work without gradients
            scores = self.rescore(self.model or graph.model)
        if not isinstance(scores, Scores):
            raise InputError(
                f"rescore() returned a {type(scores).__name__}; it must return what prune_fe.score returns"
            )
        return scores

    def _score_again(self, graph: Any) -> None:
        """Replace the scores of the layers of a graph by those that `rescore` computes."""
        scores = self._call_rescore(graph)
        layers = {followed.name: followed for followed, _ in self._layers_of(graph)}
        for name, followed in layers.items():
            got = len(scores.keep[name]) if name in scores.keep else 0
            if got != len(followed.units):
                raise InputError(
                    f"rescore() returned {got} scores of layer {name!r}, which has {len(followed.units)} units"
                )
        for name, followed in layers.items():
            followed.scores = np.asarray(scores.keep[name], np.float64)
        self._stale.discard(graph)

    def _layers_of(self, graph: Any) -> Iterator[tuple[_Followed, nn.Module]]:
        """Yield the followed layers of a graph."""
        for module in graph.module2node:
            if isinstance(module, nn.Module) and module in self._followed:
                yield self._followed[module], module

    def _scored_items(self, graph: Any, group: Any) -> Iterator[tuple[_Followed, Any]]:
        """Yield the parts of a group that are outputs of layers with scores.

        Raises:
            InputError: Such a layer lost channels unseen.
        """
        for item in group:
            module = item.dep.target.module
            if not isinstance(module, nn.Module) or not graph.is_out_channel_pruning_fn(item.dep.handler):
                continue
            followed = self._followed.get(module)
            if followed is None:
                continue
            width = graph.get_out_channels(module)
            if width != len(followed.units):
                raise InputError(
                    f"layer {followed.name!r} has {width} channels, {len(followed.units)} were expected: it was pruned "
                    "in a way that Importance could not see; use it before the first group is made, or make a new one"
                )
            yield followed, item

    def _units_by_position(self, item: Any, channels: Mapping[int, int]) -> list[list[int]] | None:
        """Return the units of a layer at each position of a group's root; None if there are none.

        Args:
            item: The part of the group, with `idxs` in the layer and `root_idxs` in the root.
            channels: Channel of the root -> its position in the group.
        """
        units: list[list[int]] = [[] for _ in channels]
        for unit, root in zip(item.idxs, item.root_idxs, strict=True):
            if root in channels:
                units[channels[root]].append(unit)
        return units if any(units) else None

    def _report_missing(self, graph: Any, group: Any) -> None:
        """Raise the error, or give the warning, that a group has no scores."""
        names = {module: name for name, module in graph.model.named_modules()}
        parts = [item.dep.target.module for item in group if graph.is_out_channel_pruning_fn(item.dep.handler)]
        layers = [
            repr(names[part])
            for part in parts
            if isinstance(part, nn.Module) and any(weight.ndim > 1 for weight in part.parameters(recurse=False))
        ]
        who = f"no scores of {shorten(list(dict.fromkeys(layers))) or 'the root of a group'}"
        if self.unscored == "error":
            raise InputError(
                f"{who}: score them (linear=True takes linear layers), name them in the pruner's ignored_layers, or "
                "pass unscored='keep'"
            )
        root = group[0].dep.target.module
        if isinstance(root, nn.Module) and root not in self._kept_groups:
            self._kept_groups.add(root)
            warnings.warn(f"{who}: all their channels are kept", stacklevel=3)

    def _forget_removed(self, group: Any) -> None:
        """Forget the units and scores of the channels that the pruning of a group removed."""
        for dep, channels in group:  # a pruner may have put plain pairs into it
            module, is_output = dep.target.module, group._DG.is_out_channel_pruning_fn(dep.handler)
            followed = self._followed.get(module) if isinstance(module, nn.Module) and is_output else None
            if followed is not None:
                removed = np.unique(np.asarray(channels, np.int64))
                followed.units = np.delete(followed.units, removed)
                followed.scores = np.delete(followed.scores, removed)
        self._stale.add(group._DG)


def _get_watched_group(graph: Any, *arguments: Any, **named: Any) -> Any:
    """Make a group as `graph.get_pruning_group` does, which tells the watchers of the graph when it is pruned."""
    group = type(graph).get_pruning_group(graph, *arguments, **named)
    group.prune = types.MethodType(_prune_and_tell, group)
    return group


def _prune_and_tell(group: Any, idxs: Any = None, record_history: bool = True) -> None:
    """Prune a group as its class does, and tell the watchers of its graph."""
    type(group).prune(group, idxs, record_history)
    if idxs is None:  # with idxs, torch-pruning makes another group and prunes that one, which tells the watchers
        for watcher in group._DG.prune_fe_watchers:
            watcher._forget_removed(group)


def _mean_at(values: NDArray[Any], units: list[list[int]]) -> Array:
    """Return the mean of the values of the units of each position, NaN for a position that has none."""
    if all(len(each) == 1 for each in units):  # by far the most frequent
        return np.asarray(values[[unit for (unit,) in units]], np.float64)
    return np.array([np.mean(values[each]) if each else np.nan for each in units])


def break_ties(scores: Array, numbers: NDArray[np.int64]) -> Array:
    """Return scores of which no two are equal, in the order of the scores, and of the numbers where these are equal.

    >>> lifted = break_ties(np.array([1.0, 0.0, 1.0]), np.array([2, 1, 0]))
    >>> lifted.argsort().tolist(), bool(abs(lifted - [1, 0, 1]).max() < 1e-13)
    ([1, 2, 0], True)

    Args:
        scores: (units,) finite scores.
        numbers: (units,) a number of each unit, no two of them equal. Each score is raised by its number times
            `TIE_STEP` times the distance to the next float64 number, so that scores of different calls with different
            numbers are not equal either.
    """
    lowest = np.iinfo(np.int64).min
    bits = np.ascontiguousarray(scores, np.float64).view(np.int64)
    # As whole numbers, the bits of positive float64 numbers are in their order, and those of negative ones in reverse.
    places = np.where(bits >= 0, bits, lowest - bits) + TIE_STEP * numbers
    order, steps = np.lexsort((numbers, scores)), np.arange(len(scores))
    places[order] = np.maximum.accumulate(places[order] - steps) + steps
    return np.where(places >= 0, places, lowest - places).view(np.float64)
