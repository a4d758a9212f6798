"""A quantity of each layer, from the first to the last."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import altair as alt
import pandas as pd

from prune_fe.charts.theme import HEIGHT, MOST_BANDS, SeriesStyle, series_lines


def layer_profile(
    points: pd.DataFrame,
    y_title: str,
    title: str,
    controls: Collection[str] = (),
    palette: Sequence[str] = (),
    form: str = ".4~g",
) -> alt.LayerChart:
    """Return a quantity against the depth of its layer: a line a criterion, as wide as its container.

    Args:
        points: One row for each criterion and layer, in the columns criterion, depth (from 1), layer (its name), value,
            low and high. Equal low, value and high draw no interval.
        y_title: What the quantity is, with its unit.
        title: What the chart shows, for those who cannot see it.
        controls: Criteria drawn in grey with dashes.
        palette: Criteria in the order of their colours, the same for all charts of a page.
        form: Number format of d3 for the values, such as ".0%".

    Returns:
        The chart. A click on the legend brings out a criterion.
    """
    style = SeriesStyle("criterion", list(dict.fromkeys(points["criterion"])), controls, palette=palette)
    layers = points.sort_values("depth", kind="stable")["layer"].drop_duplicates().tolist()
    axis = alt.Axis(labelAngle=-45, labelOverlap="greedy", labelLimit=110, labelFontSize=11)
    x = alt.X("layer:N", title="layer, shallow to deep", sort=layers, scale=alt.Scale(type="point"), axis=axis)
    y: dict[str, Any] = {"title": y_title, "scale": alt.Scale(zero=False), "axis": alt.Axis(format=_axis_format(form))}
    tooltip = [
        alt.Tooltip("criterion:N"),
        alt.Tooltip("layer:N"),
        alt.Tooltip("value:Q", title=y_title, format=form),
    ]
    spread = (points["low"] < points["high"]).any()
    intervals: Any = "none" if not spread else "band" if len(style.names) <= MOST_BANDS else "whiskers"
    if spread:
        tooltip += [alt.Tooltip(f"{end}:Q", title=f"{end}est seed", format=form) for end in ("low", "high")]
    chart = series_lines(points, style, x, y, tooltip, intervals=intervals, order="depth", interactive=True)
    return chart.properties(width="container", height=HEIGHT, description=title)


def _axis_format(form: str) -> str:
    return "~%" if form.endswith("%") else "~g"
