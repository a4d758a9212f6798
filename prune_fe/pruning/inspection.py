"""Inspect a network before anything is scored: its layers, what can be removed and what not, and the cost of each."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from prune_fe.errors import InputError
from prune_fe.measure.cost import Cost, cost_by_module
from prune_fe.pruning.analysis import Analysis, analyse
from prune_fe.pruning.budget import feasible_counts
from prune_fe.pruning.groups import Group
from prune_fe.tracing.copying import restoring_state
from prune_fe.tracing.dependency_graph import OUTPUT, DependencyGraph
from prune_fe.tracing.layers import find_layers_with_units
from prune_fe.tracing.nested import Inputs, move, run, take_rows
from prune_fe.tracing.quantised import require_float
from prune_fe.tracing.watching import Watch, evaluating
from prune_fe.tracing.weights import require_example, require_module, require_sound_weights
from prune_fe.tracing.wrappers import unwrap

if TYPE_CHECKING:
    import pandas as pd

COLUMNS = {
    "layer": "str",
    "type": "str",
    "units": "Int64",
    "map_height": "Int64",
    "map_width": "Int64",
    "groups": "str",
    "tied_to": "str",
    "removable": "Int64",
    "step": "Int64",
    "reason": "str",
    "parameters": "int64",
    "macs": "int64",
}
"""Column -> its type."""


def inspect(model: nn.Module, example: Inputs) -> pd.DataFrame:
    """List the layers of a network, what can be removed of each, what not and why, and what each costs.

    Nothing is scored and nothing is changed. What can be removed is tested on a copy, as `prune` does. Linear layers
    and the convolutions in gates are listed as `prune` treats them with scores of their own: it removes their units
    only if they were scored, with `linear=True`. (A gate also loses the outputs that belong to units of other layers.)

    >>> net = nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3), nn.Flatten(), nn.Linear(16, 2))
    >>> table = inspect(net, torch.zeros(1, 1, 6, 6))
    >>> print(table[["layer", "units", "removable", "reason", "macs"]].to_string(index=False))
    layer  units  removable                reason  macs
        0      8          7                        1152
        2      4          3                        1152
        4      2          0 the network's outputs    32

    Args:
        model: The network.
        example: One input of the network: a tensor (1, channels, height, width), for which zeros will do, a tuple of
            positional arguments, or a dict of keyword arguments.

    Returns:
        A row for each module that has parameters or multiply-adds of its own, in the order in which they run:

        - `layer`, `type`: Its name and its class.
        - `units`: Number of its units; missing for norms and others that have none.
        - `map_height`, `map_width`: Size of the maps of its units.
        - `groups`: Numbers of the groups that its units belong to, such as "1" or "1, 3".
        - `tied_to`: The other layers of these groups: tied units are removed together or not at all.
        - `removable`: How many units can be removed at most, if the layer has scores.
        - `step`: How many units go together at least, such as one of each part of a grouped convolution.
        - `reason`: Why units have to stay; "" where nothing holds them.
        - `parameters`, `macs`: Parameters and multiply-adds of the module without those of modules within it. Their
          sums are those of `cost`.

    Raises:
        InputError: The network does not run on the example.
    """
    import pandas as pd

    require_module(model)
    require_example(example)
    model = unwrap(model, example)
    require_float(model)
    require_sound_weights(model)
    weight = next(model.parameters())
    example = move(take_rows(example, 1), weight.device, weight.dtype)
    costs = cost_by_module(model, example)
    modules = dict(model.named_modules())
    rows = _Rows.collect(model, example, modules)
    names = [*rows.runs, *(name for name in modules if name not in rows.runs)]
    own_cost = {name: costs[name] for name in names if name in costs and costs[name] != Cost(0, 0)}
    table = [rows.row(name, modules[name]) | vars(price) for name, price in own_cost.items()]
    return pd.DataFrame(table, columns=list(COLUMNS)).astype(COLUMNS)


@dataclass(frozen=True)
class _Rows:
    """What the rows are made of.

    Attributes:
        runs: Module -> the shapes of its outputs, one a run, in the order in which the modules run first.
        map_sizes: Layer with units -> (height, width) of their maps.
        analysis: What pruning knows about the network; None if it refuses the network.
        fault: Why it does.
    """

    runs: Mapping[str, Sequence[tuple[int, ...]]]
    map_sizes: Mapping[str, tuple[int, int]]
    analysis: Analysis | None
    fault: str = ""

    @classmethod
    def collect(cls, model: nn.Module, example: Inputs, modules: Mapping[str, nn.Module]) -> _Rows:
        """Run and analyse the network."""
        watch = _Runs()
        with evaluating(model), restoring_state(model), torch.no_grad(), watch.watching(modules):
            run(model, example)
        map_sizes: dict[str, tuple[int, int]] = {}
        with _no_note_of_layers_left_out(), restoring_state(model):
            try:
                layers = find_layers_with_units(model, example, linear=True)
                map_sizes = {layer.name: layer.map_size for layer in layers if layer.has_map}
                analysis = analyse(model, example, {layer.name for layer in layers})
            except InputError as error:
                return cls(watch.shapes, map_sizes, None, str(error))
        return cls(watch.shapes, map_sizes, analysis)

    def row(self, name: str, module: nn.Module) -> dict[str, Any]:
        """Return the row of a module, without its cost."""
        row: dict[str, Any] = {"layer": name, "type": type(module).__name__}
        row |= {"groups": "", "tied_to": "", "reason": ""}
        units = _count_units(module)
        if units is None:
            return row
        shapes = self.runs.get(name, ())
        height, width = self.map_sizes.get(name) or (shapes[0][2:] if shapes and len(shapes[0]) == 4 else (None, None))
        row |= {"units": units, "map_height": height, "map_width": width}
        numbers = self._groups_of(name)
        groups = [self.analysis.groups[number] for number in numbers] if self.analysis is not None else []
        tied = dict.fromkeys(other for group in groups for other in (*group.layers, *group.other_modules))
        removable, steps, reasons = 0, [], []
        for group in groups:
            most, least = self._count_removable(group, name)
            removable += most
            steps += [least] if most and least else []
            reasons += [group.reason] if group.reason is not None else []
        if not groups:
            reasons.append(self._reason_without_group(name))
        return row | {
            "groups": ", ".join(str(number + 1) for number in numbers),
            "tied_to": ", ".join(other for other in tied if other != name),
            "removable": removable,
            "step": min(steps, default=None),
            "reason": "; ".join(dict.fromkeys(reasons)),
        }

    def _groups_of(self, name: str) -> list[int]:
        """Return the numbers of the groups that the units of a layer belong to, from 0."""
        groups = self.analysis.groups if self.analysis is not None else ()
        return [n for n, group in enumerate(groups) if name in group.layers or name in group.other_modules]

    def _count_removable(self, group: Group, name: str) -> tuple[int, int]:
        """Return how many units a layer can lose with a group, and how many go together at least."""
        if group.reason is not None or self.analysis is None:
            return 0, 0
        order = group.removal_order(np.zeros(len(group.sets)))
        free, step = group.count_steps(order), group.step
        most = max(count for count in feasible_counts(len(group.sets), step, 1) if count <= free * step) // step
        axis_sets = self.analysis.cutter.axis_sets
        own = axis_sets[(name, "out") if (name, "out") in axis_sets else (name, "both")]

        def count(steps: int) -> int:
            removed = [group.sets[position] for block in group.take_steps(order, 0, steps) for position in block]
            return int(np.isin(own, removed).sum())

        return count(most), count(1)

    def _reason_without_group(self, name: str) -> str:
        """Return why the units of a layer that belongs to no group have to stay."""
        if not self.runs.get(name):
            return "it does not run in a forward pass"
        if self.analysis is None:
            return self.fault
        is_output = _computes_outputs(self.analysis.cutter.graph, name)
        return OUTPUT if is_output else "its output has no dimensions of images and units"


def _computes_outputs(graph: DependencyGraph, name: str) -> bool:
    """Return whether units of a layer are among the network's outputs."""
    axis = graph.axes.get((name, "out")) or graph.axes.get((name, "both"))
    sets = set() if axis is None else set(graph.coupled_set[axis.channels].tolist())
    return any(graph.fixed_sets.get(set_id) == OUTPUT for set_id in sets)


class _Runs(Watch):
    """Records the shapes of what the modules return, in the order in which they run."""

    def __init__(self) -> None:
        super().__init__()
        self.shapes: dict[str, list[tuple[int, ...]]] = {}

    def after_module(self, name: str, inputs: tuple[Any, ...], output: Any) -> None:
        """Record a run of a module."""
        shape = tuple(output.shape) if isinstance(output, Tensor) else ()
        self.shapes.setdefault(name, []).append(shape)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return func(*args, **(kwargs or {}))


def _count_units(module: nn.Module) -> int | None:
    """Return the number of units of a layer, for attention its queries, keys and values; None for any other module."""
    if isinstance(module, nn.MultiheadAttention):
        return 3 * module.embed_dim
    if isinstance(module, _ConvNd):
        return module.out_channels
    return module.out_features if isinstance(module, nn.Linear) else None


@contextmanager
def _no_note_of_layers_left_out() -> Iterator[None]:
    """Silence the warning about layers without maps: their rows give the reason."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "left out: ", UserWarning)
        yield
