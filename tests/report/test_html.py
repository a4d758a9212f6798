"""The page of a report: sound markup, every number, nothing from elsewhere, and the same in a real browser."""

import dataclasses
import math
import re
import shutil
import subprocess
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import pytest

from prune_fe.report.html import (
    Bars,
    Block,
    Checklist,
    Heatmap,
    Histogram,
    Line,
    Lines,
    Point,
    Section,
    Table,
    Text,
    page,
)

HOSTILE = "</script><script>alert(1)</script>"
QUOTED = '" onload="alert(2)" \' & <b>'
VOID = {"meta"}
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


class Document(HTMLParser):
    """Reads a page; AssertionError where an end tag does not fit the tag that is open."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.text = ""
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        names = [name for name, _ in attrs]
        assert len(names) == len(set(names)), tag
        self.tags.append((tag, {name: value or "" for name, value in attrs}))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] not in ("script", "style"):
            self.text += data

    def all(self, tag: str, **attributes: str) -> list[dict[str, str]]:
        return [found for name, found in self.tags if name == tag and attributes.items() <= found.items()]


def read(*blocks: Block) -> Document:
    return Document(page("Report", "of tests", [Section("Part", blocks)]))


def sections(name: str) -> list[Section]:
    """One block of each kind, in which every text is `name`."""
    points = [Point(10, 0.25, 0.2, 0.3, name), Point(100, 0.75)]
    groups = {name: [1.0, math.nan, 2.5], f"{name}2": [-1.0, 2.0, 7.0]}
    return [
        Section(name, [Text(name), Table(name, [name, name], [[name, name], ["other", "1.5"]], name, (0,))]),
        Section(name, [Lines(name, name, name, [Line(name, points), Line("other", points, True)], name, True, True)]),
        Section(name, [Heatmap(name, [name, "other"], [[1, -0.5], [None, 1]], -1, 1, name)]),
        Section(name, [Histogram(name, name, groups, name), Bars(name, name, [name, "b", "c"], groups, name)]),
        Section(name, [Checklist(name, [(name, True, name), ("b", False, ""), ("c", None, "")])]),
    ]


@pytest.fixture(scope="module")
def whole():
    return page("Criteria", "compared", sections("feature-entropy"))


def test_the_page_is_sound_and_needs_nothing_else(whole):
    document = Document(whole)
    policy = document.all("meta", **{"http-equiv": "Content-Security-Policy"})[0]["content"]
    assert whole.startswith("<!doctype html>")
    assert policy.startswith("default-src 'none'")
    assert not re.search(r"https?://|url\(|@import| src=|<link", whole)
    assert document.all("html", lang="en")
    assert document.all("meta", name="viewport")


def test_headings_come_in_order_and_links_lead_to_sections(whole):
    document = Document(whole)
    levels = [int(tag[1]) for tag, _ in document.tags if re.fullmatch(r"h\d", tag)]
    ids = [attributes["id"] for _, attributes in document.tags if "id" in attributes]
    links = [link["href"].removeprefix("#") for link in document.all("a")]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in pairwise(levels))
    assert len(ids) == len(set(ids))
    assert len(links) == 6
    assert set(links) <= set(ids)


@pytest.mark.parametrize("name", [HOSTILE, QUOTED, "ü × 熵 \U0001f600", "a" * 400])
def test_text_is_never_markup(name):
    document = Document(page(name, name, sections(name)))
    assert len(document.all("script")) == 1
    assert not any(key.startswith("on") for _, attributes in document.tags for key in attributes)
    assert document.text.count(name) > 20


def test_half_a_character_can_be_written():
    assert "a?b" in page("a\ud800b", "", [])


def test_same_input_makes_the_same_page(whole):
    assert page("Criteria", "compared", sections("feature-entropy")) == whole


def test_every_number_stands_in_a_table_below_its_chart():
    points = [Point(x, x / 7, x / 8, x / 6, f"seed {x}") for x in range(1, 5)]
    document = read(Lines("t", "units", "loss", [Line("a", points)]))
    assert len(document.all("details")) == 1
    for point in points:
        for number in (point.x, point.y, point.low, point.high):
            assert f"{number:.6g}" in document.text
        assert point.text in document.text


def test_percentages():
    document = read(
        Lines("t", "x", "y", [Line("a", [Point(0, 0.0), Point(1, 1.0)])], percent_y=True),
        Bars("t", "y", ["n"], {"g": [-0.125]}, percent_y=True),
    )
    assert {"0 %", "20 %", "100 %", "-12.50 %"} <= set(re.findall(r"-?[\d.]+ %", document.text))


@pytest.mark.parametrize(
    ("high", "labels"), [(200, ["1", "10", "50", "100"]), (5e9, ["1", "100", "10k", "1M", "100M"])]
)
def test_logarithmic_ticks_are_round(high, labels):
    text = page("", "", [Section("", [Lines("", "x", "y", [Line("a", [Point(1, 1), Point(high, 2)])], log_x=True)])])
    found = re.findall(r'class="mid">([^<]+)<', text)
    assert set(labels) <= set(found)
    assert len(found) <= 10


@pytest.mark.parametrize(
    "points",
    [
        [Point(1, 2)],
        [Point(3, 0.0), Point(3, 0.0)],
        [Point(0, 1), Point(-5, 1), Point(2, 1)],
        [Point(1e-9, -1e-12), Point(2e-9, 3e-12)],
        [Point(-1e199, 1e199), Point(1e199, -1e199)],
        [Point(5e-324, 5e-324), Point(1, 0)],
        [Point(1e12 + 1, 1e15), Point(1e12, 1e15 + 1)],
        [Point(1, 1, 0, math.inf), Point(2, 1, None, 2), Point(4, 1, math.nan, 2), Point(5, math.nan)],
    ],
)
@pytest.mark.parametrize("log_x", [False, True])
def test_odd_points_are_drawn_where_they_can_be(points, log_x):
    line = Line("a", [*points, Point(math.nan, 1), Point(1, math.inf)])
    text = page("", "", [Section("", [Lines("t", "x", "y", [line, Line("empty", [])], log_x=log_x)])])
    kept = [p for p in points if math.isfinite(p.y) and (p.x > 1e-200 or not log_x)]
    assert text.count('class="mark"') == len(kept)
    assert "empty" not in text
    drawn = "".join(re.findall(r'(?:d|transform|x|y)="([^"]*)"', text))
    assert not re.search("nan|inf", drawn)


@pytest.mark.parametrize(
    "block",
    [
        Table("t", ["a"], []),
        Lines("t", "x", "y", []),
        Lines("t", "x", "y", [Line("a", []), Line("b", [Point(math.nan, 1)])]),
        Lines("t", "x", "y", [Line("a", [Point(0, 1)])], log_x=True),
        Heatmap("t", [], [], 0, 1),
        Histogram("t", "x", {}),
        Histogram("t", "x", {"a": [], "b": [math.inf]}),
        Bars("t", "y", [], {}),
        Bars("t", "y", ["a"], {"g": [None]}),
        Checklist("t", []),
    ],
)
def test_nothing_to_show_is_said(block):
    assert read(block).text.count("no data yet") == 1


@pytest.mark.parametrize(
    "block",
    [
        Heatmap("t", ["a", "b"], [[1, 2]], 0, 1),
        Heatmap("t", ["a", "b"], [[1, 2], [3]], 0, 1),
        Bars("t", "y", ["a", "b"], {"g": [1.0]}),
    ],
)
def test_values_that_do_not_fit_their_names(block):
    with pytest.raises(ValueError, match="zip"):
        read(block)


def test_a_table_has_headings_and_emphasised_rows():
    document = read(Table("t", ["scorer", "accuracy"], [["l1", "0.9"], ["random", "0.8"]], "of 3 seeds", [1]))
    assert len(document.all("th", scope="row")) == 2
    assert len(document.all("th", scope="col")) == 2
    assert len(document.all("tr", **{"class": "strong"})) == 1
    assert document.all("div", role="region", tabindex="0", **{"aria-label": "t"})
    assert "of 3 seeds" in document.text


@pytest.mark.parametrize(("low", "high"), [(-1, 1), (0, 1), (-2, -1), (0.5, 0.5)])
def test_a_heatmap_prints_each_value_and_colours_what_is_finite(low, high):
    document = read(Heatmap("t", ["a", "b"], [[1, -0.375], [None, math.nan]], low, high, form=".3f"))
    styles = [cell["style"] for cell in document.all("td") if "style" in cell]
    assert "1.000-0.375" in document.text
    assert document.text.count("–") == 2
    assert len(styles) == 2
    assert all(re.match(r"--share:\d{1,3}%;", style) for style in styles)


def test_histograms_count_every_finite_value_in_the_same_number_of_bins():
    groups = {"a": [float(x) for x in range(100)], "b": [1.0, 1.0, math.nan, -math.inf], "c": [math.nan]}
    document = read(Histogram("t", "score", groups))
    assert len(document.all("svg", role="group")) == 2
    assert len(document.all("g", **{"class": "mark"})) == 20
    assert "2 values, 2 not finite left out" in document.text
    assert document.text.count("no data yet") == 1


def test_bars_reach_below_zero_and_leave_out_what_is_missing():
    document = read(Bars("t", "y", ["n" * 50, "m"], {"g": [-2.0, 3.0], "h": [None, 0.0], "i": [math.inf, 1.0]}))
    assert len(document.all("g", **{"class": "mark"})) == 4
    assert len(document.all("button", **{"aria-pressed": "true"})) == 3
    assert "n" * 14 + "…" in document.text


def test_fourteen_lines_differ_without_colour():
    lines = [Line(str(number), [Point(number, number)]) for number in range(14)]
    document = read(Lines("t", "x", "y", lines))
    markers = [(m["class"], m["d"]) for m in document.all("path") if m.get("class", "").startswith("marker")]
    assert len(markers) == 28
    assert len(set(markers)) == 14


def test_few_lines_have_bands_and_many_whiskers():
    points = [Point(x, x, x - 1, x + 1) for x in (1, 2)]
    for number, kind in ((2, "band"), (9, "whisker")):
        document = read(Lines("t", "x", "y", [Line(str(n), points) for n in range(number)]))
        assert len(document.all("path", **{"class": kind})) == number


def test_the_keyboard_reaches_each_line_and_chart_parts_have_names(whole):
    document = Document(whole)
    groups = [attributes for tag, attributes in document.tags if attributes.get("role") in ("img", "group", "region")]
    named = [g for g in groups if g.get("class") != "mark"]
    assert all(g["aria-label"] for g in named)
    assert len(document.all("g", **{"class": "mark", "tabindex": "0"})) == 2 + 2 + 2
    assert whole.count('class="mark"') == len(re.findall(r'class="mark"[^>]*><title>', whole))


def test_a_checklist_says_each_state_in_words():
    text = read(Checklist("t", [("a", True, "x"), ("b", False, ""), ("c", None, "")])).text
    assert "1 of 2 reported" in text
    assert all(state in text for state in ("✓ reporteda x", "✗ missingb", "– does not applyc"))


def test_blocks_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Text("a").text = "b"  # type: ignore[misc]


PROBE = """<script>
addEventListener("load", () => {
  const [first, second] = document.querySelectorAll(".mark");
  second.focus();
  const told = document.getElementById("tip").textContent;
  second.dispatchEvent(new KeyboardEvent("keydown", {key: "ArrowLeft"}));
  const moved = document.activeElement === first;
  document.querySelector(".legend button").click();
  const hidden = document.querySelectorAll("g.off").length;
  const wide = document.documentElement.scrollWidth;
  const found = [told, moved, hidden, innerWidth, wide <= innerWidth].join("|").replaceAll("\\n", "; ");
  document.body.append(found);
  parent.postMessage(found, "*");
});
</script>"""
PHONE = """<!doctype html><body><iframe style="width: 360px; border: 0" src="page.html"></iframe>
<script>addEventListener("message", (event) => document.body.append(event.data));</script>"""


def browse(folder: Path, name: str) -> str:
    """The document as the browser has it, after it has run the scripts without complaint."""
    flags = "--headless=new --no-sandbox --disable-gpu --dump-dom --enable-logging=stderr --v=0"
    own = ["--virtual-time-budget=2000", f"--user-data-dir={folder / 'browser'}", (folder / name).as_uri()]
    done = subprocess.run([str(CHROMIUM), *flags.split(), *own], capture_output=True, text=True, timeout=60, check=True)
    assert "CONSOLE" not in done.stderr, done.stderr
    return done.stdout


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on PATH")
def test_in_a_browser(tmp_path):
    """The page by itself, then in a frame as wide as a phone: a browser's own window may be no narrower than 500."""
    blocks: list[Block] = [Text("w" * 500), Table("wide", ["a long column"] * 20, [["cell " * 5] * 20])]
    text = page("t", "s", [Section("first", blocks), *sections("a criterion"), *sections("w" * 200)])
    (tmp_path / "page.html").write_text(text.replace("</body>", PROBE + "</body>"), encoding="utf-8")
    (tmp_path / "phone.html").write_text(PHONE, encoding="utf-8")
    told = "a criterion; a criterion: 100; a criterion: 75.00 %|true|2|"
    document = browse(tmp_path, "page.html")
    assert (
        'aria-label="a criterion\na criterion: 10\na criterion: 25.00 % (20.00 % to 30.00 %)\na criterion"' in document
    )
    assert document.count("<h2>") == 11
    assert told in document
    assert f"{told}360|true" in browse(tmp_path, "phone.html")
