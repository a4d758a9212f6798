"""Figure 13 of the paper: accuracy against the number of classes or the pruning ratio."""

from __future__ import annotations

from typing import Any

import altair as alt
import pandas as pd

from prune_fe.charts.theme import HEIGHT, WIDTH, SeriesStyle, heading, series_lines


def accuracy_against(
    points: pd.DataFrame,
    unpruned: float,
    x_title: str,
    title: str,
    log_x: bool = False,
    controls: tuple[str, ...] = ("random",),
) -> alt.HConcatChart:
    """Return test accuracy against a setting: a line a scorer, a panel a stage.

    Args:
        points: One row a network, in the columns scorer, x (the setting), stage (such as "right after pruning") and
            accuracy (a share).
        unpruned: Accuracy of the network before pruning, which a horizontal line marks.
        x_title: What the setting is.
        title: Title of the whole.
        log_x: Space the settings by their logarithms, with a label at each.
        controls: Scorers drawn in grey with dashes.

    Returns:
        The panels side by side, with one legend.
    """
    style = SeriesStyle("scorer", list(dict.fromkeys(points["scorer"])), controls, columns=4)
    settings = sorted(points["x"].unique().tolist())
    scale = alt.Scale(type="log", nice=False, padding=12) if log_x else alt.Scale(zero=False, nice=False, padding=12)
    axis = alt.Axis(values=settings, format="d") if log_x else alt.Axis()
    x = alt.X("x:Q", title=x_title, scale=scale, axis=axis)
    y: dict[str, Any] = {"title": "test accuracy", "scale": alt.Scale(zero=False), "axis": alt.Axis(format="~%")}
    line = pd.DataFrame({"value": [unpruned], "label": ["unpruned"]})
    panels = []
    for stage in dict.fromkeys(points["stage"]):
        rows = points[points["stage"] == stage].rename(columns={"accuracy": "value"})
        level = alt.Chart(line).mark_rule(color="var(--quiet)", strokeWidth=1).encode(y=alt.Y("value:Q", **y))
        text = alt.Chart(line).mark_text(align="left", dy=-7, x=4, color="var(--quiet)")
        panels.append(
            alt.layer(
                level,
                text.encode(y=alt.Y("value:Q", **y), text="label:N"),
                series_lines(rows, style, x, y),
            ).properties(width=WIDTH, height=HEIGHT, title=stage)
        )
    return alt.hconcat(*panels).properties(title=heading(title))
