"""The dependency graph of a network: which channels can only be removed together.

Every output channel of every layer has an id. While the network runs on an example (`channel_tracer.py`), each tensor
is accompanied by the ids of its channels, and rules for modules and functions (`module_rules.py`, `function_rules.py`)
derive the ids of each output:

- an operation that rearranges values (a view, a concatenation, a split, a shuffle) rearranges the ids as well;
- one that combines values position by position (a residual sum, a gate) couples the channels that meet;
- a layer couples the channels that it receives to its own inputs;
- a channel that meets something that cannot shrink is fixed, with the reason.

Coupled channels are removed together or not at all, whatever the network's code looks like.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, NewType

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.utils.weak import WeakIdKeyDictionary

from prune_fe.tracing.channel_ids import (
    NO_CHANNEL,
    ChannelId,
    IdArray,
    expand_along,
    ids_along,
    rows_along,
    to_tensor,
    varying_dims,
)
from prune_fe.tracing.parts import Parts, SameWidth
from prune_fe.tracing.products import Product

if TYPE_CHECKING:
    from prune_fe.tracing.own_code import Run

OUTPUT = "the network's outputs"
"""The reason why the channels of the network's output are fixed."""

BalanceConstraint = tuple[Sequence[IdArray], str]
"""Blocks of channels, or of coupled sets, that must lose equally many, and the cause."""

SetId = NewType("SetId", int)
"""Identifies a set of coupled channels, which can only be removed together."""


@dataclass(frozen=True)
class Axis:
    """One side of a module's tensors, with the ids of its channels.

    Attributes:
        module: The module's name.
        side: "in", "out", "both" (each output channel belongs to an input channel: norms, depthwise convolutions), or
            the name of a parameter or buffer that the module's code uses by itself.
        channels: The ids of its channels, in order.
        blocks: The number of equal parts into which the module divides the channels.
        dim: The dimension of the channels: in the parameter or buffer, or else in the module's input and output, where
            it is counted from the end.
        call: For the channels over which the module's code computes a statistic: the number of the module's run, and
            the number of the call in this run. None for the channels of a parameter, buffer, input or output.
        in_weights: Whether code passes the module's weights to a function, so that the module itself does not run. Then
            its channels are masked in its weights.
    """

    module: str
    side: str
    channels: IdArray
    blocks: int = 1
    dim: int = 0
    call: tuple[int, int] | None = None
    in_weights: bool = False


