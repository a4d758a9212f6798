"""Tensors are cut along the dimensions that have the removed channels."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from prune_fe.errors import InputError
from prune_fe.pruning.analysis import analyse
from prune_fe.pruning.cut import (
    Cutter,
    find_code_sizes,
    refuse_unlike_weights,
    select_channels,
)
from prune_fe.tracing.channel_tracer import build_dependency_graph
from prune_fe.tracing.copying import copy_model
from prune_fe.tracing.dependency_graph import SetId
from prune_fe.tracing.memory_format import is_channels_last
from prune_fe.tracing.shared_tensors import named_tensors

X = torch.randn(1, 3, 6, 6)


def cutter_of(model: nn.Module) -> Cutter:
    return Cutter(model, build_dependency_graph(model, X))


def sets_of(cutter: Cutter, layer: str, *units: int) -> list[SetId]:
    return cutter.axis_sets[layer, "out"][list(units)].tolist()


def test_weights_biases_statistics_and_counts_follow_the_channels() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Conv2d(4, 2, 1, bias=False)).eval()
    nn.init.uniform_(model[1].running_mean)  # type: ignore[arg-type]
    before = {name: value.clone() for name, value in named_tensors(model).items()}
    cutter = cutter_of(model)
    cutter.cut(model, cutter.all_channels(), cutter.channels_without(sets_of(cutter, "0", 0, 2)))
    kept = [1, 3]
    for name in ("0.weight", "0.bias", "1.weight", "1.bias", "1.running_mean", "1.running_var"):
        assert torch.equal(named_tensors(model)[name], before[name][kept])
    assert torch.equal(model[2].weight, before["2.weight"][:, kept])  # type: ignore[arg-type]
    assert (model[0].out_channels, model[1].num_features, model[2].in_channels) == (2, 2, 2)
    assert model(X).shape == (1, 2, 6, 6)


def test_each_block_of_a_grouped_convolution_loses_inputs_of_its_own() -> None:
    model = nn.Sequential(nn.Conv2d(3, 6, 1), nn.Conv2d(6, 4, 1, groups=2), nn.Conv2d(4, 2, 1))
    weight = named_tensors(model)["1.weight"].clone()  # (4, 3, 1, 1)
    cutter = cutter_of(model)
    cutter.cut(model, cutter.all_channels(), cutter.channels_without(sets_of(cutter, "0", 0, 5)))
    assert torch.equal(model[1].weight[:2], weight[:2, [1, 2]])  # type: ignore[index]
    assert torch.equal(model[1].weight[2:], weight[2:, [0, 1]])  # type: ignore[index]
    assert model(X).shape == (1, 2, 6, 6)


@pytest.mark.parametrize(
    "middle", [nn.Conv2d(4, 4, 3, groups=4), nn.ConvTranspose2d(4, 4, 2), nn.PReLU(4), nn.GroupNorm(1, 4)]
)
def test_a_second_cut_starts_from_the_first(middle: nn.Module) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), middle, nn.Conv2d(4, 2, 1)).eval()
    at_once, cutter = copy_model(model), cutter_of(model)
    first = cutter.channels_without(sets_of(cutter, "0", 1))
    second = cutter.channels_without(sets_of(cutter, "0", 1, 2))
    cutter.cut(model, cutter.all_channels(), first)
    cutter.cut(model, first, second)
    cutter.cut(at_once, cutter.all_channels(), second)
    assert all(torch.equal(value, named_tensors(at_once)[name]) for name, value in named_tensors(model).items())
    assert torch.equal(model(X), at_once(X))


def test_frozen_weights_stay_frozen_and_untouched_ones_stay_the_same_objects() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1), nn.Conv2d(4, 2, 1))
    model[0].requires_grad_(False)
    last, cutter = model[2].weight, cutter_of(model)
    cutter.cut(model, cutter.all_channels(), cutter.channels_without(sets_of(cutter, "0", 1)))
    assert [weight.requires_grad for weight in model.parameters()] == [False, False, True, True, True, True]
    assert model[2].weight is last


def test_select_cuts_what_is_shaped_like_a_parameter() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 2, 1))
    cutter = cutter_of(model)
    kept = cutter.channels_without(sets_of(cutter, "0", 3))
    momentum = torch.arange(8.0).view(2, 4, 1, 1)
    assert torch.equal(cutter.select("1.weight", momentum, cutter.all_channels(), kept), momentum[:, :3])
    assert cutter.select("1.bias", momentum, cutter.all_channels(), kept) is momentum
    np.testing.assert_array_equal(kept["1", "in"], [0, 1, 2])


@pytest.mark.parametrize("shape", [(5,), (5, 7), (5, 7, 1, 1), (5, 7, 3, 3), (5, 7, 1), (0, 7)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int64])
def test_channels_are_selected_like_by_index_select(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    tensor = torch.arange(math.prod(shape)).view(shape).to(dtype)
    if tensor.ndim == 4:
        tensor = tensor.contiguous(memory_format=torch.channels_last)
    for dim in range(min(len(shape), 2)):
        positions = torch.tensor([0, 3, 4] if shape[dim] else [], dtype=torch.int64)
        expected, selected = tensor.index_select(dim, positions), select_channels(tensor, dim, positions)
        assert torch.equal(selected, expected)
        assert selected.stride() == expected.stride()


def test_a_tensor_with_two_names_is_cut_once_and_keeps_both() -> None:
    model: Any = nn.Sequential(nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1), nn.Conv2d(3, 2, 1))
    model[1].weight = model[0].weight
    cutter = cutter_of(model)
    assert cutter.shared == {"0.weight", "1.weight"}
    first, again = (cutter.channels_without(sets_of(cutter, "0", *units)) for units in ((1,), (1, 2)))
    momentum = torch.arange(9.0).view(3, 3, 1, 1)
    whole = cutter.all_channels()
    # Both layers read the image, so that the input channels are the tied outputs of the first.
    for name in ("0.weight", "1.weight"):
        assert torch.equal(cutter.select(name, momentum, whole, first), momentum[[0, 2]][:, [0, 2]])
    cutter.cut(model, whole, first)
    cutter.cut(model, first, again)
    assert model[1].weight is model[0].weight
    assert [(layer.out_channels, layer.in_channels) for layer in model] == [(1, 1), (1, 1), (2, 1)]
    assert [tuple(layer.weight.shape[:2]) for layer in model] == [(1, 1), (1, 1), (2, 1)]


@pytest.mark.parametrize("kernel", [1, 3])
@pytest.mark.parametrize("is_last", [True, False])
def test_weights_keep_their_memory_format(kernel: int, is_last: bool) -> None:
    layers: list[nn.Module] = [nn.Conv2d(3, 8, kernel), nn.Conv2d(8, 8, kernel, groups=2), nn.Conv2d(8, 8, 1, groups=8)]
    model: Any = nn.Sequential(*layers, nn.Conv2d(8, 2, 1))
    if is_last:
        model = model.to(memory_format=torch.channels_last)
    before = [is_channels_last(layer.weight) for layer in model]
    cutter = cutter_of(model)
    cutter.cut(model, cutter.all_channels(), cutter.channels_without(sets_of(cutter, "0", 0, 4)))
    assert [is_channels_last(layer.weight) for layer in model] == before
    assert before[1] == is_last
    assert [len(layer.weight) for layer in model] == [6, 8, 8, 2]


class Sized(nn.Module):
    """Attributes that are the sizes of what is split, in a list, in a tuple and by themselves."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 2, 1)
        self.sizes, self.first, self.pair, self.other, self.flag = [2, 6], 2, (6, 5), 9, True

    def forward(self, x: Tensor) -> Tensor:
        a, b = torch.split(self.conv(x), self.sizes, 1)
        return self.head(torch.cat([b, a], 1))


