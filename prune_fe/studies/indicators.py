"""The columns of the paper's tables of single units: which quantity of which scorer each column shows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from prune_fe.report.tables import Table
from prune_fe.scorers import SCORERS, resolve_scorer
from prune_fe.scorers.base import Scorer
from prune_fe.scoring.scores import Array, Scores


@dataclass(frozen=True)
class Indicator:
    """A column of a table: one quantity of one scorer.

    Attributes:
        name: Heading of the column.
        scorer: Name of the scorer.
        quantity: Name of the quantity in `Scores.raw`.
        form: Format of the numbers.
        settings: Settings of the scorer.
    """

    name: str
    scorer: str
    quantity: str
    form: str = ".3g"
    settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def key(self) -> str:
        """Label of the scorer with its settings; indicators with the same key share one measurement.

        >>> Indicator("NISP", "nisp", "nisp_score", settings={"r": 1e-6, "alpha": 1.0}).key
        'nisp-alpha-1.0-r-1e-06'
        """
        return "-".join([self.scorer, *(f"{name}-{value}" for name, value in sorted(self.settings.items()))])

    @property
    def compares_classes(self) -> bool:
        """Whether the scorer compares classes and therefore needs images of all of them."""
        return SCORERS[self.scorer].compares_classes

    def build_scorer(self, label: int) -> Scorer:
        """Return the scorer for the study of class `label`."""
        return resolve_scorer(self.scorer, self.settings).for_class(label)

    def unit_values(self, scores: Scores, layer: str) -> Array:
        """Return the quantity of every unit, shape (units,); one that is given for each class is that of the first."""
        values = scores.raw[self.quantity][layer]
        return values[0] if values.ndim == 2 else values


H = Indicator("H", "feature-entropy", "feature_entropy_nats", ".2f")
RATE = Indicator("ε", "feature-entropy", "selective_rate", ".2f")
INDICATORS = {
    "tables 1, 2, 6, 7": (
        Indicator("L1-norm", "l1-activation", "l1_activation", ".1f"),
        Indicator("APoZ", "apoz", "zero_share", ".2%"),
        Indicator(
            "class selectivity, μ_c − μ_rest", "class-selectivity", "class_selectivity", ".3f", {"form": "difference"}
        ),
        Indicator("class selectivity, index", "class-selectivity", "class_selectivity", ".2f"),
        H,
        RATE,
    ),
    "tables 9, 10": (
        Indicator("FPGM", "fpgm", "fpgm_distance", ".2f"),
        Indicator("NISP", "nisp", "nisp_score"),
        # Without the rank correlations and with paths of length one, the scores are linear in the responses.
        Indicator("NISP, α = 1, r = 1e-6", "nisp", "nisp_score", ".3g", {"alpha": 1.0, "r": 1e-6}),
        H,
    ),
    "further criteria": (
        Indicator("filter L1", "l1-filter", "l1_filter", ".2f"),
        Indicator("BN scale", "bn-scale", "bn_scale"),
        Indicator("mean activation", "mean-activation", "mean_activation"),
        Indicator("HRank", "hrank", "map_rank", ".2f"),
        Indicator("Taylor", "taylor", "taylor_importance", ".2e"),
    ),
}
"""Tables of the paper -> their indicators. APoZ is the share of zeros; H and ε are shown apart, not as H/ε."""

ALL_INDICATORS = tuple({indicator.name: indicator for group in INDICATORS.values() for indicator in group}.values())
"""Each indicator once."""


def tables_like_the_papers(
    study: str,
    rows: Mapping[str, Mapping[str, Sequence[float]]],
    first_columns: Mapping[str, str],
    note: str,
) -> list[Table]:
    """Return one table for each entry of INDICATORS, with those of its indicators that have values.

    Args:
        study: Name of the study, with which the titles begin.
        rows: Row -> column -> values.
        first_columns: Columns that stand first in every table, with their formats.
        note: Text below each table.
    """
    columns = {name for cells in rows.values() for name in cells}
    tables = []
    for title, indicators in INDICATORS.items():
        forms = dict(first_columns) | {each.name: each.form for each in indicators if each.name in columns}
        parts = {row: {column: cells[column] for column in forms if column in cells} for row, cells in rows.items()}
        tables.append(Table(f"{study}: {title}", forms, parts, note))
    return tables
