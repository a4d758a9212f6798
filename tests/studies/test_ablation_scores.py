"""Scores for ablation: scorers that read the same images share one pass, and each class finds its own scores."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import prune_fe
from prune_fe.experiment.experiment import begin
from prune_fe.experiment.run_folder import RunFolder
from prune_fe.scorers.class_selectivity import ClassSelectivity
from prune_fe.studies import ablation_scores
from prune_fe.studies.ablation_scores import ClassScores
from prune_fe.tracing.layers import find_layers

LABELS = ["apoz", "l1-filter", "class-selectivity", "l1-activation"]


@pytest.fixture(scope="module")
def scores(tmp_path_factory: pytest.TempPathFactory, recipe_with: Any, listener: Any) -> Iterator[ClassScores]:
    recipe = recipe_with(scorers=[*LABELS, "random"], score={"samples": 10}, train=None)
    folder = RunFolder(tmp_path_factory.mktemp("scores"), recipe.model_dump(mode="json"))
    experiment = begin(recipe, folder, listener())
    layers = find_layers(experiment.network, experiment.example)
    yield ClassScores(experiment, layers, (3, 7), folder.path / "scores")
    folder.close()


def test_scorers_that_read_the_same_images_share_a_pass(scores: ClassScores) -> None:
    assert {folder: list(labels) for folder, labels in scores.passes.items()} == {
        "class-003": ["apoz", "l1-activation"],
        "class-007": ["apoz", "l1-activation"],
        "weights": ["l1-filter"],
        "all": ["class-selectivity.3", "class-selectivity.7"],
    }
    assert scores.labels == [*LABELS, *(f"random#{n}" for n in range(5))]


def test_each_class_has_the_scores_of_its_own_images(scores: ClassScores) -> None:
    experiment = scores.experiment
    network, images = experiment.network, experiment.splits.train
    for row, label in enumerate((3, 7)):
        options: dict[str, Any] = {"samples": 10, "seed": 1}
        expected = {
            "apoz": prune_fe.score(network, images, "apoz", classes=[label], **options),
            "class-selectivity": prune_fe.score(network, images, ClassSelectivity(of=label), **options),
            "l1-filter": prune_fe.score(network, None, "l1-filter", example=experiment.example),
        }
        for name, each in expected.items():
            values = np.concatenate([each.keep[layer.name] for layer in scores.layers])
            np.testing.assert_allclose(scores.by_class(name)[row], values, rtol=1e-6)


def test_the_control_has_one_order_for_all_classes_and_needs_no_images(scores: ClassScores) -> None:
    first, second = scores.by_class("random#0"), scores.by_class("random#1")
    np.testing.assert_array_equal(first[0], first[1])
    assert first.tolist() != second.tolist()
    assert scores.needs("random#0") == []


def test_the_tasks_leave_what_the_curves_need(
    scores: ClassScores, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    again = ClassScores(scores.experiment, scores.layers, scores.classes, tmp_path / "scores")
    tasks = {task.name: task for task in again.tasks()}
    assert list(tasks) == [f"seed-1.scores.{folder}" for folder in again.passes]
    needed = {path for label in again.labels for path in again.needs(label)}
    assert needed == {task.result for task in tasks.values()}
    for task in tasks.values():
        assert not task.is_finished
        task.work()
        assert task.is_finished
    read = ClassScores(scores.experiment, scores.layers, scores.classes, tmp_path / "scores")
    monkeypatch.setattr(ablation_scores.ClassScores, "_make", lambda *_: pytest.fail("made again"))
    np.testing.assert_array_equal(read.by_class("apoz"), again.by_class("apoz"))
