"""What is read from a folder."""

import json
import shutil
from pathlib import Path

import pytest
import yaml

import prune_fe
from prune_fe.errors import CheckpointError, InputError
from prune_fe.experiment.results import TUNED, UNPRUNED
from prune_fe.records import write_record
from prune_fe.report.findings import COLUMNS
from prune_fe.report.loading import load_findings
from prune_fe.report.report import write_report

SCORERS, SEEDS = ["feature-entropy", "zeros", "random", "l1-filter"], [0, 3]
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


def test_failed_tasks_without_a_result_are_told(comparison: Path, tmp_path: Path) -> None:
    folder = tmp_path / "c"
    shutil.copytree(comparison, folder)
    (folder / "cells/one.seed-0.zeros.ratio-0.25.json").unlink()
    (folder / "failed").mkdir()
    for task, seed in (("gone", 0), ("there", 3)):
        failure = {"task": task, "result": f"cells/one.seed-{seed}.zeros.ratio-0.25.json", "error": "why"}
        write_record(folder / "failed" / f"{task}.json", failure)
    assert load_findings(folder).failed == {"gone": "why"}
