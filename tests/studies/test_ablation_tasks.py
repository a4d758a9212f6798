"""Ablation as tasks: which ones there are, what they need, and when they are finished."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from prune_fe.ablation import trial, unfinished
from prune_fe.ablation.tally import Tally
from prune_fe.ablation.trial import Trial
from prune_fe.errors import InputError
from prune_fe.experiment.experiment import Experiment, begin
from prune_fe.experiment.run_folder import RunFolder
from prune_fe.studies import ablation_tasks
from prune_fe.studies.ablation_files import finished_classes, load_ablations
from prune_fe.studies.ablation_tasks import AblationTask, NetworkAblation
from prune_fe.tracing.layers import find_layers

Ablate = Callable[..., NetworkAblation]
ORDERS = ("ascending", "descending")


@pytest.fixture(scope="module")
def experiment(tmp_path_factory: pytest.TempPathFactory, recipe_with: Any, listener: Any) -> Iterator[Experiment]:
    recipe = recipe_with(
        model={"name": "vgg-small", "arguments": {"stages": [[4], [8]]}},
        scorers=["l1-filter", "l1-activation"],
        score={"samples": 5},
        ablate={"control_seeds": 1, "every": 4},
        train=None,
    )
    folder = RunFolder(tmp_path_factory.mktemp("tasks"), recipe.model_dump(mode="json"))
    yield begin(recipe, folder, listener())
    folder.close()


@pytest.fixture
def ablate(experiment: Experiment, tmp_path: Path) -> Ablate:
    """Return the ablation of the named layers for some classes."""

    def make(classes: tuple[int, ...], *names: str) -> NetworkAblation:
        layers = find_layers(experiment.network, experiment.example, names)
        return NetworkAblation(experiment, layers, classes, tmp_path)

    return make


def finish(ablation: NetworkAblation) -> None:
    for task in ablation.tasks():
        if not task.is_finished:
            task.work()


def test_there_is_a_task_for_each_pass_scorer_and_order(ablate: Ablate, tmp_path: Path) -> None:
    one = list(ablate((3, 7), "features.4").tasks())
    curves = [f"seed-1.{label}.{order}" for label in ("l1-filter", "l1-activation", "random#0") for order in ORDERS]
    passes = [f"seed-1.scores.{folder}" for folder in ("weights", "class-003", "class-007")]
    assert [task.name for task in one] == [*passes, "seed-1.single-units", *curves]
    by_name = {task.name: task for task in one}
    assert list(by_name["seed-1.l1-activation.ascending"].needs) == [by_name[name].result for name in passes[1:]]
    assert list(by_name["seed-1.random#0.ascending"].needs) == []
    assert by_name["seed-1.l1-filter.descending"].result == tmp_path / "l1-filter.descending.npz"
    two = [task.name for task in ablate((3, 7), "features.0", "features.4").tasks()]
    assert two == [*passes, *curves]


def test_a_task_is_finished_when_its_classes_are_in_the_file(ablate: Ablate, tmp_path: Path) -> None:
    first = ablate((3,), "features.4")
    finish(first)
    assert all(task.is_finished for task in first.tasks())
    both = [task for task in ablate((3, 7), "features.4").tasks() if isinstance(task, AblationTask)]
    assert not any(task.is_finished for task in both)
    path = tmp_path / "l1-activation.ascending.npz"
    assert finished_classes(path) == {"3"}
    finish(ablate((7,), "features.4"))
    assert finished_classes(path) == {"3", "7"}
    assert all(task.is_finished for task in both)


def test_the_order_is_that_of_the_scores_and_more_and_more_units_are_masked(ablate: Ablate) -> None:
    ablation = ablate((3, 7), "features.0", "features.4")
    finish(ablation)
    network = ablation.load()
    scores = network.scores["l1-activation"]
    assert scores.shape == (2, 4 + 8)
    ascending = ablation._orders("l1-activation", "ascending")
    descending = ablation._orders("l1-activation", "descending")
    for row, (up, down) in enumerate(zip(ascending, descending, strict=True)):
        assert (np.diff(scores[row, :4][up[:4]]) <= 0).all()
        assert (np.diff(scores[row, 4:][down[4:]]) >= 0).all()
    assert network.single_units is None
    removed = network.first.removed.tolist()
    assert removed == sorted(removed)
    assert removed[-1] == 12


@pytest.mark.parametrize(("seconds", "together"), [(0.0, [1, 1, 1, 1]), (1e9, [1, 3])])
def test_as_many_classes_run_together_as_take_the_time_between_two_saves(
    ablate: Ablate, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seconds: float, together: list[int]
) -> None:
    ablation = ablate((3, 7, 1, 0), "features.4")
    path, run_all, sizes, saved = tmp_path / "l1-activation.ascending.npz", Trial.run_all, [], []

    def note(trial: Trial, runs: Any, **options: Any) -> Any:
        sizes.append(len(runs))
        saved.append(finished_classes(path))
        return run_all(trial, runs, **options)

    monkeypatch.setattr(Trial, "run_all", note)
    monkeypatch.setattr(ablation_tasks, "SAVE_SECONDS", seconds)
    ablation._make_curves("l1-activation", "ascending")
    assert sizes == together
    assert saved[:2] == [set(), {"3"}]
    curves = load_ablations(path, 8)
    assert list(curves) == ["3", "7", "1", "0"]
    for number, order in zip(ablation.classes, ablation._orders("l1-activation", "ascending"), strict=True):
        alone = ablation.trial.run(ablation._curve_masks(order), units=order.tolist(), classes=[number])
        curve = curves[str(number)]
        assert curve.units == alone.units
        np.testing.assert_array_equal(curve.hits, alone.hits)
        np.testing.assert_array_equal(curve.called, alone.called)
        np.testing.assert_allclose(curve.loss, alone.loss, rtol=1e-6)


def test_curves_of_other_scores_are_refused(ablate: Ablate, tmp_path: Path) -> None:
    finish(ablate((3,), "features.4"))
    path = tmp_path / "l1-filter.ascending.npz"
    path.write_bytes((tmp_path / "l1-filter.descending.npz").read_bytes())
    with pytest.raises(InputError, match="is of other scores than these; choose another run folder"):
        ablate((3,), "features.4").load()


def test_a_task_that_was_killed_goes_on_within_its_units(
    ablate: Ablate, experiment: Experiment, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(unfinished, "SAVE_SECONDS", 0.0)
    monkeypatch.setattr(trial, "ROWS", 256)
    add, parts = Tally.add, []

    def stopping(tally: Tally, *arguments: Any) -> None:
        parts.append((arguments[0], arguments[4]))  # the masks and the images
        if len(parts) == 3:
            raise KeyboardInterrupt
        add(tally, *arguments)

    monkeypatch.setattr(Tally, "add", stopping)
    finish_one = {
        "single": lambda: ablate((3,), "features.4")._make_single_units(),
        "curve": lambda: ablate((3,), "features.4")._make_curves("l1-filter", "ascending"),
    }
    for name, work in finish_one.items():
        parts.clear()
        with pytest.raises(KeyboardInterrupt), experiment.folder.working_on(name):
            work()
        assert [path.name for path in (experiment.folder.path / "unfinished" / name).iterdir()] == ["ablation-1"]
        with experiment.folder.working_on(name):
            work()
        assert parts[3] == parts[2] != parts[0]  # goes on with the part that was interrupted
        assert not (experiment.folder.path / "unfinished" / name).exists()
