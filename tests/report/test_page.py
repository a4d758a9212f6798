"""The page of a report: sound markup, every number, nothing from elsewhere, and the same in a real browser."""

import base64
import dataclasses
import hashlib
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import pandas as pd
import pytest

from prune_fe.charts import criterion_bars, histogram, layer_profile, trade_off
from prune_fe.charts.theme import COLOURS
from prune_fe.report.page import Block, Charts, Checklist, Figures, Fold, PageTable, Row, Section, Text, render_page

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
        self.scripts: list[str] = []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        names = [name for name, _ in attrs]
        assert len(names) == len(set(names)), tag
        self.tags.append((tag, {name: value or "" for name, value in attrs}))
        if tag == "script":
            self.scripts.append("")
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] == "script":
            self.scripts[-1] += data
        elif self.open and self.open[-1] != "style":
            self.text += data

    def all(self, tag: str, **attributes: str) -> list[dict[str, str]]:
        return [found for name, found in self.tags if name == tag and attributes.items() <= found.items()]

    @property
    def policy(self) -> str:
        return self.all("meta", **{"http-equiv": "Content-Security-Policy"})[0]["content"]

    @property
    def specifications(self) -> list[dict]:
        return json.loads(self.scripts[0])["specifications"]


def read(*blocks: Block) -> Document:
    return Document(render_page("Report", "of tests", [Section("Part", blocks)]))


def frame(name: str) -> pd.DataFrame:
    rows = [(name, x, x / 400, x / 500, x / 300, name) for x in (10.0, 100.0)] + [("other", 50.0, 0.5, 0.5, 0.5, "")]
    return pd.DataFrame(rows, columns=["criterion", "x", "accuracy", "low", "high", "detail"])


def sections(name: str) -> list[Section]:
    """One block of each kind, in which every text is `name`."""
    table = PageTable(name, [name, "number"], [[name, name], ["other", "1.5"]], name, (0,))
    bars = pd.DataFrame({"criterion": [name, name], "quantity": [name, "b"], "value": [1.0, -2.0]})
    bins = pd.DataFrame({"start": [0.0, 1.0], "end": [1.0, 2.0], "count": [3, 4]})
    layers = pd.DataFrame({"criterion": [name, "b"], "depth": [1, 1], "layer": [name, name], "value": [0.5, 0.25],
                           "low": [0.5, 0.25], "high": [0.5, 0.25]})  # fmt: skip
    return [
        Section(name, [Text(name), table]),
        Section(name, [Charts(table, {"": trade_off(frame(name), name, name, ["other"])})]),
        Section(name, [PageTable(name, ["", name], [[name, "1.00"]], name, shades=[[1.0]])]),
        Section(name, [Charts(table, {name: histogram(bins, name, name), "b": histogram(bins, name, name)})]),
        Section(name, [Charts(table, {"": criterion_bars(bars, name, name)}),
                       Charts(table, {"": layer_profile(layers, name, name)})]),
        Section(name, [Checklist(name, [(name, True, name), ("b", False, ""), ("c", None, "")])]),
    ]  # fmt: skip


@pytest.fixture(scope="module")
def whole():
    return render_page("Criteria", "compared", sections("feature-entropy"))


def test_the_page_is_sound_and_needs_nothing_else(whole):
    document = Document(whole)
    assert whole.startswith("<!doctype html>")
    # What the library holds of addresses, the policy forbids to load.
    without_library = whole.replace(document.scripts[1], "")
    assert not re.search(r"https?://|url\(| src=|<link|@import", without_library)
    assert document.all("html", lang="en")
    assert document.all("meta", name="viewport")


def test_no_script_runs_but_the_pages_own(whole):
    document = Document(whole)
    digests = [base64.b64encode(hashlib.sha256(s.encode()).digest()).decode() for s in document.scripts[1:]]
    assert len(digests) == 2
    allowed = " ".join(f"'sha256-{digest}'" for digest in digests)
    assert document.policy == f"default-src 'none'; style-src 'unsafe-inline'; script-src {allowed}"
    assert document.all("script")[0]["type"] == "application/json"


def test_the_library_is_there_once_and_only_with_a_chart(whole):
    assert whole.count("window.vegaEmbed") == 1
    plain = read(Text("a"), PageTable("t", ["a"], [["b"]]))
    assert plain.all("script") == []
    assert "script-src 'none'" in plain.policy


