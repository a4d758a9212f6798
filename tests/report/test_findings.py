"""What is concluded from results."""

import dataclasses

import numpy as np
import pandas as pd
import pytest

from prune_fe.experiment.results import TUNED, UNPRUNED
from prune_fe.measure.statistics import Estimate, kendall
from prune_fe.report.findings import Difference, Findings

SCORERS, RATIOS, SEEDS = ["feature-entropy", "zeros", "random", "l1-filter"], [0.25, 0.75], [0, 3]


def test_a_frame_says_the_same_as_the_results(findings: Findings) -> None:
    for (_, row), result in zip(findings.frame.iterrows(), findings.results, strict=True):
        expected = dataclasses.asdict(result.row) | {"network": result.network, "accuracy": result.row.accuracy}
        for name, value in expected.items():
            assert row[name] == value or (value is None and pd.isna(row[name]))


def test_what_was_requested_is_known(findings: Findings) -> None:
    assert (findings.networks, findings.seeds, findings.points) == (["one", "two"], SEEDS, RATIOS)
    assert findings.scorers == SCORERS
    assert findings.scratch == ["scratch#1", "scratch#2"]
    assert findings.tuned == [TUNED]
    assert (findings.goal, findings.missing, findings.failed) == ("ratio", [], {})
    assert findings.same_cost()
    assert findings.is_complete("zeros")
    assert findings.control("l1-filter") == "l1-filter"
    assert findings.control("hrank") is None


def test_costs_that_differ_are_seen(findings: Findings) -> None:
    first = findings.select("one", "zeros", 0.25)[0]
    other = dataclasses.replace(first, row=dataclasses.replace(first.row, macs=1))
    results = [other if result is first else result for result in findings.results]
    assert not dataclasses.replace(findings, results=results).same_cost()


def test_a_difference_and_its_reverse() -> None:
    difference = Difference("a", "b", Estimate(0.2, 0.1, 0.4, 5), 2)
    assert difference.verdict == "better"
    assert difference.reversed == Difference("b", "a", Estimate(-0.2, -0.4, -0.1, 5), 2)
    assert difference.reversed.verdict == "worse"
    assert Difference("a", "b", Estimate(0.2, -0.1, 0.4, 5), 2).verdict == "not told apart"


def test_differences_are_paired_over_the_images(findings: Findings) -> None:
    to_random = findings.differences_to_random("one", 0.25)
    assert set(to_random) == {*SCORERS, *findings.scratch} - {"random"}
    accuracy = {scorer: np.mean(findings.accuracies("one", scorer, 0.25)) for scorer in SCORERS}
    assert to_random["zeros"].estimate.mean == pytest.approx(accuracy["zeros"] - accuracy["random"])
    best = findings.best("one", 0.25)
    assert accuracy[str(best)] == max(accuracy.values())
    assert best not in findings.differences_to_best("one", 0.25)


def test_class_accuracies_are_those_of_the_images(findings: Findings) -> None:
    table = findings.class_accuracies("two", "zeros", 0.75)
    assert table is not None
    assert list(table.columns) == ["class", "before", "after"]
    assert np.isnan(table["after"].iloc[-1])
    images = np.bincount(findings.labels)
    known = table[:-1]
    for column, accuracies in (
        ("before", findings.accuracies("two", UNPRUNED)),
        ("after", findings.accuracies("two", "zeros", 0.75)),
    ):
        assert (known[column] * images).sum() / images.sum() == pytest.approx(np.mean(accuracies))
    assert findings.class_accuracies("two", "nobody", 0.75) is None


def test_agreement_is_the_mean_over_the_seeds(findings: Findings) -> None:
    pairs = [[findings.scores["one", seed, label].keep["features.4"] for label in SCORERS[:2]] for seed in SEEDS]
    expected = np.mean([kendall(*pair) for pair in pairs])
    assert findings.agreement("one", SCORERS[0], SCORERS[1], kendall)["features.4"] == pytest.approx(expected)


def test_a_matrix_has_names_and_gaps(findings: Findings) -> None:
    def by_layer(one: str, other: str) -> dict[str, float]:
        return {} if one == other else {"a": 1.0, "b": 2.0}

    matrix = findings.matrix(["x", "y"], by_layer)
    assert list(matrix.index) == list(matrix.columns) == ["x", "y"]
    assert matrix.loc["x", "y"] == 1.5
    assert np.isnan(matrix.loc["x", "x"])


def test_the_overlap_of_a_scorer_with_itself_is_one(findings: Findings) -> None:
    assert findings.overlap("one", 0.75, "zeros", "zeros") == dict.fromkeys(
        ("features.0", "features.4", "features.8"), 1.0
    )
