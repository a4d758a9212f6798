"""The trained network of an experiment, and where its first weights come from."""

import hashlib
from contextlib import closing
from pathlib import Path

import pytest
import torch

from prune_fe.errors import CheckpointError
from prune_fe.experiment.experiment import Experiment, begin
from prune_fe.experiment.recipe import Recipe
from prune_fe.experiment.run_folder import RunFolder
from prune_fe.models.build import build
from prune_fe.models.manifest import read_manifest
from tests.experiment.helpers import ONE_NETWORK, Silent, logged


def test_a_damaged_network_says_what_to_do(experiment: Experiment) -> None:
    _ = experiment.network
    (experiment.seed_folder / "trained" / "model.safetensors").write_bytes(b"")
    with pytest.raises(CheckpointError, match="trained.*; delete .*trained, and the next run makes it again"):
        _ = experiment.with_seed(0).network


def _backbone(path: Path) -> str:
    """Write a checkpoint of the recipe's network for 99 classes, and return its path."""
    torch.manual_seed(1)
    torch.save(build("vgg-small", 99, in_channels=1, stages=[[4]]).state_dict(), path)
    return str(path)


def test_a_backbone_of_other_classes_gets_a_new_classifier_that_is_named(tmp_path: Path) -> None:
    checkpoint = _backbone(tmp_path / "backbone.pth")
    model = ONE_NETWORK["model"] | {"checkpoint": checkpoint}
    content = ONE_NETWORK | {"model": model, "train": {"epochs": 1, "lr": 1e-9}}
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
    model = ONE_NETWORK["model"] | {"checkpoint": _backbone(tmp_path / "backbone.pth")}
    recipe = Recipe.model_validate(ONE_NETWORK | {"model": model})
    text = r"backbone.pth: does not fit classifier, made anew .*; without train: in the recipe, nothing trains"
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
        model = ONE_NETWORK["model"] | {"checkpoint": str(tmp_path / "net.pth")}
        recipe = Recipe.model_validate(ONE_NETWORK | {"model": model} | train)
        run = tmp_path / f"run-{len(train)}"
        run.mkdir()
        with closing(RunFolder(run, recipe.model_dump(mode="json"))) as folder:
            experiment = begin(recipe, folder, Silent())
            weight = experiment.network.state_dict()["classifier.weight"].cpu()
            assert torch.equal(weight, state["classifier.weight"].flip(0)) == (renewed is None)
            assert isinstance(experiment.reporter, Silent)
            assert any("net.pth: read; ignored are epoch" in text for text in experiment.reporter.said)
            assert [event["keys"] for event in logged(folder, "new_classifier")] == ([renewed] if renewed else [])
