"""What prune() and sensitivity() are given is checked in one place, with the name of the function in the message."""

from typing import Any

import pytest
import torch
from torch import nn

from prune_fe.errors import InputError
from prune_fe.pruning.arguments import linear_layers, require_scored
from prune_fe.scoring.score import score

X = torch.zeros(1, 1, 6, 6)


def make(width: int = 4) -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, width, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16 * width, 2))


def test_a_scored_network_is_returned_without_its_wrapper() -> None:
    net = make()
    wrapped = nn.DataParallel(net)
    assert require_scored(wrapped, score(net, scorer="l1-filter"), X, "f()") is net


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"model": 3}, "model is a int"),
        ({"example": None}, r"f\(\) needs example="),
        ({"scores": {}}, r"scores is a dict; f\(\) needs what prune_fe.score returns"),
        ({"model": make(5)}, r"scores are of another network \(Sequential, 1 layers\)"),
    ],
)
def test_wrong_arguments_are_refused(changed: dict[str, Any], message: str) -> None:
    net = make()
    given: dict[str, Any] = {"model": net, "scores": score(net, scorer="l1-filter"), "example": X} | changed
    with pytest.raises(InputError, match=message):
        require_scored(**given, function="f()")


def test_linear_layers_are_those_that_were_scored_on_purpose() -> None:
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 5), nn.ReLU(), nn.Linear(5, 2))
    assert linear_layers(net, score(net, scorer="l1-filter", example=X)) == set()
    assert "3" in linear_layers(net, score(net, scorer="l1-filter", example=X, linear=True))
