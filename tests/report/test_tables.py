"""Tables as text, Markdown, entries and CSV."""

import csv
import math

import pandas as pd

from prune_fe.measure.statistics import Estimate
from prune_fe.report.tables import Table, escape_markdown, markdown_table, write_frame

TABLE = Table(
    "A title",
    {"one": ".1f", "several": ".2f", "estimate": ".3f", "text": ""},
    {
        "a": {"one": [1.25], "several": [1.0, 2.0], "estimate": Estimate(0.5, 0.25, 0.75, 9), "text": "never"},
        "b": {"one": [], "estimate": Estimate(0.5, 0.5, 0.5, 1)},
    },
    "A note.",
)


def test_each_kind_of_cell_is_printed():
    assert [TABLE.text("a", column) for column in TABLE.forms] == [
        "1.2",
        "1.50 (0.71)",
        "0.500 [0.250, 0.750]",
        "never",
    ]
    assert [TABLE.text("b", column) for column in TABLE.forms] == ["", "", "0.500", ""]


def test_markdown_has_the_title_the_rows_and_the_note():
    assert TABLE.markdown() == (
        "### A title\n\n"
        "|  | one | several | estimate | text |\n"
        "| --- | ---: | ---: | ---: | ---: |\n"
        "| a | 1.2 | 1.50 (0.71) | 0.500 [0.250, 0.750] | never |\n"
        "| b |  |  | 0.500 |  |\n"
        "\nA note.\n"
    )


def test_entries_hold_the_numbers():
    entries = {(entry["row"], entry["column"]): entry for entry in TABLE.entries()}
    assert set(entries) == {("a", "one"), ("a", "several"), ("a", "estimate"), ("b", "estimate")}
    several, estimate = entries["a", "several"], entries["a", "estimate"]
    assert (several["mean"], several["deviation"], several["n"], several["low"]) == (1.5, math.sqrt(0.5), 2, None)
    assert (estimate["mean"], estimate["deviation"], estimate["n"]) == (0.5, None, 9)
    assert (estimate["low"], estimate["high"], estimate["table"]) == (0.25, 0.75, "A title")


def test_a_markdown_table_without_rows_has_its_head():
    assert markdown_table(["a", "b"], []) == "| a | b |\n| --- | ---: |"


def test_markup_is_shown_as_it_is():
    assert escape_markdown("a|b\n<i>*_`#[]\\") == "a\\|b \\<i\\>\\*\\_\\`\\#\\[\\]\\\\"


def test_a_csv_file_has_nine_digits_and_no_formula(tmp_path):
    frame = pd.DataFrame({"name": ["=A1", "ä, b", None], "value": [1 / 3, math.nan, 2.0], "count": [1, 2, 3]})
    write_frame(tmp_path / "a.csv", frame)
    content = (tmp_path / "a.csv").read_bytes()
    assert content.count(b"\r\n") == 4
    rows = list(csv.DictReader(content.decode().splitlines()))
    assert [row["name"] for row in rows] == ["'=A1", "ä, b", ""]
    assert [row["value"] for row in rows] == ["0.333333333", "", "2.0"]
    assert [row["count"] for row in rows] == ["1", "2", "3"]
