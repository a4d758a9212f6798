"""Find the layers that names and patterns match, and the value of an option that they give to each group."""

from __future__ import annotations

import difflib
import fnmatch
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from prune_fe.errors import InputError
from prune_fe.pruning.groups import Group

WILDCARDS = re.compile(r"\[[^\]]+\]|[*?]")
"""The parts of a shell pattern that are no plain characters."""


@dataclass(frozen=True)
class Choice:
    """The value that an option has for one group.

    Attributes:
        value: The value; None where no name or pattern matches a layer of the group.
        note: A message that says which name or pattern decides for which layers; None where that is obvious.
    """

    value: float | None
    note: str | None = None


def choose_values(
    groups: Sequence[Group], given: float | Mapping[str, float] | None, option: str
) -> tuple[Choice, ...]:
    """Return the value of an option for each group.

    The layers of a group go together, so that one value holds for all of them. Where several names or patterns match
    its layers, the most specific one decides: a name before any pattern, and of two patterns the one with more
    characters that are no wildcards.

    Args:
        groups: The groups of the network.
        given: One value for all groups, or layer name or pattern -> value.
        option: Name of the option, for messages.

    Raises:
        InputError: A name or pattern matches no layer, or the most specific ones have different values.
    """
    if not isinstance(given, Mapping):
        return (Choice(None if given is None else float(given)),) * len(groups)
    layers = [layer for group in groups for layer in group.layers]
    match_layers(given, layers, f"{option}: no layer that can be pruned is called")
    return tuple(_choose(group.layers, given, option) for group in groups)


def _choose(layers: Sequence[str], given: Mapping[str, float], option: str) -> Choice:
    """Return the value for the layers of one group."""
    matched = {key: {key} & {*layers} or {*fnmatch.filter(layers, key)} for key in given}
    matched = {key: names for key, names in matched.items() if names}
    if not matched:
        return Choice(None)
    ranks = {key: _specificity(key, layers) for key in matched}
    decisive = [key for key in matched if ranks[key] == max(ranks.values())]
    if len({given[key] for key in decisive}) > 1:
        asked = sorted({float(given[key]) for key in decisive})
        together = f"{', '.join(layers)} go together, but are" if len(layers) > 1 else f"{layers[0]} is"
        raise InputError(f"{option}: {together} asked for {asked} by {_quoted(decisive)}, which are equally specific")
    value = float(given[decisive[0]])
    overruled = [key for key in matched if given[key] != given[decisive[0]]]
    unmatched = [layer for layer in layers if not any(layer in names for names in matched.values())]
    # A name that wins over a pattern for its own layer is what the user wrote down.
    if not unmatched and (not overruled or list(layers) == decisive):
        return Choice(value)
    together = ", which go together" if len(layers) > 1 else ""
    over = f", not {_quoted(overruled)}" if overruled else ""
    part = f"; nothing matches {', '.join(unmatched)}" if unmatched else ""
    return Choice(
        value, f"{option}: {_quoted(decisive)} ({value:g}) decides for {', '.join(layers)}{together}{over}{part}"
    )


def _specificity(key: str, layers: Sequence[str]) -> float:
    """Return how specific a name or pattern is: infinity for a name, else its number of plain characters."""
    return float("inf") if key in layers else len(WILDCARDS.sub("", key))


def _quoted(keys: Iterable[str]) -> str:
    return " and ".join(map(repr, keys))


def match_layers(
    patterns: Iterable[str], layers: Sequence[str], complaint: str = "protect: no layer is called"
) -> set[str]:
    """Return the layers that match at least one of some patterns.

    Args:
        patterns: Names or shell patterns such as "layer4.*".
        layers: The names to choose from.
        complaint: Beginning of the error message.

    Raises:
        InputError: A pattern matches no layer; the message starts with `complaint`.
    """
    for pattern in patterns:
        if not fnmatch.filter(layers, pattern):
            close = difflib.get_close_matches(pattern, layers, n=3)
            hint = f"near it are {', '.join(close)}" if close else f"there are {', '.join(layers[:5])} and others"
            raise InputError(f"{complaint} {pattern!r}; {hint}")
    return {layer for layer in layers for pattern in patterns if fnmatch.fnmatchcase(layer, pattern)}