def test_headings_come_in_order_and_links_lead_to_sections(whole):
    document = Document(whole)
    levels = [int(tag[1]) for tag, _ in document.tags if re.fullmatch(r"h\d", tag)]
    ids = [attributes["id"] for _, attributes in document.tags if "id" in attributes]
    links = [link["href"].removeprefix("#") for link in document.all("a")]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in pairwise(levels))
    assert len(ids) == len(set(ids))
    assert len(links) == 7
    assert set(links) <= set(ids)


@pytest.mark.parametrize("name", [HOSTILE, QUOTED, "ü × 熵 \U0001f600", "a" * 400])
def test_text_is_never_markup(name):
    document = Document(render_page(name, name, sections(name)))
    assert len(document.all("script")) == 3
    assert not any(key.startswith("on") for _, attributes in document.tags for key in attributes)
    assert document.text.count(name) > 20
    assert json.dumps(document.specifications, ensure_ascii=False).count(json.dumps(name, ensure_ascii=False)[1:-1]) > 5


def test_half_a_character_can_be_written():
    assert "a?b" in render_page("a\ud800b", "", [])


def test_same_input_makes_the_same_page(whole):
    assert render_page("Criteria", "compared", sections("feature-entropy")) == whole


def test_a_chart_has_its_numbers_below_it_and_a_name():
    numbers = PageTable("A chart", ["criterion", "x"], [["a", "0.125"]], "A note.")
    document = read(Charts(numbers, {"": trade_off(frame("a"), "x", "t")}))
    assert len(document.all("details")) == 1
    assert document.all("div", role="region", **{"aria-label": "A chart"})
    assert document.all("div", role="group", tabindex="0", **{"data-chart": "0", "aria-label": "A chart"})
    for words in ("0.125", "A note.", "Numbers"):
        assert words in document.text


def test_charts_are_numbered_over_the_whole_page(whole):
    document = Document(whole)
    numbers = [attributes["data-chart"] for tag, attributes in document.tags if "data-chart" in attributes]
    assert numbers == [str(number) for number in range(len(document.specifications))] == ["0", "1", "2", "3", "4"]


@pytest.mark.parametrize(
    "block",
    [
        PageTable("t", ["a"], []),
        Charts(PageTable("t", ["a"], [])),
        Charts(PageTable("t", ["a"], [["b"]])),
        Checklist("t", []),
    ],
)
def test_nothing_to_show_is_said(block):
    assert read(block).text.count("no data yet") == 1


def test_a_table_has_headings_and_emphasised_rows():
    document = read(PageTable("t", ["scorer", "accuracy"], [["l1", "0.9"], ["random", "0.8"]], "of 3 seeds", [1]))
    assert len(document.all("th", scope="row")) == 2
    assert len(document.all("th", scope="col")) == 2
    assert len(document.all("tr", **{"class": "strong"})) == 1
    assert document.all("div", role="region", tabindex="0", **{"aria-label": "t"})
    assert "of 3 seeds" in document.text


def test_cells_are_shaded_by_their_value():
    rows = [["a", "1.00", "-0.38"], ["b", "–", "0.00"]]
    shades: list[list[float | None]] = [[1.0, -0.375], [None, 0.0]]
    document = read(PageTable("t", ["", "a", "b"], rows, shades=shades))
    styles = [cell.get("style") for cell in document.all("td")]
    assert styles == ["--share:100%;--end:var(--more)", "--share:38%;--end:var(--less)", None,
                      "--share:0%;--end:var(--more)"]  # fmt: skip


def test_a_fold_and_a_row_hold_blocks():
    chart = Charts(PageTable("A chart", ["x"], [["1"]]), {"": trade_off(frame("a"), "x", "t")})
    document = read(Fold("More", [Text("hidden"), chart]), Row([chart, chart]))
    assert [each["class"] for each in document.all("details") if "class" in each] == ["fold"]
    assert len(document.specifications) == 3
    assert "More" in document.text
    assert "hidden" in document.text
    assert len(document.all("div", **{"class": "row"})) == 1


def test_figures_are_terms_with_their_meaning():
    document = read(Figures("A network", [("25 %", "of the multiply-adds"), ("2×", "as fast")]))
    assert len(document.all("dt")) == len(document.all("dd")) == 2
    assert "25 %of the multiply-adds" in document.text


def test_a_checklist_says_each_state_in_words():
    text = read(Checklist("t", [("a", True, "x"), ("b", False, ""), ("c", None, "")])).text
    assert re.search(r"1 of\s+2 reported", text)
    assert all(state in text for state in ("✓ reporteda x", "✗ missingb", "– does not applyc"))


def test_both_modes_have_every_colour(whole):
    for mode in ("light", "dark"):
        for name, colour in COLOURS[mode].items():
            assert f"--{name}: {colour};" in whole