def test_sizes_in_attributes_are_counted_anew() -> None:
    model = Sized()
    graph = build_dependency_graph(model, X)
    sizes = find_code_sizes(model, graph)
    assert {attribute for _, attribute in sizes} == {"sizes", "first", "pair"}
    cutter = Cutter(model, graph).with_code_sizes(sizes)
    cutter.cut(model, cutter.all_channels(), cutter.channels_without(sets_of(cutter, "conv", 0, 2, 3)))
    assert (model.sizes, model.first, model.pair, model.other) == ([1, 4], 1, (4, 5), 9)
    assert model(X).shape == (1, 2, 6, 6)


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"1.weight": torch.zeros(1)}, "momentum: Sequential has no parameter '1.weight'"),
        ({"0.bias": torch.zeros(3)}, r"momentum of parameter '0.bias' is \(3,\), the parameter \(2,\)"),
        ({"0.bias": None}, r"momentum of parameter '0.bias' is NoneType, the parameter \(2,\)"),
    ],
)
def test_tensors_unlike_the_weights_are_refused(tensors: dict[str, Tensor], message: str) -> None:
    model = nn.Sequential(nn.Conv2d(3, 2, 1))
    refuse_unlike_weights({"0.bias": torch.zeros(2)}, model, "momentum")
    with pytest.raises(InputError, match=message):
        refuse_unlike_weights(tensors, model, "momentum")


def test_an_analysis_leaves_the_sizes_that_need_not_change() -> None:
    assert analyse(Sized(), X).cutter.code_sizes.keys() == {("", "sizes")}


def test_weights_that_lists_and_dicts_hold_too_are_replaced_there() -> None:
    model: Any = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 2, 1))
    model.penalised = [model[0].weight, {"last": (model[1].bias, [model[0].bias])}, 3]
    cutter = cutter_of(model)
    cutter.cut(model, cutter.all_channels(), cutter.channels_without(sets_of(cutter, "0", 1)))
    assert model.penalised[0] is model[0].weight
    assert model.penalised[1]["last"][0] is model[1].bias
    assert model.penalised[1]["last"][1][0] is model[0].bias
    assert len(model[0].bias) == 3
