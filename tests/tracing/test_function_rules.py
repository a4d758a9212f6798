"""What becomes of channels in the functions that a network's code calls."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from prune_fe.pruning.analysis import analyse
from prune_fe.pruning.prune import prune
from prune_fe.scoring.score import score
from prune_fe.tracing.channel_ids import expand_along, ids_along
from prune_fe.tracing.dependency_graph import GraphBuilder
from prune_fe.tracing.function_rules import Call, follow_function
from prune_fe.tracing.ops import plain_name
from prune_fe.tracing.watching import tensors_in
from tests.tracing.networks import (
    Body,
    Chunks,
    Gate,
    Net,
    Parts,
    Shuffle,
    Split,
    Upwards,
    X,
    first_reason,
    groups_of,
)


def test_what_is_added_goes_together_and_halves_lose_equally_many() -> None:
    assert groups_of(Chunks) == [(("stem", "conv"), 8, 2)]
    (group,) = analyse(Chunks().eval(), X).groups
    assert group.layer_units["conv"] == ((0,), (1,), (2,), (3,), (), (), (), ())  # tied to the first half of the stem
    assert group.units_at([1, 6]) == {"stem": (1, 6), "conv": (1,)}


def test_what_is_interleaved_goes_together() -> None:
    assert groups_of(Shuffle) == [(("stem", "conv"), 8, 1), (("last",), 16, 1)]


def test_channels_that_become_pixels_go_together() -> None:
    assert groups_of(Upwards) == [(("stem",), 8, 1), (("up",), 16, 1), (("conv",), 4, 1), (("last",), 4, 1)]


def test_a_gate_goes_with_what_it_gates() -> None:
    assert [group.other_modules for group in analyse(Gate().eval(), X).groups] == [(), ("up",)]


class Found(Net):
    """Reads the channels that are positive at the first position."""

    def body(self, x: Tensor) -> Tensor:
        return x + torch.where(x[0, :, 0, 0] > -1)[0].view(-1, 1, 1)


class Constant(Net):
    def body(self, x: Tensor) -> Tensor:
        return x * torch.arange(8.0).view(-1, 1, 1)


class HardSplit(Net):
    """The sizes stand in the code itself."""

    def body(self, x: Tensor) -> Tensor:
        a, b = torch.split(x, [2, 6], 1)
        return torch.cat([b, a], 1)


class HandNorm(Net):
    """A layer norm by hand: every channel depends on all."""

    def body(self, x: Tensor) -> Tensor:
        return (x - x.mean(1, keepdim=True)) / (x.var(1, keepdim=True) + 1e-3).sqrt()


class ImageAdded(Net):
    def body(self, x: Tensor) -> Tensor:
        return x + self.image

    def forward(self, x: Tensor) -> Tensor:
        self.image = x.repeat(1, 3, 1, 1)[:, :8]
        return super().forward(x)


class Uneven(Net):
    """Parts of 4 and 3 channels, which cannot lose the same share."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.last = nn.GroupNorm(2, 8), nn.Conv2d(8, 8, 1)
        self.other = nn.Conv2d(3, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.cat([torch.relu(self.stem(x))[:, :5], self.other(x)], 1)
        return self.head(self.last(self.norm(y)).mean((2, 3)))


class Repeated(Net):
    def __init__(self) -> None:
        super().__init__(10)

    def body(self, x: Tensor) -> Tensor:
        return F.pad(x[None], (0, 0, 0, 0, 1, 1), mode="replicate")[0]


class Gram(Net):
    def body(self, x: Tensor) -> Tensor:
        x = x.flatten(2)
        return (x @ x.transpose(1, 2))[..., None]


class ByHand(Net):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(8, 8, 1, 1))

    def body(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight)


class Strongest(Net):
    def body(self, x: Tensor) -> Tensor:
        return x * x.amax(1, keepdim=True)


class Unfolded(Net):
    def body(self, x: Tensor) -> Tensor:
        return F.unfold(x, 1).view(x.shape)


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        (Repeated, "padding by replicate over the channels"),
        (Gram, "a matrix product in the network's code"),
        (ByHand, "convolved with a tensor that belongs to no layer in the network's code"),
        (Strongest, "amax() over the channels in the network's code"),
        (Unfolded, "its channels go through unfold() in the network's code"),
        (Found, "its channels go through where() in the network's code"),
        (Constant, "combined with 8 values that no layer with units gave, in the network's code"),
        (HardSplit, "without some of its units the network does not run: split_with_sizes expects split_sizes to sum"),
        (HandNorm, "removing its units is not masking them (the outputs differ by "),
        (ImageAdded, "combined with 8 values that no layer with units gave, in the network's code"),
        (Uneven, "its units cannot keep the equal parts that are demanded by GroupNorm 'norm' with 2 groups"),
    ],
    ids=lambda value: value.__name__ if isinstance(value, type) else "",
)
def test_what_cannot_be_cut_stays_and_the_reason_is_said(kind: type[Net], reason: str) -> None:
    assert first_reason(kind).startswith(reason)


