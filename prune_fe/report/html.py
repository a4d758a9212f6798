"""A report as one HTML page that needs nothing else: text, tables, and charts as inline SVG.

What a caller passes is text and never markup. The same input makes the same page. With JavaScript, the points of a
chart tell their values and a legend hides lines; without, every number still stands in a table below its chart.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import TypeGuard

COLOURS = 14
"""STYLE has as many, --c0 to --c13: any two differ with each kind of colour blindness."""

MARKERS = (
    "M-4 0a4 4 0 1 0 8 0a4 4 0 1 0-8 0z",
    "M-3.6-3.6h7.2v7.2h-7.2z",
    "M0-4.8 4.6 3.4h-9.2z",
    "M0-5.2 5.2 0 0 5.2-5.2 0z",
    "M0 4.8 4.6-3.4h-9.2z",
    "M-1.5-4.5h3v3h3v3h-3v3h-3v-3h-3v-3h3z",
    "M-5-2.5-2.5-5 0-2.5 2.5-5 5-2.5 2.5 0 5 2.5 2.5 5 0 2.5-2.5 5-5 2.5-2.5 0z",
)
"""Outlines about (0, 0). After the last of them they come again, hollow."""

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 560, 350, 66, 12, 34, 52
LETTER = 9
"""The width of a letter on a phone, where letters are largest in a chart's own units."""
MOST_BANDS = 4
"""More lines than these would hide one another's bands; they have whiskers."""
MOST_BINS = 24
MOST_TICKS = 8
MOST_LETTERS = 15
"""Of a name below turned bars; it is whole in its title."""
STRONG = ' class="strong"'
NOTHING = '<p class="none">no data yet</p>'


@dataclass(frozen=True)
class Text:
    """A paragraph."""

    text: str


@dataclass(frozen=True)
class Table:
    """Each row begins with its heading. highlight: numbers of the rows, from 0, that are emphasised."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""
    highlight: Sequence[int] = ()


@dataclass(frozen=True)
class Point:
    """low, high: the ends of an interval of y. text: what else there is to say about the point."""

    x: float
    y: float
    low: float | None = None
    high: float | None = None
    text: str = ""

    @property
    def interval(self) -> tuple[float, float] | None:
        return (self.low, self.high) if _finite(self.low) and _finite(self.high) else None


@dataclass(frozen=True)
class Line:
    name: str
    points: Sequence[Point]
    dashed: bool = False


@dataclass(frozen=True)
class Lines:
    """x, y: the axes' names. percent_y: y are fractions, printed as percentages. Points that are not finite, or with
    log_x not above 0, are left out."""

    title: str
    x: str
    y: str
    lines: Sequence[Line]
    note: str = ""
    log_x: bool = False
    percent_y: bool = False


@dataclass(frozen=True)
class Heatmap:
    """values: (names, names), coloured from low to high, from 0 in two colours where low < 0 < high. form: how a
    value is printed; None and what is not finite is a dash."""

    title: str
    names: Sequence[str]
    values: Sequence[Sequence[float | None]]
    low: float
    high: float
    note: str = ""
    form: str = ".2f"


@dataclass(frozen=True)
class Histogram:
    """A small histogram of each group, all with the same number of bins and each with its own range."""

    title: str
    x: str
    groups: Mapping[str, Sequence[float]]
    note: str = ""


@dataclass(frozen=True)
class Bars:
    """groups: group -> a value, or None, for each of the names. percent_y: as in Lines."""

    title: str
    y: str
    names: Sequence[str]
    groups: Mapping[str, Sequence[float | None]]
    note: str = ""
    percent_y: bool = False


@dataclass(frozen=True)
class Checklist:
    """entries: (what, whether it is there, detail); None: it does not apply."""

    title: str
    entries: Sequence[tuple[str, bool | None, str]]


Block = Text | Table | Lines | Heatmap | Histogram | Bars | Checklist


@dataclass(frozen=True)
class Section:
    title: str
    blocks: Sequence[Block]


def page(title: str, subtitle: str, sections: Sequence[Section]) -> str:
    """The whole document. ValueError: a heatmap's or a chart's values do not fit its names."""
    anchors = [f"section-{number}{_slug(section.title)}" for number, section in enumerate(sections, 1)]
    pairs = list(zip(anchors, sections, strict=True))
    links = "".join(f'<li><a href="#{anchor}">{escape(section.title)}</a></li>' for anchor, section in pairs)
    body = "".join(
        f'<section id="{anchor}"><h2>{escape(section.title)}</h2>{"".join(map(_block, section.blocks))}</section>\n'
        for anchor, section in pairs
    )
    document = f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{POLICY}">
<title>{escape(title)}</title>
<style>{STYLE}</style>
</head>
<body>
<a class="skip" href="#main">Skip to the content</a>
<header><h1>{escape(title)}</h1><p>{escape(subtitle)}</p></header>
<nav aria-label="Sections"><ul>{links}</ul></nav>
<main id="main" tabindex="-1">
{body}</main>
<p id="help" hidden>In a chart, Tab leads to each line and the arrow keys to its points. Legends hide lines.</p>
<div id="tip" aria-hidden="true" hidden></div>
<script>{SCRIPT}</script>
</body>
</html>
"""
    # A name of a file may hold half a character, which cannot be written.
    return document.encode("utf-8", "replace").decode("utf-8")