def test_blocks_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Text("a").text = "b"  # type: ignore[misc]


PROBE = """
addEventListener("load", () => setTimeout(() => {
  const chart = document.querySelector(".chart");
  const key = (element, name) => element.dispatchEvent(new KeyboardEvent("keydown", {key: name, bubbles: true}));
  const interactive = document.querySelectorAll(".chart")[4];
  const visible = () => [...interactive.querySelectorAll(".role-mark > path[aria-label]")]
    .filter((mark) => Number(mark.getAttribute("opacity") ?? 1) > 0.5).length;
  chart.focus();
  key(chart, "ArrowRight");
  const first = document.activeElement.getAttribute("aria-label");
  key(document.activeElement, "ArrowRight");
  const second = document.activeElement.getAttribute("aria-label");
  setTimeout(() => {
    const told = document.getElementById("vg-tooltip-element").textContent;
    const before = visible();
    const label = interactive.querySelector(".role-legend-label text");
    const buttons = interactive.querySelectorAll("[role=button]").length;
    key(label, "Enter");
    setTimeout(() => {
      const wide = document.documentElement.scrollWidth;
      const drawn = document.querySelectorAll(".chart svg").length;
      const found = [first, second, told, buttons, before, visible(), drawn, innerWidth, wide <= innerWidth].join("|");
      document.body.append(found);
      parent.postMessage(found, "*");
    }, 300);
  }, 300);
}, 1500));
"""
PHONE = """<!doctype html><body><iframe style="width: 390px; border: 0" src="page.html"></iframe>
<script>addEventListener("message", (event) => document.body.append(event.data));</script>"""


def browse(folder: Path, name: str, output: str = "--dump-dom") -> str:
    """The document as the browser has it, after it has run the scripts without complaint."""
    flags = f"--headless=new --no-sandbox --disable-gpu --disable-background-networking {output} --v=0"
    own = ["--enable-logging=stderr", "--virtual-time-budget=5000", f"--user-data-dir={folder / 'browser'}"]
    browser = subprocess.run(
        [str(CHROMIUM), *flags.split(), *own, (folder / name).as_uri()],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert "CONSOLE" not in browser.stderr, browser.stderr
    return browser.stdout


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on PATH")
def test_in_a_browser(tmp_path):
    """The page by itself, then in a frame as wide as a phone: a browser's own window may be no narrower than 500."""
    blocks: list[Block] = [Text("w" * 500), PageTable("wide", ["a long column"] * 20, [["cell " * 5] * 20])]
    text = render_page("t", "s", [*sections("a criterion"), Section("last", blocks)])
    digest = base64.b64encode(hashlib.sha256(PROBE.encode()).digest()).decode()
    probed = text.replace("script-src ", f"script-src 'sha256-{digest}' ", 1)
    # The library holds "</body>" too, and must not change.
    probed = f"<script>{PROBE}</script></body>".join(probed.rsplit("</body>", 1))
    (tmp_path / "page.html").write_text(probed, encoding="utf-8")
    (tmp_path / "phone.html").write_text(PHONE, encoding="utf-8")
    document = browse(tmp_path, "page.html")
    told_by_probe = document[document.rindex("</div>") :]
    first, second, told, buttons, before, after, drawn, _, fits = re.sub("<.*?>", "", told_by_probe).split("|")
    assert "a criterion: 10;" in first
    assert "a criterion: 100;" in second
    assert "network: a criterion" in second
    assert "25.00%" in told
    assert (buttons, before, after, drawn, fits.strip()) == ("2", "2", "1", "5", "true")
    assert "|5|390|true" in browse(tmp_path, "phone.html")


@pytest.mark.skipif(None in (CHROMIUM, shutil.which("pdftotext")), reason="no Chromium or no pdftotext on PATH")
def test_what_is_folded_is_printed(tmp_path):
    chart = Charts(PageTable("c", ["point"], [["in the numbers"]]), {"": trade_off(frame("a"), "axis", "c", ["other"])})
    fold = Fold("title of the fold", [Text("text of the fold"), chart])
    (tmp_path / "page.html").write_text(render_page("t", "s", [Section("p", [fold])]), encoding="utf-8")
    browse(tmp_path, "page.html", f"--print-to-pdf={tmp_path / 'page.pdf'}")
    printed = subprocess.run(["pdftotext", tmp_path / "page.pdf", "-"], capture_output=True, text=True, check=True)
    for text in ("title of the fold", "text of the fold", "in the numbers", "axis"):
        assert text in printed.stdout
