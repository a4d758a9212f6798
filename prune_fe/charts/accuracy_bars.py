"""The accuracies of the criteria at one operating point."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import altair as alt
import pandas as pd

from prune_fe.charts.theme import SeriesStyle

BAR_HEIGHT = 26


def accuracy_bars(
    points: pd.DataFrame,
    title: str,
    controls: Collection[str] = (),
    palette: Sequence[str] = (),
    named: Collection[str] | None = None,
) -> alt.LayerChart:
    """Return a bar for the test accuracy of each criterion, the highest first, as wide as its container.

    Args:
        points: One row a criterion, in the columns criterion, accuracy, low, high, pruned (shares; pruned is the
            accuracy right after pruning or NaN) and detail (a text).
        title: What the chart shows, for those who cannot see it.
        controls: Criteria in grey.
        palette: Criteria in the order of their colours, the same for all charts of a page.
        named: Criteria that have a colour of their own. None: all.

    Returns:
        The chart. A tick marks the accuracy right after pruning.
    """
    order = points.sort_values("accuracy", ascending=False, kind="stable")["criterion"].tolist()
    style = SeriesStyle("criterion", order, controls, palette=palette, named=order if named is None else list(named))
    y = alt.Y("criterion:N", title=None, sort=order, axis=alt.Axis(labelLimit=150))
    base = alt.Chart(points).encode(y=y)
    scale = alt.Scale(domainMin=0)
    x = alt.X("accuracy:Q", title="test accuracy", axis=alt.Axis(format="~%"), scale=scale)
    tooltip = [
        alt.Tooltip("criterion:N"),
        alt.Tooltip("accuracy:Q", title="test accuracy", format=".2%"),
        alt.Tooltip("low:Q", title="lowest", format=".2%"),
        alt.Tooltip("high:Q", title="highest", format=".2%"),
        alt.Tooltip("pruned:Q", title="right after pruning", format=".2%"),
        alt.Tooltip("detail:N", title="network"),
    ]
    bars = base.mark_bar(height={"band": 0.7}).encode(x=x, color=style.color(legend=False), tooltip=tooltip)
    intervals = base.mark_rule(aria=False, strokeWidth=2, color="var(--ink)").encode(x=alt.X("low:Q"), x2="high:Q")
    ticks = (
        base.transform_filter("isValid(datum.pruned)")
        .mark_tick(aria=False, thickness=2, color="var(--ink)", height=BAR_HEIGHT * 0.7)
        .encode(x=alt.X("pruned:Q"))
    )
    text = base.mark_text(aria=False, align="left", dx=6, fontSize=12).encode(
        x=alt.X("high:Q"), text=alt.Text("accuracy:Q", format=".1%")
    )
    return alt.LayerChart(layer=[bars, intervals, ticks, text]).properties(
        width="container", height=BAR_HEIGHT * len(points), description=title
    )
