"""The style of all charts, and functions that turn a chart into a file or a specification."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import altair as alt
import pandas as pd

from prune_fe.io import write_bytes

HIGHLIGHT = "feature-entropy"
"""The criterion that is drawn with a thicker line."""

SHADES: Mapping[str, Mapping[str, str]] = {
    "light": {
        "page": "#f4f5f7",
        "surface": "#ffffff",
        "ink": "#1b1f24",
        "quiet": "#555d68",
        "rule": "#d5d9df",
        "control": "#737b86",
        "more": "#74a9e8",
        "less": "#f0a35e",
    },
    "dark": {
        "page": "#12151a",
        "surface": "#1a1f27",
        "ink": "#e8ebef",
        "quiet": "#a9b2be",
        "rule": "#39414d",
        "control": "#98a1ad",
        "more": "#2560ad",
        "less": "#9a4d12",
    },
}

SERIES: Mapping[str, Sequence[str]] = {
    "light": (
        "#2060c0",
        "#e00040",
        "#60a000",
        "#8000e0",
        "#804000",
        "#c06080",
        "#0020a0",
        "#602040",
        "#a08060",
        "#e000e0",
        "#a080c0",
        "#c00080",
        "#602080",
        "#800020",
    ),
    "dark": (
        "#4080e0",
        "#e06000",
        "#c0e0c0",
        "#e0e000",
        "#c06060",
        "#00e0e0",
        "#c0a0a0",
        "#e040a0",
        "#a08040",
        "#e0c040",
        "#a0a0e0",
        "#a0c060",
        "#60c080",
        "#6080a0",
    ),
}
"""Colours of lines and bars. Any two differ with each kind of colour blindness."""

COLOURS: Mapping[str, Mapping[str, str]] = {
    mode: {**SHADES[mode], **{f"c{number}": colour for number, colour in enumerate(SERIES[mode])}} for mode in SHADES
}
"""Mode -> name -> colour. A chart says `var(--name)`, so that a page can change the mode by its style sheet."""

SHAPES = (
    "circle",
    "square",
    "triangle-up",
    "diamond",
    "cross",
    "triangle-down",
    "M-1-.6L-.6-1L0-.4L.6-1L1-.6L.4 0L1 .6L.6 1L0 .4L-.6 1L-1 .6L-.4 0Z",
    "triangle-left",
    "M-1-1L0 0L1-1L1 1L0 0L-1 1Z",
    "triangle-right",
    "M-1-1L1-1L0 0L1 1L-1 1L0 0Z",
    "M0-1L.95-.31L.59.81L-.59.81L-.95-.31Z",
    "M-1-.35L1-.35L1 .35L-1 .35Z",
    "M-.35-1L.35-1L.35 1L-.35 1Z",
)
"""Markers of the series, as many as colours."""

MOST_BANDS = 4
"""Largest number of series that are drawn with bands. The bands of more would overlap, so they have whiskers."""

WIDTH, HEIGHT = 420, 280
"""Size in pixels of a chart, or of one of its panels, in a file."""

LABEL_GAP = 14
"""Smallest distance in pixels between two names that are written beside their lines."""

LEGEND_COLUMN = 190
"""Pixels for one column of a legend."""

CONFIG: Mapping[str, Any] = {
    "background": "transparent",
    "font": "system-ui, sans-serif",
    "view": {"stroke": None, "continuousHeight": HEIGHT},
    "axis": {
        "labelColor": "var(--ink)",
        "titleColor": "var(--quiet)",
        "titleFontWeight": "normal",
        "labelFontSize": 12,
        "titleFontSize": 12,
        "gridColor": "var(--rule)",
        "domainColor": "var(--quiet)",
        "tickColor": "var(--quiet)",
        "labelOverlap": "greedy",
        "titlePadding": 8,
    },
    "axisX": {"grid": False},
    # Without it, an axis that is as wide as the page has a label every 40 pixels.
    "axisXQuantitative": {"tickCount": 8},
    "axisY": {"domain": False, "ticks": False},
    "legend": {
        "orient": "bottom",
        "direction": "horizontal",
        "labelColor": "var(--ink)",
        "titleColor": "var(--quiet)",
        "titleFontWeight": "normal",
        "labelFontSize": 12,
        "titleFontSize": 12,
        "labelLimit": 220,
        "symbolSize": 90,
        "symbolStrokeWidth": 2,
        "symbolOpacity": 1,
        "columnPadding": 16,
    },
    "title": {
        "color": "var(--ink)",
        "subtitleColor": "var(--quiet)",
        "fontSize": 13,
        "fontWeight": "normal",
        "anchor": "start",
        "offset": 8,
    },
    "header": {"labelColor": "var(--ink)", "titleColor": "var(--quiet)", "labelFontSize": 12},
    "text": {"color": "var(--ink)"},
    "rule": {"color": "var(--quiet)"},
    "range": {"category": [f"var(--c{number})" for number in range(len(SHAPES))]},
}


def heading(text: str) -> alt.TitleParams:
    """Return the title of a chart of several panels, which have titles of their own."""
    return alt.TitleParams(text, fontSize=16, offset=16)


@dataclass(frozen=True)
class SeriesStyle:
    """The colour, marker and dashes of each series, the same in every panel of a chart.

    Attributes:
        field: Column that holds the name of the series.
        names: The series in the order of the legend.
        controls: Those that are drawn in grey, with dashes.
        highlight: Those that are drawn with a thicker line.
        title: Title of the legend.
        columns: Columns of the legend; None: as many as fit below the chart.
        palette: Names in the order of the colours and markers, where other charts show other ones of them; the series
            by default.
        named: Those that have a colour; the others are thin and pale, in the background. None: all.
    """

    field: str
    names: Sequence[str]
    controls: Collection[str] = ()
    highlight: Collection[str] = (HIGHLIGHT,)
    title: str | None = None
    columns: int | None = None
    palette: Sequence[str] = ()
    named: Collection[str] | None = None

    @property
    def _numbers(self) -> dict[str, int]:
        """Name -> its number in the palette."""
        return {name: number for number, name in enumerate(dict.fromkeys([*self.palette, *self.names]))}

    @property
    def colours(self) -> list[str]:
        """One colour a series. A control does not use up one of the palette."""
        free = [name for name in self._numbers if name not in self.controls]
        numbers = {name: number % len(SHAPES) for number, name in enumerate(free) if self._is_named(name)}
        return [f"var(--c{numbers[name]})" if name in numbers else "var(--control)" for name in self.names]

    @property
    def legend(self) -> alt.Legend:
        """The legend that the channels share."""
        fitting = alt.ExprRef(f"max(1, floor(width / {LEGEND_COLUMN}))")
        return alt.Legend(title=self.title, columns=fitting if self.columns is None else self.columns)

    def color(self, legend: bool = True) -> alt.Color:
        """The channel of the colours, with or without the legend."""
        scale = alt.Scale(domain=list(self.names), range=self.colours)
        return alt.Color(f"{self.field}:N", scale=scale, legend=self.legend if legend else None)

    def shape(self, legend: bool = True) -> alt.Shape:
        """The channel of the markers, with or without the legend."""
        shapes = [SHAPES[self._numbers[name] % len(SHAPES)] for name in self.names]
        scale = alt.Scale(domain=list(self.names), range=shapes)
        return alt.Shape(f"{self.field}:N", scale=scale, legend=self.legend if legend else None)

    def opacity(self) -> Any:
        """The channel of the opacity: lower for the series in the background."""
        background = [name for name in self.names if not self._is_named(name) and name not in self.controls]
        return alt.when(self._one_of(background)).then(alt.value(0.45)).otherwise(alt.value(1))

    def dash(self) -> Any:
        """The channel of the dashes: controls, and what comes after the last colour."""
        repeated = [name for name in list(self._numbers)[len(SHAPES) :] if name not in self.controls]
        dashes = alt.when(self._one_of(self.controls)).then(alt.value([6, 4]))
        return dashes.when(self._one_of(repeated)).then(alt.value([2, 3])).otherwise(alt.value([1, 0]))

    def width(self) -> Any:
        """The channel of the lines' widths."""
        return alt.when(self._one_of(self.highlight)).then(alt.value(3)).otherwise(alt.value(1.6))

    def _is_named(self, name: str) -> bool:
        return self.named is None or name in self.named

    def _one_of(self, names: Collection[str]) -> alt.FieldOneOfPredicate:
        return alt.FieldOneOfPredicate(field=self.field, oneOf=list(names))


