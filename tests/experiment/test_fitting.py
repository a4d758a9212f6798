"""Settings that fit a network and the number of its images."""

from dataclasses import replace

import pytest
from torch import nn

from prune_fe.data.digits import digits
from prune_fe.data.options import DataOptions
from prune_fe.experiment.fitting import fit_recipe, fit_training
from prune_fe.experiment.recipe import CompressOptions, ModelOptions, PruneSection, Recipe

WITH_NORM = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4))
WITHOUT = nn.Sequential(nn.Conv2d(1, 4, 3))
DATA = digits(8)
IMAGES, MODEL = DataOptions(source="digits", size=8), ModelOptions(name="timm/resnet10t", checkpoint="a.pth")


@pytest.mark.parametrize(
    ("images", "batch_size", "epochs"), [(50, 8, 30), (320, 32, 30), (2700, 64, 15), (12_800, 64, 3), (10**6, 64, 3)]
)
def test_few_images_give_small_batches_and_more_epochs(images: int, batch_size: int, epochs: int) -> None:
    chosen = fit_training(WITH_NORM, images, CompressOptions())
    assert (chosen["batch_size"], chosen["epochs"]) == (batch_size, epochs)
    assert chosen["lr"] == pytest.approx(0.02 * batch_size / 64)
    assert fit_training(WITHOUT, images, CompressOptions())["lr"] == pytest.approx(chosen["lr"] / 10)


def test_what_is_given_is_taken() -> None:
    options = CompressOptions(epochs=7, lr=0.3, batch_size=5, augment=True, control=True)
    assert fit_training(WITH_NORM, 100, options) == {
        "lr": 0.3, "schedule": "cosine", "epochs": 7, "batch_size": 5, "unpruned": True, "augment": True
    }  # fmt: skip


def test_the_recipe_is_valid_and_says_only_what_is_not_a_default() -> None:
    content = fit_recipe(WITH_NORM, DATA, IMAGES, MODEL, CompressOptions(), PruneSection(), machine={"threads": None})
    recipe = Recipe.model_validate(content)
    assert content["name"] == "timm-resnet10t"
    assert content["data"] == {"source": "digits", "size": 8}
    assert content["model"] == {"name": "timm/resnet10t", "checkpoint": "a.pth"}
    assert content["prune"] == {"target_macs": 0.5, "recalibrate": 500}
    assert recipe.score.samples is not None
    assert recipe.score.samples * 10 <= 2000
    assert "threads" not in content


def test_a_network_without_norms_is_not_recalibrated_and_no_epochs_leave_fine_tuning_out() -> None:
    prune = PruneSection(ratio=0.3, protect=("0",))
    content = fit_recipe(WITHOUT, DATA, IMAGES, MODEL, CompressOptions(epochs=0, linear=True), prune)
    assert content["prune"] == {"ratio": 0.3, "protect": ["0"]}
    assert content["score"]["linear"] is True
    assert "finetune" not in content


def test_rounds_fine_tune_after_each_of_them() -> None:
    content = fit_recipe(WITH_NORM, DATA, IMAGES, MODEL, CompressOptions(), replace(PruneSection(), rounds=3))
    assert content["finetune"]["when"] == "each_round"
    Recipe.model_validate(content)
