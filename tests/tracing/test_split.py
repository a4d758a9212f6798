"""A network in parts gives what the whole gives with units masked, or says why it is not split."""

import pytest
import torch
from torch import Tensor, nn

import prune_fe
from prune_fe.tracing.feature_maps import mask
from prune_fe.tracing.layers import find_layers
from prune_fe.tracing.split import NotSplit, SplitNetwork, TailInputs, split


class Residual(nn.Module):
    """A residual sum and an in-place activation behind the layer, and a parameter that the code uses by itself."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 6, 3, padding=1)
        self.norm, self.relu, self.third = nn.BatchNorm2d(6), nn.ReLU(inplace=True), nn.Conv2d(6, 6, 1)
        self.scale, self.classify = nn.Parameter(torch.rand(6, 1, 1) + 0.5), nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        skip = self.first(x)
        x = self.third(nn.functional.max_pool2d(self.relu(self.norm(self.second(skip))), 2))
        return self.classify((x + nn.functional.avg_pool2d(skip, 2) * self.scale).mean((2, 3)))


def check_masks(model: nn.Module, network: SplitNetwork, layer: str, images: Tensor) -> None:
    """The logits of the parts are those of the whole network, for three masks."""
    (found,) = find_layers(model, images, [layer])
    keep = torch.rand(3, found.units) < 0.5
    for row, logits in zip(keep, network.logits(network.tail_inputs(images), keep), strict=True):
        with mask(model, [found], {layer: (~row).nonzero()[:, 0].tolist()}), torch.no_grad():
            torch.testing.assert_close(logits, model(images), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("layer", ["first", "second"])
def test_the_parts_give_what_the_masked_network_gives(layer: str) -> None:
    model, images = Residual().eval(), torch.randn(3, 3, 8, 8)
    network = split(model, find_layers(model, images, [layer])[0], images[:2])
    assert isinstance(network, SplitNetwork)
    check_masks(model, network, layer, images)


def test_what_the_tail_reads_besides_the_maps_is_computed_once() -> None:
    model, images = Residual().eval(), torch.randn(5, 3, 8, 8)
    network = split(model, find_layers(model, images, ["second"])[0], images[:2])
    assert isinstance(network, SplitNetwork)
    inputs = network.tail_inputs(images)
    assert inputs.unmasked.shape == (5, 6, 4, 4)  # pooling acts on each channel separately
    assert inputs.masked.shape == (1, 6, 4, 4)
    assert [tuple(other.shape) for other in inputs.others] == [(5, 6, 4, 4)]  # the other branch of the sum
    assert inputs.per_image == (True,)


def test_inputs_of_some_images_are_those_of_all() -> None:
    inputs = TailInputs(
        torch.arange(6.0).view(3, 2), torch.zeros(1, 2), (torch.arange(3), torch.ones(5)), (True, False)
    )
    part = inputs.select(slice(1, 3))
    assert (len(inputs), len(part)) == (3, 2)
    assert part.unmasked.tolist() == [[2, 3], [4, 5]]
    assert part.masked.shape == (1, 2)
    assert [other.tolist() for other in part.others] == [[1, 2], [1] * 5]
    assert inputs.image_bytes == part.image_bytes == 2 * 4 + 8
    per_image = TailInputs(inputs.unmasked, inputs.unmasked + 1, (), ())
    assert per_image.select(slice(2, 3)).masked.tolist() == [[5, 6]]
    assert per_image.image_bytes == 2 * 2 * 4


class Mixing(nn.Module):
    """Behind `conv` the channels stay separate up to the pooling; `mix` mixes them, so weakly that single precision
    does not always show it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.classify = nn.Conv2d(3, 4, 3), nn.Linear(4, 2)
        self.mix = nn.Conv2d(4, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = nn.functional.max_pool2d(self.conv(x).relu(), 2)
        return self.classify((x + 1e-9 * self.mix(x)).mean((2, 3)))


@pytest.mark.parametrize("dead", [False, True])
def test_units_are_masked_behind_all_that_acts_on_each_separately(dead: bool) -> None:
    model, images = Mixing().eval(), torch.randn(2, 3, 9, 9)
    if dead:  # maps of zeros do not show what mixes them
        nn.init.constant_(model.conv.bias, -1e3)  # type: ignore[arg-type]
    network = split(model, find_layers(model, images, ["conv"])[0], images)
    assert isinstance(network, SplitNetwork)
    assert isinstance(network.channelwise, torch.fx.GraphModule)
    assert [node.name for node in network.channelwise.graph.nodes if node.op == "call_function"] == ["max_pool2d"]
    assert network.tail_inputs(images).unmasked.shape == (2, 4, 3, 3)


@pytest.mark.parametrize(
    "name", ["resnet18", "mobilenet_v2", "googlenet", "densenet121", "efficientnet_b0", "timm/convnext_atto"]
)
@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore:left out")
def test_networks_are_split_behind_every_kind_of_layer(name: str) -> None:
    model = prune_fe.build(name, 4).eval()
    images = torch.randn(2, 3, 32, 32)
    layers = find_layers(model, images)
    for layer in (layers[1], layers[len(layers) // 2], layers[-1]):
        assert isinstance(split(model, layer, images), SplitNetwork), layer.name


@pytest.mark.parametrize(
    ("name", "block"),
    [("resnet18", "layer4.1"), ("timm/resnet18", "layer3.0"), ("densenet121", "features.transition2")],
)
def test_networks_are_split_behind_a_block(name: str, block: str) -> None:
    model = prune_fe.build(name, 4).eval()
    images = torch.randn(2, 3, 32, 32)
    network = split(model, find_layers(model, images, [block])[0], images)
    assert isinstance(network, SplitNetwork)
    check_masks(model, network, block, images)


class ReadsCount(nn.Module):
    """The part behind `conv` reads the number of images."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.classify = nn.Conv2d(3, 4, 3), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        n = x.shape[0]
        return self.classify(self.conv(x).relu().mean((2, 3)).view(n, 4))


class Branching(ReadsCount):
    """Its code looks at values."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x if x.sum() > -1e9 else -x)


class FixedCount(ReadsCount):
    """Its code fits two images only, not two masks of two images."""

    def forward(self, x: Tensor) -> Tensor:
        return self.classify(self.conv(x).relu().mean((2, 3))).view(2, 2)


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        (ReadsCount, "the part behind 'conv' reads a value of type int"),
        (Branching, "it cannot be traced (TraceError: "),
        (FixedCount, "its parts do not run (RuntimeError: "),
    ],
)
def test_a_network_that_is_not_split_says_why(kind: type[nn.Module], reason: str) -> None:
    model, images = kind().eval(), torch.randn(2, 3, 6, 6)
    result = split(model, find_layers(model, images)[0], images)
    assert isinstance(result, NotSplit)
    assert result.reason.startswith(reason)


def test_splitting_leaves_the_network_as_it_was() -> None:
    model, images = Residual().train(), torch.randn(2, 3, 8, 8)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    split(model, find_layers(model, images, ["second"])[0], images)
    assert all(module.training and not module._forward_hooks for module in model.modules())
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
