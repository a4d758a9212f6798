"""Figures 5B and 10 of the paper: loss, accuracy, feature entropy and selective rate over the epochs of a training."""

from __future__ import annotations

from typing import Any

import altair as alt
import pandas as pd

from prune_fe.charts.theme import HEIGHT, WIDTH, SeriesStyle, heading, series_lines

PANELS = {
    "loss": "training loss (nats)",
    "accuracy": "accuracy",
    "entropy": "feature entropy H (nats)",
    "rate": "selective rate ε",
}
"""Panel -> title of its vertical axis."""


def training_course(points: pd.DataFrame, title: str) -> alt.VConcatChart:
    """Return loss and accuracy over the epochs, and below them feature entropy and selective rate.

    Args:
        points: One row for each panel ("loss" in nats, "accuracy" and "rate" as shares, "entropy" in nats), series and
            epoch, in the columns panel, series, epoch, value, low and high (ends of the band, equal to the value where
            there is none).
        title: Title of the whole.

    Returns:
        Four panels in two rows, each row with a legend of its own.
    """
    rows = [("loss", "accuracy"), ("entropy", "rate")]
    charts = []
    for row in rows:
        names = list(dict.fromkeys(points[points["panel"].isin(row)].sort_values("panel", key=_order)["series"]))
        style = SeriesStyle("series", names, highlight=names[:1], columns=2)
        last = int(points["epoch"].max())
        charts.append(alt.hconcat(*(_panel(points[points["panel"] == panel], panel, style, last) for panel in row)))
    scales: dict[str, Any] = {"color": "independent", "shape": "independent"}
    return alt.vconcat(*charts).resolve_scale(**scales).properties(title=heading(title))


def _order(panels: pd.Series[str]) -> pd.Series[int]:
    """Return the place of each panel; the series of the first panel come first in the legend."""
    return panels.map(list(PANELS).index)


def _panel(points: pd.DataFrame, panel: str, style: SeriesStyle, last: int) -> alt.LayerChart:
    axis = alt.Axis(format="d", values=list(range(0, last + 1, max(1, round(last / 10)))))
    x = alt.X("epoch:Q", title="epoch", axis=axis, scale=alt.Scale(nice=False, domain=[0, max(last, 1)]))
    y: dict[str, Any] = {"title": PANELS[panel], "scale": alt.Scale(zero=panel == "loss")}
    if panel == "accuracy":
        y["axis"] = alt.Axis(format="~%")
    # An interval of length 0 draws nothing that the line would not.
    return series_lines(points, style, x, y, intervals="band").properties(width=WIDTH, height=HEIGHT)
