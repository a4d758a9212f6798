"""The small VGG: its layers follow its stages, and its name in manifests is that of earlier versions."""

from pathlib import Path
from typing import Any

import torch
from torch import nn

from prune_fe.models import SmallVGG
from prune_fe.models.build import build
from prune_fe.models.saved import load, save
from prune_fe.pruning.prune import prune
from prune_fe.scoring.score import score


def test_the_stages_are_the_widths_between_poolings() -> None:
    model = SmallVGG(classes=5, channels=2, stages=((3, 4), (6,)))
    layers = [module for module in model.modules() if isinstance(module, nn.Conv2d | nn.MaxPool2d)]
    shapes = [(m.in_channels, m.out_channels) if isinstance(m, nn.Conv2d) else "pool" for m in layers]
    assert shapes == [(2, 3), (3, 4), "pool", (4, 6)]
    assert model(torch.zeros(2, 2, 9, 7)).shape == (2, 5)
    assert model.arguments == {"classes": 5, "channels": 2, "stages": [[3, 4], [6]]}


def test_manifests_of_earlier_versions_name_the_class() -> None:
    assert f"{SmallVGG.__module__}.{SmallVGG.__qualname__}" == "prune_fe.models.SmallVGG"


def test_hidden_layers_have_dropout_and_read_pooled_maps(tmp_path: Path) -> None:
    arguments = {"classes": 5, "channels": 1, "stages": [[3]], "hidden": [7, 6], "dropout": 0.25, "pool": 2}
    model: Any = SmallVGG(**arguments)  # type: ignore[arg-type]
    assert [type(layer).__name__ for layer in model.classifier] == ["Linear", "ReLU", "Dropout"] * 2 + ["Linear"]
    assert (model.classifier[0].in_features, model.classifier[2].p) == (3 * 2 * 2, 0.25)
    assert model.arguments == arguments
    model = build("vgg-small", 5, in_channels=1, stages=[[3]], hidden=[7, 6], dropout=0.25, pool=2)
    save(model, tmp_path / "saved")
    images = torch.rand(2, 1, 8, 8)
    assert torch.equal(load(tmp_path / "saved")(images), model.eval()(images))
    pruned = prune(model, score(model, scorer="l1-filter", example=images), 0.4, images).model
    assert pruned(images).shape == (2, 5)
