"""The hash of a scorer's code."""

import functools
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from prune_fe.scorers import resolve_scorer
from prune_fe.scorers.base import LayerScore, WeightScorer
from prune_fe.scoring.code_identity import describe_code
from prune_fe.tracing.layers import Layer

POWER = 1


def of_module(layer: Layer, weight: Tensor) -> Tensor:
    return helper(weight) ** POWER


def helper(weight: Tensor) -> Tensor:
    return weight.abs()


def key(criterion: Any) -> str:
    return describe_code(resolve_scorer(criterion))["sha256"]


def test_prune_fe_s_own_scorers_have_none() -> None:
    assert describe_code(resolve_scorer("l1-filter")) == {}


def test_the_same_code_has_the_same_hash_and_its_own_name() -> None:
    assert key(of_module) == key(of_module)
    assert describe_code(resolve_scorer(of_module))["name"] == f"{__name__}.of_module"


def test_other_code_has_another_hash() -> None:
    assert key(lambda layer, weight: weight.abs()) != key(lambda layer, weight: weight.square())
    assert key(lambda layer, weight: weight * 2) != key(lambda layer, weight: weight * 3)


@pytest.mark.parametrize(("name", "value"), [("POWER", 2), ("helper", lambda weight: weight.square())])
def test_what_the_module_holds_is_part_of_it(monkeypatch: pytest.MonkeyPatch, name: str, value: Any) -> None:
    before = key(of_module)
    monkeypatch.setitem(globals(), name, value)
    assert key(of_module) != before


@pytest.mark.parametrize(
    ("one", "other"),
    [(1, 2), ({"a", "b"}, {"a", "c"}), ({"a": [1]}, {"a": [2]}), (torch.zeros(2), torch.ones(2)), (max, min)],
)
def test_values_of_outer_functions_are_part_of_it(one: Any, other: Any) -> None:
    def make(value: Any) -> Any:
        def criterion(layer: Layer, weight: Tensor) -> Any:
            return value

        return criterion

    assert key(make(one)) == key(make(one))
    assert key(make(one)) != key(make(other))


def test_a_network_counts_by_its_weights() -> None:
    def make(value: nn.Module) -> Any:
        return lambda layer, weight: value(weight)

    network, twin = nn.Linear(2, 2), nn.Linear(2, 2)
    before = key(make(network))
    twin.load_state_dict(network.state_dict())
    assert key(make(twin)) == before
    nn.init.zeros_(network.weight)
    assert key(make(network)) != before


def test_methods_and_bases_of_a_class_are_part_of_it() -> None:
    def make(factor: int, base: type = WeightScorer) -> Any:
        class Mine(base):
            def score_layer(self, layer: Layer, weight: Tensor) -> LayerScore:
                return LayerScore(factor * weight.sum((1, 2, 3)))

        return Mine

    class Other(WeightScorer):
        pass

    assert key(make(1)) == key(make(1))
    assert len({key(make(1)), key(make(2)), key(make(1, Other))}) == 3


def test_a_function_that_calls_itself_ends() -> None:
    def again(layer: Layer, weight: Tensor, depth: int = 0) -> Tensor:
        return weight.sum((1, 2, 3)) if depth else again(layer, weight, 1)

    assert len(key(again)) == 64
    assert len(key(functools.partial(again, depth=1))) == 64
