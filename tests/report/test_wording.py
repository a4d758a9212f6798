"""The names of points, criteria, accuracies and differences in a report."""

import dataclasses

from prune_fe.measure.statistics import Estimate
from prune_fe.report.findings import Difference, Findings
from prune_fe.report.wording import (
    controls_of,
    describe_accuracy,
    describe_difference,
    describe_missing_seeds,
    describe_point,
    describe_scorer,
    join_or_none,
)


def test_points_and_criteria_have_names(findings: Findings) -> None:
    assert describe_point(findings, 0.75) == "share removed 0.75"
    assert [describe_scorer(name) for name in ("hrank", "scratch#2")] == ["hrank", "from scratch, 2× budget"]
    assert controls_of(findings) == ["random", "l1-filter", "scratch#1", "scratch#2", "(unpruned, fine-tuned)"]
    assert [join_or_none(names) for names in (["a", "b"], [])] == ["a, b", "none"]


def test_an_accuracy_says_how_many_seeds_it_has(findings: Findings) -> None:
    one, other = (100 * value for value in findings.accuracies("one", "zeros", 0.25))
    text = describe_accuracy(findings, "one", "zeros", 0.25)
    assert text == f"{(one + other) / 2:.2f} ±{abs(one - other) / 2**0.5:.2f} %"
    part = dataclasses.replace(findings, results=[each for each in findings.results if each.row.seed == 0])
    assert describe_accuracy(part, "one", "zeros", 0.25) == f"{one:.2f} % (1 of 2 seeds)"
    assert describe_accuracy(part, "one", "nobody", 0.25) == "missing"
    assert describe_missing_seeds(part, 2) == ""


def test_a_difference_has_its_sign_and_interval() -> None:
    assert describe_difference(Difference("a", "b", Estimate(0.125, -0.25, 0.5, 9), 2)) == "+12.50 [-25.00, +50.00]"
    assert describe_difference(None) == ""
