"""Settings of modules: they come back with the network, also sizes that a user's network keeps."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from torch import nn

import prune_fe
from prune_fe.errors import CheckpointError
from prune_fe.models.build import build
from prune_fe.models.manifest import read_manifest
from prune_fe.models.saved import build_original, load, save
from prune_fe.models.settings import module_settings
from tests.models.networks import SplitBlock, alive, images, outputs


def google(**arguments: Any) -> nn.Module:
    return torchvision.models.googlenet(init_weights=False, **arguments)


@pytest.mark.parametrize(
    ("make", "size"),
    [
        (lambda: torchvision.models.densenet121(memory_efficient=True), 32),
        (lambda: torchvision.models.mobilenet_v3_small(dropout=0.4, width_mult=0.5), 32),
        (lambda: torchvision.models.resnext50_32x4d(replace_stride_with_dilation=[False, True, True]), 32),
        (torchvision.models.regnet_y_400mf, 32),
        (torchvision.models.squeezenet1_1, 48),
        (torchvision.models.shufflenet_v2_x1_0, 32),
        (lambda: google(aux_logits=True), 64),
        (lambda: google(aux_logits=False, transform_input=True), 64),
        (lambda: build("timm/convnext_atto", 5, in_channels=2), 32),
        (lambda: build("timm/tf_efficientnet_b0", 5, drop_rate=0.3), 32),
        (lambda: build("timm/levit_128s", 5), 224),
    ],
    ids=lambda value: "" if callable(value) else str(value),
)
def test_a_network_of_a_library_comes_back_with_every_setting(
    tmp_path: Path, make: Callable[[], nn.Module], size: int
) -> None:
    model = alive(make())
    channels = next(m for m in model.modules() if isinstance(m, nn.Conv2d)).in_channels
    example = images(size, channels)
    back = load(save(model, tmp_path / "model"))
    assert torch.equal(outputs(back, example), outputs(model, example))
    assert repr(back) == repr(model)
    assert module_settings(back) == module_settings(model)


def test_a_flag_that_is_neither_printed_nor_a_tensor_comes_back(tmp_path: Path) -> None:
    model = alive(torchvision.models.inception_v3(init_weights=False, transform_input=True))
    back = load(save(model, tmp_path / "model"))
    assert back.transform_input is True
    assert read_manifest(tmp_path / "model")["factory"] == "torchvision/inception_v3"
    assert back.aux_logits is True


def test_sizes_that_a_network_keeps_come_back_with_it(tmp_path: Path) -> None:
    model, x = SplitBlock().eval(), torch.randn(2, 3, 5, 5)
    pruned = prune_fe.prune(model, prune_fe.score(model, scorer="random"), 0.5, x).model
    assert (pruned.width, pruned.parts) == (2, [1, 3])
    loaded = load(save(pruned, tmp_path / "own"), SplitBlock())
    assert torch.equal(loaded(x), pruned(x))
    res2net = build("timm/res2net50_26w_4s", 3).eval()
    images = torch.randn(2, 3, 32, 32)
    half = prune_fe.prune(res2net, prune_fe.score(res2net, scorer="random"), 0.5, images).model
    path = save(half, tmp_path / "res2net")
    with torch.no_grad():
        assert torch.equal(load(path)(images), half(images))
    assert build_original(path, 3)(images).shape == (2, 3)


def test_attributes_of_the_users_come_back_with_a_librarys_network(tmp_path: Path) -> None:
    model: Any = alive(build("resnet18", 3))
    model.customized_value, model.conv1.note, model.sizes, model.layer1[0].expansion = 8, "x", (1, (2.5, None)), 1
    scores = prune_fe.score(model, scorer="l1-filter")
    for name, saved in {"whole": model, "half": prune_fe.prune(model, scores, 0.5, images(32)).model}.items():
        back: Any = load(save(saved, tmp_path / name))
        assert read_manifest(tmp_path / name)["factory"] == "torchvision/resnet18"
        assert (back.customized_value, back.conv1.note, back.sizes) == (8, "x", (1, (2.5, None)))
        assert vars(back.layer1[0])["expansion"] == 1
        assert module_settings(back) == module_settings(saved)
        assert torch.equal(outputs(back, images(32)), outputs(saved, images(32)))
    assert "added" not in read_manifest(save(build("resnet18", 3), tmp_path / "plain"))


class Noting(SplitBlock):
    """Notes sizes when it runs."""

    height: Any
    widths: list[int]

    def __init__(self) -> None:
        super().__init__()
        self.height, self.widths, self.note = None, [], "of the constructor"

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.height, self.shape = x.shape[-2], tuple(x.shape[-2:])
        self.widths.append(x.shape[-1])
        return super().forward(x)


def test_numbers_that_a_users_network_notes_when_it_runs_come_back(tmp_path: Path) -> None:
    model, x = Noting().eval(), torch.randn(2, 3, 5, 6)
    expected = model(x)
    model.customized_value, model.conv.stage, model.note = 8, 3, "another"  # type: ignore[assignment]
    fresh: Any = Noting()
    back: Any = load(save(model, tmp_path / "noting"), fresh)
    assert (back.height, back.shape, back.widths, back.customized_value, back.conv.stage) == (5, (5, 6), [6], 8, 3)
    assert back.note == "of the constructor"
    assert torch.equal(back(x), expected)


def test_a_number_that_hides_something_of_a_module_is_not_set(tmp_path: Path) -> None:
    for key in ("extra_repr", "bias", "__doc__", "half", "no name"):
        model = SplitBlock()
        vars(model.inner)[key] = 3
        path = save(model, tmp_path / key)
        with pytest.raises(CheckpointError, match=f"module 'inner' cannot have {key} = '3' in SplitBlock"):
            load(path, SplitBlock())
