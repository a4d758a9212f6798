"""One run at a glance: feature entropy by depth, and accuracy by scorer."""

from __future__ import annotations

from typing import Any

import altair as alt
import pandas as pd

from prune_fe.charts.theme import HEIGHT, WIDTH, SeriesStyle, heading


def run_overview(profile: pd.DataFrame, accuracies: pd.DataFrame, title: str, accuracy_title: str) -> alt.HConcatChart:
    """Return a quantity of each layer against its depth, and the accuracy of each scorer at each stage.

    Args:
        profile: One row for each quantity ("H (nats)"), seed and depth (from 1), with its value: a line a seed.
        accuracies: One row for each scorer, stage ("before pruning") and seed, with its accuracy (a share).
        title: Title of the whole.
        accuracy_title: Title of the right panel.

    Returns:
        Two panels; on the right, a bar is the mean over the seeds and a point is a seed.
    """
    panels = alt.hconcat(_profile(profile), _accuracies(accuracies, accuracy_title))
    independent = panels.resolve_scale(color="independent", shape="independent", y="independent")
    return independent.properties(title=heading(title))


def _profile(profile: pd.DataFrame) -> alt.LayerChart:
    style = SeriesStyle("quantity", list(dict.fromkeys(profile["quantity"])), highlight=())
    base = alt.Chart(profile).encode(
        x=alt.X(
            "depth:Q",
            title="layer, shallow to deep",
            scale=alt.Scale(zero=False, nice=False, padding=10),
            axis=alt.Axis(format="d", tickMinStep=1),
        ),
        y=alt.Y("value:Q", title=None, scale=alt.Scale(zero=True)),
        color=style.color(),
        detail="seed:N",
        opacity=alt.value(0.7),
    )
    layers: list[Any] = [base.mark_line(), base.mark_point(filled=True, size=40).encode(shape=style.shape())]
    title = "mean over units and classes, a line a seed"
    return alt.LayerChart(layer=layers, width=WIDTH, height=HEIGHT, title=title)


def _accuracies(accuracies: pd.DataFrame, title: str) -> alt.LayerChart:
    stages, scorers = (list(dict.fromkeys(accuracies[name])) for name in ("stage", "scorer"))
    style = SeriesStyle("stage", stages, highlight=())
    base = alt.Chart(accuracies).encode(
        x=alt.X("scorer:N", title=None, sort=scorers, axis=alt.Axis(labelAngle=-30)),
        xOffset=alt.XOffset("stage:N", sort=stages),
        color=style.color(),
    )
    axis = alt.Axis(format="~%")
    bars = base.mark_bar().encode(
        y=alt.Y("mean(accuracy):Q", title="test accuracy", axis=axis), opacity=alt.value(0.35)
    )
    seeds = base.mark_point(filled=True, size=40).encode(
        y=alt.Y("accuracy:Q", title="test accuracy", axis=axis), shape=style.shape(), opacity=alt.value(1)
    )
    layers: list[Any] = [bars, seeds]
    width = max(WIDTH, 70 * len(scorers))
    return alt.LayerChart(layer=layers, width=width, height=HEIGHT, title=f"{title}; points are seeds")
