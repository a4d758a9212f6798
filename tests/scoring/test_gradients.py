"""Gradients with respect to gates on the units, against what multiplying the maps by hand gives."""

import math

import pytest
import torch
from torch import Tensor, nn

from prune_fe.errors import InputError
from prune_fe.scoring.gradients import gate_gradients
from prune_fe.tracing.layers import find_layers
from tests.scoring.sample import Net

IMAGES, LABELS = torch.randn(5, 2, 9, 9, generator=torch.Generator().manual_seed(1)), torch.tensor([0, 1, 2, 0, 1])


def test_gradients_are_those_of_a_factor_on_each_map() -> None:
    net = Net().eval().double()
    images = IMAGES.double()
    found = gate_gradients(net, images, LABELS, find_layers(net, images[:1], ["first"]))
    gates = torch.ones(5, 5, dtype=torch.float64, requires_grad=True)
    maps = torch.relu(net.norm1(net.first(images))) * gates[:, :, None, None]
    logits = net.head(torch.relu(net.norm2(net.second(maps))).mean((2, 3)))
    nn.functional.cross_entropy(logits, LABELS, reduction="sum").backward()
    assert gates.grad is not None
    torch.testing.assert_close(found, {"first": gates.grad})


def test_the_parameters_have_no_gradients_and_an_inference_tensor_is_read() -> None:
    net = Net()
    with torch.inference_mode():
        images = IMAGES + 0
    layers = find_layers(net, IMAGES[:1])
    found = gate_gradients(net, images, LABELS, layers)
    assert {name: tuple(value.shape) for name, value in found.items()} == {"first": (5, 5), "second": (5, 4)}
    assert all(weight.grad is None for weight in net.parameters())
    assert net.training


class Detached(Net):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).detach() + self.head.bias


def test_what_has_no_gradients_is_refused_by_layer() -> None:
    detached = Detached().eval()
    with pytest.raises(InputError, match="layer 'first': no gradient reaches its maps"):
        gate_gradients(detached, IMAGES, LABELS, find_layers(detached, IMAGES[:1]))
    net = Net().eval()
    layers = find_layers(net, IMAGES[:1])
    with pytest.raises(
        InputError, match=r"the logits are \(5, 3\), the largest label is .; gradients need logits .* for every label"
    ):
        gate_gradients(net, IMAGES, LABELS + 1, layers)
    net.get_parameter("second.bias").data[1] = math.inf
    with pytest.raises(InputError, match="layer 'second': its maps hold NaN or infinite values"):
        gate_gradients(net, IMAGES, LABELS, layers)
