"""An experiment: its folders, its network, and what its variants share."""

import hashlib
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import torch

from prune_fe.errors import CheckpointError, InputError
from prune_fe.experiment import experiment as module
from prune_fe.experiment import run_folder
from prune_fe.experiment.experiment import Experiment, begin, measure, save_result, score_units
from prune_fe.experiment.recipe import Recipe
from prune_fe.experiment.results import BY_LAYER, UNPRUNED, load_result
from prune_fe.experiment.run_folder import RunFolder
from prune_fe.models.build import build
from prune_fe.models.manifest import read_manifest
from tests.experiment.helpers import Silent, logged

CONTENT: dict[str, Any] = {
    "name": "t",
    "data": {"source": "digits", "size": 12},
    "model": {"name": "vgg-small", "arguments": {"stages": [[4]]}},
    "scorers": ["random", "l1-filter"],
    "compare": {"networks": {"one": {"name": "vgg-small", "arguments": {"stages": [[6]]}}}},
    "seeds": [0, 3],
}


@pytest.fixture
def experiment(tmp_path: Path) -> Iterator[Experiment]:
    recipe = Recipe.model_validate(CONTENT)
    with closing(RunFolder(tmp_path, recipe.model_dump(mode="json"))) as folder:
        yield begin(recipe, folder, Silent())


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
    recipe = Recipe.model_validate(CONTENT | {"data": {"source": "digits", "size": 12, "images_per_class": 20}})
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


def test_a_damaged_network_says_what_to_do(experiment: Experiment) -> None:
    _ = experiment.network
    (experiment.seed_folder / "trained" / "model.safetensors").write_bytes(b"")
    with pytest.raises(CheckpointError, match="trained.*; delete .*trained, and the next run makes it again"):
        _ = experiment.with_seed(0).network


def test_the_unpruned_row_is_read_where_it_was_saved(experiment: Experiment, monkeypatch: pytest.MonkeyPatch) -> None:
    outcome = measure(experiment, experiment.network, UNPRUNED)
    path = experiment.result_path(UNPRUNED)
    save_result(experiment, outcome, path, began=0.0)
    result = load_result(path)
    assert (result.network, result.goal, result.point) == ("vgg-small", None, None)
    monkeypatch.setattr(module, "measure", lambda *_: pytest.fail("measured again"))
    assert experiment.unpruned == outcome.row == result.row


@pytest.mark.parametrize(
    ("options", "saved"),
    [
        ({}, ("ratio", 0.5)),
        ({"ratio": 0.25}, ("ratio", 0.25)),
        ({"target_macs": 0.75}, ("target_macs", 0.75)),
        ({"ratio": {"features.0": 0.5}}, (BY_LAYER, 0.0)),
    ],
)
def test_a_result_says_how_much_was_to_be_removed(
    experiment: Experiment, options: dict[str, Any], saved: tuple[str, float]
) -> None:
    variant = experiment.with_recipe(experiment.recipe.with_options("prune", **options))
    outcome, path = measure(variant, variant.build_network(), "random"), variant.result_path("random")
    save_result(variant, outcome, path, began=0.0)
    result = load_result(path)
    assert (result.goal, result.point) == saved


def _backbone(path: Path) -> str:
    """Write a checkpoint of the recipe's network for 99 classes, and return its path."""
    torch.manual_seed(1)
    torch.save(build("vgg-small", 99, in_channels=1, stages=[[4]]).state_dict(), path)
    return str(path)


def test_a_backbone_of_other_classes_gets_a_new_classifier_that_is_named(tmp_path: Path) -> None:
    checkpoint = _backbone(tmp_path / "backbone.pth")
    model = CONTENT["model"] | {"checkpoint": checkpoint}
    content = CONTENT | {"model": model, "train": {"epochs": 1, "lr": 1e-9}}
    recipe = Recipe.model_validate(content)
    (tmp_path / "run").mkdir()
    with closing(RunFolder(tmp_path / "run", recipe.model_dump(mode="json"))) as folder:
        experiment = begin(recipe, folder, Silent())
        weight = experiment.network.state_dict()["features.0.weight"]
        assert experiment.network.state_dict()["classifier.weight"].shape == (10, 4)
        assert torch.allclose(weight, torch.load(checkpoint)["features.0.weight"], atol=1e-6)
        digest = hashlib.sha256(Path(checkpoint).read_bytes()).hexdigest()
        assert logged(folder, "checkpoint")[0]["checkpoint_sha256"] == digest
        assert read_manifest(experiment.seed_folder / "trained")["about"]["checkpoint_sha256"] == digest
        assert logged(folder, "new_classifier")[0]["keys"] == ["classifier.weight", "classifier.bias"]


def test_a_new_classifier_that_nothing_trains_is_an_error(tmp_path: Path) -> None:
    model = CONTENT["model"] | {"checkpoint": _backbone(tmp_path / "backbone.pth")}
    recipe = Recipe.model_validate(CONTENT | {"model": model})
    text = r"backbone.pth: does not fit classifier, made anew .*: a recipe without train: leaves them so"
    (tmp_path / "run").mkdir()
    with closing(RunFolder(tmp_path / "run", recipe.model_dump(mode="json"))) as folder:
        experiment = begin(recipe, folder, Silent())
        with pytest.raises(CheckpointError, match=text):
            _ = experiment.network


def test_the_outputs_of_a_checkpoint_take_the_order_of_the_classes_of_the_data(tmp_path: Path) -> None:
    state = build("vgg-small", 10, in_channels=1, stages=[[4]]).state_dict()
    digits = [str(number) for number in range(10)]
    for classes, renewed in ((digits[::-1], None), ([*digits[1:], "ten"], ["classifier.weight", "classifier.bias"])):
        torch.save({"model": state, "classes": classes, "epoch": 1}, tmp_path / "net.pth")
        train = {} if renewed is None else {"train": {"epochs": 1, "lr": 1e-9}}
        model = CONTENT["model"] | {"checkpoint": str(tmp_path / "net.pth")}
        recipe = Recipe.model_validate(CONTENT | {"model": model} | train)
        run = tmp_path / f"run-{len(train)}"
        run.mkdir()
        with closing(RunFolder(run, recipe.model_dump(mode="json"))) as folder:
            experiment = begin(recipe, folder, Silent())
            weight = experiment.network.state_dict()["classifier.weight"].cpu()
            assert torch.equal(weight, state["classifier.weight"].flip(0)) == (renewed is None)
            assert isinstance(experiment.reporter, Silent)
            assert any("net.pth: read; ignored are epoch" in text for text in experiment.reporter.said)
            assert [event["keys"] for event in logged(folder, "new_classifier")] == ([renewed] if renewed else [])


def test_a_damaged_unfinished_pass_is_said_and_begins_again(experiment: Experiment, tmp_path: Path) -> None:
    folder = tmp_path / "scores"
    folder.mkdir()
    (folder / ".unfinished-0").write_bytes(b"damaged")
    entries, network = experiment.recipe.scorers[:1], experiment.build_network()
    scores = score_units(experiment, entries, folder=folder, network=network)
    assert isinstance(experiment.reporter, Silent)
    [said] = [text for text in experiment.reporter.said if "unfinished" in text]
    assert said.endswith(".unfinished-0: damaged (its SHA-256 is another one); this pass begins again")
    assert list(scores) == [entries[0].label]
