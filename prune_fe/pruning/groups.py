"""Units that can only go together: several layers tied unit by unit, and cells that must lose equally many."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from torch import nn

from prune_fe.tracing.dependency_graph import OUTPUT, Channels


@dataclass(frozen=True)
class Group:
    """Units of one convolution, or of several that a residual sum, a gate or a depthwise convolution ties.

    members: layer, in the order they run -> for each unit of the group its number, or numbers, in that layer (none
    where a concatenation or a split leaves the layer out). cells: for each unit the number of its cell: a split, a
    grouped convolution or a group norm demands that every cell loses equally many. units: their numbers in
    Channels.unit. residual: more than one of the layers mixes channels. fault: why nothing can go, or None. also:
    modules without scores whose outputs go too, such as the gates of squeeze-and-excite blocks. parts: lists of places
    in the group that are all that some module is given, or all of a piece of a split: one of each has to stay.
    """

    members: Mapping[str, tuple[tuple[int, ...], ...]]
    cells: tuple[int, ...]
    units: tuple[int, ...]
    residual: bool = False
    fault: str | None = None
    also: tuple[str, ...] = ()
    parts: tuple[tuple[int, ...], ...] = ()

    @property
    def layers(self) -> tuple[str, ...]:
        return tuple(self.members)

    @property
    def blocks(self) -> int:
        """The number of cells."""
        return len(set(self.cells))

    def ranked(self, keep: Sequence[float] | np.ndarray, gone: Iterable[int] = ()) -> list[list[int]]:
        """For each cell the places that may go: first what is gone, then from the lowest `keep` (one a place) to the
        highest, equal ones by their number. The best that is left of each part has to stay and is in no list."""
        away = set(gone)
        stay = {max(set(part) - away, key=lambda place: (keep[place], place)) for part in self.parts}
        order = sorted(range(len(keep)), key=lambda place: (place not in away, keep[place], place))
        free = [place for place in order if place not in stay]
        return [[place for place in free if self.cells[place] == cell] for cell in sorted(set(self.cells))]

    def numbers(self, places: Iterable[int]) -> dict[str, tuple[int, ...]]:
        """Layer -> the unit numbers, ascending, that these places of the group have there."""
        chosen = list(places)
        return {layer: tuple(sorted(n for place in chosen for n in of[place])) for layer, of in self.members.items()}


def find_groups(model: nn.Module, channels: Channels, layers: Sequence[str]) -> tuple[Group, ...]:
    """The groups of these convolutions, in the order the layers are given. Units that make the network's outputs are
    in no group."""
    modules = dict(model.named_modules())
    outputs = {key[0]: channels.unit[axis.names] for key, axis in channels.axes.items() if key[1] in ("out", "both")}
    own = [_of_own_code(modules[layer], layer) for layer in layers if layer not in outputs]
    order, layers = list(layers), [layer for layer in layers if layer in outputs]
    weighted = [name for name in outputs if isinstance(modules[name], nn.modules.conv._ConvNd | nn.Linear)]
    listed = {unit for layer in layers for unit in outputs[layer].tolist() if channels.fixed.get(unit) != OUTPUT}
    places: dict[int, dict[str, list[int]]] = {
        unit: {} for unit in sorted(listed)
    }  # unit -> module -> its numbers there
    for name in [*layers, *(name for name in weighted if name not in layers)]:
        for number, unit in enumerate(outputs[name].tolist()):
            if unit in places:
                places[unit].setdefault(name, []).append(number)
    alike: dict[object, list[int]] = {}
    for unit, found in places.items():
        key = (channels.fixed.get(unit), *((name, len(numbers)) for name, numbers in found.items()))
        alike.setdefault(key, []).append(unit)
    balanced = [blocks for blocks in channels.balanced if not _always_equal(blocks)]
    joined = [_group(units, places, layers, modules, balanced, channels) for units in _joined(alike.values(), balanced)]
    groups = [replace(group, parts=parts) for group, parts in zip(joined, _parts(joined, channels), strict=True)]
    return tuple(sorted([*groups, *own], key=lambda group: (order.index(group.layers[0]), group.units)))


def _of_own_code(module: nn.Module, layer: str) -> Group:
    width = int(module.out_channels)  # type: ignore[arg-type]
    fault = f"layer {layer!r} is a {type(module).__name__}, whose code is not torch's"
    return Group({layer: tuple((n,) for n in range(width))}, (0,) * width, tuple(range(-width, 0)), fault=fault)


def _group(
    units: list[int],
    places: Mapping[int, Mapping[str, list[int]]],
    layers: Sequence[str],
    modules: Mapping[str, nn.Module],
    balanced: Sequence[Sequence[np.ndarray]],
    channels: Channels,
) -> Group:
    names = {name for unit in units for name in places[unit]}
    members = {layer: tuple(tuple(places[unit].get(layer, ())) for unit in units) for layer in layers if layer in names}
    first = next(iter(members))
    order = sorted(range(len(units)), key=lambda place: (members[first][place] or (len(units),), units[place]))
    units, members = [units[p] for p in order], {name: tuple(of[p] for p in order) for name, of in members.items()}
    mixing = [layer for layer in members if not _is_depthwise(modules[layer])]
    cells, fault = _cells(units, balanced)
    return Group(
        members, cells, tuple(units),
        residual=any(sum(bool(members[layer][place]) for layer in mixing) > 1 for place in range(len(units))),
        fault=channels.fixed.get(units[0], fault),
        also=tuple(sorted(names - members.keys())),
    )  # fmt: skip


def _parts(groups: Sequence[Group], channels: Channels) -> list[tuple[tuple[int, ...], ...]]:
    """Group.parts of each group."""
    home = {unit: (number, place) for number, group in enumerate(groups) for place, unit in enumerate(group.units)}
    parts: list[set[tuple[int, ...]]] = [set() for _ in groups]
    sides = [channels.unit[axis.names] for axis in channels.axes.values()]
    for units in [*sides, *(units for _, units in channels.sizes)]:
        homes = {home.get(unit, (-1, -1)) for unit in units.tolist()}
        number = next(iter(homes))[0]
        if number >= 0 and len({of for of, _ in homes}) == 1 and len(homes) < len(groups[number].units):
            parts[number].add(tuple(sorted(place for _, place in homes)))
    return [tuple(sorted(found)) for found in parts]


def _is_depthwise(module: nn.Module) -> bool:
    return isinstance(module, nn.Conv2d) and 1 < module.groups == module.in_channels == module.out_channels


def _always_equal(blocks: Sequence[np.ndarray]) -> bool:
    """Every unit is in every block, equally often: whatever goes, the blocks lose equally many."""
    first = np.sort(blocks[0])
    return all(np.array_equal(np.sort(block), first) for block in blocks[1:])


def _joined(alike: Iterable[list[int]], balanced: Sequence[Sequence[np.ndarray]]) -> list[list[int]]:
    """Lists of units, those that some demand of balance concerns together in one; fixed ones stay apart."""
    lists = [list(units) for units in alike]
    home = {unit: number for number, units in enumerate(lists) for unit in units}
    parent = list(range(len(lists)))

    def root(number: int) -> int:
        while parent[number] != number:
            number = parent[number]
        return number

    for blocks in balanced:
        met = sorted({root(home[unit]) for block in blocks for unit in block.tolist() if unit in home})
        for number in met[1:]:
            parent[root(number)] = root(met[0])
    joined: dict[int, list[int]] = {}
    for number, units in enumerate(lists):
        joined.setdefault(root(number), []).extend(units)
    return list(joined.values())


def _cells(units: Sequence[int], balanced: Sequence[Sequence[np.ndarray]]) -> tuple[tuple[int, ...], str | None]:
    """For each unit its cell: units of one cell stand in the same blocks of every demand. Equal losses of all cells
    meet every demand when each block is made of equally many cells; the fault says when they are not."""
    own = set(units)
    demands = [blocks for blocks in balanced if any(not own.isdisjoint(block.tolist()) for block in blocks)]
    profiles: dict[int, list[tuple[int, int]]] = {unit: [] for unit in units}
    for number, blocks in enumerate(demands):
        for at, block in enumerate(blocks):
            for unit in block.tolist():
                if unit in own:
                    profiles[unit].append((number, at))
    kinds = {profile: number for number, profile in enumerate(dict.fromkeys(map(tuple, profiles.values())))}
    cells = tuple(kinds[tuple(profiles[unit])] for unit in units)
    touched = Counter(place for profile in kinds for place in profile)
    even = all(len({touched[number, at] for at in range(len(blocks))}) == 1 for number, blocks in enumerate(demands))
    if even and len(set(Counter(cells).values())) == 1:
        return cells, None
    return tuple(0 for _ in units), "a split, shuffle or group norm demands equal parts that its units cannot keep"