def test_a_part_of_a_split_keeps_a_unit() -> None:
    model = Parts().eval()
    pruned = prune(model, score(model, scorer="random", example=X), 0.9, X)
    stem = pruned.steps[0]
    assert (stem.units, stem.asked, stem.count, stem.left) == (8, 7, 6, "each of its parts keeps a unit")
    assert model.sizes == [2, 6]
    assert pruned.model.sizes == [1, 1]
    difference, largest = pruned.difference(model, X)
    assert difference < 1e-5 * largest


def test_numbers_that_are_no_widths_stay_and_those_that_are_get_said() -> None:
    halves = Body(lambda net, x: torch.cat(net.c(x).chunk(2, 1), 1)).eval()
    pruned = prune(halves, score(halves, scorer="random", example=X), 0.5, X)
    assert (pruned.model.k, pruned.model.epochs, pruned.notes) == (4, 4, ())
    split = Split().eval()
    pruned = prune(split, score(split, scorer="random", example=X), 0.5, X)
    assert (pruned.model.width, pruned.notes) == (2, ("sizes in the network's code were changed too: width",))


def follow(function: Callable[..., Any], *args: Any, channels: int = 6, dim: int = 1) -> tuple[GraphBuilder, Any]:
    """Call a function on a tensor with channels 1, 2, ... along a dimension of (1, 6, 2), and follow it."""
    builder = GraphBuilder({"": nn.Identity()}, {})
    value = torch.randn(1, 6, 2) if dim == 1 else torch.randn(1, 2, 6)
    axis = builder.axis("layer", "out", channels)
    builder.ids[value] = expand_along(axis.channels, dim, value.shape)
    output = function(value, *args)
    outputs = [tensor for tensor in tensors_in(output) if tensor.ndim]
    follow_function(builder, Call(plain_name(function), function, (value, *args), {}, output, [value], outputs))
    return builder, output


@pytest.mark.parametrize(
    ("function", "args", "dim", "expected"),
    [
        (torch.flip, ([1],), 1, [6, 5, 4, 3, 2, 1]),
        (torch.roll, (1, 1), 1, [6, 1, 2, 3, 4, 5]),
        (Tensor.__getitem__, ((slice(None), slice(0, None, 2)),), 1, [1, 3, 5]),
        (Tensor.transpose, (1, 2), 2, [1, 2, 3, 4, 5, 6]),
        (F.pad, ((0, 0, 1, 2),), 1, [0, 1, 2, 3, 4, 5, 6, 0, 0]),
        (F.pad, ((0, 0, -2, 0),), 1, [3, 4, 5, 6]),
        (torch.mean, ([2],), 1, [1, 2, 3, 4, 5, 6]),
        (F.max_pool1d, (2,), 1, [1, 2, 3, 4, 5, 6]),
        (torch.relu, (), 1, [1, 2, 3, 4, 5, 6]),
    ],
)
def test_ids_are_those_of_the_output(function: Any, args: Any, dim: int, expected: list[int]) -> None:
    builder, output = follow(function, *args)
    assert ids_along(builder.ids[output], [dim]).tolist() == expected
    assert builder.ids[output].shape == output.shape


def test_equal_parts_must_stay_equal_and_unequal_ones_are_counted() -> None:
    graph = follow(torch.chunk, 3, 1)[0].build(1)
    assert [[len(block) for block in blocks] for blocks in graph.balance_constraints] == [[2, 2, 2]]
    graph = follow(torch.split, [2, 4], 1)[0].build(1)
    assert graph.balance_constraints == []
    assert [len(sets) for _, sets in graph.counted_sets] == [2, 4, 6]


def test_tensors_that_only_take_their_type_from_another_have_no_channels() -> None:
    builder, output = follow(Tensor.new_zeros, (1, 6, 2))
    assert output not in builder.ids
    assert builder.build(1).fixed_sets == {}


def test_integers_that_are_rearranged_are_no_channels() -> None:
    # Their values, 1 and 2, are ids of other channels.
    builder = GraphBuilder({"": nn.Identity()}, {})
    value, numbers = torch.randn(1, 6, 2), torch.tensor([[[1, 2]]])
    builder.ids[value] = expand_along(builder.axis("layer", "out", 6).channels, 1, value.shape)
    output = numbers.expand_as(value)
    follow_function(builder, Call("expand_as", Tensor.expand_as, (numbers, value), {}, output, [value], [output]))
    assert builder.ids[output].unique().tolist() == [0]
    output = value.index_select(1, numbers[0, 0])
    call = Call("index_select", Tensor.index_select, (value, 1, numbers[0, 0]), {}, output, [value], [output])
    follow_function(builder, call)
    assert ids_along(builder.ids[output], [1]).tolist() == [2, 3]


def test_a_loop_over_a_tensor_is_followed() -> None:
    def body(net: Any, x: Tensor) -> Tensor:
        first, second = net.c(x).unflatten(1, (2, -1)).transpose(0, 1)
        return torch.cat([first * second] * 2, 1)

    assert groups_of(lambda: Body(body)) == [(("stem",), 8, 1), (("c",), 4, 1), (("last",), 8, 1)]  # type: ignore[arg-type]
