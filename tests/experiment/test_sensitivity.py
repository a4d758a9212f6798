"""A recipe with `ratio: auto` measures its own network, once, and meets its target."""

import json
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from prune_fe.experiment import run as module
from prune_fe.experiment.recipe import Recipe
from prune_fe.experiment.results import load_result
from prune_fe.experiment.run import run
from prune_fe.experiment.run_folder import RunFolder
from prune_fe.pruning.loss_curves import FILE_NAME, load_sensitivity
from tests.experiment.helpers import CONTENT, Silent

CHANGES: dict[str, Any] = {
    "scorers": ["l1-filter", "random"],
    "prune": {"ratio": "auto", "target_params": 0.5, "recalibrate": 32},
    "finetune": None,
    "seeds": [0],
}
RECIPE = Recipe.model_validate(CONTENT | CHANGES)


def go(folder: Path) -> RunFolder:
    folder.mkdir(exist_ok=True)
    where = RunFolder(folder, RECIPE.model_dump(mode="json"))
    with closing(where):
        run(RECIPE, where, Silent())
    return where


def test_each_scorer_has_curves_of_its_own_that_are_measured_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "run"
    original = module.compress
    monkeypatch.setattr(module, "compress", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        go(folder)
    curves = folder / "seed-0" / "l1-filter" / "sensitivity" / FILE_NAME
    written = curves.stat().st_mtime_ns
    monkeypatch.setattr(module, "compress", original)
    go(folder)
    assert curves.stat().st_mtime_ns == written
    for label in ("l1-filter", "random"):
        found = load_sensitivity(folder / "seed-0" / label / "sensitivity")
        assert (found.about["scorer"], found.about["ratios"][-1]) == (label, 0.9)
        assert found.about["recovery"].startswith("batch norms on 32 images, seed 0, of ")
        result = load_result(folder / "cells" / f"seed-0.{label}.json")
        assert (result.goal, result.point) == ("target_params", 0.5)
        unpruned = load_result(folder / "cells" / "seed-0.(unpruned).json")
        assert result.row.parameters / unpruned.row.parameters == pytest.approx(0.5, abs=0.05)
    events = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    assert sum(event["event"] == "sensitivity" for event in events) == 2
    assert (folder / "seed-0" / "random" / "sensitivity" / "sensitivity.csv").exists()
    rows = (folder / "summary.csv").read_text().splitlines()
    assert len(rows) == 4  # a heading, the unpruned network, and one for each scorer
