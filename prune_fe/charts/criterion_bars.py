"""A few quantities of each criterion, side by side."""

from __future__ import annotations

import altair as alt
import pandas as pd

from prune_fe.charts.theme import SeriesStyle


def criterion_bars(values: pd.DataFrame, x_title: str, title: str, form: str = ".1f") -> alt.LayerChart:
    """Return bars with their values at the end: a group a criterion, as wide as its container.

    Args:
        values: One row for each criterion and quantity, in the columns criterion, quantity and value.
        x_title: Unit of the quantities.
        title: What the chart shows, for those who cannot see it.
        form: Number format of d3 for the values.

    Returns:
        The chart.
    """
    quantities = list(dict.fromkeys(values["quantity"]))
    color = SeriesStyle("quantity", quantities).color()
    base = alt.Chart(values).encode(
        x=alt.X("value:Q", title=x_title),
        y=alt.Y("criterion:N", title=None, sort=None, axis=alt.Axis(labelLimit=130)),
        yOffset=alt.YOffset("quantity:N", sort=quantities),
    )
    tooltip = [alt.Tooltip("criterion:N"), alt.Tooltip("quantity:N"), alt.Tooltip("value:Q", format=form)]
    bars = base.mark_bar().encode(color=color, tooltip=tooltip)
    text = base.mark_text(aria=False, align="left", dx=4, fontSize=11).encode(text=alt.Text("value:Q", format=form))
    return alt.LayerChart(layer=[bars, text]).properties(width="container", height=18 * len(values), description=title)
