"""Nested inputs and outputs are called, changed, moved and compared like single tensors."""

import math
from collections import OrderedDict, namedtuple
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from prune_fe.errors import InputError
from prune_fe.tracing.nested import (
    compare_outputs,
    count_rows,
    draw_like,
    leaves,
    map_tensors,
    move,
    run,
    take_logits,
    take_rows,
    tensors_in,
)

Pair = namedtuple("Pair", "first second")


@dataclass
class Detection:
    boxes: Tensor
    names: list[str]


def nested() -> tuple[Any, list[Tensor]]:
    """Return values of every kind of container, and the tensors in them."""
    tensors = [torch.full((2, 3), float(number)) for number in range(6)]
    a, b, c, d, e, f = tensors
    return (a, [b, None], {"x": Pair(c, 1)}, OrderedDict(y=d), Detection(e, ["f"]), f), tensors


def test_tensors_are_found_in_every_container() -> None:
    values, tensors = nested()
    assert [id(value) for value in tensors_in(values)] == [id(tensor) for tensor in tensors]
    assert [path for path, leaf in leaves(values) if isinstance(leaf, Tensor)] == [
        "[0]",
        "[1][0]",
        "[2]['x'].first",
        "[3]['y']",
        "[4].boxes",
        "[5]",
    ]


def test_a_change_keeps_the_containers() -> None:
    values, _ = nested()
    changed = map_tensors(lambda tensor: tensor + 1, values)
    assert [float(value[0, 0]) for value in tensors_in(changed)] == [1, 2, 3, 4, 5, 6]
    assert [type(part) for part in changed] == [type(part) for part in values]
    assert isinstance(changed[2]["x"], Pair)
    assert changed[4].names == ["f"]


class Sum(nn.Module):
    def forward(self, a: Any, b: Any = 0, c: Any = 0) -> Any:
        return (a[0] if isinstance(a, list) else a) + 10 * b + 100 * c


def test_a_tuple_is_arguments_a_dict_keywords_and_a_list_one_argument() -> None:
    assert run(Sum(), (1, 2)) == 21
    assert run(Sum(), {"a": 1, "c": 2}) == 201
    assert run(Sum(), [1, 2]) == 1
    assert int(run(Sum(), torch.tensor(3))) == 3


def test_only_floating_point_numbers_change_their_type() -> None:
    tokens, image = move((torch.zeros(1, dtype=torch.int64), torch.zeros(1)), dtype=torch.float64)
    assert (tokens.dtype, image.dtype) == (torch.int64, torch.float64)
    tokens, image = draw_like((torch.arange(3), torch.zeros(3)), torch.Generator().manual_seed(0), torch.float32)
    assert tokens.tolist() == [0, 1, 2]
    assert len(set(image.tolist())) == 3


def test_rows_are_the_first_size_and_can_be_repeated() -> None:
    two = (torch.tensor([[1.0], [2.0]]), {"ids": torch.tensor([5, 6])})
    assert count_rows(two) == 2
    more = take_rows(two, 3)
    assert (more[0].flatten().tolist(), more[1]["ids"].tolist()) == ([1, 2, 1], [5, 6, 5])
    assert take_rows(two, 1)[1]["ids"].tolist() == [5]
    images = [torch.zeros(3, 8, 8), torch.zeros(3, 9, 9)]
    assert (count_rows(images), len(take_rows(images, 1)), len(take_rows(images, 5))) == (2, 1, 5)
    assert [len(taken[0]) for taken in (take_rows((images,), 1), take_rows((images,), 5))] == [1, 5]
    mixed = (torch.zeros(2, 3), torch.zeros(7))
    assert (count_rows(mixed), take_rows(mixed, 4)) == (1, mixed)


def test_the_output_that_differs_most_is_compared() -> None:
    ones, large = torch.ones(3), 100 * torch.ones(3)
    assert compare_outputs(ones, ones, "it") == (0, 1)
    assert compare_outputs({"a": large + 1, "b": [ones + 0.5]}, {"a": large, "b": [ones]}, "it") == (0.5, 1)
    assert compare_outputs((1, ones.long(), "x", None), (2, ones.long(), "y", None), "it") == (1, 2)
    difference, _ = compare_outputs((ones * float("nan"), ones + 1), (ones, ones), "it")
    assert math.isnan(difference)
    difference, _ = compare_outputs((ones + 1, ones * float("nan")), (ones, ones), "it")
    assert math.isnan(difference)


@pytest.mark.parametrize("fill", [-1e9, float("-inf")])
def test_values_that_fill_masked_places_hide_no_difference(fill: float) -> None:
    values = torch.tensor([fill, 1.0, 2.0, 0.0])
    assert compare_outputs(values + torch.tensor([0, 0, 0.5, 0]), values, "it") == (0.5, 2)
    assert compare_outputs(values.half(), values.half(), "it")[0] == 0
    difference, largest = compare_outputs(values.flip(0), values, "it")
    assert not difference <= 0.1 * largest


@pytest.mark.parametrize(
    ("output", "expected", "message"),
    [
        (torch.ones(2), torch.ones(3), r"it returns \(2,\), the original \(3,\)"),
        ({"a": torch.ones(2)}, {"a": torch.ones(3)}, r"it returns \(2,\) as output\['a'\], the original \(3,\)"),
        ([torch.ones(2)], [torch.ones(2)] * 2, r"output\[1\] is missing in it"),
        ((torch.ones(2), None), (torch.ones(2), "x"), r"it returns a NoneType as output\[1\], the original a str"),
    ],
)
def test_outputs_of_another_kind_are_refused(output: Any, expected: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        compare_outputs(output, expected, "it")


@pytest.mark.parametrize(
    ("output", "logits", "message"),
    [
        (
            {"out": torch.ones(2, 3)},
            None,
            r"model returns \['out'\] \(2, 3\), a classifier returns logits .*logits=",
        ),
        ({"out": torch.ones(2, 3)}, lambda out: out["x"], r"logits= fails on what the model returns.*KeyError"),
        (torch.ones(2, 3), lambda out: out[0], r"logits= returns \(3,\), a classifier returns logits"),
    ],
)
def test_what_has_no_logits_is_refused(output: Any, logits: Callable[[Any], Any] | None, message: str) -> None:
    with pytest.raises(InputError, match=message):
        take_logits(output, logits)
    assert take_logits({"out": torch.ones(2, 3)}, lambda out: out["out"]).shape == (2, 3)
