"""Layers with units are found in any network that runs."""

from collections.abc import Callable
from functools import partial

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torchvision.models import vgg

from prune_fe.errors import InputError
from prune_fe.tracing.layers import Layer, find_convolutions, find_layers, find_response, list_convolutions
from tests.tracing.networks import Awkward


class Swish(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.after = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        return self.after(x * torch.sigmoid(x)).mean((2, 3))


def test_a_map_that_two_functions_consume_is_read_before_both() -> None:
    layers = find_layers(Swish(), torch.randn(1, 3, 8, 8))
    assert layers[0] == Layer("conv", 4, (6, 6), steps=0)


def test_the_convolutions_of_a_gate_on_pooled_features_have_no_maps() -> None:
    model = torchvision.models.mobilenet_v3_small(num_classes=3)
    names = [layer.name for layer in find_layers(model, torch.randn(1, 3, 64, 64))]
    gates = [name for name, module in model.named_modules() if name.endswith(("fc1", "fc2"))]
    assert gates
    assert not set(gates) & set(names)


def vgg16(batch_norm: bool) -> nn.Module:
    """Return the convolutions of VGG-16."""
    return vgg.make_layers(vgg.cfgs["D"], batch_norm=batch_norm)


@pytest.mark.parametrize(
    ("model", "steps"),
    [
        (partial(vgg16, batch_norm=False), [1] * 13),
        (partial(vgg16, batch_norm=True), [2] * 13),
        # in a residual block the second convolution's map is the norm's output, before the sum
        (torchvision.models.resnet18, [2] + [2, 1] * 2 + ([2, 1, 1] + [2, 1]) * 3),
    ],
    ids=["vgg16", "vgg16_bn", "resnet18"],
)
def test_the_layers_of_the_papers_networks(model: Callable[[], nn.Module], steps: list[int]) -> None:
    layers = find_layers(model(), torch.randn(1, 3, 32, 32))
    assert [layer.steps for layer in layers] == steps
    # Of a network with batch norms, a map with a norm only is not activated.
    n_norms = [layer.norm is not None for layer in layers]
    assert [layer.is_activated for layer in layers] == [n > norm for n, norm in zip(steps, n_norms, strict=True)]


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(self.conv(x)).mean((2, 3))


def test_a_layer_that_runs_twice_is_refused_by_name() -> None:
    with pytest.raises(InputError, match="layer 'conv' runs 2 times in a forward pass"):
        find_layers(Twice(), torch.randn(1, 3, 8, 8), ["conv"])
    with pytest.warns(UserWarning, match="layer 'conv' runs 2 times"):
        assert find_layers(Twice(), torch.randn(1, 3, 8, 8)) == ()


def test_wrong_names_get_the_nearest_ones() -> None:
    model = torchvision.models.resnet18(num_classes=2)
    x = torch.randn(1, 3, 32, 32)
    with pytest.raises(InputError, match=r"layer 'layer1.0.conv3': .* did you mean 'layer1.0.conv2'"):
        find_layers(model, x, ["layer1.0.conv3"])
    with pytest.raises(InputError, match=r"layers is \[\]; it must be a list of names"):
        find_layers(model, x, [])
    with pytest.raises(InputError, match="layer 'fc' gives no maps"):
        find_layers(model, x, ["fc"])
    with pytest.raises(InputError, match="Linear has no nn.Conv2d"):
        find_layers(nn.Linear(2, 2), torch.zeros(1, 2))
    with pytest.raises(InputError, match="layer 'fc': the model has no such convolution"):
        list_convolutions(model, ["fc"])


def test_small_maps_do_not_make_a_convolution_a_gate() -> None:
    model = torchvision.models.resnet50(num_classes=2)  # layer4 sees maps of 1×1
    assert len(find_layers(model, torch.randn(1, 3, 32, 32))) == 53


def test_an_input_that_the_network_cannot_take_is_said_with_its_shape() -> None:
    with pytest.raises(InputError, match=r"Awkward does not run on an input of \(1, 2, 8, 8\): "):
        find_layers(Awkward(), torch.randn(1, 2, 8, 8))


@pytest.mark.parametrize(
    "build",
    [
        partial(torchvision.models.squeezenet1_0, num_classes=3),
        partial(torchvision.models.DenseNet, 8, (2, 2, 2, 2), 16, num_classes=3),
        partial(torchvision.models.googlenet, num_classes=3, aux_logits=False, init_weights=False),
    ],
    ids=["squeezenet", "densenet", "googlenet"],
)
def test_a_local_pooling_that_leaves_one_pixel_makes_no_gates(build: Callable[[], nn.Module]) -> None:
    model = build()
    every = [module for module in model.modules() if isinstance(module, nn.Conv2d)]
    assert len(find_layers(model, torch.randn(1, 3, 32, 32))) == len(every)


def test_the_norm_of_a_layer_is_named() -> None:
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.SyncBatchNorm(4), nn.ReLU(), nn.Conv2d(4, 4, 1), nn.GroupNorm(2, 4))
    assert [layer.norm for layer in find_layers(model, torch.randn(2, 1, 9, 9))] == ["1", None]


def test_convolutions_that_run_twice_are_named_beside_the_layers() -> None:
    with pytest.warns(UserWarning, match="layer 'conv' runs 2 times"):
        assert find_convolutions(Twice(), torch.randn(1, 3, 8, 8)) == ((), frozenset({"conv"}))


def test_convolutions_are_listed_without_running_the_network() -> None:
    model = Awkward()
    assert [layer.name for layer in list_convolutions(model)] == ["a", "b", "c", "d", "unused"]
    assert list_convolutions(model, ["c"]) == (Layer("c", 4, (0, 0)),)


def test_the_final_responses_are_the_input_of_the_last_linear_layer() -> None:
    x = torch.randn(1, 3, 8, 8)
    assert find_response(Awkward(), x) == Layer("head", 4, (1, 1), at_input=True)
    with pytest.raises(InputError, match="reads at the network's end; layer 'conv' is a Conv2d"):
        find_response(Twice(), x)
    with pytest.raises(InputError, match="reads at the network's end; there is none"):
        find_response(nn.ReLU(), x)
