"""How well scores predict the damage of each unit, by layer."""

from __future__ import annotations

from typing import Any

import altair as alt
import pandas as pd

from prune_fe.charts.theme import HEIGHT, WIDTH, SeriesStyle, heading, series_lines


def rank_correlation(points: pd.DataFrame, title: str) -> alt.LayerChart:
    """Return rank correlations by layer: a line a score, from the first layer to the last.

    Args:
        points: One row for each score and layer, in the columns score, layer (its name), value (Spearman's ρ), low and
            high (ends of its interval).
        title: Title of the chart.

    Returns:
        The chart, with a line at 0.
    """
    style = SeriesStyle("score", list(dict.fromkeys(points["score"])), columns=4)
    x = alt.X(
        "layer:N",
        title=None,
        sort=None,
        axis=alt.Axis(labelAngle=-45, labelLimit=160, labelOverlap=False),
        scale=alt.Scale(padding=1),
    )
    y: dict[str, Any] = {"title": "Spearman's ρ with the increase of the loss", "scale": alt.Scale(zero=True)}
    zero = alt.Chart(pd.DataFrame({"rho": [0.0]})).mark_rule(color="var(--quiet)").encode(y=alt.Y("rho:Q"))
    lines = series_lines(points, style, x, y, intervals="whiskers")
    chart: alt.LayerChart = alt.LayerChart(layer=[zero, lines]).properties(
        width=max(WIDTH, 30 * points["layer"].nunique()), height=HEIGHT, title=heading(title)
    )
    return chart
