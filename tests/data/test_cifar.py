"""CIFAR-10 in torchvision's format."""

from pathlib import Path

import pytest
import torch

from prune_fe.data.cifar import cifar10
from prune_fe.errors import DataError
from tests.data.pictures import write_cifar


@pytest.fixture
def cifar(tmp_path, monkeypatch):
    return write_cifar(tmp_path, monkeypatch)


def test_cifar10_is_read_as_torchvision_keeps_it(cifar):
    from torchvision.datasets import CIFAR10

    splits = cifar10(cifar)
    plain = CIFAR10(cifar, train=False)
    assert (len(splits.train), len(splits.validation), len(splits.test)) == (40, 10, 20)  # type: ignore[arg-type]
    assert splits.classes == tuple(f"name {i}" for i in range(10))
    image, label = splits.test[3]
    assert label == plain[3][1]
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in splits.normalised)
    pixels = torch.from_numpy(plain.data[3]).permute(2, 0, 1)
    torch.testing.assert_close(image * std + mean, pixels / 255, atol=1e-6, rtol=0)
    assert cifar10(cifar, size=40).test[0][0].shape == (3, 40, 40)


def test_cifar10_that_cannot_be_read_is_named(cifar):
    next(cifar.glob("*/data_batch_3")).unlink()
    with pytest.raises(DataError, match="CIFAR-10 can be neither read nor downloaded"):
        cifar10(cifar)


def test_the_recipe_of_nnis_comparison_has_its_cost(cifar, tmp_path):
    """79 M multiply-adds and nearly 3.8 M parameters are left at half of every layer; a cell runs on this format."""
    from prune_fe import build, cost, prune, score
    from prune_fe.experiment.recipe import load_recipe

    recipe = load_recipe(Path(__file__).parents[2] / "recipes/nni-vgg16-bn-cifar10.yaml", {"data.path": str(cifar)})
    splits = cifar10(cifar, recipe.data.size)
    model, example = build(recipe.model.name, 10, **recipe.model.arguments), splits.test[0][0][None]
    assert round(cost(model, example).macs / 1e6) == 313
    for entry in recipe.scorers:
        scores = score(model, splits.train, entry.name, samples=2)
    half = cost(prune(model, scores, ratio=0.5, example=example).model, example)
    assert abs(half.macs / 1e6 - 78.9) < 0.5
    assert abs(half.parameters / 1e6 - 3.81) < 0.2
