"""Figure 12 of the paper: accuracy and loss while more and more units are removed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import altair as alt
import pandas as pd

from prune_fe.charts.theme import HEIGHT, WIDTH, SeriesStyle, heading, series_lines

ORDERS = {"ascending": "ascending: best units first", "descending": "descending: worst units first"}
QUANTITIES = {"accuracy": "test accuracy", "loss": "test loss (nats)"}
MARKERS = 8
"""Approximate number of markers on a curve, which has a point for every removed unit."""


def ablation_curves(
    curves: pd.DataFrame, areas: Mapping[tuple[str, str], float], title: str, controls: tuple[str, ...] = ("random",)
) -> alt.HConcatChart:
    """Return accuracy and loss against the number of removed units: a column an order of removal.

    Args:
        curves: One row for each scorer, order ("ascending", "descending"), quantity ("accuracy" as a share, "loss" in
            nats) and number of removed units, in the columns scorer, order, quantity and removed. mean: of the
            classes, networks and seeds; low, high: ends of the band.
        areas: (order, scorer) -> area under the accuracy, which the legend shows.
        title: Title of the whole.
        controls: Scorers drawn in grey with dashes.

    Returns:
        The chart.
    """
    columns = []
    for order in dict.fromkeys(curves["order"]):
        selected = curves[curves["order"] == order]
        names = list(dict.fromkeys(selected["scorer"]))
        labels = {name: f"{name}  {areas[order, name]:.3f}" for name in names}
        selected = selected.assign(curve=selected["scorer"].map(labels), marked=_marked(selected, names))
        style = SeriesStyle(
            "curve",
            list(labels.values()),
            [labels[name] for name in names if name in controls],
            [labels[name] for name in names if name == "feature-entropy"],
            "area under accuracy",
            columns=2,
        )
        panels = [_panel(selected[selected["quantity"] == name], style, name) for name in QUANTITIES]
        columns.append(alt.vconcat(*panels).properties(title=ORDERS.get(order, order)))
    return (
        alt.hconcat(*columns)
        .resolve_scale(color="independent", shape="independent", strokeDash="independent")
        .properties(title=heading(title))
    )


def _marked(curves: pd.DataFrame, names: list[str]) -> pd.Series:
    """Return which rows have a marker: a few of each curve, at other places for each scorer."""
    step = curves.groupby(["scorer", "quantity"]).cumcount()
    every = max(1, int(step.max() + 1) // MARKERS) if len(step) else 1
    offset = curves["scorer"].map({name: number * every // len(names) for number, name in enumerate(names)})
    return step % every == offset


def _panel(curves: pd.DataFrame, style: SeriesStyle, quantity: str) -> alt.LayerChart:
    y: dict[str, Any] = {"title": QUANTITIES[quantity], "scale": alt.Scale(zero=quantity == "accuracy")}
    x = alt.X("removed:Q", title="units removed", scale=alt.Scale(nice=False))
    data = curves.rename(columns={"mean": "value"})
    intervals: Literal["band", "none"] = "band" if (curves["low"] < curves["high"]).any() else "none"
    return series_lines(data, style, x, y, intervals=intervals, marked="marked").properties(width=WIDTH, height=HEIGHT)
