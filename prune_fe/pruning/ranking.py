"""Compute the scores of a group's positions from the scores of its layers."""

from __future__ import annotations

import warnings
from collections.abc import Collection, Container, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prune_fe.errors import InputError
from prune_fe.pruning.groups import Group
from prune_fe.pruning.options import Normalise, Reduction

Array = NDArray[np.float64]

REDUCTIONS: Mapping[Reduction, Any] = {"mean": np.nanmean, "max": np.nanmax, "min": np.nanmin}


def group_scores(
    group: Group,
    layer_scores: Mapping[str, Array],
    widths: Mapping[str, int],
    reduction: Reduction,
    others: Collection[str] = (),
) -> Array:
    """Return one score for each position of a group.

    Where none of its layers has scores, those of other modules count, such as residual blocks, whose outputs the units
    are. Scores of two scorers are not of one scale. Where some layers of a group were scored by another scorer than the
    rest, the rest decides alone.

    Args:
        group: The group.
        layer_scores: Layer, or other module -> (units,) scores, higher = keep; NaN for a unit that has none.
        widths: Layer, or other module -> number of its units in the whole network.
        reduction: How the scores of the layers that a position has units in become one.
        others: Names of the layers that another scorer scored (`Scores.other_scorers`).

    Returns:
        (positions,) scores. A position without a score gets the highest of the others, so that it stays.

    Raises:
        InputError: The scores of a layer are not as many as its units.
    """
    rows = []
    units_of = units_with_scores(group, layer_scores)
    scored = list(units_of)
    deciding = [layer for layer in scored if layer not in others] or scored
    for layer in scored:
        scores = np.asarray(layer_scores[layer], float)
        if scores.shape != (widths[layer],):
            got = f"{len(scores)} units" if scores.ndim == 1 else f"shape {scores.shape}"
            raise InputError(
                f"layer {layer!r}: scores of {got}, the model has {widths[layer]}; they belong to another model"
            )
        if layer in deciding:
            rows.append(_position_scores(scores, units_of[layer]))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # numpy warns of positions that are NaN in every layer
        reduced: Array = REDUCTIONS[reduction](np.array(rows), axis=0)
    return np.where(np.isnan(reduced), np.nanmax(reduced), reduced)


def units_with_scores(group: Group, scored: Container[str]) -> dict[str, tuple[tuple[int, ...], ...]]:
    """Return the layers that have scores, or else the other modules that do, with their units at each position."""
    layers = {layer: units for layer, units in group.layer_units.items() if layer in scored}
    return layers or {module: channels for module, channels in group.outputs.items() if module in scored}


def _position_scores(scores: Array, units_of: Sequence[Sequence[int]]) -> Array:
    """Return the mean score of the units of each position, NaN for a position that has none."""
    if all(len(units) == 1 for units in units_of):  # by far the most frequent, and one operation for all positions
        return scores[[unit for (unit,) in units_of]]
    return np.array([np.mean(scores[list(units)]) if units else np.nan for units in units_of])


def comparable_scores(scores: Array, existing: NDArray[np.bool_], normalise: Normalise) -> Array:
    """Return the scores of a group for a ranking over all groups.

    Args:
        scores: (positions,) scores of the group.
        existing: As in `normalise_scores`.
        normalise: "group" for `normalise_scores`, "none" for the scores as they are.

    Returns:
        (positions,) scores, -inf for positions that do not exist.
    """
    return normalise_scores(scores, existing) if normalise == "group" else np.where(existing, scores, -np.inf)


def normalise_scores(scores: Array, existing: NDArray[np.bool_]) -> Array:
    """Return scores with mean 0 and standard deviation 1 over the existing positions.

    Args:
        scores: (positions,) scores of a group.
        existing: (positions,) whether the network that was scored still had the units of a position. Removed units
            would pull the mean down, and with it spare the groups that lost many before.

    Returns:
        (positions,) normalised scores; zeros where all scores are equal, and -inf for positions that do not exist.
    """
    own = scores[existing]
    # The computed deviation of equal scores may be above zero by a rounding error.
    normalised = (scores - own.mean()) / own.std() if np.ptp(own) > 0 else np.zeros(len(scores))
    return np.where(existing, normalised, -np.inf)


def with_removed_units(scores: Array, kept: NDArray[np.int64], width: int) -> Array:
    """Return scores of a pruned layer in the unit numbers of the whole network.

    Args:
        scores: (kept units,) scores.
        kept: (kept units,) their numbers in the whole network, ascending.
        width: Number of units in the whole network.

    Returns:
        (width,) scores, NaN for removed units.
    """
    expanded = np.full(width, np.nan)
    expanded[kept] = scores
    return expanded