def series_lines(
    data: pd.DataFrame,
    style: SeriesStyle,
    x: alt.X,
    y: Mapping[str, Any],
    tooltip: Sequence[alt.Tooltip] = (),
    intervals: Literal["band", "whiskers", "none"] = "none",
    order: str | None = None,
    marked: str | None = None,
    interactive: bool = False,
) -> Any:
    """Return lines with markers, one a series.

    Args:
        data: Rows with the series, the field of `x`, and `value`, `low` and `high`.
        style: The look of the series.
        x: Horizontal axis.
        y: Options of the vertical axis (`alt.Y`).
        tooltip: What a marker tells.
        intervals: What reaches from `low` to `high`.
        order: Field by which the points of a line are connected; None: the field of `x`.
        marked: Field that is true for the rows with a marker; None: all rows have one.
        interactive: A click on an entry of the legend brings out its series. Not for charts of several panels.

    Returns:
        A layered chart (`alt.LayerChart`), without a size and a title.
    """
    base = alt.Chart(data).encode(x=x, color=style.color())
    layers: list[alt.Chart] = []
    if intervals != "none":
        banded = intervals == "band"
        interval = base.mark_area(aria=False) if banded else base.mark_rule(aria=False)
        opacity = faded(style, 0.15 if banded else 0.6, interactive)
        layers.append(interval.encode(y=alt.Y("low:Q", **y), y2="high:Q", opacity=opacity))
    value, opacity = alt.Y("value:Q", **y), faded(style, 1, interactive)
    line = base.mark_line(aria=False).encode(
        y=value, strokeDash=style.dash(), strokeWidth=style.width(), opacity=opacity
    )
    layers.append(line if order is None else line.encode(order=alt.Order(f"{order}:Q")))
    points = base.mark_point(filled=True, size=60).encode(
        y=value, shape=style.shape(), opacity=opacity, tooltip=list(tooltip)
    )
    layers.append(points if marked is None else points.transform_filter(f"datum.{marked}"))
    if interactive:
        # Without a name of its own, a view is numbered, and the same chart is not the same text twice.
        layers[-1] = layers[-1].properties(name="markers").add_params(_chosen(style))
    return alt.layer(*layers)


