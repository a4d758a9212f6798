"""What pruning reports: a step for each group, and the pruned network."""

from __future__ import annotations

import html
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from torch import Tensor, nn

from prune_fe.errors import InputError
from prune_fe.pruning.cut import Cutter, KeptChannels
from prune_fe.pruning.masking import largest_difference
from prune_fe.pruning.options import PruneOptions
from prune_fe.pruning.plan import GroupState
from prune_fe.tracing.copying import restoring_state
from prune_fe.tracing.nested import Inputs

if TYPE_CHECKING:
    import altair as alt
    import pandas as pd


@dataclass(frozen=True)
class Step:
    """What was asked of one group of layers, and what was removed.

    Attributes:
        layers: The layers of the group, in the order in which they run.
        units: Number of units of the group; a layer may have more units, in other groups.
        asked: How many of them were to be removed; in the steps that `after` receives, by the end of that round.
        count: How many are removed.
        removed: Layer -> the removed units, in the numbers of the network that prune() was given, ascending.
        kept: Layer -> the kept units, likewise.
        left: Why fewer units were removed than asked for, or none; None where nothing needs a reason.
        also: Modules without scores that lost the same outputs, such as the gates of squeeze-and-excite blocks.
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
    """A pruned network and what was removed from it.

    Attributes:
        model: The pruned network.
        steps: One for each group, in the order in which the layers run.
        macs: Share of the multiply-adds that remains.
        parameters: Share of the parameters that remains.
        notes: Messages for the user, such as a target that was not met.
        cutter: The index mapping of the tensors of the network that was pruned.
        kept: The channels that the pruned network has.
    """

    model: nn.Module = field(repr=False)
    steps: tuple[Step, ...]
    macs: float
    parameters: float
    notes: tuple[str, ...]
    cutter: Cutter = field(repr=False)
    kept: KeptChannels = field(repr=False)

    def __repr__(self) -> str:
        left = f"{100 * self.macs:.3g} % of the multiply-adds, {100 * self.parameters:.3g} % of the parameters left"
        return f"Pruned({left}; {sum(step.count for step in self.steps)} units of {len(self.steps)} groups removed)"

    def _repr_html_(self) -> str:
        """Return a row for each group, for notebooks."""
        return f"<p>{html.escape(repr(self))}</p>" + str(self.to_pandas().to_html())

    def to_pandas(self) -> pd.DataFrame:
        """Return a data frame with a row for each group: its layers, and the units that it had, lost and keeps."""
        import pandas as pd

        rows = [
            {
                "layers": ", ".join(step.layers),
                "units": step.units,
                "asked": step.asked,
                "removed": step.count,
                "kept": step.units - step.count,
                "reason": step.left or "",
            }
            for step in self.steps
        ]
        return pd.DataFrame(rows, columns=["layers", "units", "asked", "removed", "kept", "reason"])

    def plot(self) -> alt.LayerChart:
        """Return a chart of the share of its units that each layer has lost, which a notebook shows."""
        import pandas as pd

        from prune_fe.charts import layer_profile, standalone

        shares: dict[str, float] = {}
        for step in self.steps:
            for layer, kept in step.kept.items():
                removed = len(step.removed.get(layer, ()))
                shares[layer] = removed / max(removed + len(kept), 1)
        rows = [
            {"criterion": "removed", "depth": depth, "layer": layer, "value": share, "low": share, "high": share}
            for depth, (layer, share) in enumerate(shares.items(), start=1)
        ]
        columns = ["criterion", "depth", "layer", "value", "low", "high"]
        frame, title = pd.DataFrame(rows, columns=columns), "removed units"
        return standalone(layer_profile(frame, title, "Removed share of each layer", form=".0%"))

    def surviving(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Cut tensors that belong to weights, such as momentum, moving averages or masks, to the kept channels.

        Args:
            tensors: Name of a parameter or buffer of the original network -> a tensor of its shape.

        Returns:
            The same names -> tensors with the shapes that the pruned network's have.

        Raises:
            InputError: The original has no such parameter or buffer, or one of another shape.
        """
        shapes, whole = self.cutter.shapes, self.cutter.all_channels()
        for name, tensor in tensors.items():
            if name not in shapes or tensor.shape != shapes[name]:
                expected = f"the original's is {tuple(shapes[name])}" if name in shapes else "the original has none"
                raise InputError(f"{name!r} is {tuple(tensor.shape)}, {expected}")
        return {name: self.cutter.select(name, tensor, whole, self.kept) for name, tensor in tensors.items()}

    def difference(self, model: nn.Module, images: Inputs) -> tuple[float, float]:
        """Compare the pruned network with the original in which the removed units are masked.

        Args:
            model: The original network.
            images: Inputs of both networks, such as a tensor (images, channels, height, width).

        Returns:
            The largest absolute difference between their outputs, and the largest absolute output. Where there are
            several outputs, those of the one that differs most.
        """
        with restoring_state(self.model):
            return largest_difference(model, self.model, self.cutter.axes, self.kept, images)


def make_step(state: GroupState, options: PruneOptions, asked: int) -> Step:
    """Return the step of a group.

    Args:
        state: The group and what is removed of it.
        options: The options of pruning.
        asked: How many units were to be removed.
    """
    return Step(
        layers=state.group.layers,
        units=len(state.group.sets),
        asked=asked,
        count=len(state.removed),
        removed=state.group.units_at(state.removed),
        kept=state.group.units_at(state.kept),
        left=state.explain(options, asked),
        also=state.group.other_modules,
    )
