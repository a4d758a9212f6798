"""Figures 5A and 9 of the paper: feature entropy and selective rate of each layer, trained and random-initialised."""

from __future__ import annotations

from typing import Any

import altair as alt
import pandas as pd

from prune_fe.charts.theme import HEIGHT, WIDTH, SeriesStyle, heading, series_lines

QUANTITIES = {"entropy": "feature entropy H (nats)", "rate": "selective rate ε"}
MANY_PANELS = 3
"""From this number of panels side by side, a panel is narrower."""


def layer_status(points: pd.DataFrame, title: str, control: str | None) -> alt.VConcatChart:
    """Return feature entropy and selective rate by layer: a row of panels a quantity, a column each panel's title.

    Args:
        points: One row for each panel, quantity ("entropy" in nats, "rate" as a share), network and layer, in the
            columns panel, quantity, network and layer (its label in the panel), from the first layer to the last.
            value: the point on the line; low, high: ends of the band, equal to the value where there is none.
        title: Title of the whole.
        control: The network that is drawn in grey with dashes; None if there is none.

    Returns:
        The chart. The panels of a row share their vertical axis.
    """
    networks = list(dict.fromkeys(points["network"]))
    highlight = [name for name in networks if name != control]
    controls = [] if control is None else [control]
    style = SeriesStyle("network", networks, controls, highlight, columns=2 if len(networks) < MANY_PANELS else 5)
    panels = list(dict.fromkeys(points["panel"]))
    rows = [
        alt.hconcat(
            *(
                _panel(points[(points["panel"] == panel) & (points["quantity"] == quantity)], style, len(panels))
                for panel in panels
            )
        ).resolve_scale(y="shared")
        for quantity in QUANTITIES
    ]
    return alt.vconcat(*rows).properties(title=heading(title))


def _panel(points: pd.DataFrame, style: SeriesStyle, n_panels: int) -> alt.LayerChart:
    x = alt.X("layer:N", title=None, sort=None, axis=alt.Axis(labelAngle=-90, labelLimit=160))
    title, panel = QUANTITIES[points["quantity"].iloc[0]], points["panel"].iloc[0]
    y: dict[str, Any] = {"title": title, "scale": alt.Scale(zero=False)}
    # An interval of length 0 draws nothing that the line would not.
    chart = series_lines(points, style, x, y, intervals="band")
    narrowest = WIDTH if n_panels < MANY_PANELS else WIDTH // 2
    return chart.properties(width=max(narrowest, 13 * points["layer"].nunique()), height=HEIGHT, title=panel)
