"""Tables and data of the study of explanation: how well H, ε and H/ε predict the damage of each unit, and why."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from prune_fe.measure.statistics import Estimate, bootstrap, partial_spearman, spearman
from prune_fe.report.tables import Table
from prune_fe.scoring.scores import Array

if TYPE_CHECKING:
    import pandas as pd

RATIO, ENTROPY, RATE, MEAN = "H/ε", "H", "ε", "mean activation"
"""The scores that are always measured; a unit is worth more the lower its H/ε and H, and the higher the others."""

PARTIAL = {
    f"{RATIO} at equal {RATE}": (RATIO, RATE),
    f"{RATE} at equal {RATIO}": (RATE, RATIO),
    f"{RATE} at equal {MEAN}": (RATE, MEAN),
}
"""Name of a partial correlation -> the score, and the score that is held fixed."""

LEFT = f"{RATIO} at equal {RATE}"
EXPLAINED = f"explained by {RATE}"
DEAD = "units without a hole"
IN_FIGURE = (RATIO, ENTROPY, RATE, LEFT)
"""The correlations of the figure."""


@dataclass(frozen=True)
class LayerDamage:
    """What each unit of a layer is worth to each class, measured, and what scores say it is worth.

    Attributes:
        layer: Name of the layer.
        classes: Names of the classes.
        images: Number of test images of each class, shape (classes,).
        damage: What grows without the unit, "loss" (nats) or "error" (share of the class's images) -> shape (classes,
            units).
        scores: Name -> scores, higher = worth more, shape (classes, units). −(H/ε) of a unit without any hole is −∞.
    """

    layer: str
    classes: Sequence[str]
    images: Array
    damage: Mapping[str, Array]
    scores: Mapping[str, Array]

    @cached_property
    def correlations(self) -> Mapping[str, Mapping[str, Array]]:
        """Kind of damage -> name of a score or of a partial correlation -> Spearman's ρ, shape (classes,)."""
        return {kind: self._correlations_with(damage) for kind, damage in self.damage.items()}

    def _correlations_with(self, damage: Array) -> Mapping[str, Array]:
        numbers = range(len(self.classes))
        plain = {
            name: np.array([spearman(score[n], damage[n]) for n in numbers]) for name, score in self.scores.items()
        }
        partial = {
            name: np.array([partial_spearman(self.scores[a][n], damage[n], self.scores[b][n]) for n in numbers])
            for name, (a, b) in PARTIAL.items()
        }
        return plain | partial

    @property
    def units_without_hole(self) -> Array:
        """Number of units in none of whose maps there is a hole (ε = 0), for each class, shape (classes,)."""
        return (self.scores[RATE] == 0).sum(axis=1)


def explained_share(correlations: Mapping[str, Array]) -> float | None:
    """Return the share of the correlation of H/ε with the damage that is gone among units of equal ε.

    Args:
        correlations: Name -> ρ of each class, shape (classes,).

    Returns:
        1 − (mean partial correlation of H/ε given ε) / (mean correlation of H/ε); None where the latter cannot be told
        apart from 0, so that there is nothing to explain. More than 1 where what is left has the other sign.
    """
    whole = bootstrap(correlations[RATIO])
    is_known = whole.not_zero if whole.n > 1 else whole.mean != 0
    return 1 - float(correlations[LEFT].mean()) / whole.mean if is_known else None


def explanation_tables(layers: Sequence[LayerDamage], about: str) -> list[Table]:
    """Return a table of the correlations of the scores, and one of the partial correlations.

    Args:
        layers: The layers.
        about: What was measured, for the remark below.
    """
    scores = list(dict.fromkeys(name for layer in layers for name in layer.scores))
    rows = {_row_name(layer, kind): (layer, kind) for layer in layers for kind in layer.damage}
    plain = {
        row: {name: bootstrap(layer.correlations[kind][name]) for name in scores if name in layer.scores}
        for row, (layer, kind) in rows.items()
    }
    partial = {row: _partial_cells(layer, kind) for row, (layer, kind) in rows.items()}
    forms = dict.fromkeys(PARTIAL, ".3f") | {EXPLAINED: ".0%", DEAD: ".1f"}
    note = (
        "ρ is 0 where all units do the same damage to a class, such as none. A unit without a hole in any image of a "
        f"class has {RATIO} = ∞, the last rank; such units are tied."
    )
    return [
        Table("Scores and the damage without each unit: Spearman's ρ", dict.fromkeys(scores, ".3f"), plain, about),
        Table("What is left at equal values of another score: partial ρ", forms, partial, f"{_verdict(layers)} {note}"),
    ]


def _row_name(layer: LayerDamage, kind: str) -> str:
    return f"{layer.layer}, {kind}"


def _partial_cells(layer: LayerDamage, kind: str) -> dict[str, Any]:
    correlations, share = layer.correlations[kind], explained_share(layer.correlations[kind])
    cells: dict[str, Any] = {name: bootstrap(correlations[name]) for name in PARTIAL}
    cells[EXPLAINED] = "–" if share is None else [share]
    return cells | {DEAD: [float(layer.units_without_hole.mean())]}


def _verdict(layers: Sequence[LayerDamage]) -> str:
    """Return what the losses say, in words."""
    sentences = []
    for layer in layers:
        correlations = layer.correlations["loss"]
        share, left = explained_share(correlations), bootstrap(correlations[LEFT])
        if share is None:
            sentences.append(f"{layer.layer}: ρ between {RATIO} and the loss is not told apart from 0.")
        else:
            whole = float(correlations[RATIO].mean())
            rest = "which is not told apart from 0" if left.low <= 0 <= left.high else "which is not 0"
            sentences.append(
                f"{layer.layer}: of ρ = {whole:.2f} between {RATIO} and the loss, {left.mean:.2f} is left between "
                f"units of equal {RATE}, {rest}: {RATE} alone explains {share:.0%}."
            )
    return " ".join(sentences)


def class_rows(layers: Sequence[LayerDamage]) -> Iterator[dict[str, Any]]:
    """Yield the lines of the CSV file: all correlations of one layer, kind of damage and class."""
    for layer in layers:
        for kind, correlations in layer.correlations.items():
            for number, name in enumerate(layer.classes):
                yield {
                    "layer": layer.layer,
                    "damage": kind,
                    "class": name,
                    "test_images": int(layer.images[number]),
                    "units": layer.damage[kind].shape[1],
                    "units_without_hole": int(layer.units_without_hole[number]),
                    "mean_damage": float(layer.damage[kind][number].mean()),
                    **{f"rho {column}": float(values[number]) for column, values in correlations.items()},
                }


def correlation_frame(layers: Sequence[LayerDamage]) -> pd.DataFrame:
    """Return the points of the figure, of the damage to the loss.

    Returns:
        Columns score, layer, value, low and high: the mean over the classes and its interval.
    """
    import pandas as pd

    rows = []
    for layer in layers:
        for name in IN_FIGURE:
            estimate: Estimate = bootstrap(layer.correlations["loss"][name])
            ends = {"value": estimate.mean, "low": estimate.low, "high": estimate.high}
            rows.append({"score": name, "layer": layer.layer} | ends)
    return pd.DataFrame(rows)