def _slug(title: str) -> str:
    """With a leading hyphen, or empty."""
    words = re.findall(r"[a-z0-9]+", title.lower())
    return "".join(f"-{word}" for word in words)[:40]


def _block(block: Block) -> str:
    match block:
        case Text():
            return f"<p>{escape(block.text)}</p>"
        case Table():
            inner = _table(block.title, block.columns, block.rows, block.highlight) if block.rows else NOTHING
        case Lines():
            inner = _lines(block)
        case Heatmap():
            inner = _heatmap(block) if block.names else NOTHING
        case Histogram():
            inner = _histogram(block)
        case Bars():
            inner = _bars(block)
        case Checklist():
            return _figure(block.title, _checklist(block) if block.entries else NOTHING)
    return _figure(block.title, inner, block.note)


def _figure(title: str, inner: str, note: str = "") -> str:
    caption = f'<p class="note">{escape(note)}</p>' if note else ""
    return f'<div class="figure"><h3>{escape(title)}</h3>{inner}{caption}</div>'


def _table(title: str, columns: Iterable[str], rows: Iterable[Sequence[str]], highlight: Iterable[int] = ()) -> str:
    emphasised = set(highlight)
    head = "".join(f'<th scope="col">{escape(column)}</th>' for column in columns)
    body = "".join(
        f'<tr{STRONG if number in emphasised else ""}><th scope="row">{escape(row[0])}</th>'
        + "".join(f"<td>{escape(cell)}</td>" for cell in row[1:])
        + "</tr>"
        for number, row in enumerate(rows)
    )
    return _scrolling(title, f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>")


def _scrolling(title: str, inner: str) -> str:
    """A box of its own for what is wide; in the tab order, so that the keyboard can scroll it."""
    return f'<div class="scroll" tabindex="0" role="region" aria-label="{escape(title)}">{inner}</div>'


def numbers_of(block: Lines | Bars | Heatmap | Histogram) -> Table:
    """What a chart shows, as a table; without rows if that is nothing."""
    columns: list[str]
    if isinstance(block, Lines):
        columns = ["line", block.x, block.y, "low", "high", "detail"]
        rows = [
            [line.name, _number(p.x), *_y_numbers(p, block.percent_y), p.text]
            for line in block.lines
            for p in _shown(line.points, block.log_x)
        ]
    elif isinstance(block, Bars):
        columns = ["name", *block.groups]
        by_name = zip(block.names, *block.groups.values(), strict=True)
        rows = [[name, *(_number(value, block.percent_y) for value in values)] for name, *values in by_name]
    elif isinstance(block, Heatmap):
        columns = ["", *block.names]
        rows = [
            [name, *(format(value, block.form) if _finite(value) else "–" for value in values)]
            for name, values in zip(block.names, block.values, strict=True)
        ]
    else:
        bins, rows = _bins(block), []
        columns = ["group", "values", "left out", "from", "to", *(f"bin {number}" for number in range(1, bins + 1))]
        for name, values in block.groups.items():
            shown, counts, low, high = _binned(values, bins)
            out = len(values) - shown
            rows.append([name, str(shown), str(out), _number(low), _number(high), *map(str, counts)])
    return Table(block.title, columns, rows, block.note)


def _numbers(block: Lines | Bars | Histogram) -> str:
    """A chart's numbers, folded."""
    table = numbers_of(block)
    return (
        f"<details><summary>Numbers</summary>{_table(f'{table.title}: numbers', table.columns, table.rows)}</details>"
    )


def _checklist(block: Checklist) -> str:
    states = {True: ("yes", "✓ reported"), False: ("no", "✗ missing"), None: ("na", "– does not apply")}
    wanted = [there for _, there, _ in block.entries if there is not None]
    rows = "".join(
        f'<li class="{states[there][0]}"><span class="state">{states[there][1]}</span>'
        f'<span><b>{escape(what)}</b> <span class="detail">{escape(detail)}</span></span></li>'
        for what, there, detail in block.entries
    )
    return f'<p>{sum(wanted)} of {len(wanted)} reported</p><ul class="checks">{rows}</ul>'


def _heatmap(block: Heatmap) -> str:
    """A table, so that its numbers are read where they stand."""
    head = "".join(f'<th scope="col"><span title="{escape(n)}">{escape(n)}</span></th>' for n in block.names)
    rows = ""
    for name, values in zip(block.names, block.values, strict=True):
        cells = "".join(_cell(block, value) for _, value in zip(block.names, values, strict=True))
        rows += f'<tr><th scope="row" title="{escape(name)}">{escape(name)}</th>{cells}</tr>'
    table = f'<table class="heat"><thead><tr><td></td>{head}</tr></thead><tbody>{rows}</tbody></table>'
    low, high = (escape(format(value, block.form)) for value in (block.low, block.high))
    kind = "two" if block.low < 0 < block.high else "one"
    scale = f'<p class="scale"><span>{low}</span><span class="{kind}"></span><span>{high}</span></p>'
    return _scrolling(block.title, table) + scale


def _cell(block: Heatmap, value: float | None) -> str:
    if not _finite(value):
        return '<td class="none">–</td>'
    zero = 0 if block.low < 0 < block.high else block.low
    end, colour = (block.low, "less") if value < zero else (block.high, "more")
    share = min(max((value - zero) / (end - zero), 0), 1) if end != zero else 0
    return f'<td style="--share:{share:.0%};--end:var(--{colour})">{escape(format(value, block.form))}</td>'


@dataclass(frozen=True)
class _Axis:
    """Values from low to high, drawn from `start` to `end`."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False
    percent: bool = False

    def __call__(self, value: float) -> float:
        low, high, at = (math.log10(v) if self.log else v for v in (self.low, self.high, value))
        return self.start + (at - low) / (high - low) * (self.end - self.start)

    def ticks(self) -> list[float]:
        found = _log_ticks(self.low, self.high) if self.log else []
        return found if len(found) > 1 else _ticks(self.low, self.high)

    def label(self, tick: float) -> str:
        return f"{100 * tick:.6g} %" if self.percent else _short(tick)


def _finite(value: float | None) -> TypeGuard[float]:
    """Whether a chart can show it: also the difference of two such values is a number."""
    return value is not None and abs(value) < 1e200


def _range(values: Sequence[float], margin: float = 0.04, log: bool = False) -> tuple[float, float]:
    """A little more than the values span, and never empty."""
    if log:
        low, high = _range([math.log10(value) for value in values], margin)
        return 10**low, 10**high
    low, high = min(values), max(values)
    least = 1e-9 * max(abs(low), abs(high))
    if high - low <= least or high - low < 1e-200:
        more = abs(high) / 10 if abs(high) > 1e-200 else 1.0
        return low - more, high + more
    return low - margin * (high - low), high + margin * (high - low)


def _ticks(low: float, high: float) -> list[float]:
    """At most MOST_TICKS multiples of 1, 2 or 5 times a power of 10."""
    least = (high - low) / MOST_TICKS
    size = 10 ** math.floor(math.log10(least))
    step = next((size * factor for factor in (1, 2, 5) if size * factor >= least), 10 * size)
    return [number * step for number in range(math.ceil(low / step), math.floor(high / step) + 1)]


def _log_ticks(low: float, high: float) -> list[float]:
    """1, 2 and 5 times powers of 10 over a short range; over a long one some powers."""
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    short = math.log10(high / low) < 3.3
    every = 1 if short else math.ceil(len(decades) / MOST_TICKS)
    powers = (power for power in decades if power % every == 0)
    ticks = (factor * 10.0**power for power in powers for factor in ((1, 2, 5) if short else (1,)))
    return [tick for tick in ticks if low <= tick <= high]


def _short(value: float) -> str:
    """1500 is 1.5k.

    >>> [_short(value) for value in (0, 0.25, 1500, -2e6, 1e15)]
    ['0', '0.25', '1.5k', '-2M', '1e+15']
    """
    for size, suffix in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if size <= abs(value) < 1e12:
            return f"{value / size:.6g}{suffix}"
    return f"{value:.6g}"


def _rounded(value: float) -> str:
    return _short(float(f"{value:.3g}"))


def _number(value: float | None, percent: bool = False) -> str:
    if not _finite(value):
        return "–"
    return f"{100 * value:.2f} %" if percent else f"{value:.6g}"


def _label(x: float, y: float, text: str, most: int, more: str = "") -> str:
    """SVG text, cut after `most` letters and then whole in its title."""
    if len(text) <= most:
        return f'<text x="{x:.1f}" y="{y:.1f}" {more}>{escape(text)}</text>'
    cut = f"{escape(text[: max(most - 1, 1)])}…<title>{escape(text)}</title>"
    return f'<text x="{x:.1f}" y="{y:.1f}" {more}>{cut}</text>'


def _y_grid(axis: _Axis, name: str) -> str:
    parts = [_label(2, 14, name, (WIDTH - 4) // LETTER, 'class="name"')]
    for tick in axis.ticks():
        y = axis(tick)
        parts.append(f'<path class="grid" d="M{LEFT} {y:.1f}H{WIDTH - RIGHT}"/>')
        parts.append(_label(LEFT - 7, y + 4, axis.label(tick), 12, 'class="end"'))
    return "".join(parts)


def _x_grid(axis: _Axis, name: str) -> str:
    floor, parts = HEIGHT - BOTTOM, []
    for tick in axis.ticks():
        x = axis(tick)
        parts.append(f'<path class="grid" d="M{x:.1f} {floor}v5"/>')
        parts.append(_label(x, floor + 20, axis.label(tick), 12, 'class="mid"'))
    parts.append(f'<path class="axis" d="M{axis.start} {floor}H{axis.end}"/>')
    parts.append(_label((LEFT + WIDTH) / 2, HEIGHT - 8, name, (WIDTH - LEFT) // LETTER, 'class="mid name"'))
    return "".join(parts)


def _svg(about: str, drawing: str, marks: str, width: int = WIDTH, height: int = HEIGHT) -> str:
    """The drawing is one image; its marks, which can have the focus, stand beside it, as none may inside an image."""
    image = f'<g role="img" aria-label="{escape(about)}">{drawing}</g>'
    return f'<svg viewBox="0 0 {width} {height}" role="group" aria-label="{escape(about)}">{image}{marks}</svg>'


def _mark(shape: str, told: str, first: bool) -> str:
    """Something that tells its value. Of each series the first is in the tab order; arrow keys lead to the others."""
    title = f"<title>{escape(told)}</title>"
    return f'<g class="mark" role="img" tabindex="{0 if first else -1}">{title}{shape}</g>'


def _series(number: int, inner: str) -> str:
    return f'<g data-series="{number}" style="{_colour(number)}">{inner}</g>'


def _colour(number: int) -> str:
    return f"--c:var(--c{number % COLOURS})"


def _marker(number: int) -> str:
    """The attributes of its path."""
    hollow = number // len(MARKERS) % 2
    return f'class="marker{" hollow" * hollow}" d="{MARKERS[number % len(MARKERS)]}"'


def _legend(entries: Iterable[tuple[int, str, str]]) -> str:
    """entries: (number of the series, name, what it looks like)."""
    items = "".join(
        f'<li><button type="button" aria-pressed="true" data-series="{number}">'
        f'<svg class="swatch" viewBox="0 0 30 14" aria-hidden="true" style="{_colour(number)}">{look}</svg>'
        f"<span>{escape(name)}</span></button></li>"
        for number, name, look in entries
    )
    return f'<ul class="legend" aria-label="Legend: shows and hides series">{items}</ul>'


def _lines(block: Lines) -> str:
    lines = [Line(line.name, list(_shown(line.points, block.log_x)), line.dashed) for line in block.lines]
    drawn = [(number, line) for number, line in enumerate(lines) if line.points]
    if not drawn:
        return NOTHING
    points = [point for line in lines for point in line.points]
    ys = [y for point in points for y in (point.y, *(point.interval or ()))]
    x = _Axis(*_range([point.x for point in points], log=block.log_x), LEFT, WIDTH - RIGHT, log=block.log_x)
    y = _Axis(*_range(ys), HEIGHT - BOTTOM, TOP, percent=block.percent_y)
    bands = len(drawn) <= MOST_BANDS
    curves = "".join(_series(number, _curve(number, line, x, y, bands)) for number, line in drawn)
    marks = "".join(_series(number, _points(block, number, line, x, y)) for number, line in drawn)
    about = f"{block.title}: {block.y} by {block.x}, lines: {len(drawn)}"
    chart = _svg(about, _y_grid(y, block.y) + _x_grid(x, block.x) + curves, marks)
    looks = (
        (n, line.name, f'<path {_stroke(n, line)} d="M1 7H29"/><path {_marker(n)} transform="translate(15 7)"/>')
        for n, line in drawn
    )
    return chart + _legend(looks) + _numbers(block)


def _shown(points: Iterable[Point], log_x: bool) -> Iterator[Point]:
    return (p for p in points if _finite(p.x) and _finite(p.y) and (p.x > 1e-200 or not log_x))


def _y_numbers(point: Point, percent: bool) -> tuple[str, str, str]:
    low, high = point.interval or (None, None)
    return _number(point.y, percent), _number(low, percent), _number(high, percent)


def _stroke(number: int, line: Line) -> str:
    dashes = "7 4" if line.dashed else "2 3" if number >= COLOURS else ""
    return 'class="line"' + f' stroke-dasharray="{dashes}"' * bool(dashes)


def _curve(number: int, line: Line, x: _Axis, y: _Axis, bands: bool) -> str:
    """The intervals and, over them, the line."""
    ends = [(x(p.x), *map(y, p.interval)) for p in line.points if p.interval]
    if bands and len(ends) > 1:
        edge = [(at, low) for at, low, _ in ends] + [(at, high) for at, _, high in reversed(ends)]
        intervals = f'<path class="band" d="{_path(edge)}z"/>'
    else:
        whiskers = "".join(f"M{a - 3:.1f} {b:.1f}h6m-3 0V{c:.1f}m-3 0h6" for a, b, c in ends)
        intervals = f'<path class="whisker" d="{whiskers}"/>' if ends else ""
    return f'{intervals}<path {_stroke(number, line)} d="{_path([(x(p.x), y(p.y)) for p in line.points])}"/>'


def _path(corners: Iterable[tuple[float, float]]) -> str:
    return "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in corners)


def _points(block: Lines, number: int, line: Line, x: _Axis, y: _Axis) -> str:
    marks = []
    for place, point in enumerate(line.points):
        value, low, high = _y_numbers(point, block.percent_y)
        told = f"{line.name}\n{block.x}: {_number(point.x)}\n{block.y}: {value}"
        told += f" ({low} to {high})" if point.interval else ""
        told += f"\n{point.text}" if point.text else ""
        at = f'transform="translate({x(point.x):.1f} {y(point.y):.1f})"'
        marks.append(_mark(f"<path {_marker(number)} {at}/>", told, place == 0))
    return "".join(marks)


def _bars(block: Bars) -> str:
    values = [v for group in block.groups.values() for v in group if _finite(v)]
    if not values:
        return NOTHING
    slot = (WIDTH - LEFT - RIGHT) / len(block.names)
    letters = min(max(map(len, block.names)), MOST_LETTERS)
    flat = letters * LETTER < slot
    height = HEIGHT - 24 if flat else HEIGHT - 36 + 7 * letters
    y = _Axis(*_bar_range(values), HEIGHT - BOTTOM, TOP, percent=block.percent_y)
    labels = []
    for place, name in enumerate(block.names):
        at, below = LEFT + (place + 0.5) * slot, HEIGHT - BOTTOM + (18 if flat else 12)
        turned = 'class="mid"' if flat else f'class="end" transform="rotate(-50 {at:.1f} {below})"'
        labels.append(_label(at, below, name, letters, turned))
    marks = "".join(_series(number, _group(block, number, group, slot, y)) for number, group in enumerate(block.groups))
    zero = f'<path class="axis" d="M{LEFT} {y(0):.1f}H{WIDTH - RIGHT}"/>'
    about = f"{block.title}: {block.y} of {len(block.names)}, groups: {', '.join(block.groups)}"
    chart = _svg(about, _y_grid(y, block.y) + "".join(labels) + zero, marks, height=height)
    looks = ((n, name, _swatch(n)) for n, name in enumerate(block.groups))
    return chart + _legend(looks) + _numbers(block)


def _bar_range(values: Sequence[float]) -> tuple[float, float]:
    """From or about 0, with room for the markers at the bars' ends."""
    low, high = _range([0, *values], 0.08)
    return (low if min(values) < 0 else 0), (high if max(values) > 0 or min(values) == 0 else 0)


def _group(block: Bars, number: int, group: str, slot: float, y: _Axis) -> str:
    """A bar for each name. The marker at its end tells the group where colour does not."""
    width = 0.8 * slot / len(block.groups)
    marks: list[str] = []
    for place, (name, value) in enumerate(zip(block.names, block.groups[group], strict=True)):
        if not _finite(value):
            continue
        left, top, size = LEFT + (place + 0.1) * slot + number * width, y(value), min(1, width / 11)
        at = f"translate({left + width / 2:.1f} {top + (7 if value < 0 else -7) * size:.1f}) scale({size:.2f})"
        bar = f'<path class="bar" d="M{left:.1f} {y(0):.1f}V{top:.1f}h{0.9 * width:.1f}V{y(0):.1f}z"/>'
        told = f"{name}\n{group}: {_number(value, block.percent_y)}"
        marks.append(_mark(f'{bar}<path {_marker(number)} transform="{at}"/>', told, not marks))
    return "".join(marks)


def _swatch(number: int) -> str:
    marker = f'<path {_marker(number)} transform="translate(22 7)"/>'
    return f'<path class="bar" d="M3 1h11v12h-11z"/>{marker}'


def _histogram(block: Histogram) -> str:
    if not (bins := _bins(block)):
        return NOTHING
    small = []
    for name, values in block.groups.items():
        shown, counts, low, high = _binned(values, bins)
        out = len(values) - shown
        said = f"{shown} values" + (f", {out} not finite left out" if out else "")
        chart = _small(block, name, counts, low, high) if shown else NOTHING
        small.append(f"<figure>{chart}<figcaption><b>{escape(name)}</b> {said}</figcaption></figure>")
    return f'<div class="small">{"".join(small)}</div>' + _numbers(block)


def _bins(block: Histogram) -> int:
    """How many, for all groups; 0 where there are no values."""
    most = max((sum(map(_finite, values)) for values in block.groups.values()), default=0)
    return min(max(math.ceil(math.sqrt(most)), 5), MOST_BINS) if most else 0


def _binned(values: Iterable[float], bins: int) -> tuple[int, list[int], float, float]:
    """(how many are finite, how many of them in each bin, from where, to where)."""
    shown = [value for value in values if _finite(value)]
    low, high = _range(shown, 0) if shown else (0, 1)
    counts = [0] * bins
    for value in shown:
        counts[min(int((value - low) / (high - low) * bins), bins - 1)] += 1
    return len(shown), counts, low, high


def _small(block: Histogram, name: str, counts: Sequence[int], low: float, high: float) -> str:
    """One group's histogram."""
    width, height, top = 240, 170, 24
    floor = height - BOTTOM
    x = _Axis(low, high, 12, width - 12)
    step, marks = (high - low) / len(counts), []
    for number, count in enumerate(counts):
        left, right = low + number * step, low + (number + 1) * step
        y = floor - (floor - top) * count / max(counts)
        bar = f'<path class="bar" d="M{x(left):.1f} {floor}V{y:.1f}H{x(right) - 1:.1f}V{floor}z"/>'
        marks.append(_mark(bar, f"{name}\n{_number(left)} to {_number(right)}: {count}", number == 0))
    drawing = "".join(
        (
            _label(12, 14, f"at most {max(counts)} a bin", 24),
            _label(12, floor + 20, _rounded(low), 12),
            _label(width - 12, floor + 20, _rounded(high), 12, 'class="end"'),
            _label(width / 2, height - 8, block.x, width // LETTER, 'class="mid name"'),
        )
    )
    about = f"{block.title}: {block.x} of {name}"
    return _svg(about, drawing, _series(0, "".join(marks)), width, height)


POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'"

STYLE = """
:root {
  color-scheme: light;
  --page: #f4f5f7; --surface: #fff; --ink: #1b1f24; --quiet: #555d68; --rule: #d5d9df; --strong: #e8eefb;
  --link: #1d4fa8; --yes: #17693a; --no: #b3261e; --more: #74a9e8; --less: #f0a35e;
  --c0: #2060c0; --c1: #e00040; --c2: #602040; --c3: #c00080; --c4: #8000e0; --c5: #0020a0; --c6: #a080c0;
  --c7: #60a000; --c8: #800020; --c9: #a08060; --c10: #e000e0; --c11: #602080; --c12: #c06080; --c13: #804000;
}
@media screen and (prefers-color-scheme: dark) { :root {
  color-scheme: dark;
  --page: #12151a; --surface: #1a1f27; --ink: #e8ebef; --quiet: #a9b2be; --rule: #39414d; --strong: #233250;
  --link: #8db8ff; --yes: #6fd394; --no: #ff9a92; --more: #2560ad; --less: #9a4d12;
  --c0: #4080e0; --c1: #e06000; --c2: #c0e0c0; --c3: #e0e000; --c4: #c06060; --c5: #00e0e0; --c6: #c0a0a0;
  --c7: #e040a0; --c8: #a08040; --c9: #e0c040; --c10: #a0a0e0; --c11: #a0c060; --c12: #60c080; --c13: #6080a0;
} }
* { box-sizing: border-box; }
[hidden] { display: none !important; }
body { max-width: 62rem; margin: 0 auto; padding: 1rem; background: var(--page); color: var(--ink);
  font: 1rem/1.5 system-ui, sans-serif; overflow-wrap: anywhere; }
h1, h2, h3 { line-height: 1.25; margin: 0 0 .5rem; }
h2 { margin-top: 2.5rem; padding-bottom: .3rem; border-bottom: 2px solid var(--rule); }
h3 { font-size: 1.1rem; }
p { max-width: 46rem; margin: 0 0 1rem; }
a { color: var(--link); }
header p, .note, .detail, .none, #help { color: var(--quiet); }
.note, #help { font-size: .9rem; margin: .75rem 0 0; }
:focus-visible { outline: 3px solid var(--link); outline-offset: 2px; }
main:focus { outline: none; }
.skip { position: absolute; left: -99rem; padding: .5rem 1rem; background: var(--surface); }
.skip:focus { left: 1rem; }
ul { list-style: none; margin: 0; padding: 0; }
nav ul, .legend { display: flex; flex-wrap: wrap; gap: .25rem 1.25rem; }
.figure { margin: 1rem 0; padding: 1rem; background: var(--surface); border: 1px solid var(--rule);
  border-radius: .5rem; }
.scroll { overflow: auto; max-width: 100%; }
table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums; overflow-wrap: normal; }
th, td { padding: .35rem .6rem; text-align: right; white-space: nowrap; border-bottom: 1px solid var(--rule); }
thead th { vertical-align: bottom; white-space: normal; min-width: 4rem; max-width: 12rem; color: var(--quiet); }
tr > th:first-child { position: sticky; left: 0; min-width: min(9rem, 30vw); max-width: min(16rem, 40vw);
  text-align: left; white-space: normal; overflow-wrap: anywhere; background: var(--surface); }
tbody th { font-weight: normal; }
.strong > *, .strong > th:first-child { background: var(--strong); font-weight: bold; }
.strong > th { box-shadow: inset 4px 0 var(--link); }
.heat td, .heat th { padding: .35rem; border: 1px solid var(--surface); text-align: center; }
.heat td[style] { background: color-mix(in srgb, var(--end) var(--share), var(--surface)); min-width: 3.2rem; }
.heat thead th { min-width: 0; }
.heat thead span { writing-mode: vertical-rl; transform: rotate(180deg); max-height: 11rem; text-align: left;
  white-space: nowrap; overflow: hidden; text-overflow: ellipsis; }
.scale { display: flex; gap: .5rem; align-items: center; margin: .75rem 0 0; font-size: .9rem; }
.scale :nth-child(2) { width: 10rem; height: .8rem; border: 1px solid var(--rule); }
.one { background: linear-gradient(90deg, var(--surface), var(--more)); }
.two { background: linear-gradient(90deg, var(--less), var(--surface), var(--more)); }
.checks li { display: flex; gap: .25rem 1rem; padding: .35rem 0; border-top: 1px solid var(--rule); }
.state { flex: 0 0 10rem; font-weight: bold; color: var(--quiet); }
.yes .state { color: var(--yes); }
.no .state { color: var(--no); }
.figure > svg { display: block; width: 100%; max-width: 46rem; }
svg text { fill: var(--ink); font-size: 12px; }
svg .name { fill: var(--quiet); }
svg .end { text-anchor: end; }
svg .mid { text-anchor: middle; }
.grid, .axis { fill: none; stroke: var(--rule); }
.axis { stroke: var(--quiet); }
.line { fill: none; stroke: var(--c); stroke-width: 2; stroke-linejoin: round; }
.band { fill: var(--c); opacity: .15; }
.whisker { fill: none; stroke: var(--c); opacity: .6; }
.marker, .bar { fill: var(--c); stroke: var(--c); }
.marker { stroke-width: 1.2; }
.bar { fill-opacity: .75; stroke-width: .5; }
.hollow { fill: var(--surface); stroke-width: 1.8; }
.mark:focus, .mark:focus-visible { outline: none; }
.mark:focus-visible path, .mark.near path { stroke: var(--ink); stroke-width: 2.5; }
g.off { display: none; }
.legend { margin: .75rem 0 0; gap: .25rem; }
.legend button { display: flex; gap: .5rem; align-items: center; min-height: 2rem; padding: .15rem .5rem;
  font: inherit; font-size: .9rem; color: inherit; text-align: left; background: none; border: 1px solid transparent;
  border-radius: .3rem; cursor: pointer; }
.legend button:hover { border-color: var(--rule); }
.legend [aria-pressed=false] { color: var(--quiet); text-decoration: line-through; }
.legend [aria-pressed=false] svg { opacity: .3; }
.swatch { flex: none; width: 2rem; height: 1rem; }
.small { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(11rem, 45%), 1fr)); gap: 1rem; }
.small svg { display: block; width: 100%; }
figure { margin: 0; font-size: .9rem; }
details { margin: .75rem 0 0; }
summary { cursor: pointer; color: var(--link); }
details .scroll { max-height: 24rem; margin-top: .5rem; }
#tip { position: fixed; z-index: 2; max-width: min(20rem, 90vw); padding: .4rem .6rem; font-size: .9rem;
  white-space: pre-line; color: var(--page); background: var(--ink); border-radius: .3rem; pointer-events: none; }
@media (max-width: 40rem) {
  body { padding: .5rem; }
  .figure { padding: .75rem .5rem; }
  svg text { font-size: 16px; }
  .checks li { flex-direction: column; }
  .state { flex-basis: auto; }
}
@page { size: landscape; margin: 12mm; }
@media print {
  table { font-size: 7pt; }
  th, td { padding: .15rem .3rem; white-space: normal; }  /* rather than cut off */
  thead th, tr > th:first-child { position: static; min-width: 0; overflow-wrap: normal; }
  nav, .skip, #help, #tip, summary { display: none; }
  body { max-width: none; background: none; }
  h2, h3 { break-after: avoid; }
  figure, .figure > svg, .checks li, tr { break-inside: avoid; }
  .figure { border: none; padding: 0; }
  .scroll, details .scroll { overflow: visible; max-height: none; }
  * { print-color-adjust: exact; }
}
"""

SCRIPT = """
"use strict";
const tip = document.getElementById("tip");
const REACH = 20;
let shown = null;

function hide() {
  shown?.classList.remove("near");
  shown = null;
  tip.hidden = true;
}

function show(mark) {
  hide();
  shown = mark;
  mark.classList.add("near");
  tip.textContent = mark.getAttribute("aria-label");
  tip.hidden = false;
  const box = mark.getBoundingClientRect();
  const left = box.left + box.width / 2 - tip.offsetWidth / 2;
  const above = box.top - tip.offsetHeight - 8;
  tip.style.left = Math.max(4, Math.min(left, document.documentElement.clientWidth - tip.offsetWidth - 4)) + "px";
  tip.style.top = (above > 4 ? above : box.bottom + 8) + "px";
}

function distance(mark, event) {
  const box = mark.getBoundingClientRect();
  const [x, y] = [event.clientX, event.clientY];
  return Math.hypot(Math.max(box.left - x, 0, x - box.right), Math.max(box.top - y, 0, y - box.bottom));
}

function nearest(chart, event) {
  let [found, least] = [null, REACH];
  for (const mark of chart.querySelectorAll("g:not(.off) > .mark")) {
    const far = distance(mark, event);
    if (far < least) [found, least] = [mark, far];
  }
  return found;
}

function point(event) {
  const mark = nearest(event.currentTarget, event);
  if (!mark) hide();
  else if (mark !== shown) show(mark);
}

function step(event) {
  const side = {ArrowLeft: "previous", ArrowRight: "next"}[event.key];
  const other = side && event.currentTarget[side + "ElementSibling"];
  if (!side) return;
  event.preventDefault();
  other?.focus();
}

function toggle(button) {
  const pressed = button.getAttribute("aria-pressed") !== "true";
  button.setAttribute("aria-pressed", pressed);
  for (const group of button.closest(".figure").querySelectorAll("g[data-series]"))
    if (group.dataset.series === button.dataset.series) group.classList.toggle("off", !pressed);
  hide();
}

for (const mark of document.querySelectorAll(".mark")) {
  const title = mark.querySelector("title");
  mark.setAttribute("aria-label", title.textContent);
  title.remove();
  mark.addEventListener("focus", () => show(mark));
  mark.addEventListener("blur", hide);
  mark.addEventListener("keydown", step);
}
for (const chart of document.querySelectorAll("svg[role=group]")) {
  chart.addEventListener("pointermove", point);
  chart.addEventListener("pointerdown", point);
  chart.addEventListener("pointerleave", hide);
}
for (const button of document.querySelectorAll(".legend button"))
  button.addEventListener("click", () => toggle(button));
document.addEventListener("keydown", (event) => { if (event.key === "Escape") hide(); });
document.addEventListener("scroll", () => { if (shown) show(shown); }, true);
document.getElementById("help").hidden = !document.querySelector(".mark");
"""
