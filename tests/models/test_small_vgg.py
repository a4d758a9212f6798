"""The small VGG: its layers follow its stages, and its name in manifests is that of earlier versions."""

import torch
from torch import nn

from prune_fe.models import SmallVGG


def test_the_stages_are_the_widths_between_poolings() -> None:
    model = SmallVGG(classes=5, channels=2, stages=((3, 4), (6,)))
    layers = [module for module in model.modules() if isinstance(module, nn.Conv2d | nn.MaxPool2d)]
    shapes = [(m.in_channels, m.out_channels) if isinstance(m, nn.Conv2d) else "pool" for m in layers]
    assert shapes == [(2, 3), (3, 4), "pool", (4, 6)]
    assert model(torch.zeros(2, 2, 9, 7)).shape == (2, 5)
    assert model.arguments == {"classes": 5, "channels": 2, "stages": [[3, 4], [6]]}


def test_manifests_of_earlier_versions_name_the_class() -> None:
    assert f"{SmallVGG.__module__}.{SmallVGG.__qualname__}" == "prune_fe.models.SmallVGG"
