"""Layers with units are found in any network that runs."""

from collections.abc import Callable
from functools import partial

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torchvision.models import vgg

from prune_fe.errors import InputError
from prune_fe.tracing.layers import Layer, find_layers, find_layers_with_units, find_response, list_layers
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
    with pytest.raises(InputError, match="layer 'conv': it runs 2 times in a forward pass"):
        find_layers(Twice(), torch.randn(1, 3, 8, 8), ["conv"])
    with pytest.warns(UserWarning, match="layer 'conv': it runs 2 times"):
        assert find_layers(Twice(), torch.randn(1, 3, 8, 8)) == ()


def test_wrong_names_get_the_nearest_ones() -> None:
    model = torchvision.models.resnet18(num_classes=2)
    x = torch.randn(1, 3, 32, 32)
    with pytest.raises(InputError, match=r"layer 'layer1.0.conv3': .* did you mean 'layer1.0.conv2'"):
        find_layers(model, x, ["layer1.0.conv3"])
    with pytest.raises(InputError, match=r"layers is \[\]; it must be a list of names"):
        find_layers(model, x, [])
    with pytest.raises(InputError, match="layer 'fc': it gives no maps"):
        find_layers(model, x, ["fc"])
    with pytest.raises(InputError, match="Linear has no convolution"):
        find_layers(nn.Linear(2, 2), torch.zeros(1, 2))
    with pytest.raises(InputError, match="layer 'avgpool': the model has no such layer with units"):
        list_layers(model, ["avgpool"])


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


class Everything(nn.Module):
    """One layer of each kind that has units."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.up = nn.ConvTranspose2d(4, 6, 2, 2, bias=False)
        self.norm = nn.BatchNorm2d(6)
        self.gate = nn.Conv2d(6, 6, 1)
        self.shared = nn.Conv2d(6, 6, 3, padding=1)
        self.line = nn.Conv1d(6, 5, 3)
        self.volume = nn.Conv3d(1, 2, (6, 1, 1))
        self.tokens = nn.Linear(5, 8)
        self.windows = nn.Linear(8, 7)
        self.head = nn.Linear(7, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.up(torch.relu(self.conv(x)))))
        x = x * torch.sigmoid(self.gate(x.mean((2, 3), keepdim=True)))
        x = torch.relu(self.shared(torch.relu(self.shared(x))))
        x = x * self.volume(x[:, None]).mean(1)
        x = torch.relu(self.line(x.flatten(2)))
        x = torch.nn.functional.gelu(self.tokens(x.mT))  # (images, tokens, 8)
        windows = x.unflatten(1, (2, -1)).flatten(0, 1)
        x = torch.relu(self.windows(windows)).unflatten(0, (-1, 2)).mean((1, 2))
        return self.head(x)


def test_layers_of_every_kind_are_found_with_the_place_of_their_units() -> None:
    images = torch.randn(2, 3, 4, 4)
    layers = {layer.name: layer for layer in find_layers_with_units(Everything(), images, linear=True)}
    assert layers == {
        "conv": Layer("conv", 4, (4, 4), 1),
        "up": Layer("up", 6, (8, 8), 2, "norm"),
        "gate": Layer("gate", 6, (1, 1), 1, has_map=False, is_linear=True),
        "shared": Layer("shared", 6, (8, 8), 1, runs=2),
        "volume": Layer("volume", 2, (64, 1), has_map=False),
        "line": Layer("line", 5, (62, 1), 1, has_map=False),
        "tokens": Layer("tokens", 8, (62, 1), 1, has_map=False, is_linear=True, channel_dim=2),
        "windows": Layer("windows", 7, (62, 1), 1, has_map=False, is_linear=True, channel_dim=2, rows=2),
        "head": Layer("head", 3, (1, 1), has_map=False, is_linear=True),
    }
    convolutions = find_layers_with_units(Everything(), images)
    assert [layer.name for layer in convolutions] == ["conv", "up", "shared", "volume", "line"]
    with pytest.warns(UserWarning, match="'shared': it runs 2 times .*; layers 'line', 'volume': it gives no maps"):
        assert [layer.name for layer in find_layers(Everything(), images)] == ["conv", "up"]


def test_images_in_another_dimension_than_the_first_leave_rows_unknown() -> None:
    class SequenceFirst(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(3, 5)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(x.transpose(0, 1)).mean(0)

    (layer,) = find_layers_with_units(SequenceFirst(), torch.randn(1, 6, 3), linear=True)
    assert (layer.rows, layer.has_map, layer.channel_dim) == (0, False, 2)


def test_outputs_become_maps_image_by_image() -> None:
    windows = torch.arange(2 * 3 * 4 * 5).view(6, 4, 5)  # two images of three windows of four tokens of five units
    maps = Layer("windows", 5, (12, 1), has_map=False, channel_dim=2, rows=3).maps_of(windows)
    assert maps.shape == (2, 5, 12, 1)
    assert maps[1, 2].flatten().tolist() == windows[3:, :, 2].flatten().tolist()


def test_convolutions_are_listed_without_running_the_network() -> None:
    model = Awkward()
    assert [layer.name for layer in list_layers(model)] == ["a", "b", "c", "d", "unused"]
    assert list_layers(model, ["c"]) == (Layer("c", 4, (0, 0)),)
    assert [layer.name for layer in list_layers(model, linear=True)] == ["a", "b", "c", "d", "unused", "head"]


def test_the_final_responses_are_the_input_of_the_last_linear_layer() -> None:
    x = torch.randn(1, 3, 8, 8)
    assert find_response(Awkward(), x) == Layer("head", 4, (1, 1), at_input=True)
    with pytest.raises(InputError, match="reads at the network's end; layer 'conv' is a Conv2d"):
        find_response(Twice(), x)
    with pytest.raises(InputError, match="reads at the network's end; there is none"):
        find_response(nn.ReLU(), x)
