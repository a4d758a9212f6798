"""Networks by name: which one is built, and what is said about an unknown one."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torchvision.models import ResNet18_Weights

from prune_fe.errors import InputError
from prune_fe.models.build import build, build_pretrained
from tests.models.networks import images, outputs


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("vgg-small", "prune_fe.models.SmallVGG"),
        ("prune_fe/vgg-small", "prune_fe.models.SmallVGG"),
        ("resnet18", "torchvision.models.resnet.ResNet"),
        ("torchvision/resnet18", "torchvision.models.resnet.ResNet"),
        ("timm/resnet18", "timm.models.resnet.ResNet"),
        ("efficientnet_lite0", "timm.models.efficientnet.EfficientNet"),
        ("timm/resnet18.tv_in1k", "timm.models.resnet.ResNet"),
    ],
)
def test_a_name_says_which_network_is_built(name: str, kind: str) -> None:
    model = build(name, 7)
    assert f"{type(model).__module__}.{type(model).__qualname__}" == kind
    assert outputs(model, images(64)).shape == (2, 7)


@pytest.mark.parametrize("name", ["vgg-small", "timm/resnet18"])
def test_channels_are_the_networks_input(name: str) -> None:
    assert outputs(build(name, 3, in_channels=1), images(32, 1)).shape == (2, 3)


def test_arguments_go_to_the_constructor() -> None:
    small: Any = build("vgg-small", 3, stages=[[5]])
    assert small.features[0].out_channels == 5
    big: Any = build("resnet18", 3, norm_layer=nn.InstanceNorm2d)
    assert isinstance(big.bn1, nn.InstanceNorm2d)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("resnet_18", r"unknown model 'resnet_18'; did you mean resnet18"),
        ("vgg-smal", r"unknown model 'vgg-smal'; did you mean vgg-small"),
        ("timm/vgg-small", r"unknown model 'timm/vgg-small'; did you mean"),
        ("torchvision/efficientnet_lite0", r"unknown model 'torchvision/efficientnet_lite0'"),
        ("hf-hub:timm/resnet18", "unknown model 'hf-hub:timm/resnet18'"),
        ("timm/hf-hub:timm", "unknown model 'timm/hf-hub:timm'"),
        ("local-dir:/x", "unknown model 'local-dir:/x'"),
        ("os/system", "unknown model 'os/system', and there is no such folder"),
        ("runs/a-1/resnet18", "unknown model 'runs/a-1/resnet18', and there is no such folder; did you mean resnet18"),
        ("", "unknown model ''"),
        ("qqqqqqqq", "unknown model 'qqqqqqqq'$"),
        ("fasterrcnn_resnet50_fpn", "unknown model 'fasterrcnn_resnet50_fpn'"),
    ],
)
def test_an_unknown_name_is_refused_with_near_ones(name: str, text: str) -> None:
    with pytest.raises(InputError, match=text):
        build(name, 10)


def test_a_suggestion_stands_once() -> None:
    with pytest.raises(InputError, match="did you mean") as caught:
        build("inception_v33", 10)
    named = str(caught.value).partition("did you mean ")[2].rstrip("?").split(", ")
    assert len(set(named)) == len(named)


@pytest.mark.parametrize(
    ("name", "arguments", "text"),
    [
        ("resnet18", {"in_channels": 1}, "model 'resnet18' reads 3 channels, the images have 1"),
        ("vgg-small", {"pretrained": True}, "model 'vgg-small' has no pretrained weights"),
        ("vgg-small", {"widths": 3}, "model 'vgg-small': .*unexpected keyword argument 'widths'"),
        ("resnet18", {"widths": 3}, "model 'resnet18': .*unexpected keyword argument 'widths'"),
        ("timm/resnet18", {"widths": 3}, "model 'timm/resnet18': .*unexpected keyword argument 'widths'"),
    ],
)
def test_what_a_network_cannot_have_is_refused_by_name(name: str, arguments: dict[str, Any], text: str) -> None:
    with pytest.raises(InputError, match=text):
        build(name, 10, **arguments)


@pytest.fixture
def downloaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Tensor]:
    """Put weights where torchvision keeps those of resnet18 that it has downloaded, and return them."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    torch.manual_seed(1)
    state: dict[str, Tensor] = torchvision.models.resnet18(weights=None).state_dict()
    file = tmp_path / "hub" / "checkpoints" / Path(ResNet18_Weights.DEFAULT.url).name
    file.parent.mkdir(parents=True)
    torch.save(state, file)
    return state


def test_pretrained_weights_of_as_many_classes_are_read_whole(downloaded: dict[str, Tensor]) -> None:
    state = build("resnet18", 1000, pretrained=True).state_dict()
    assert all(torch.equal(value, state[key]) for key, value in downloaded.items())


def test_pretrained_weights_of_other_classes_get_a_new_classifier(downloaded: dict[str, Tensor]) -> None:
    with pytest.warns(UserWarning, match="the weights of resnet18: does not fit fc, made anew with random weights"):
        state = build("resnet18", 7, pretrained=True).state_dict()
    assert state["fc.weight"].shape == (7, 512)
    backbone = [key for key in state if not key.startswith("fc.")]
    assert all(torch.equal(state[key], downloaded[key]) for key in backbone)


@pytest.mark.parametrize("classes", [3, 1000])
def test_pretrained_weights_of_timm(tmp_path: Path, classes: int) -> None:
    trained: Any = build("timm/test_resnet", 1000, in_channels=3)
    torch.save(trained.state_dict(), tmp_path / "weights.pth")
    settings = {"pretrained_cfg_overlay": {"file": str(tmp_path / "weights.pth"), "num_classes": 1000}}
    network, renewed = build_pretrained("timm/test_resnet", classes, **settings)
    assert renewed == ([] if classes == 1000 else ["fc.weight", "fc.bias"])
    state = network.state_dict()
    assert all(torch.equal(state[key], value) for key, value in trained.state_dict().items() if key not in renewed)


def test_the_hidden_layers_of_a_classifier_can_be_narrower() -> None:
    network: Any = build("torchvision/vgg11", 5, classifier_width=16)
    assert [layer.out_features for layer in network.classifier if isinstance(layer, nn.Linear)] == [16, 16, 5]
