"""Accuracy and loss of a network of which one group alone has lost units: a row a group, a column a ratio."""

from __future__ import annotations

from typing import Any

import altair as alt
import pandas as pd

from prune_fe.charts.theme import WIDTH, heading

ROW = 20
"""Pixels of a row."""

LABEL = 190
"""Pixels of the longest label of a row."""


def sensitivity_map(points: pd.DataFrame, accuracy: float, title: str) -> alt.HConcatChart:
    """Return two maps of cells with their numbers: the accuracy, and by how much the loss rises.

    Args:
        points: One row for each group and ratio, in the columns group (a number from 1), layers (names), units, ratio,
            removed, accuracy (a share) and loss_increase (nats).
        accuracy: Accuracy of the whole network, the end of the scale of colours.
        title: Title of the whole.

    Returns:
        The maps side by side. The groups run from the first layer to the last, and darker cells are worse.
    """
    rows = points.assign(
        row=[_label(*values) for values in zip(points["group"], points["layers"], points["units"], strict=True)],
        removed_share=[f"{ratio:.0%}" for ratio in points["ratio"]],
    )
    worst = max(float(rows["loss_increase"].max()), 1e-6)
    # White has no hue, which the default way of mixing would take from the other colour.
    colours: dict[str, Any] = {"range": ["var(--surface)", "var(--less)"], "interpolate": "rgb", "clamp": True}
    lost = alt.Scale(domain=[accuracy, 0], **colours)
    risen = alt.Scale(domain=[0, worst], type="sqrt", **colours)
    left = _map(rows, "accuracy", lost, ".0%", f"accuracy ({accuracy:.1%} of the whole network)", has_labels=True)
    right = _map(rows, "loss_increase", risen, ".2f", "increase of the loss, nats", has_labels=False)
    return alt.hconcat(left, right).resolve_scale(color="independent").properties(title=heading(title))


def _label(group: int, layers: str, units: int) -> str:
    """Return the label of a row: the group's number, its first layer, how many more there are, and its units."""
    first, *more = layers.split(", ")
    return f"{group}  {first}{f' + {len(more)}' if more else ''}  ({units})"


def _map(rows: pd.DataFrame, column: str, scale: alt.Scale, form: str, title: str, has_labels: bool) -> Any:
    """Return one map of cells."""
    axis: Any = alt.Axis(labelLimit=LABEL, ticks=False, domain=False) if has_labels else None
    base = alt.Chart(rows).encode(
        x=alt.X("removed_share:O", title="share of the units removed", sort=None, axis=alt.Axis(labelAngle=0)),
        y=alt.Y("row:N", title=None, sort=None, axis=axis),
        tooltip=[
            alt.Tooltip("layers:N"),
            alt.Tooltip("units:Q"),
            alt.Tooltip("removed:Q"),
            alt.Tooltip("accuracy:Q", format=".2%"),
            alt.Tooltip("loss_increase:Q", title="increase of the loss", format=".3f"),
        ],
    )
    cells = base.mark_rect(stroke="var(--rule)").encode(color=alt.Color(f"{column}:Q", scale=scale, legend=None))
    text = base.mark_text(aria=False, fontSize=10).encode(text=alt.Text(f"{column}:Q", format=form))
    return alt.layer(cells, text).properties(width=WIDTH, height=ROW * rows["row"].nunique(), title=title)