@dataclass(frozen=True)
class DependencyGraph:
    """Which channels of a network can only be removed together, and what else restricts their removal.

    Attributes:
        axes: (module, side) -> the axis, for every module that ran.
        coupled_set: Array indexed by channel id: the id of the coupled set that the channel belongs to.
        fixed_sets: Coupled set -> the reason why it cannot be removed.
        balance_constraints: Each is a list of blocks, a block an array of coupled sets; every block of a constraint
            must lose equally many.
        counted_sets: (module, the coupled sets of channels whose number the module's code may know).
        output_positions: Module -> the number of positions at which it is applied to one image.
        balance_causes: The cause of each balance constraint, such as "GroupNorm 'norm' with 4 groups".
        mixed_sets: (function that computes one value from many channels, their coupled sets), such as "mean() over the
            channels in 'norm'". Whether its channels can be removed is found out by verification.
        possible_constraints: (blocks, cause) of constraints that hold if code takes the number of some channels from
            its inputs, and not from an attribute.
        outputs: Module that is no layer, such as a residual block -> the coupled set of each channel of its output, for
            the modules that the tracer was asked for and whose output has channels.
        products: The products that no layer computes, such as those of attention.
    """

    axes: Mapping[tuple[str, str], Axis]
    coupled_set: IdArray
    fixed_sets: Mapping[SetId, str]
    balance_constraints: Sequence[Sequence[IdArray]]
    counted_sets: Sequence[tuple[str, IdArray]]
    output_positions: Mapping[str, int]
    balance_causes: Sequence[str] = ()
    mixed_sets: Sequence[tuple[str, IdArray]] = ()
    possible_constraints: Sequence[BalanceConstraint] = ()
    outputs: Mapping[str, IdArray] = field(default_factory=dict)
    products: Sequence[Product] = ()

    @property
    def constraints(self) -> list[BalanceConstraint]:
        """The balance constraints, each with its cause."""
        return list(zip(self.balance_constraints, self.balance_causes, strict=True))

    def with_sets(self, translate: Callable[[IdArray], IdArray]) -> DependencyGraph:
        """Return the graph with other numbers for coupled sets wherever it lists them, but in `fixed_sets`.

        Args:
            translate: Returns the new numbers of an array of coupled sets.
        """
        return replace(
            self,
            balance_constraints=[[translate(block) for block in blocks] for blocks in self.balance_constraints],
            counted_sets=[(module, translate(sets)) for module, sets in self.counted_sets],
            mixed_sets=[(what, translate(sets)) for what, sets in self.mixed_sets],
            possible_constraints=[
                ([translate(block) for block in blocks], cause) for blocks, cause in self.possible_constraints
            ],
            outputs={name: translate(sets) for name, sets in self.outputs.items()},
            products=[replace(each, channels=tuple(map(translate, each.channels))) for each in self.products],
        )

    def with_constraints(self, added: Sequence[BalanceConstraint]) -> DependencyGraph:
        """Return the graph with more balance constraints, each with its cause."""
        return replace(
            self,
            balance_constraints=[*self.balance_constraints, *(blocks for blocks, _ in added)],
            balance_causes=[*self.balance_causes, *(cause for _, cause in added)],
        )