def spread_labels(values: Sequence[float] | pd.Series, domain: Sequence[float], height: float) -> list[float]:
    """Return where to write the names of values along a vertical axis, so that they do not overlap.

    Args:
        values: Finite numbers inside the domain.
        domain: Lower and upper end of the axis.
        height: Height of the axis in pixels.

    Returns:
        A place for each value, in the unit of the axis, in the order of the values: as near as possible, at least
        `LABEL_GAP` pixels apart, and in the domain if there is room for all.

    >>> spread_labels([0.5, 0.5, 0.9], (0, 1), 140)
    [0.5, 0.6, 0.9]
    """
    gap = LABEL_GAP * (domain[1] - domain[0]) / height
    order = sorted(range(len(values)), key=lambda number: list(values)[number])
    places = [float(value) for value in values]
    for lower, upper in itertools.pairwise(order):
        places[upper] = max(places[upper], places[lower] + gap)
    # What was pushed over the upper end pushes back.
    ceiling = domain[1]
    for number in reversed(order):
        places[number] = min(places[number], ceiling)
        ceiling = places[number] - gap
    return places


def faded(style: SeriesStyle, opacity: float, interactive: bool) -> Any:
    """Return the channel of the opacity: of interactive charts lower for what the legend's selection leaves out."""
    if not interactive:
        return alt.value(opacity)
    return alt.when(_chosen(style)).then(alt.value(opacity)).otherwise(alt.value(0.08))


def _chosen(style: SeriesStyle) -> alt.Parameter:
    return alt.selection_point(name="series", fields=[style.field], bind="legend")


def specification(chart: alt.TopLevelMixin) -> dict[str, Any]:
    """Return a chart as a Vega-Lite specification with the theme. Its colours are variables of a style sheet."""
    # By default, Altair refuses more than 5,000 rows.
    with alt.data_transformers.enable("default", max_rows=None):
        return {**chart.to_dict(), "config": CONFIG}


def standalone(chart: alt.TopLevelMixin, mode: str = "light") -> Any:
    """Return a chart that needs no page around it: with the theme, the colours of a mode and a width of its own.

    Args:
        chart: One of this package's charts.
        mode: "light" or "dark".

    Returns:
        A chart of altair, of the same kind, which a notebook shows and `save` writes.
    """
    return alt.Chart.from_dict(_coloured(chart, mode))


def save_chart(chart: alt.TopLevelMixin, path: Path, mode: str = "light") -> None:
    """Draw a chart into a file. The same chart gives the same bytes.

    Args:
        chart: One of this package's charts.
        path: Ends with .svg or .png.
        mode: "light" or "dark"; both have the page's colour behind them.

    Raises:
        ValueError: `path` ends with something else.
    """
    import vl_convert

    content = _coloured(chart, mode)
    version = ".".join(alt.SCHEMA_VERSION.split(".")[:2])
    if path.suffix == ".svg":
        write_bytes(path, vl_convert.vegalite_to_svg(content, vl_version=version).encode("utf-8"))
    elif path.suffix == ".png":
        write_bytes(path, vl_convert.vegalite_to_png(content, vl_version=version, scale=2))
    else:
        raise ValueError(f"{path}: a chart is saved as .svg or .png")


def _coloured(chart: alt.TopLevelMixin, mode: str) -> dict[str, Any]:
    """Return a chart's specification with the colours of a mode in the place of their names."""
    colours, drawn = COLOURS[mode], specification(chart)
    # There is no container whose width a file could take.
    drawn |= {"width": WIDTH} if drawn.get("width") == "container" else {}
    content: dict[str, Any] = json.loads(re.sub(r"var\(--(\w+)\)", lambda match: colours[match[1]], json.dumps(drawn)))
    content["config"]["background"] = colours["surface"]
    return content
