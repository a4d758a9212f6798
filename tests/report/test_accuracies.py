"""The tables of the accuracies."""

import dataclasses

import numpy as np

from prune_fe.experiment.results import TUNED, UNPRUNED
from prune_fe.report.accuracies import accuracy_table, point_table
from prune_fe.report.findings import Findings
from prune_fe.report.wording import describe_accuracy


def test_the_table_of_a_point_has_every_criterion(findings: Findings) -> None:
    known = point_table(findings, "two", 0.25)
    rows = {row[0]: dict(zip(known.columns, row, strict=True)) for row in known.rows}
    assert list(rows) == [*findings.scorers, "from scratch, 1× budget", "from scratch, 2× budget", TUNED]
    tuned = findings.accuracies("two", TUNED)
    assert rows[TUNED]["each seed"] == " ".join(f"{100 * a:.2f}" for a in tuned)
    assert rows[TUNED]["drop, points"] == f"{100 * (0.9 - np.mean(tuned)):+.2f}"
    assert rows[TUNED]["minus random"] == ""
    row = rows["zeros"]
    assert row["each seed"] == " ".join(f"{100 * a:.2f}" for a in findings.accuracies("two", "zeros", 0.25))
    cost = (row["parameters"], row["multiply-adds"])
    assert (row["right after pruning"], *cost) == ("30.00", "37.50k (75.0 %)", "3.00M (75.0 %)")
    assert rows["random"]["minus random"] == ""
    assert rows[str(findings.best("two", 0.25))]["minus the best"] == ""
    assert [known.rows[number][0] for number in known.highlight] == [
        "random", "l1-filter", "from scratch, 1× budget", "from scratch, 2× budget", TUNED,
    ]  # fmt: skip


def test_a_missing_criterion_is_said_to_be_missing(findings: Findings) -> None:
    part = dataclasses.replace(findings, results=[r for r in findings.results if r.row.scorer != "zeros"])
    known = point_table(part, "one", 0.25)
    assert [row[1] for row in known.rows if row[0] == "zeros"] == ["missing"]
    assert all(len(row) == len(known.columns) for row in known.rows)


def test_the_signs_of_the_accuracies_are_those_of_the_intervals(findings: Findings) -> None:
    known = accuracy_table(findings, "one")
    signs = {"better": "▲", "worse": "▼"}
    assert [row[0] for row in known.rows[:2]] == [UNPRUNED, TUNED]
    assert known.rows[known.highlight[0]][0] == TUNED
    assert known.rows[1][1:] == [describe_accuracy(findings, "one", TUNED, None)] * 2
    for row, scorer in zip(known.rows[2:], [*findings.scorers, *findings.scratch], strict=True):
        for text, point in zip(row[1:], findings.points, strict=True):
            difference = findings.differences_to_random("one", point).get(scorer)
            sign = signs.get(difference.verdict, "%") if difference else "%"
            assert text.endswith(sign)


def test_the_schedule_of_networks_from_scratch_is_explained(findings: Findings) -> None:
    assert "follows a cosine" in accuracy_table(findings, "one").note


def test_timings_on_a_busy_machine_are_marked(findings: Findings) -> None:
    results = [
        dataclasses.replace(r, row=dataclasses.replace(r.row, processor_share=0.5 if r.point == 0.75 else 1.0))
        for r in findings.results
    ]
    part = dataclasses.replace(findings, results=results)
    quiet, busy = (point_table(part, "one", point) for point in (0.25, 0.75))
    column = busy.columns.index("images/s")
    assert all(row[column].endswith("*") for row in busy.rows[:4])
    assert not any(row[column].endswith("*") for row in quiet.rows)
    assert "* timed while the machine was busy" in busy.note
    assert "*" not in quiet.note
