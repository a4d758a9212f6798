"""A report as one HTML page that loads no other file: text, tables and charts.

What a caller passes is text and never markup. The same input makes the same page. The libraries that draw the charts
are in the page once. Without JavaScript, the numbers of a chart are in the table below it.
"""

from __future__ import annotations

import base64
import dataclasses
import functools
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import altair as alt
import jinja2
from markupsafe import Markup

from prune_fe.charts.theme import COLOURS, CONFIG, specification


@dataclass(frozen=True)
class Text:
    """A paragraph."""

    kind: ClassVar[str] = "text"
    text: str


@dataclass(frozen=True)
class PageTable:
    """A table; the first cell of each row is its heading.

    Attributes:
        title: What the table holds.
        columns: Headings of the columns.
        rows: Cells, as they are printed.
        note: A remark below the table.
        highlight: Numbers of the rows, from 0, that are emphasised.
        shades: For each row the shade of each cell behind the heading, from -1 to 1, or None; empty: no cell has one.
        is_prose: Whether the cells hold words, which are wrapped, rather than numbers.
    """

    kind: ClassVar[str] = "table"
    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""
    highlight: Sequence[int] = ()
    shades: Sequence[Sequence[float | None]] = ()
    is_prose: bool = False

    @property
    def is_empty(self) -> bool:
        """Whether there is no row."""
        return not self.rows

    def without_empty_columns(self) -> PageTable:
        """Return the table without the columns that are empty in every row: a page is silent about what was not run."""
        kept = [number for number, _ in enumerate(self.columns) if any(row[number] for row in self.rows)]
        columns = [self.columns[number] for number in kept]
        rows = [[row[number] for number in kept] for row in self.rows]
        return dataclasses.replace(self, columns=columns, rows=rows)


@dataclass(frozen=True)
class Charts:
    """One chart, or several small ones side by side, and their numbers.

    Attributes:
        numbers: Every number of the charts. Its title and its note are those of the block.
        charts: Caption -> chart; the caption of a single chart is empty.
    """

    kind: ClassVar[str] = "chart"
    numbers: PageTable
    charts: Mapping[str, alt.TopLevelMixin] = field(default_factory=dict)

    @property
    def title(self) -> str:
        """Title of the block."""
        return self.numbers.title

    @property
    def note(self) -> str:
        """Remark below the block."""
        return self.numbers.note

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to draw."""
        return self.numbers.is_empty or not self.charts


@dataclass(frozen=True)
class Checklist:
    """Requirements and whether each is met.

    Attributes:
        title: What the list is about.
        entries: (requirement, whether it is met or None where it does not apply, detail).
    """

    kind: ClassVar[str] = "checklist"
    note: ClassVar[str] = ""
    title: str
    entries: Sequence[tuple[str, bool | None, str]]

    @property
    def is_empty(self) -> bool:
        """Whether there is no requirement."""
        return not self.entries


@dataclass(frozen=True)
class Figures:
    """A few numbers that are read first, large.

    Attributes:
        title: What the numbers are about.
        figures: (number with its unit, what it is).
    """

    kind: ClassVar[str] = "figures"
    note: ClassVar[str] = ""
    is_empty: ClassVar[bool] = False
    title: str
    figures: Sequence[tuple[str, str]]


@dataclass(frozen=True)
class Fold:
    """Blocks that are hidden until the reader opens them.

    Attributes:
        title: What is inside.
        blocks: The content.
    """

    kind: ClassVar[str] = "fold"
    title: str
    blocks: Sequence[Text | PageTable | Charts]


@dataclass(frozen=True)
class Row:
    """Blocks side by side, where the page is wide enough.

    Attributes:
        blocks: The content.
    """

    kind: ClassVar[str] = "row"
    blocks: Sequence[Charts]


Block = Text | PageTable | Charts | Checklist | Figures | Fold | Row


@dataclass(frozen=True)
class Section:
    """A heading and what is below it."""

    title: str
    blocks: Sequence[Block]


def render_page(title: str, subtitle: str, sections: Sequence[Section]) -> str:
    """Return the HTML document.

    Args:
        title: Title of the document and its first heading.
        subtitle: A line below it.
        sections: The content; each section is in the navigation at the top.

    Returns:
        A document that asks for nothing from the network.
    """
    specifications: list[dict[str, Any]] = []
    contents = [
        {"title": section.title, "blocks": [_content(block, specifications) for block in section.blocks]}
        for section in sections
    ]
    library, script = (_library(), _source("page.js")) if specifications else ("", "")
    document = (
        _environment()
        .get_template("page.html")
        .render(
            title=title,
            subtitle=subtitle,
            sections=contents,
            charts={"config": CONFIG, "specifications": specifications} if specifications else None,
            policy=_policy([library, script] if specifications else []),
            style=Markup(_environment().from_string(_source("page.css")).render({m: _variables(m) for m in COLOURS})),
            library=Markup(library),
            script=Markup(script),
        )
    )
    # Names of files may hold surrogates, which UTF-8 cannot express.
    return document.encode("utf-8", "replace").decode("utf-8")


def _content(block: Block, specifications: list[dict[str, Any]]) -> Any:
    """Return a block as the template takes it; the specifications of its charts are appended to the list."""
    if isinstance(block, Fold | Row):
        contents = [_content(each, specifications) for each in block.blocks]
        return {"kind": block.kind, "title": getattr(block, "title", ""), "blocks": contents}
    if not isinstance(block, Charts):
        return block
    charts = []
    for caption, chart in block.charts.items():
        content = {key: value for key, value in specification(chart).items() if key not in ("config", "$schema")}
        label = f"{block.title}, {caption}" if caption else block.title
        charts.append({"number": len(specifications), "caption": caption, "label": label})
        specifications.append(content)
    return {
        "kind": block.kind,
        "title": block.title,
        "note": block.note,
        "is_empty": block.is_empty,
        "numbers": block.numbers,
        "charts": charts,
    }


def _policy(scripts: Sequence[str]) -> str:
    """Return the Content-Security-Policy: nothing is loaded, and no script runs but these."""
    digests = [base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts]
    allowed = " ".join(f"'sha256-{digest}'" for digest in digests) or "'none'"
    return f"default-src 'none'; style-src 'unsafe-inline'; script-src {allowed}"


def _variables(mode: str) -> str:
    """Return the colours of a mode as variables of a style sheet."""
    return " ".join(f"--{name}: {colour};" for name, colour in COLOURS[mode].items())


@functools.cache
def _library() -> str:
    """Return the JavaScript of Vega, Vega-Lite and Vega-Embed, which sets the global `vegaEmbed`."""
    import vl_convert

    version = ".".join(alt.SCHEMA_VERSION.split(".")[:2])
    bundle = vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;", vl_version=version)
    # The end tag of a script ends it, wherever it stands.
    return bundle.replace("</script", "<\\/script")


@functools.cache
def _environment() -> jinja2.Environment:
    loader = jinja2.PackageLoader("prune_fe.report")
    return jinja2.Environment(
        loader=loader, autoescape=True, undefined=jinja2.StrictUndefined, keep_trailing_newline=True
    )


def _source(name: str) -> str:
    """Return the text of a file beside the templates."""
    loader = _environment().loader
    assert loader is not None
    return loader.get_source(_environment(), name)[0]
