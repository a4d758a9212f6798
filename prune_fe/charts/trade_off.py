"""Accuracy against the cost of the pruned networks."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import altair as alt
import pandas as pd

from prune_fe.charts.theme import SeriesStyle, spread_labels

HEIGHT = 380
LABEL_WIDTH = alt.ExprRef("containerSize()[0] > 0 && containerSize()[0] < 500 ? 100 : 160")
"""Largest width in pixels of a line's name; a chart that is no wider than a phone has less room for it."""


def trade_off(
    points: pd.DataFrame,
    x_title: str,
    title: str,
    controls: Collection[str] = (),
    palette: Sequence[str] = (),
    named: Collection[str] | None = None,
) -> alt.LayerChart:
    """Return test accuracy against a cost that falls from left to right: a line a criterion, named at its end.

    Args:
        points: One row for each criterion and operating point, in the columns criterion, x (the cost), accuracy, low,
            high (shares) and detail (a text). A line connects a criterion's points in the order of the rows; a
            criterion with a single point is a level across the chart.
        x_title: What the cost is, with its unit.
        title: What the chart shows, for those who cannot see it.
        controls: Criteria drawn in grey with dashes.
        palette: Criteria in the order of their colours, the same for all charts of a page.
        named: Criteria that have a colour and a name; the others are thin grey lines. None: all.

    Returns:
        The chart, as wide as its container.
    """
    names = list(dict.fromkeys(points["criterion"]))
    shown = [name for name in names if named is None or name in named or name in controls]
    style = SeriesStyle("criterion", names, controls, palette=palette, named=shown)
    low, high = float(points["low"].min()), float(points["high"].max())
    margin = 0.04 * ((high - low) or 1)
    domain = [max(0.0, low - margin), min(1.0, high + margin)]
    # SI prefixes only where they are usual: 2M, but not 20m for 0.02 ms.
    axis = alt.Axis(format="~s" if points["x"].max() >= 1000 else "~g")
    x = alt.X("x:Q", title=x_title, scale=alt.Scale(type="log", nice=False, padding=10, reverse=True), axis=axis)
    scale = alt.Scale(domain=domain, nice=False)
    y: dict[str, Any] = {"title": "test accuracy", "scale": scale, "axis": alt.Axis(format="~%")}
    tooltip = [
        alt.Tooltip("criterion:N"),
        alt.Tooltip("x:Q", title=x_title, format=".6~g"),
        alt.Tooltip("accuracy:Q", title="test accuracy", format=".2%"),
        alt.Tooltip("low:Q", title="lowest", format=".2%"),
        alt.Tooltip("high:Q", title="highest", format=".2%"),
        alt.Tooltip("detail:N", title="network"),
    ]
    counts = points["criterion"].map(points["criterion"].value_counts())
    lines = points.assign(step=range(len(points)))
    ends = points.drop_duplicates("criterion", keep="last")
    ends = ends[ends["criterion"].isin(shown)]
    ends = ends.assign(label_height=spread_labels(ends["accuracy"], domain, HEIGHT), x=points["x"].min())
    color = style.color(legend=False)
    levels = (
        alt.Chart(points[counts == 1])
        .mark_rule(aria=False, strokeDash=[6, 4])
        .encode(y=alt.Y("accuracy:Q", **y), color=color)
    )
    base = alt.Chart(lines).encode(x=x, color=color, opacity=style.opacity())
    intervals = base.mark_rule(aria=False).encode(y=alt.Y("low:Q", **y), y2="high:Q")
    strokes = base.mark_line(aria=False).encode(
        y=alt.Y("accuracy:Q", **y), strokeDash=style.dash(), strokeWidth=style.width(), order=alt.Order("step:Q")
    )
    markers = base.mark_point(filled=True, size=60).encode(
        y=alt.Y("accuracy:Q", **y), shape=style.shape(legend=False), tooltip=tooltip
    )
    text = (
        alt.Chart(ends)
        .mark_text(aria=False, align="left", dx=10, fontSize=12, limit=LABEL_WIDTH)
        .encode(x=x, y=alt.Y("label_height:Q", **y), text="criterion:N", color=color)
    )
    return alt.LayerChart(layer=[levels, intervals, strokes, markers, text]).properties(
        width="container",
        height=HEIGHT,
        description=title,
    )
