"""The options of pruning: how many units are removed, which ones, and in how many rounds."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator

from prune_fe.errors import InputError
from prune_fe.options import (
    NUMBER_OR_WORD,
    SINGLE_OR_SEVERAL,
    Count,
    Number,
    Several,
    Share,
    ShareLeft,
    Single,
    Word,
    options,
)

AMOUNTS = ("ratio", "target_macs", "target_params")
"""The options that say how much is removed; at most one of them is given."""

DEFAULT_RATIO = 0.5
"""The share of the units that is removed where no option says how much."""

Ranking = Literal["layer", "global"]
Scope = Literal["all", "inner"]
Reduction = Literal["mean", "max", "min"]
Ratio = Annotated[
    Annotated[Share, Single] | Annotated[dict[str, Share], Several],
    SINGLE_OR_SEVERAL,
]
Rounds = Annotated[Annotated[Count, Number] | Annotated[Literal["layers"], Word], NUMBER_OR_WORD]
Patterns = Annotated[tuple[str, ...], BeforeValidator(lambda value: (value,) if isinstance(value, str) else value)]


@options
class PruneOptions:
    """How many units are removed (`ratio`, or one of the targets), which ones, and in how many rounds.

    Attributes:
        ratio: Share of the units that is removed, in [0, 1), from every layer or by layer name or pattern.
        target_macs: Share of the multiply-adds that is left, in (0, 1].
        target_params: Share of the parameters that is left, in (0, 1].
        ranking: Where the lowest scores are looked for: in each layer, or in all layers together.
        scope: Whether layers that residual sums tie are pruned too.
        reduction: How the scores of units that are tied together become one.
        round_to: Number that the width of every pruned layer is a multiple of.
        protect: Names or patterns of layers whose units all stay.
        rounds: Number of steps towards the goal, or "layers" for one step for each group of layers.
    """

    ratio: Ratio | None = None
    """Share of the units to remove from every layer, in [0, 1), or a share for each layer name or pattern; a name wins
    over a pattern, and layers that nothing matches keep all units. A layer of n units keeps floor((1 - ratio) n), at
    least one. The default is 0.5."""

    target_macs: ShareLeft | None = None
    """Instead of a ratio: share of the multiply-adds to leave, in (0, 1]. It is met within 1 % where the widths of the
    network allow it."""

    target_params: ShareLeft | None = None
    """Instead of a ratio: share of the parameters to leave, in (0, 1]."""

    ranking: Ranking = "layer"
    """Remove the same share of every layer ("layer"), or the lowest scores of all layers ("global"): scores are first
    brought to mean 0 and standard deviation 1 in each group, and no group loses more than 90 %."""

    scope: Scope = "all"
    """Prune all layers, or leave those alone that a residual sum ties together ("inner")."""

    reduction: Reduction = "mean"
    """Rank units that are tied together by the mean, the largest or the smallest of their layers' scores."""

    round_to: Count = 1
    """Leave a multiple of this number of units in every layer, such as 8, for which many kernels are fast. Fewer units
    are removed where that is needed."""

    protect: Patterns = ()
    """Names or patterns of layers whose units all stay."""

    rounds: Rounds = 1
    """Number of steps in which the units are removed, or "layers" for one step for each group of layers, from the
    first layer to the last."""

    def __post_init__(self) -> None:
        """Check the rules that concern several options.

        Raises:
            InputError: More than one option says how much is removed, or a global ranking has a ratio for each layer.
        """
        given = [name for name in AMOUNTS if getattr(self, name) is not None]
        if len(given) > 1:
            raise InputError(f"{' and '.join(given)} were given; a network is pruned by one of them")
        if isinstance(self.ratio, dict) and self.ranking == "global":
            raise InputError("ranking: global takes one ratio for all layers, not one for each")

    @property
    def ratio_or_default(self) -> float | dict[str, float]:
        """The ratio that is in force where no target is given."""
        return DEFAULT_RATIO if self.ratio is None else self.ratio

    @property
    def target(self) -> tuple[Literal["macs", "parameters"], float] | None:
        """What the target is a share of, and the share that is left; None where a ratio is in force."""
        if self.target_macs is not None:
            return "macs", self.target_macs
        return None if self.target_params is None else ("parameters", self.target_params)

    @property
    def has_ratio_per_layer(self) -> bool:
        """Whether each group loses a share that is known in advance, by a ratio within its own layers."""
        return self.target is None and self.ranking == "layer"

    @property
    def removes_something(self) -> bool:
        """Whether the options ask for at least one unit to be removed."""
        if self.target is not None:
            return self.target[1] < 1
        ratio = self.ratio_or_default
        return any(ratio.values()) if isinstance(ratio, dict) else ratio > 0
