"""The distribution of the scores of one criterion."""

from __future__ import annotations

import altair as alt
import pandas as pd


def histogram(bins: pd.DataFrame, x_title: str, title: str) -> alt.Chart:
    """Return a small histogram, as wide as its container.

    Args:
        bins: One row a bin, in the columns start, end and count.
        x_title: What is counted.
        title: What the chart shows, for those who cannot see it.

    Returns:
        The chart.
    """
    tooltip = [alt.Tooltip("start:Q", title="from"), alt.Tooltip("end:Q", title="to"), alt.Tooltip("count:Q")]
    return (
        alt.Chart(bins)
        .mark_bar(color="var(--c0)", stroke="var(--surface)")
        .encode(
            x=alt.X("start:Q", title=x_title, scale=alt.Scale(zero=False), axis=alt.Axis(tickCount=4), bin="binned"),
            x2="end:Q",
            y=alt.Y("count:Q", title=None, axis=alt.Axis(tickCount=3)),
            tooltip=tooltip,
        )
        .properties(width="container", height=120, description=title)
    )
