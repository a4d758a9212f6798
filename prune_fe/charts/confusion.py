"""The confusion matrix: how often a network takes images of one class for another."""

from __future__ import annotations

from typing import Any

import altair as alt
import pandas as pd

from prune_fe.charts.theme import heading

CELL, LARGEST = 22, 620
"""Pixels of a class, and at most of the whole matrix."""


def confusion_matrix(cells: pd.DataFrame, title: str) -> alt.LayerChart:
    """Return a confusion matrix: a row for each true class, a column for each predicted one.

    Args:
        cells: One row for each pair of classes, in the columns true, predicted (names), images, and share (of the
            images of the true class, which is what the colour shows).
        title: Title of the chart.
    """
    names = list(dict.fromkeys(cells["true"]))
    size = min(CELL * len(names), LARGEST)
    axis: dict[str, Any] = {"sort": names}
    x = alt.X("predicted:N", title="predicted", axis=alt.Axis(labelAngle=-90, labelLimit=140), **axis)
    y = alt.Y("true:N", title="true class", axis=alt.Axis(labelLimit=140), **axis)
    # White has no hue, which the default way of mixing would take from the other colour.
    colours: dict[str, Any] = {"range": ["var(--surface)", "var(--less)"], "interpolate": "rgb", "clamp": True}
    base = alt.Chart(cells).encode(x, y)
    # No legend: a bar of colours would have another name in each file.
    color = alt.Color("share:Q", scale=alt.Scale(domain=[0, 1], **colours), legend=None)
    tooltip = ["true:N", "predicted:N", "images:Q", alt.Tooltip("share:Q", format=".1%")]
    layers: list[alt.Chart] = [base.mark_rect().encode(color, tooltip=tooltip)]
    if len(names) <= LARGEST // CELL:
        # Numbers are drawn where they can be read, and only where there are images.
        layers.append(
            base.transform_filter("datum.images > 0").mark_text(aria=False, fontSize=9).encode(text="images:Q")
        )
    chart: alt.LayerChart = alt.LayerChart(layer=layers).properties(width=size, height=size, title=heading(title))
    return chart
