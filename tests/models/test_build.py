"""Networks by name: which one is built, and what is said about an unknown one."""

from typing import Any

import pytest
from torch import nn

from prune_fe.errors import InputError
from prune_fe.models.build import build
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
        ("timm/vgg-small", r"unknown model 'timm/vgg-small'"),
        ("torchvision/efficientnet_lite0", r"unknown model 'torchvision/efficientnet_lite0'"),
        ("hf-hub:timm/resnet18", "unknown model 'hf-hub:timm/resnet18'"),
        ("timm/hf-hub:timm", "unknown model 'timm/hf-hub:timm'"),
        ("local-dir:/x", "unknown model 'local-dir:/x'"),
        ("os/system", "unknown model 'os/system'"),
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
        ("resnet18", {"pretrained": True}, "model 'resnet18': its weights tell 1000 classes apart, the data has 10"),
        ("vgg-small", {"widths": 3}, "model 'vgg-small': .*unexpected keyword argument 'widths'"),
        ("resnet18", {"widths": 3}, "model 'resnet18': .*unexpected keyword argument 'widths'"),
        ("timm/resnet18", {"widths": 3}, "model 'timm/resnet18': .*unexpected keyword argument 'widths'"),
    ],
)
def test_what_a_network_cannot_have_is_refused_by_name(name: str, arguments: dict[str, Any], text: str) -> None:
    with pytest.raises(InputError, match=text):
        build(name, 10, **arguments)