class GraphBuilder:
    """Collects axes, couplings and constraints while a network runs, and makes a dependency graph of them.

    Attributes:
        modules: The network's modules by name.
        running: Names of the modules that are running, the innermost last; "" for the network.
        ids: Tensor -> the ids of its values, in its shape.
        runs: What is recorded of the running modules, the innermost last (`own_code.py`).
        run_counts: Module -> the number of its last run, from 0.
        candidates: Tensor made of own tensors with several wide dimensions -> the ids that it may have.
        counts_positions: Whether `apply_at` and `multiply` record anything: they do only in the network's first run.
        follows_candidates: Whether candidates are being followed. Then `count` and `divide` record nothing, because the
            candidates may turn out not to be channels.
    """

    def __init__(self, modules: Mapping[str, nn.Module], own_tensors: Mapping[Tensor, tuple[str, str]]) -> None:
        """Begin a graph.

        Args:
            modules: The network's modules by name.
            own_tensors: Parameters and buffers that are used by the code of a module instead of by a layer -> the
                module and the attribute.
        """
        self.modules = modules
        self.running = [""]
        self.runs: list[Run] = []
        self.run_counts: dict[str, int] = {}
        self.counts_positions = True
        self.follows_candidates = False
        # Weak keys: a tensor that the network no longer holds gives up its entry, and its id() cannot be mistaken.
        self.ids: Any = WeakIdKeyDictionary()
        self.candidates: Any = WeakIdKeyDictionary()
        self._own_tensors = own_tensors
        self._layer_tensors: Any = WeakIdKeyDictionary()
        for name, module in modules.items():
            for attribute in ("weight", "bias") if isinstance(module, _ConvNd | nn.Linear) else ():
                if isinstance(tensor := module._parameters.get(attribute), Tensor) and tensor not in own_tensors:
                    self._layer_tensors[tensor] = (name, attribute)
        self._possible: dict[tuple[str, str, int], IdArray] = {}
        self._next_id = NO_CHANNEL + 1
        self._axes: dict[tuple[str, str], Axis] = {}
        self._coupled: list[tuple[IdArray, IdArray]] = []
        self._reasons: dict[ChannelId, str] = {}
        self._balanced: list[tuple[Sequence[IdArray] | Parts | SameWidth, str]] = []
        self._counted: list[tuple[str, IdArray]] = []
        self._mixed: list[tuple[str, IdArray]] = []
        self._positions: dict[str, int] = {}
        self._products: list[Product] = []
        self._helpers: dict[str, list[str]] = {}

    @property
    def location(self) -> str:
        """The innermost module that is running, for messages."""
        return repr(self.running[-1]) if self.running[-1] else "the network's code"

    def axis(
        self,
        module: str,
        side: str,
        size: int,
        blocks: int = 1,
        dim: int = 0,
        call: tuple[int, int] | None = None,
    ) -> Axis:
        """Return an axis of a module; the first call for it creates it with new ids.

        Args:
            module: Name of the module.
            side: "in", "out", "both", or the name of a parameter or buffer.
            size: Number of channels.
            blocks: Number of equal parts into which the module divides them.
            dim: The dimension of the channels, as in `Axis`.
            call: The numbers of the run and the call that computes a statistic over them, as in `Axis`.
        """
        if (module, side) not in self._axes:
            channels = np.arange(self._next_id, self._next_id + size)
            self._next_id += size
            self._axes[module, side] = Axis(module, side, channels, blocks, dim, call)
            if blocks > 1:
                owner = type(self.modules.get(module)).__name__
                self.balance(list(channels.reshape(blocks, -1)), f"{owner} {module!r} with {blocks} groups")
        return self._axes[module, side]

    def mask_in_weights(self, module: str) -> None:
        """Record that code reads the weights of a module, which does not run itself."""
        for key, axis in self._axes.items():
            if key[0] == module and axis.call is None:
                self._axes[key] = replace(axis, in_weights=True)

    def axes_of(self, module: str) -> list[Axis]:
        """Return the axes that a module has so far."""
        return [axis for (name, _), axis in self._axes.items() if name == module]

    def is_own_tensor(self, value: Tensor) -> bool:
        """Return whether a tensor is a parameter or buffer that the code of a module uses by itself."""
        return value in self._own_tensors

    def layer_with(self, tensor: Any, attribute: str) -> str | None:
        """Return the layer that has a tensor for its `weight` or `bias`; None if no layer with a rule has it."""
        name, known = self._layer_tensors.get(tensor, ("", "")) if isinstance(tensor, Tensor) else ("", "")
        return name if known == attribute else None

    def own_axis(self, tensor: Tensor, size: int, dim: int = 0) -> Axis:
        """Return the axis of a parameter or buffer that the code of a module uses by itself."""
        module, attribute = self._own_tensors[tensor]
        return self.axis(module, attribute, size, dim=dim)

    def has_ids(self, value: Tensor) -> bool:
        """Return whether a tensor has channels. An own tensor gets ids if it has one wide dimension.

        An own tensor that has several wide dimensions, such as position embeddings, gets a candidate for each of them.
        """
        if not self.is_own_tensor(value) or value in self.ids or not value.is_floating_point():
            return value in self.ids
        wide = [dim for dim, size in enumerate(value.shape) if size > 1]
        if len(wide) == 1:
            axis = self.own_axis(value, value.shape[wide[0]], wide[0])
            self.ids[value] = expand_along(axis.channels, wide[0], value.shape)
        elif value not in self.candidates:
            self.candidates[value] = [self._candidate(value, dim) for dim in wide]
        return len(wide) == 1

    def _candidate(self, value: Tensor, dim: int) -> Tensor:
        """Return the ids that an own tensor has if its channels are along one of its dimensions."""
        key = (*self._own_tensors[value], dim)
        if key not in self._possible:
            self._possible[key] = np.arange(self._next_id, self._next_id + value.shape[dim])
            self._next_id += value.shape[dim]
        return expand_along(self._possible[key], dim, value.shape)

    def ids_along(self, value: Tensor, dims: Container[int]) -> Tensor | None:
        """Return the ids of a tensor that is combined with another one that has channels; None if it has none.

        Args:
            value: The tensor.
            dims: The dimensions of the other tensor's channels, counted from the end. They decide between candidates.
        """
        if self.has_ids(value):
            return self.ids[value]
        for candidate in self.candidates.get(value, ()):
            varying = [dim - candidate.ndim for dim in varying_dims(candidate)]
            if varying and all(dim in dims for dim in varying):
                return candidate
        return None

    def _add_possible_axes(self, coupled_set: IdArray) -> None:
        """Add an axis for each dimension of an own tensor that was combined with channels."""
        none = np.zeros(0, int)
        real = np.concatenate([none, *(coupled_set[axis.channels] for axis in self._axes.values())])
        for (module, attribute, dim), channels in self._possible.items():
            if not np.isin(coupled_set[channels], real).any():
                continue
            axis = self._axes.setdefault((module, attribute), Axis(module, attribute, channels, dim=dim))
            if axis.channels is not channels:
                for ids in (axis.channels, channels):
                    self.fix(to_tensor(ids), f"parameter {attribute!r} of {module!r} has channels in two dimensions")

    def connect(self, axis: Axis, ids: Tensor, dim: int, reason_otherwise: str = "") -> None:
        """Couple the channels along one dimension of a tensor to those of the axis that receives them.

        Args:
            axis: The axis.
            ids: Of the tensor.
            dim: The dimension in which the module expects channels.
            reason_otherwise: Why the channels are fixed if they are in another dimension; "" if they may be.
        """
        varying = varying_dims(ids)
        if varying and dim not in varying and reason_otherwise:
            self.fix(ids, reason_otherwise)
        elif varying and ids.shape[dim] == len(axis.channels):
            for row in rows_along(ids, dim):
                self.couple(axis.channels, row)

    def couple(self, first: IdArray, second: IdArray) -> None:
        """Couple channels pair by pair; one that is paired with NO_CHANNEL is fixed."""
        for ids, partners in ((first, second), (second, first)):
            self.fix(
                to_tensor(ids[partners == NO_CHANNEL]),
                "padded with zeros, or added to values that no layer with units gave",
            )
        pairs = (first != NO_CHANNEL) & (second != NO_CHANNEL) & (first != second)
        self._coupled.append((first[pairs], second[pairs]))

    def fix(self, ids: Tensor | None, reason: str) -> None:
        """Record the reason why channels cannot be removed. The first reason stays, but OUTPUT replaces any other.

        Args:
            ids: Ids of the channels in any shape; None for a tensor without channels.
            reason: The reason.
        """
        if ids is not None and ids.numel():
            for channel in np.unique(ids_along(ids, varying_dims(ids)) if ids.ndim else ids.numpy()):
                if reason == OUTPUT:
                    self._reasons[ChannelId(int(channel))] = reason
                self._reasons.setdefault(ChannelId(int(channel)), reason)

    def balance(self, blocks: list[IdArray], cause: str) -> None:
        """Record that blocks of channels must lose equally many.

        Args:
            blocks: The channels of each block.
            cause: What demands that, for messages, such as "GroupNorm 'norm' with 4 groups".
        """
        self._balanced.append((blocks, cause))

    def divide(self, parts: IdArray, cause: str) -> None:
        """Record that the running module's code divides channels into parts.

        The parts must lose equally many channels, unless each of them can only be removed as a whole, as the heads of
        attention can. In that case the code may contain the number of parts.

        Args:
            parts: (parts, ..., channels) the channels of each part.
            cause: The function, for messages.
        """
        if not self.follows_candidates:
            self._balanced.append((Parts(self.running[-1], parts), cause))

    def tie_to_inputs(self, tie: SameWidth, cause: str) -> None:
        """Record that the running module's code may give channels the width of its inputs.

        Args:
            tie: The channels and the inputs.
            cause: The same in words, for messages.
        """
        self._balanced.append((tie, cause))

    def mix(self, channels: IdArray, what: str) -> None:
        """Record that a function computes one value from these channels; `what` names it in messages."""
        self._mixed.append((what, channels))

    def count(self, *channels: IdArray) -> None:
        """Record that the running module's code may contain the number of these channels."""
        if not self.follows_candidates:
            self._counted += [(self.running[-1], ids) for ids in channels]

    def apply_at(self, module: str, positions: int) -> None:
        """Record that a layer is applied at a number of positions, which its multiply-adds are proportional to."""
        if self.counts_positions:
            self._positions[module] = self._positions.get(module, 0) + positions

    def multiply(self, macs: int, channels: tuple[IdArray, ...] = ()) -> None:
        """Record the multiply-adds for all images of a product that no layer computes; see `Product`."""
        if self.counts_positions:
            self._products.append(Product(macs, channels))

    def _helpers_of(self, module: str) -> list[str]:
        """Return the modules inside a module that did not run: its code may call other methods of theirs."""
        prefix = f"{module}." if module else ""
        if module not in self._helpers:
            self._helpers[module] = [
                name
                for name, owner in self.modules.items()
                if name.startswith(prefix)
                and name not in self.run_counts
                and name != module
                and not isinstance(owner, _ConvNd | nn.Linear)
                and not any(outer in self.run_counts for outer in _outer_names(name, module))
            ]
        return self._helpers[module]

    def build(self, images: int) -> DependencyGraph:
        """Return the graph after the network ran on a number of images."""
        none = np.zeros(0, int)  # np.concatenate() needs an array where nothing is coupled
        first = np.concatenate([none, *(ids for ids, _ in self._coupled)])
        second = np.concatenate([none, *(partners for _, partners in self._coupled)])
        pairs = coo_array((np.ones(len(first), bool), (first, second)), (self._next_id, self._next_id))
        coupled_set = connected_components(pairs, directed=False)[1]
        self._add_possible_axes(coupled_set)
        fixed: dict[SetId, str] = {}
        for channel, reason in self._reasons.items():
            set_id = SetId(int(coupled_set[channel]))
            # OUTPUT excludes channels from all groups, so it takes precedence over other reasons.
            if channel != NO_CHANNEL and (reason == OUTPUT or set_id not in fixed):
                fixed[set_id] = reason
        counted, balanced, possible = list(self._counted), list[BalanceConstraint](), list[BalanceConstraint]()
        for entry, cause in self._balanced:
            if isinstance(entry, SameWidth):
                blocks: Sequence[IdArray] = entry.blocks()
            else:
                blocks = entry.resolve(coupled_set) if isinstance(entry, Parts) else entry
            if isinstance(entry, Parts):
                counted += entry.whole_parts(coupled_set)
            if blocks and NO_CHANNEL not in np.concatenate(blocks):
                is_possible = isinstance(entry, SameWidth) and not entry.is_certain(coupled_set)
                (possible if is_possible else balanced).append((blocks, cause))
        counted += [(child, ids) for module, ids in counted for child in self._helpers_of(module)]
        graph = DependencyGraph(
            axes=self._axes,
            coupled_set=coupled_set,
            fixed_sets=fixed,
            balance_constraints=[blocks for blocks, _ in balanced],
            balance_causes=[cause for _, cause in balanced],
            possible_constraints=possible,
            mixed_sets=self._mixed,
            counted_sets=[(module, ids) for module, ids in counted if NO_CHANNEL not in ids],
            # The positions of a convolution are those of one image already.
            output_positions={
                name: positions // (1 if isinstance(self.modules[name], _ConvNd) else images)
                for name, positions in self._positions.items()
            },
            products=[replace(each, macs=each.macs / images) for each in self._products],
        )
        return graph.with_sets(lambda ids: coupled_set[ids])


def _outer_names(name: str, outermost: str) -> list[str]:
    """Return the names of the modules between a module and one around it.

    >>> _outer_names("a.b.c.d", "a")
    ['a.b.c', 'a.b']
    """
    names = []
    while (name := name.rpartition(".")[0]) != outermost and name:
        names.append(name)
    return names
