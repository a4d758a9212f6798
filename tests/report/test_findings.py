"""What is read from a folder, and what is concluded from it."""

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml

import prune_fe
from prune_fe.errors import CheckpointError, InputError
from prune_fe.experiment.results import TUNED, UNPRUNED
from prune_fe.measure.statistics import Estimate, kendall
from prune_fe.records import write_record
from prune_fe.report.findings import COLUMNS, Difference, Findings, load_findings
from prune_fe.report.report import write_report

SCORERS, RATIOS, SEEDS = ["feature-entropy", "zeros", "random", "l1-filter"], [0.25, 0.75], [0, 3]
RESULTS = 2 * 2 * (2 + 2 * (len(SCORERS) + 2))


def test_a_frame_has_a_row_for_each_result(comparison: Path) -> None:
    frame = prune_fe.load_results(comparison)
    assert list(frame.columns) == [*COLUMNS, "accuracy"]
    assert len(frame) == RESULTS
    assert set(frame["network"]) == {"one", "two"}
    assert set(frame["seed"]) == set(SEEDS)
    unpruned = frame[frame["scorer"] == UNPRUNED]
    assert unpruned["point"].isna().all()
    assert all(goal is None for goal in unpruned["goal"])
    assert (unpruned["accuracy"] == unpruned["accuracy_before"]).all()
    assert str(frame["parameters"].dtype) == "int64"
    assert frame["accuracy_pruned"].dtype == float
    means = frame[frame["scorer"] == "random"].groupby("point")["accuracy"].mean()
    assert means[0.25] > means[0.75]


def test_a_frame_says_the_same_as_the_results(findings: Findings) -> None:
    for (_, row), result in zip(findings.frame.iterrows(), findings.results, strict=True):
        expected = dataclasses.asdict(result.row) | {"network": result.network, "accuracy": result.row.accuracy}
        for name, value in expected.items():
            assert row[name] == value or (value is None and pd.isna(row[name]))


def test_load_results_takes_a_text_and_names_what_is_wrong(comparison: Path, tmp_path: Path) -> None:
    assert len(prune_fe.load_results(str(comparison))) == RESULTS
    with pytest.raises(InputError, match="nothing of `prune-fe run` or `prune-fe compare`"):
        prune_fe.load_results(tmp_path)
    folder = tmp_path / "c"
    shutil.copytree(comparison, folder)
    (folder / "test.json").write_text(json.dumps({"classes": ["a"], "labels": [0]}))
    with pytest.raises(CheckpointError, match="has 80 test images, test.json has 1"):
        prune_fe.load_results(folder)
    (folder / "test.json").write_text("{")
    with pytest.raises(CheckpointError, match="damaged"):
        prune_fe.load_results(folder)
    shutil.rmtree(folder / "cells")
    shutil.copy(comparison / "test.json", folder)
    with pytest.raises(InputError, match="no network has been measured yet"):
        prune_fe.load_results(folder)


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


def test_a_folder_from_before_the_control_lacks_nothing(comparison: Path, tmp_path: Path) -> None:
    shutil.copytree(comparison, tmp_path / "old")
    content = yaml.safe_load((comparison / "recipe.yaml").read_text())
    assert content["finetune"].pop("unpruned") is True
    (tmp_path / "old/recipe.yaml").write_text(yaml.safe_dump(content))
    assert load_findings(tmp_path / "old").tuned == [TUNED]  # it was made later, by a run that went on
    for path in (tmp_path / "old/cells").glob("*fine-tuned.json"):
        path.unlink()
    old = load_findings(tmp_path / "old")
    assert (old.tuned, old.missing) == ([], [])
    write_report(tmp_path / "old")
    assert TUNED not in (tmp_path / "old/report.md").read_text()


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


def test_failed_tasks_without_a_result_are_told(comparison: Path, tmp_path: Path) -> None:
    folder = tmp_path / "c"
    shutil.copytree(comparison, folder)
    (folder / "cells/one.seed-0.zeros.ratio-0.25.json").unlink()
    (folder / "failed").mkdir()
    for task, seed in (("gone", 0), ("there", 3)):
        failure = {"task": task, "result": f"cells/one.seed-{seed}.zeros.ratio-0.25.json", "error": "why"}
        write_record(folder / "failed" / f"{task}.json", failure)
    assert load_findings(folder).failed == {"gone": "why"}
