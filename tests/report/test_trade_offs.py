"""The accuracy against the cost: lines of several operating points, bars of one."""

import dataclasses
from typing import Any

import numpy as np
import pytest

from prune_fe.experiment.results import UNPRUNED
from prune_fe.report import trade_offs as module
from prune_fe.report.findings import Findings
from prune_fe.report.page import Charts, Fold
from prune_fe.report.trade_offs import trade_offs


def at_one_point(findings: Findings) -> Findings:
    results = [result for result in findings.results if result.point in (None, 0.25)]
    return dataclasses.replace(findings, results=results, is_comparison=False)


def chart_of(block: Any) -> dict[str, Any]:
    assert isinstance(block, Charts)
    return block.charts[""].to_dict()


def test_other_costs_are_folded(findings: Findings) -> None:
    main, fold = trade_offs(findings, "one")
    assert isinstance(main, Charts)
    assert main.title == "Accuracy against multiply-adds"
    assert isinstance(fold, Fold)
    assert fold.title == "Accuracy against parameters and measured time"
    assert len(fold.blocks) == 2


def test_each_line_begins_at_the_unpruned_network(findings: Findings) -> None:
    _, fold = trade_offs(findings, "one")
    assert isinstance(fold, Fold)
    block = fold.blocks[0]
    assert isinstance(block, Charts)
    numbers = block.numbers
    rows = [row for row in numbers.rows if row[0] == "zeros"]
    assert [row[-1] for row in rows] == ["unpruned", "share removed 0.25", "share removed 0.75"]
    assert [row[1] for row in rows] == ["50000", "37500", "12500"]
    accuracies = findings.accuracies("one", "zeros", 0.25)
    assert rows[1][2:5] == [f"{100 * f(accuracies):.2f} %" for f in (np.mean, min, max)]
    scratch = [row[-1] for row in numbers.rows if row[0] == "from scratch, 1× budget"]
    assert scratch == ["share removed 0.25", "share removed 0.75"]


def test_a_single_point_has_bars(findings: Findings) -> None:
    part = at_one_point(findings)
    (block,) = trade_offs(part, "one")
    assert isinstance(block, Charts)
    assert block.title == "Accuracy at share removed 0.25"
    assert [row[0] for row in block.numbers.rows][:2] == [UNPRUNED, "(unpruned, fine-tuned)"]
    zeros = next(row for row in block.numbers.rows if row[0] == "zeros")
    accuracies = findings.accuracies("one", "zeros", 0.25)
    assert zeros[1:] == [*(f"{100 * f(accuracies):.2f} %" for f in (np.mean, min, max)), "30.00 %"]
    assert chart_of(block)["layer"][0]["mark"]["type"] == "bar"


def test_many_criteria_are_named_only_if_they_matter(findings: Findings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_NAMED", 2)
    main, _ = trade_offs(findings, "one")
    named = {"feature-entropy", *(findings.best("one", point) for point in findings.points)}
    names = [row["criterion"] for row in list(chart_of(main)["datasets"].values())[-1]]
    assert set(names) - {"random", "l1-filter"} - {name for name in names if name.startswith(("from", "("))} <= named
    assert isinstance(main, Charts)
    assert "Pale lines are the other criteria" in main.note


def test_what_was_not_run_is_not_in_the_chart(findings: Findings) -> None:
    part = dataclasses.replace(findings, results=[r for r in findings.results if "scratch" not in r.row.scorer])
    main, _ = trade_offs(part, "one")
    assert isinstance(main, Charts)
    assert not any("scratch" in row[0] for row in main.numbers.rows)
    assert "scratch" not in str(chart_of(main)["datasets"])


def test_times_on_a_busy_machine_are_counted(findings: Findings) -> None:
    first, *others = findings.results
    busy = dataclasses.replace(first, row=dataclasses.replace(first.row, processor_share=0.5))
    _, fold = trade_offs(dataclasses.replace(findings, results=[busy, *others]), first.network)
    assert isinstance(fold, Fold)
    assert "as it did during some of them (1), so that these are too long." in fold.blocks[1].numbers.note  # type: ignore[union-attr]
