"""Constructors that a manifest names: a library's own networks, and none that was changed by hand."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from torch import nn

from prune_fe.errors import CheckpointError
from prune_fe.models.factories import build_from_factory
from prune_fe.models.manifest import read_manifest
from prune_fe.models.saved import build_original, load, save
from prune_fe.models.small_vgg import SmallVGG


def test_a_network_with_a_tensor_that_is_no_buffer_is_left_to_the_user(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = SmallVGG.__init__

    def constructor(self: Any, *arguments: Any, **options: Any) -> None:
        real(self, *arguments, **options)
        self.shift = torch.rand(1)

    monkeypatch.setattr(SmallVGG, "__init__", constructor)
    save(SmallVGG(), tmp_path / "model")
    assert read_manifest(tmp_path / "model")["factory"] is None


@pytest.mark.parametrize("change", ["forward", "child", "missing", "tensor", "function"])
def test_a_library_network_that_was_changed_by_hand_is_not_taken_for_the_librarys(tmp_path: Path, change: str) -> None:
    model: Any = torchvision.models.mobilenet_v2()
    if change == "forward":
        model.forward = lambda x: x
    elif change == "child":
        model.classifier[0] = nn.Identity()
    elif change == "missing":
        del model.features[0][2]
    elif change == "tensor":
        model.shift = torch.ones(1)
    else:
        model.features[0][2].inplace = torch.relu
    save(model, tmp_path / "model")
    with pytest.raises(
        CheckpointError, match=r"holds a torchvision.models.mobilenetv2.MobileNetV2: build one and pass load\("
    ):
        load(tmp_path / "model")


def test_finding_the_constructor_makes_no_weights() -> None:
    for factory in ("torchvision/vgg16", "torchvision/regnet_y_128gf", "timm/resnet18", "prune_fe/vgg-small"):
        weights = dict(build_from_factory(factory, {}).named_parameters())
        assert all(weight.is_meta for weight in weights.values() if weight.ndim > 1), factory


def test_the_arguments_of_a_manifest_are_checked_before_the_original_is_built(tmp_path: Path) -> None:
    save(SmallVGG(stages=[[4]]), tmp_path / "vgg")
    file = tmp_path / "vgg" / "manifest.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"arguments": {"pretrained": True}}))
    with pytest.raises(CheckpointError, match="'pretrained' is not an argument that a file may give"):
        build_original(tmp_path / "vgg", 10)
