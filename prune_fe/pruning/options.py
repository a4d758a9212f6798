"""The options of pruning: how many units are removed, which ones, and in how many rounds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from cyclopts import Parameter, Token
from pydantic import AfterValidator, Discriminator, Field, StrictFloat

from prune_fe.errors import InputError
from prune_fe.options import (
    NUMBER_OR_WORD,
    SINGLE_OR_SEVERAL,
    Count,
    Number,
    Patterns,
    Repeats,
    Several,
    Share,
    ShareLeft,
    Single,
    Word,
    options,
)

AMOUNTS = ("ratio", "target_macs", "target_params")
"""The options that say how much is removed; at most one of them is given, or the ratio "auto" and one target."""

DEFAULT_RATIO = 0.5
"""The share of the units that is removed where no option says how much."""

Engine = Literal["trace", "torch-pruning"]
Ranking = Literal["layer", "global"]
Normalise = Literal["group", "none"]
Rounding = Literal["floor_kept", "floor_removed"]
Scope = Literal["all", "inner"]
Reduction = Literal["mean", "max", "min"]
Shares = Annotated[
    Annotated[Share, Single] | Annotated[dict[str, Share], Several],
    SINGLE_OR_SEVERAL,
]
Ratio = Annotated[
    Annotated[Share, Single] | Annotated[dict[str, Share], Several] | Annotated[Literal["auto"], Word],
    Discriminator(
        lambda value: (
            "[word]" if value == "auto" else "[many]" if isinstance(value, list | tuple | Mapping) else "[one]"
        )
    ),
]
AUTO: Literal["auto"] = "auto"
"""The ratio that spreads a target over the groups by their measured sensitivity."""

Rounds = Annotated[Annotated[Repeats, Number] | Annotated[Literal["layers"], Word], NUMBER_OR_WORD]


DEFAULT_MAX_RATIO = 0.9
"""The largest share of a group that is removed where `max_ratio` is not given: by a ranking of normalised scores over
all groups, and by the ratio "auto"."""


def _require_ascending(ratios: tuple[float, ...]) -> tuple[float, ...]:
    """Return the ratios, after checking that each is larger than the one before."""
    if list(ratios) != sorted(set(ratios)):
        raise InputError(f"{', '.join(map(str, ratios))}: write each ratio once, the smallest first")
    return ratios


def _parse_ratio(kind: Any, tokens: Sequence[Token]) -> float | dict[str, float] | str:
    """Return the value of `--ratio`: "auto", or what `_parse_shares` returns."""
    return AUTO if [token.value for token in tokens] == [AUTO] else _parse_shares(kind, tokens)


def _parse_shares(_: Any, tokens: Sequence[Token]) -> float | dict[str, float]:
    """Return the value of `--ratio 0.5`, or of `--ratio LAYER=SHARE ...` for some layers."""
    shares: dict[str, float] = {}
    for token in tokens:
        layer, _, share = token.value.rpartition("=")
        try:
            shares[layer] = float(share)
        except ValueError:
            raise ValueError(f"{token.value}: write a share such as 0.5, or LAYER=SHARE") from None
    if "" in shares and len(tokens) > 1:
        words = " ".join(token.value for token in tokens)
        raise ValueError(f"{tokens[0].keyword} {words}: one share for all layers, or LAYER=SHARE for each, not both")
    return shares.get("", shares)


@options
class SensitivityOptions:
    """At which ratios each group of layers is measured alone, and how its units are ranked."""

    ratios: Annotated[
        tuple[Annotated[StrictFloat, Field(gt=0, lt=1)], ...],
        Field(min_length=1),
        AfterValidator(_require_ascending),
        Parameter(consume_multiple=True),
    ] = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
    """Shares of the units of a group that are removed, one after the other, ascending."""

    reduction: Reduction = "mean"
    """Rank units that are tied together by the mean, the largest or the smallest of their layers' scores."""


