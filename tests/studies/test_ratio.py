"""The study of the ratio: its points are those of a run; resume, and what it refuses before anything is trained."""

import json
from pathlib import Path
from typing import Any

import pytest

from prune_fe.errors import CheckpointError, InputError
from prune_fe.experiment.experiment import Experiment
from prune_fe.experiment.results import UNPRUNED
from prune_fe.experiment.run import run
from prune_fe.studies.classes import classes_study
from prune_fe.studies.points import PointGroup
from prune_fe.studies.ratio import ratio_study


@pytest.fixture(scope="module")
def finished_run(tmp_path_factory: pytest.TempPathFactory, run_study: Any, recipe_with: Any) -> tuple[Path, Any]:
    """The folder of the recipe's run, and its rows by scorer."""
    folder = tmp_path_factory.mktemp("run")
    rows, _ = run_study(run, folder, recipe_with(seeds=[1]))
    return folder, {row.scorer: row for row in rows}


def test_a_point_of_the_recipes_ratio_is_a_row_of_its_run(
    finished_run: Any, tmp_path: Path, run_study: Any, recipe_with: Any
) -> None:
    folder, rows = finished_run
    (tmp_path / "seed-1").symlink_to(folder / "seed-1")
    tables, _ = run_study(ratio_study, tmp_path, recipe_with(seeds=[1]), ratios=[0.5])
    for table, label in zip(tables, ("feature-entropy", "l1-filter"), strict=True):
        row, cells = rows[label], table.rows["0.5"]
        assert cells["after pruning"] == [row.accuracy_pruned]
        assert cells["fine-tuned"] == [row.accuracy_finetuned]
        assert (cells["parameters"], cells["multiply-adds"]) == ([row.parameters], [row.macs])


def test_rounds_are_pruned_as_the_run_prunes_them(tmp_path: Path, run_study: Any, recipe_with: Any) -> None:
    recipe = recipe_with(
        seeds=[1],
        scorers=["feature-entropy"],
        prune={"ratio": 0.5, "rounds": "layers", "rescore": "each_round", "recalibrate": 100},
        finetune={"lr": 0.02, "schedule": "cosine", "epochs": 1, "batch_size": 64, "when": "each_round"},
    )
    rows, _ = run_study(run, tmp_path, recipe)
    tables, _ = run_study(ratio_study, tmp_path, recipe, ratios=[0.5])
    cells = tables[0].rows["0.5"]
    assert cells["fine-tuned"] == [rows[-1].accuracy_finetuned]
    assert "after pruning" not in cells


def test_a_killed_study_goes_on_with_what_it_has(
    finished_run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run_study: Any, recipe_with: Any
) -> None:
    recipe = recipe_with(finetune=None)
    for name in ("whole", "killed"):
        (tmp_path / name / "seed-1").mkdir(parents=True)
        (tmp_path / name / "seed-1/trained").symlink_to(finished_run[0] / "seed-1/trained")
    whole, _ = run_study(ratio_study, tmp_path / "whole", recipe, ratios=[0.75, 0.25])
    assert [list(table.rows) for table in whole] == [[UNPRUNED, "0.25", "0.75"]] * 2
    macs = [cells["multiply-adds"][0] for cells in whole[0].rows.values()]
    assert macs[0] > macs[1] > macs[2]
    assert "fine-tuned" not in whole[0].rows["0.25"]
    make_point, calls = PointGroup._make_point, 0

    def dies(*arguments: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise KeyboardInterrupt
        return make_point(*arguments)

    monkeypatch.setattr(PointGroup, "_make_point", dies)
    killed = tmp_path / "killed"
    with pytest.raises(KeyboardInterrupt):
        run_study(ratio_study, killed, recipe, ratios=[0.25, 0.75])
    again, _ = run_study(ratio_study, killed, recipe, ratios=[0.25, 0.75])
    assert calls == 2 + 1 + 2  # what was finished, what was killed, what was left
    assert [table.markdown() for table in again] == [table.markdown() for table in whole]
    less, _ = run_study(ratio_study, killed, recipe, ratios=[0.75])  # 0.25 is not lost
    assert [table.markdown() for table in less] == [table.markdown() for table in whole]
    damaged = killed / "seed-1/study-ratio-0.25/l1-filter.json"
    content = json.loads(damaged.read_text())
    for text in ("{", "[]", json.dumps({name: content[name] for name in list(content)[1:]})):
        damaged.write_text(text)
        with pytest.raises(CheckpointError, match="l1-filter.json: damaged"):
            run_study(ratio_study, killed, recipe, ratios=[0.25])


def test_a_ratio_takes_the_place_of_a_budget(
    finished_run: Any, tmp_path: Path, run_study: Any, recipe_with: Any
) -> None:
    recipe = recipe_with(prune={"target_macs": 0.5}, finetune=None, scorers=["feature-entropy"])
    (tmp_path / "seed-1").mkdir()
    (tmp_path / "seed-1/trained").symlink_to(finished_run[0] / "seed-1/trained")
    tables, _ = run_study(classes_study, tmp_path, recipe, counts=[2])
    assert "target_macs 0.5; random" in (tmp_path / "study-classes-seed-1.md").read_text()
    (half,), (whole,) = (tables[0].rows[row]["multiply-adds"] for row in ("K = 2", UNPRUNED))
    assert half == pytest.approx(whole / 2, rel=0.2)  # the layers are narrow
    tables, _ = run_study(ratio_study, tmp_path, recipe, ratios=[0.25])
    (quarter,) = tables[0].rows["0.25"]["multiply-adds"]
    assert half < quarter < whole


@pytest.mark.parametrize(
    ("ratios", "match"),
    [
        ([0.5, -0.1], "ratio -0.1: allowed are shares"),
        ([float("nan")], "ratio nan: allowed are shares"),
        ([], "ratios: none given"),
    ],
)
def test_bad_input_is_said_before_anything_is_trained(
    ratios: list[float], match: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run_study: Any, recipe_with: Any
) -> None:
    monkeypatch.setattr(Experiment, "network", property(lambda _: pytest.fail("trained")))
    with pytest.raises(InputError, match=match):
        run_study(ratio_study, tmp_path, recipe_with(), ratios=ratios)
