"""Panel (3) of figures 6 and 11 of the paper: feature entropy against selective rate of each class and network."""

from __future__ import annotations

import altair as alt
import pandas as pd

from prune_fe.charts.theme import HEIGHT, WIDTH, SeriesStyle, heading


def class_scatter(points: pd.DataFrame, title: str) -> alt.HConcatChart:
    """Return selective rate against feature entropy: a point a class, a colour and a marker a network.

    Args:
        points: One row for each panel, network and class, in the columns panel, network, class, entropy (in nats) and
            rate (a share).
        title: Title of the whole.

    Returns:
        The panels side by side, with the same axes and one legend.
    """
    style = SeriesStyle("network", list(dict.fromkeys(points["network"])), columns=4)
    tooltip = [
        alt.Tooltip("network:N"),
        alt.Tooltip("class:N"),
        alt.Tooltip("entropy:Q", title="H (nats)", format=".3f"),
        alt.Tooltip("rate:Q", title="ε", format=".3f"),
    ]
    panels = [
        alt.Chart(points[points["panel"] == panel])
        .mark_point(filled=True, size=60, opacity=0.75)
        .encode(
            x=alt.X("entropy:Q", title="feature entropy H (nats)", scale=alt.Scale(zero=False, padding=12)),
            y=alt.Y("rate:Q", title="selective rate ε", scale=alt.Scale(zero=False, padding=12)),
            color=style.color(),
            shape=style.shape(),
            tooltip=tooltip,
        )
        .properties(width=WIDTH, height=HEIGHT, title=panel)
        for panel in dict.fromkeys(points["panel"])
    ]
    return alt.hconcat(*panels).resolve_scale(x="shared", y="shared").properties(title=heading(title))
