"""Divide the layers of a network between a scorer and the one that scores what it leaves out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from prune_fe.errors import InputError
from prune_fe.scorers import scorer_name
from prune_fe.scorers.base import Scorer, explain_faults, split_layers
from prune_fe.tracing.layers import Layer, describe_faults


@dataclass(frozen=True)
class Part:
    """Some layers, and the scorer that scores them."""

    scorer: Scorer
    layers: tuple[Layer, ...]


@dataclass(frozen=True)
class Division:
    """Which layers are scored by which scorer.

    Attributes:
        own: The scorer, with the layers that it scores itself, which may be none.
        rest: The linear scorer, with the layers that it scores in place of the scorer; None where there are none.
        left_out: Name of each layer that neither can score -> why.
    """

    own: Part
    rest: Part | None
    left_out: Mapping[str, str]

    @property
    def parts(self) -> tuple[Part, ...]:
        """The parts that have layers."""
        return tuple(part for part in (self.own, self.rest) if part is not None and part.layers)

    @property
    def needs_data(self) -> bool:
        """Whether images are read for one of the parts."""
        return any(part.scorer.needs_data for part in self.parts)


def _find_faults(scorer: Scorer, layers: Sequence[Layer]) -> dict[str, str]:
    """Return name -> what is wrong, of each layer that the scorer's check refuses by itself, such as too small maps."""
    faults = {}
    for layer in layers:
        try:
            with explain_faults(scorer):
                scorer.check([layer])
        except InputError as error:
            text = str(error).removeprefix(f"{scorer_name(scorer)}: ").removeprefix(f"layer {layer.name!r}: ")
            faults[layer.name] = text.partition(";")[0]
    return faults


def divide_layers(
    scorer: Scorer, layers: Sequence[Layer], linear_scorer: Scorer | None = None, *, are_named: bool = False
) -> Division:
    """Give each layer to the scorer if it can score it, or else to `linear_scorer`.

    Args:
        scorer: The scorer.
        layers: The layers, in the order in which they run.
        linear_scorer: What scores the layers that the scorer leaves out; None leaves them without scores.
        are_named: Whether the user named the layers, or asked for all of them. Then none may be left out.

    Raises:
        InputError: No layer can be scored, or not all that were named.
    """
    own, unfit = split_layers(scorer, layers)
    if not are_named:
        faults = _find_faults(scorer, own)
        # Where nothing would be left, what is wrong is an error of `check`.
        if len(faults) < len(own):
            own, unfit = tuple(layer for layer in own if layer.name not in faults), unfit | faults
    if linear_scorer is None:
        if unfit and (are_named or not own):
            hint = "; linear_scorer (--linear-scorer), such as taylor, scores what a scorer leaves out"
            raise InputError(f"{scorer_name(scorer)}: {describe_faults(unfit)}{hint}")
        return Division(Part(scorer, own), None, unfit)
    rest, left_out = split_layers(linear_scorer, [layer for layer in layers if layer.name in unfit])
    reasons = {
        name: f"{unfit[name]}, and for {scorer_name(linear_scorer)} {reason}" if unfit[name] != reason else reason
        for name, reason in left_out.items()
    }
    if reasons and (are_named or not (own or rest)):
        raise InputError(f"{scorer_name(scorer)}: {describe_faults(reasons)}")
    return Division(Part(scorer, own), Part(linear_scorer, rest) if rest else None, reasons)
