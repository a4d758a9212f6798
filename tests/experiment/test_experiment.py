"""An experiment: its folders, its network, and what its variants share."""

from contextlib import closing
from pathlib import Path

import pytest
import torch

from prune_fe.errors import InputError
from prune_fe.experiment import experiment as module
from prune_fe.experiment import run_folder
from prune_fe.experiment.experiment import Experiment, begin
from prune_fe.experiment.recipe import Recipe
from prune_fe.experiment.results import UNPRUNED, load_result
from prune_fe.experiment.run_folder import RunFolder
from prune_fe.experiment.steps import measure, save_result
from tests.experiment.helpers import ONE_NETWORK, Silent, logged


def test_results_lie_where_runs_and_comparisons_have_them(experiment: Experiment, tmp_path: Path) -> None:
    assert experiment.seed_folder == tmp_path / "seed-0"
    assert experiment.network_name == "vgg-small"
    assert experiment.result_path(UNPRUNED) == tmp_path / "cells/seed-0.(unpruned).json"
    assert experiment.result_path("random") == tmp_path / "cells/seed-0.random.json"
    one = experiment.with_network("one").with_seed(3)
    assert one.seed_folder == tmp_path / "networks/one/seed-3"
    assert one.network_name == "one"
    assert one.recipe.model.arguments == {"stages": [[6]]}
    assert one.result_path(UNPRUNED) == tmp_path / "cells/one.seed-3.unpruned.json"
    assert one.result_path("random", 0.5) == tmp_path / "cells/one.seed-3.random.ratio-0.5.json"
    one.log("note", x=1)
    experiment.log("note", x=2)
    assert [event.get("network") for event in logged(experiment.folder, "note")] == ["one", None]


def test_a_machine_that_differs_from_the_beginning_of_the_run_is_said(
    experiment: Experiment, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    monkeypatch.setattr(Silent, "say", lambda _, text: said.append(text))
    for threads in (1, 1, 7):
        monkeypatch.setattr(run_folder, "environment", lambda threads=threads: {"threads": threads, "commit": "a"})
        experiment.log_environment()
    assert said == ["note: threads differ from when this run began; numbers may differ in the last bits"]


def test_each_seed_draws_its_own_training_images(tmp_path: Path) -> None:
    recipe = Recipe.model_validate(ONE_NETWORK | {"data": {"source": "digits", "size": 12, "images_per_class": 20}})
    with closing(RunFolder(tmp_path, recipe.model_dump(mode="json"))) as folder:
        experiment = begin(recipe, folder, Silent())
        other, begun = experiment.with_seed(3).splits, begin(recipe, folder, Silent(), 3).splits
    assert len(experiment.splits.train) + len(experiment.splits.validation) == 200  # type: ignore[arg-type]
    assert other.train.indices == begun.train.indices != experiment.splits.train.indices  # type: ignore[attr-defined]


def test_the_seed_decides_which_images_are_held_out(experiment: Experiment) -> None:
    other = experiment.with_seed(3)
    first, second, again = (e.splits.validation.indices for e in (experiment, other, other.with_seed(0)))  # type: ignore[attr-defined]
    assert first == again != second
    assert experiment.example.shape == (1, 1, 12, 12)
    assert begin(experiment.recipe, experiment.folder, Silent(), 3).splits.validation.indices == second  # type: ignore[attr-defined]
    with pytest.raises(InputError, match="seed 7: the recipe has 0, 3"):
        begin(experiment.recipe, experiment.folder, Silent(), 7)


def test_a_network_is_made_once_and_shared_by_variants(experiment: Experiment) -> None:
    network = experiment.network
    pruned_otherwise = experiment.with_recipe(experiment.recipe.with_options("prune", ratio=0.25))
    assert pruned_otherwise.network is network
    _ = experiment.unpruned, experiment.scores
    shared = experiment.with_recipe(pruned_otherwise.recipe)
    assert shared.unpruned is experiment.unpruned
    assert shared.scores is experiment.scores
    other = experiment.with_recipe(experiment.recipe.with_options("score", layers=("features.0",)))
    assert "scores" not in vars(other)
    for made in (experiment.with_seed(0), experiment.with_network("one")):
        assert "network" not in vars(made)
    read = experiment.with_seed(0).network
    for name, value in network.state_dict().items():
        assert torch.equal(read.state_dict()[name], value), name


def test_the_unpruned_row_is_read_where_it_was_saved(experiment: Experiment, monkeypatch: pytest.MonkeyPatch) -> None:
    outcome = measure(experiment, experiment.network, UNPRUNED)
    path = experiment.result_path(UNPRUNED)
    save_result(experiment, outcome, path, began=0.0)
    result = load_result(path)
    assert (result.network, result.goal, result.point) == ("vgg-small", None, None)
    monkeypatch.setattr(module, "measure", lambda *_: pytest.fail("measured again"))
    assert experiment.unpruned == outcome.row == result.row