@options
class PruneOptions:
    """How many units are removed (`ratio`, or one of the targets), which ones, and in how many rounds."""

    ratio: Annotated[
        Ratio | None,
        Parameter(name=["--ratio", "--pruning-ratio"], converter=_parse_ratio, n_tokens=-1, consume_multiple=True),
    ] = None
    """Share of the units to remove from every layer, in [0, 1), or a share for each layer name or pattern. Of several
    that match a layer, or layers that go together, the most specific decides: a name before a pattern, and the pattern
    with more characters that are no wildcards. Layers that nothing matches keep all units. A layer of n units keeps
    floor((1 - ratio) n), at least one (see `rounding`). The default is 0.5. "auto", beside a target, chooses a ratio
    for each group of layers by its measured sensitivity, so that the loss is predicted to rise least. That assumes that
    the increases of the loss that single groups cause add up. If the network has batch norms, let the sensitivity be
    measured after recalibration (`recalibrate`)."""

    target_macs: ShareLeft | None = None
    """Instead of a ratio, or with the ratio "auto": share of the multiply-adds to leave, in (0, 1]. It is met within
    1 % where the widths of the network allow it."""

    target_params: ShareLeft | None = None
    """Instead of a ratio, or with the ratio "auto": share of the parameters to leave, in (0, 1]."""

    ranking: Ranking = "layer"
    """Remove the same share of every layer ("layer"), or the lowest scores of all layers ("global"): scores are first
    brought to mean 0 and standard deviation 1 in each group (see `normalise`), and no group loses more than
    `max_ratio`."""

    normalise: Normalise = "group"
    """With `ranking: global`, bring the scores of each group to mean 0 and standard deviation 1 ("group"), or compare
    the scores of all groups as they are ("none"), as network slimming (Liu et al. 2017) and Molchanov et al. (2019) do.
    That is for scores that are of one scale in all layers, such as those of bn-scale and taylor."""

    rounding: Rounding = "floor_kept"
    """What a ratio r leaves of a layer of n units where r n is no whole number: floor((1 - r) n), at least one
    ("floor_kept", the rule of table 12 of Zhao & Zhang 2022), or n - floor(r n) ("floor_removed", as the programs of
    HRank and FPGM, which keep one unit more)."""

    max_ratio: Annotated[Shares | None, Parameter(converter=_parse_shares, n_tokens=-1, consume_multiple=True)] = None
    """Largest share of the units that a layer may lose, in [0, 1), or a share for each layer name or pattern, as for
    `ratio`. By default 0.9 with `ratio: auto` and with `ranking: global`, except where it has `normalise: none`, and
    otherwise all units but one."""

    scope: Scope = "all"
    """Prune all layers ("all"), or only those that no residual sum ties together ("inner")."""

    reduction: Reduction = "mean"
    """Rank units that are tied together by the mean, the largest or the smallest of their layers' scores."""

    round_to: Count = 1
    """Leave a multiple of this number of units in every layer, such as 8, a width at which many kernels are fast. Fewer
    units are removed where that is necessary."""

    protect: Annotated[Patterns, Parameter(consume_multiple=True)] = ()
    """Names or patterns of layers whose units all stay."""

    engine: Engine = "trace"
    """What finds the units that go together, and removes them: prune_fe's own graph ("trace"), or torch-pruning's
    dependency graph and its groups. Every removal is verified either way, and where both can prune a network the result
    is the same."""

    rounds: Annotated[Rounds, Parameter(parse=False)] = 1  # Rounds need a callback, which no command has.
    """Number of steps in which the units are removed, or "layers" for one step for each group of layers, from the
    first layer to the last."""

    def __post_init__(self) -> None:
        """Check the rules that concern several options.

        Raises:
            InputError: More than one option says how much is removed, a global ranking has a ratio for each layer, or
                the ratio "auto" has no target, a global ranking or another engine than "trace", or an option has no
                effect beside the others.
        """
        given = [name for name in AMOUNTS if getattr(self, name) not in (None, AUTO)]
        if self.is_auto and not given:
            raise InputError("ratio: auto needs a target to spread over the layers: target_macs or target_params")
        if self.is_auto and self.ranking == "global":
            raise InputError("ratio: auto says how much each layer loses, and so does ranking: global; choose one")
        if self.is_auto and self.engine != "trace":
            raise InputError("ratio: auto is measured with the groups of engine: trace; another engine may find others")
        if len(given) > 1:
            raise InputError(f"{' and '.join(given)} were given; a network is pruned by one of them")
        if isinstance(self.ratio, dict) and self.ranking == "global":
            raise InputError("ranking: global takes one ratio for all layers, not one for each")
        if self.normalise != "group" and self.ranking != "global":
            raise InputError(f"normalise: {self.normalise} is for ranking: global; ranking: layer compares no layers")
        if self.rounding != "floor_kept" and not self.has_ratio_per_layer:
            what = "a target" if self.target is not None else "ranking: global"
            raise InputError(f"rounding: {self.rounding} is for a ratio of each layer; {what} has none")

    @property
    def is_auto(self) -> bool:
        """Whether a target is spread over the groups by their measured sensitivity."""
        return isinstance(self.ratio, str)

    @property
    def ratio_or_default(self) -> float | dict[str, float]:
        """The ratio, or the default where none is given; it has no effect beside a target."""
        return DEFAULT_RATIO if self.ratio is None or isinstance(self.ratio, str) else self.ratio

    @property
    def amount(self) -> tuple[str, float | dict[str, float]]:
        """The option that says how much is removed, and its value."""
        given = {name: value for name in AMOUNTS if (value := getattr(self, name)) not in (None, AUTO)}
        return next(iter(given.items()), ("ratio", DEFAULT_RATIO))

    @property
    def default_max_ratio(self) -> float | None:
        """The largest share that a layer may lose where `max_ratio` says none; None for all units but one."""
        is_normalised = self.ranking == "global" and self.normalise == "group"
        return DEFAULT_MAX_RATIO if is_normalised or self.is_auto else None

    @property
    def target(self) -> tuple[Literal["macs", "parameters"], float] | None:
        """The resource of the target and the share of it to leave; None where a ratio says how much is removed."""
        if self.target_macs is not None:
            return "macs", self.target_macs
        return None if self.target_params is None else ("parameters", self.target_params)

    def describe_reached(self, macs: float, parameters: float) -> str:
        """Return what is left of the cost, and beside it what was asked for.

        Args:
            macs: Share of the multiply-adds that is left.
            parameters: Share of the parameters that is left.

        >>> PruneOptions(target_macs=0.5).describe_reached(0.793, 0.7)
        '79.3 % of the multiply-adds left (asked for: 50 %), 70 % of the parameters'
        """
        asked = {"macs": "", "parameters": ""}
        if self.target is not None:
            asked[self.target[0]] = f" (asked for: {100 * self.target[1]:.3g} %)"
        return (
            f"{100 * macs:.3g} % of the multiply-adds left{asked['macs']}, {100 * parameters:.3g} % of the parameters"
            f"{asked['parameters']}"
        )

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
