"""What the intervals say."""

import dataclasses
from collections.abc import Callable

import numpy as np

from prune_fe.experiment.results import TUNED, Result
from prune_fe.report.findings import Findings
from prune_fe.report.verdicts import verdict_table


def keep(findings: Findings, condition: Callable[[Result], bool]) -> Findings:
    return dataclasses.replace(findings, results=[each for each in findings.results if condition(each)])


def ranked(findings: Findings, scorer: str) -> Findings:
    """One scorer names every image correctly, and all others half of them."""
    results = []
    for each in findings.results:
        correct = np.arange(len(each.correct)) % 2 == 0 if each.row.scorer != scorer else np.ones_like(each.correct)
        row = dataclasses.replace(each.row, accuracy_finetuned=float(correct.mean()))
        results.append(dataclasses.replace(each, row=row, correct=correct))
    return dataclasses.replace(findings, results=results)


def first_row(findings: Findings) -> dict[str, str]:
    table = verdict_table(findings)
    return dict(zip(table.columns, table.rows[0], strict=True))


def test_there_is_a_row_for_each_network_and_point(findings: Findings) -> None:
    table = verdict_table(findings)
    assert [row[:2] for row in table.rows] == [["one", "0.25"], ["one", "0.75"], ["two", "0.25"], ["two", "0.75"]]
    controls = ["from scratch, 1× budget", "from scratch, 2× budget", TUNED]
    assert list(table.columns) == [
        "network", "share removed", "highest accuracy", "not told apart from it", "better than random",
        "worse than random", *controls,
    ]  # fmt: skip
    assert table.is_prose


def test_the_best_is_told_apart_only_by_its_interval(findings: Findings) -> None:
    row = first_row(ranked(findings, "zeros"))
    assert row["highest accuracy"] == "zeros, 100.00 ±0.00 %"
    assert row["not told apart from it"] == "none"
    assert (row["better than random"], row["worse than random"]) == ("zeros", "none")
    assert row["from scratch, 1× budget"] == "50.00 ±0.00 %, worse than zeros"
    row = first_row(ranked(findings, "nobody"))
    assert len(row["not told apart from it"].split(", ")) == 3
    assert (row["better than random"], row["worse than random"]) == ("none", "none")


def test_what_is_worse_than_random_is_said(findings: Findings) -> None:
    row = first_row(ranked(findings, "random"))
    assert row["highest accuracy"].startswith("random, ")
    assert row["worse than random"] == "feature-entropy, zeros, l1-filter"


def test_missing_seeds_are_said(findings: Findings) -> None:
    part = keep(findings, lambda each: each.row.scorer not in ("zeros", "scratch#1") or each.row.seed == 0)
    row = first_row(part)
    assert row["share removed"] == "0.25 (not compared, because seeds are missing: zeros)"
    assert row["from scratch, 1× budget"].endswith("not compared, because seeds are missing")
    only = first_row(keep(findings, lambda each: each.row.seed == 3))
    assert only["share removed"] == "0.25 (1 of 2 seeds)"


def test_nothing_is_said_of_what_was_not_run(findings: Findings) -> None:
    row = first_row(keep(findings, lambda each: each.row.scorer == "zeros"))
    assert row["not told apart from it"] == "no other criterion"
    assert list(row) == ["network", "share removed", "highest accuracy", "not told apart from it"]


def test_nothing_was_pruned(findings: Findings) -> None:
    assert verdict_table(keep(findings, lambda each: each.point is None)).is_empty
