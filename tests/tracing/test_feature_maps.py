"""Units are read where they are consumed, and masked there."""

import pytest
import timm
import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional as F

from prune_fe.errors import InputError
from prune_fe.tracing.feature_maps import follow, mask, observe
from prune_fe.tracing.layers import Layer, find_layers
from tests.tracing.networks import Awkward


def awkward_by_hand(net: Awkward, x: Tensor) -> dict[str, Tensor]:
    a = net.norm(net.a(x)).clamp(min=0)
    b = net.b(a).clamp(min=0)
    c = net.c(b).clamp(min=0)
    return {"a": a, "b": b, "c": c, "d": net.d(c)}


@pytest.fixture
def awkward() -> Awkward:
    return Awkward().eval()


def read_maps(model: nn.Module, layers: tuple[Layer, ...], x: Tensor) -> dict[str, Tensor]:
    maps: dict[str, Tensor] = {}
    with torch.no_grad(), observe(model, layers, lambda layer, values: maps.__setitem__(layer.name, values.clone())):
        model(x)
    return maps


def find_awkward(model: nn.Module, x: Tensor) -> tuple[Layer, ...]:
    with pytest.warns(UserWarning, match="layer 'unused': it does not run in a forward pass"):
        return find_layers(model, x)


def test_maps_are_read_after_the_norm_and_activation_whatever_form_they_have(awkward: Awkward) -> None:
    x = torch.randn(2, 3, 8, 8)
    layers = find_awkward(awkward, x)
    maps = read_maps(awkward, layers, x)
    assert [layer.name for layer in layers] == ["a", "b", "c", "d"]
    assert [layer.steps for layer in layers] == [2, 1, 1, 0]
    for name, expected in awkward_by_hand(awkward, x).items():
        torch.testing.assert_close(maps[name], expected)


def test_a_masked_unit_is_zero_for_everything_behind_it(awkward: Awkward) -> None:
    x = torch.randn(2, 3, 8, 8)
    layers = find_awkward(awkward, x)
    with torch.no_grad():
        a = awkward_by_hand(awkward, x)["a"].index_fill(1, torch.tensor([1, 3]), 0)
        b = awkward.b(a).clamp(min=0).index_fill(1, torch.tensor([0]), 0)
        d = awkward.d(awkward.c(b).clamp(min=0))
        expected = awkward.head(F.max_pool2d(d + b, 2).mean((2, 3)))
        with mask(awkward, layers, {"a": [1, 3], "b": [0]}):
            torch.testing.assert_close(awkward(x), expected)


def test_masks_let_gradients_through(awkward: Awkward) -> None:
    x = torch.randn(2, 3, 8, 8)
    layers = find_awkward(awkward, x)
    with mask(awkward, layers, {"a": [1], "d": [2]}):
        awkward(x).sum().backward()
    assert awkward.a.weight.grad is not None
    assert awkward.a.weight.grad[1].abs().max() == 0
    assert awkward.a.weight.grad[0].abs().max() > 0


@pytest.mark.parametrize("name", ["efficientnet_lite0", "cspresnet50", "nfnet_l0", "repvgg_a2", "ghostnet_100"])
def test_timm_networks_are_read_and_masked_without_changing_what_they_compute(name: str) -> None:
    model = timm.create_model(name, num_classes=3).eval()
    x = torch.randn(1, 3, 64, 64)
    layers = find_layers(model, x)
    with torch.no_grad():
        plain = model(x)
        assert set(read_maps(model, layers, x)) == {layer.name for layer in layers}
        with mask(model, layers, {layer.name: [] for layer in layers}):
            assert torch.equal(model(x), plain)


def test_named_modules_that_are_no_convolutions_are_read_at_their_output() -> None:
    model = torchvision.models.resnet18(num_classes=2).eval()
    x = torch.randn(2, 3, 32, 32)
    (layer,) = find_layers(model, x, ["layer1.1"])
    expected: list[Tensor] = []
    with model.layer1[1].register_forward_hook(lambda *seen: expected.append(seen[2].clone())):
        maps = read_maps(model, (layer,), x)
    assert layer == Layer("layer1.1", 64, (8, 8), 0)
    assert torch.equal(maps["layer1.1"], expected[0])


def test_nothing_is_left_on_the_model_even_when_the_body_raises(awkward: Awkward) -> None:
    awkward.train()
    awkward.norm.eval()
    x = torch.randn(2, 3, 8, 8)
    layers = find_awkward(awkward, x)
    modes = [module.training for module in awkward.modules()]
    for context in (observe(awkward, layers, lambda *_: None), mask(awkward, layers, {"a": [0]})):
        with pytest.raises(KeyError), context:
            awkward(x)
            raise KeyError
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in awkward.modules())
    assert [module.training for module in awkward.modules()] == modes
    assert torch.overrides._get_current_function_mode_stack() == []


