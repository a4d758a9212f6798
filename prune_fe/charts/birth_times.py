"""The time that programs take to compute the birth times of a map."""

from __future__ import annotations

import math
from typing import Any

import altair as alt
import pandas as pd

from prune_fe.charts.theme import HEIGHT, WIDTH, SeriesStyle

TICKS = "datum.value < 1 ? datum.value : format(datum.value, '~s')"
"""Expression of Vega for the numbers at the axis: 0.1 and not 100m, but 10k."""


def birth_times(times: pd.DataFrame, title: str) -> alt.LayerChart:
    """Return the time a map against its size, both logarithmic: a colour a program, dashes for the kind of maps.

    Args:
        times: One row for each program, kind of maps (in the column maps) and size (rows of a map), with the
            microseconds a map.
        title: Title of the chart.

    Returns:
        The chart.
    """
    style = SeriesStyle("program", list(dict.fromkeys(times["program"])), highlight=(), columns=4)
    times = times.assign(maps=times["maps"] + " maps")
    kinds = list(dict.fromkeys(times["maps"]))
    dashes = alt.Scale(domain=kinds, range=[[1, 0], [6, 4], [2, 3]][: len(kinds)])
    sizes = sorted(times["size"].unique().tolist())
    base = alt.Chart(times).encode(
        x=alt.X(
            "size:Q",
            title="rows of a map",
            scale=alt.Scale(type="log", nice=False, padding=10),
            axis=alt.Axis(values=sizes, format="d"),
        ),
        y=alt.Y(
            "microseconds:Q",
            title="µs a map, one thread",
            scale=alt.Scale(type="log"),
            axis=alt.Axis(labelExpr=TICKS, values=_decades(times["microseconds"])),
        ),
        color=style.color(),
    )
    legend = alt.Legend(title=None, symbolSize=300)
    layers: list[Any] = [
        base.mark_line().encode(strokeDash=alt.StrokeDash("maps:N", scale=dashes, legend=legend)),
        base.mark_point(filled=True, size=50).encode(shape=style.shape(), detail="maps:N", opacity=alt.value(1)),
    ]
    return alt.LayerChart(layer=layers, width=WIDTH, height=HEIGHT, title=title)


def _decades(values: pd.Series) -> list[float]:
    """Return the powers of 10 from below the least value to above the largest."""
    low, high = math.floor(math.log10(values.min())), math.ceil(math.log10(values.max()))
    return [10.0**power for power in range(low, high + 1)]
