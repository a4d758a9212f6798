"""The study of classes: against prune_fe.score and prune; resume, and what it refuses before anything is trained."""

from pathlib import Path
from typing import Any

import pytest

import prune_fe
from prune_fe.data.digits import digits
from prune_fe.data.splits import hold_out
from prune_fe.errors import InputError
from prune_fe.experiment.experiment import Experiment
from prune_fe.experiment.results import UNPRUNED
from prune_fe.measure.cost import cost
from prune_fe.measure.evaluate import evaluate
from prune_fe.pruning.prune import prune
from prune_fe.studies.classes import classes_study
from prune_fe.studies.points import PointGroup

SPLITS = hold_out(digits(12), 0.1, 1)


def never(*_: Any, **__: Any) -> None:
    raise AssertionError("done again, or too early")


def test_classes_of_which_units_are_scored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run_study: Any, recipe_with: Any, read_rows: Any
) -> None:
    folder, recipe = tmp_path, recipe_with()
    tables, _ = run_study(classes_study, folder, recipe, counts=[10, 2])
    rows = tables[0].rows
    assert list(rows) == [UNPRUNED, "random", "K = 2", "K = 10"]
    network, example = prune_fe.load(folder / "seed-1/trained"), SPLITS.test[0][0][None]
    scores = prune_fe.score(network, SPLITS.train, classes=2, samples=20, seed=1)
    pruned = prune(network, scores, 0.5, example).model
    assert rows["K = 2"]["after pruning"] == [evaluate(pruned, SPLITS.test).accuracy]
    assert rows["K = 2"]["images"] == [40]
    price = cost(pruned, example)
    assert (rows["K = 2"]["parameters"], rows["K = 2"]["multiply-adds"]) == ([price.parameters], [price.macs])
    assert rows["random"]["parameters"] == [price.parameters]
    assert rows[UNPRUNED]["after pruning"] == [evaluate(network, SPLITS.test).accuracy]
    table = read_rows(folder / "study-classes-seed-1.csv")
    assert [(row["scorer"], row["classes"]) for row in table] == [
        (UNPRUNED, "0"),
        ("random", "0"),
        ("feature-entropy", "2"),
        ("feature-entropy", "10"),
    ]
    assert float(table[2]["accuracy_finetuned"]) == rows["K = 2"]["fine-tuned"][0]
    assert "right after pruning" in (folder / "study-classes-seed-1.svg").read_text()
    assert "ratio 0.5; random" in (folder / "study-classes-seed-1.md").read_text()
    monkeypatch.setattr(PointGroup, "_make_point", never)
    again, _ = run_study(classes_study, folder, recipe, counts=[2, 10])
    assert again[0].markdown() == tables[0].markdown()
    with pytest.raises(AssertionError, match="done again"):
        run_study(classes_study, folder, recipe, counts=[2, 10], ratio=0.25)
    monkeypatch.undo()
    before = (folder / "study-classes-seed-1.md").read_text()
    run_study(classes_study, folder, recipe, counts=[2], ratio=0.25)
    assert "ratio 0.25; random" in (folder / "study-classes-seed-1-ratio-0.25.md").read_text()
    assert (folder / "study-classes-seed-1.md").read_text() == before


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"counts": [5, 11]}, "the data has 10 classes, allowed are numbers from 1 to 10"),
        ({"counts": [0]}, r"counts=\(0,\)"),
        ({"counts": []}, r"counts=\(\)"),
        ({"ratio": 1.0}, "ratio 1.0: allowed are shares from 0 to less than 1"),
    ],
)
def test_bad_input_is_said_before_anything_is_trained(
    options: dict[str, Any],
    match: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    run_study: Any,
    recipe_with: Any,
) -> None:
    monkeypatch.setattr(Experiment, "network", property(never))
    with pytest.raises(InputError, match=match):
        run_study(classes_study, tmp_path, recipe_with(), **options)


def test_the_study_needs_feature_entropy_and_the_control_its_label(
    tmp_path: Path, run_study: Any, recipe_with: Any
) -> None:
    with pytest.raises(InputError, match="scorers: l1-filter; a study of the number of classes needs feature-entropy"):
        run_study(classes_study, tmp_path / "a", recipe_with(scorers=["l1-filter"]))
    called = recipe_with(scorers=[{"name": "feature-entropy", "label": "random"}])
    with pytest.raises(InputError, match="the label 'random' is the control's"):
        run_study(classes_study, tmp_path / "b", called)
