"""Accuracy against the cost of the pruned networks."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import altair as alt
import pandas as pd

from prune_fe.report.charts.theme import HEIGHT, MOST_BANDS, SeriesStyle, series_lines


def trade_off(
    points: pd.DataFrame, x_title: str, title: str, controls: Collection[str] = (), palette: Sequence[str] = ()
) -> alt.LayerChart:
    """Return test accuracy against a cost, on a logarithmic axis: a line a criterion, as wide as its container.

    Args:
        points: One row for each criterion and operating point, in the columns criterion, x (the cost), accuracy, low,
            high (shares) and detail (a text). A line connects a criterion's points in the order of the rows.
        x_title: What the cost is, with its unit.
        title: What the chart shows, for those who cannot see it.
        controls: Criteria drawn in grey with dashes.
        palette: Criteria in the order of their colours, the same for all charts of a page.

    Returns:
        The chart. A click on the legend brings out a criterion.
    """
    style = SeriesStyle("criterion", list(dict.fromkeys(points["criterion"])), controls, palette=palette)
    # SI prefixes only where they are usual: 2M, but not 20m for 0.02 ms.
    axis = alt.Axis(format="~s" if points["x"].max() >= 1000 else "~g")
    x = alt.X("x:Q", title=x_title, scale=alt.Scale(type="log", nice=False, padding=10), axis=axis)
    y: dict[str, Any] = {"title": "test accuracy", "scale": alt.Scale(zero=False), "axis": alt.Axis(format="~%")}
    tooltip = [
        alt.Tooltip("criterion:N"),
        alt.Tooltip("x:Q", title=x_title, format=".6~g"),
        alt.Tooltip("value:Q", title="test accuracy", format=".2%"),
        alt.Tooltip("low:Q", title="lowest", format=".2%"),
        alt.Tooltip("high:Q", title="highest", format=".2%"),
        alt.Tooltip("detail:N", title="network"),
    ]
    chart = series_lines(
        points.assign(step=range(len(points))).rename(columns={"accuracy": "value"}),
        style,
        x,
        y,
        tooltip,
        intervals="band" if len(style.names) <= MOST_BANDS else "whiskers",
        order="step",
        interactive=True,
    )
    return chart.properties(width="container", height=HEIGHT, description=title)