class Detours(nn.Module):
    """Between convolution and activation: dropout, a copy, a check, a statistic."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.head = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        y = F.dropout2d(self.conv(x), training=self.training).contiguous().float()
        assert torch.isfinite(y).all()
        y.std()
        return self.head(F.relu(self.norm(y)).mean((2, 3)))


def test_what_changes_nothing_does_not_hide_the_norm_and_the_activation() -> None:
    model, x = Detours().eval(), torch.randn(2, 3, 8, 8)
    maps = read_maps(model, find_layers(model, x), x)
    torch.testing.assert_close(maps["conv"], model.norm(model.conv(x)).relu())


@pytest.mark.parametrize("unit", [1.5, True, "1", None])
def test_a_unit_is_a_whole_number(awkward: Awkward, unit: object) -> None:
    layers = find_awkward(awkward, torch.randn(1, 3, 8, 8))
    with pytest.raises(InputError, match="layer 'a': .* is no unit number"):
        mask(awkward, layers, {"a": [unit]})  # type: ignore[list-item]


@pytest.mark.parametrize(
    "relu",
    [
        lambda x: torch.clip(x, min=0),
        lambda x: x.clip(min=0),
        lambda x: x.clip_(min=0),
        lambda x: torch.clamp_(x, min=0),
        lambda x: torch.clamp_min_(x, 0),
        lambda x: x.clamp_min_(0),
    ],
)
def test_a_relu_may_be_written_as_a_clip(relu) -> None:  # type: ignore[no-untyped-def]
    class Clipped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(1, 4, 3)

        def forward(self, x: Tensor) -> Tensor:
            return relu(self.conv(x)).sum((2, 3))

    model, found = Clipped(), []
    layers = find_layers(model, torch.randn(1, 1, 9, 9))
    with torch.no_grad(), observe(model, layers, lambda layer, maps: found.append(maps.clone())):
        model(torch.randn(2, 1, 9, 9))
    assert float(found[0].min()) == 0


def test_two_layers_may_be_the_same_tensor_on_the_way() -> None:
    model = nn.Sequential(nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4)), nn.ReLU())
    image = torch.randn(2, 1, 9, 9)
    found: dict[str, Tensor] = {}
    layers = find_layers(model, image, ["0.0", "0"])
    with torch.no_grad(), observe(model, layers, lambda layer, maps: found.__setitem__(layer.name, maps.clone())):
        out = model(image)
    assert torch.equal(found["0.0"], out)
    assert torch.equal(found["0"], out)


def test_units_that_do_not_exist_cannot_be_masked() -> None:
    model = torchvision.models.resnet18(num_classes=2)
    x = torch.randn(1, 3, 32, 32)
    layers = find_layers(model, x)
    with pytest.raises(InputError, match="layer 'conv1': no unit 64, it has 64"):
        mask(model, layers, {"conv1": [64]})
    with pytest.raises(InputError, match="layer 'conv9': not among the layers given; did you mean 'conv1'"):
        mask(model, layers, {"conv9": [0]})


def test_the_network_goes_on_with_what_the_maps_are_changed_to(awkward: Awkward) -> None:
    x = torch.randn(2, 3, 8, 8)
    layers = {layer.name: layer for layer in find_awkward(awkward, x)}
    written_over: dict[str, bool] = {}

    def double(layer: Layer, maps: Tensor, in_place: bool) -> Tensor:
        written_over[layer.name] = in_place
        return maps * 2

    masked = mask(awkward, layers.values(), {"b": range(4)})
    with torch.no_grad():
        d = awkward.d(awkward.c(torch.zeros(2, 4, 8, 8)).clamp(min=0))
        expected = awkward.head(F.max_pool2d(2 * d, 2).mean((2, 3)))
        with masked, follow(awkward, [layers["d"]], double):
            doubled = awkward(x)
        with follow(awkward, [layers["a"], layers["b"]], double):
            awkward(x)
    torch.testing.assert_close(doubled, expected)
    assert written_over == {"a": False, "b": True, "d": False}


def test_a_gate_has_the_gradient_of_its_unit(awkward: Awkward) -> None:
    x = torch.randn(2, 3, 8, 8)
    gates: dict[str, Tensor] = {}
    with observe(awkward, find_awkward(awkward, x), lambda *_: None, gates):
        awkward(x)[:, 0].sum().backward()
    assert {name: gate.shape for name, gate in gates.items()} == dict.fromkeys("abcd", (2, 4))
    assert all(gate.grad is not None for gate in gates.values())
