"""The files of a report."""

import csv
import json
import shutil
from pathlib import Path

import pytest

from prune_fe.errors import InputError
from prune_fe.report import report
from prune_fe.report.findings import COLUMNS, Findings
from prune_fe.report.page import Block, Charts, Checklist, Figures, Fold, PageTable, Row, Section, Text

FILES = {"report.html", "report.md", "report.json", "cells.csv", "classes.csv", "agreement.csv"}


@pytest.fixture(scope="module")
def reported(comparison: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("reported") / "c"
    shutil.copytree(comparison, folder)
    assert report.write_report(folder) == folder / "report.html"
    return folder


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_all_files_are_written_and_the_same_again(reported: Path) -> None:
    before = {name: (reported / name).read_bytes() for name in FILES}
    report.write_report(reported)
    assert {name: (reported / name).read_bytes() for name in FILES} == before


def test_cells_csv_has_a_row_a_result_with_every_digit(reported: Path, findings: Findings) -> None:
    rows = rows_of(reported / "cells.csv")
    assert list(rows[0]) == COLUMNS
    assert len(rows) == len(findings.results)
    for row, result in zip(rows, findings.results, strict=True):
        assert row["accuracy_before"] == repr(result.row.accuracy_before)
        assert row["accuracy_pruned"] == ("" if result.row.accuracy_pruned is None else "0.3")
        assert row["point"] == ("" if result.point is None else repr(result.point))
        assert (row["parameters"], row["seed"]) == (str(result.row.parameters), str(result.row.seed))


def test_classes_csv_has_no_formula_and_gaps_where_there_is_no_image(reported: Path) -> None:
    rows = rows_of(reported / "classes.csv")
    assert list(rows[0]) == ["network", "scorer", "ratio", "class", "before", "after"]
    assert len(rows) == 2 * 2 * 6 * 4
    formulas = [row for row in rows if row["class"].endswith("=SUM(A1)")]
    assert all((row["class"], row["before"], row["after"]) == ("'=SUM(A1)", "", "") for row in formulas)


def test_agreement_csv_has_every_pair(reported: Path, findings: Findings) -> None:
    rows = rows_of(reported / "agreement.csv")
    assert len(rows) == 2 * 6 * 3
    assert list(rows[0]) == ["network", "layer", "one", "other", "spearman", "kendall",
                             "jaccard_ratio_0.25", "jaccard_ratio_0.75"]  # fmt: skip
    row = next(r for r in rows if (r["network"], r["one"], r["other"], r["layer"]) == ("two", "zeros", "random",
                                                                                       "features.4"))  # fmt: skip
    assert float(row["spearman"]) == pytest.approx(findings.agreement("two", "zeros", "random")["features.4"], rel=1e-8)


def test_report_json_has_the_means_and_differences(reported: Path, findings: Findings) -> None:
    content = json.loads((reported / "report.json").read_text())
    assert set(content) == {"recipe", "environment", "unpruned", "unpruned_finetuned", "cells", "missing"}
    assert len(content["cells"]) == 2 * 2 * 6
    entry = next(e for e in content["cells"] if (e["network"], e["scorer"], e["ratio"]) == ("two", "zeros", 0.75))
    assert entry["accuracies"] == findings.accuracies("two", "zeros", 0.75)
    assert entry["difference_to_random"]["mean"] == findings.differences_to_random("two", 0.75)["zeros"].estimate.mean
    assert content["unpruned"]["one"] == findings.accuracies("one", "(unpruned)")
    assert content["unpruned_finetuned"]["one"] == findings.accuracies("one", "(unpruned, fine-tuned)")


def test_the_page_and_the_text_say_the_same(reported: Path, findings: Findings) -> None:
    page, text = ((reported / name).read_text() for name in ("report.html", "report.md"))
    for accuracy in findings.accuracies("one", "zeros", 0.75):
        assert f"{100 * accuracy:.2f}" in page
        assert f"{100 * accuracy:.2f}" in text
    assert "<owl>" not in page
    assert "&lt;owl&gt;" in page
    assert "\\<owl\\>" in text
    assert "4 criteria, 2 operating points, 2 networks, 2 seeds, 80 test images of 4 classes" in text


def test_blocks_as_markdown() -> None:
    table = PageTable("A|title", ["a", "b"], [["x", "1"]], "A *note*.")
    checklist = Checklist("c", [("met", True, "why"), ("not met", False, ""), ("n/a", None, "")])
    figures = Figures("A network", [("25%", "of *all*")])
    blocks: list[Block] = [Text("a_b"), Fold("f", [table]), Row([Charts(table)]), checklist, figures]
    text = report.report_markdown("T", "s", [Section("S", blocks)])
    rows = "### A\\|title\n\n| a | b |\n| --- | ---: |\n| x | 1 |\n\nA \\*note\\*.\n\n"
    lines = "- yes: met (why)\n- **missing**: not met\n- does not apply: n/a\n"
    assert text == f"# T\n\ns\n\n## S\n\na\\_b\n\n{rows}{rows}{lines}\n### A network\n\n- **25%** of \\*all\\*\n"


def test_an_empty_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="nothing of `prune-fe run` or `prune-fe compare` to report"):
        report.write_report(tmp_path)
