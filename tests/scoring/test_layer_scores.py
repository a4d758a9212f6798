"""What scorers return is checked."""

from typing import Any

import numpy as np
import pytest
import torch

from prune_fe.errors import InputError
from prune_fe.scorers import resolve_scorer
from prune_fe.scorers.base import LayerScore, Rows
from prune_fe.scoring.layer_scores import check_settings, check_sums, collect_arrays
from prune_fe.tracing.layers import Layer

LAYERS = [Layer("a", 2, (3, 3)), Layer("b", 3, (3, 3))]
APOZ = resolve_scorer("apoz")


def results(**raw: Any) -> dict[str, LayerScore]:
    values = {name: raw.get(name, {}) for name in "ab"}
    return {layer.name: LayerScore(torch.zeros(layer.units), values[layer.name]) for layer in LAYERS}


def test_tensors_become_arrays_by_layer_and_quantity() -> None:
    raw = {"a": {"x": torch.ones(2), "y": np.ones((4, 2))}, "b": {"x": torch.ones(3), "y": np.ones((4, 3))}}
    keep, quantities = collect_arrays(APOZ, LAYERS, results(**raw), 4)
    assert {name: values.shape for name, values in keep.items()} == {"a": (2,), "b": (3,)}
    assert {name: values["b"].shape for name, values in quantities.items()} == {"x": (3,), "y": (4, 3)}


def test_minus_zero_becomes_zero() -> None:
    keep, _ = collect_arrays(APOZ, LAYERS[:1], {"a": LayerScore(torch.tensor([-0.0, 1.0]))}, 0)
    assert not np.signbit(keep["a"]).any()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.int64])
def test_scores_of_any_real_type_are_taken(dtype: torch.dtype) -> None:
    keep, _ = collect_arrays(APOZ, LAYERS[:1], {"a": LayerScore(torch.tensor([2, 1], dtype=dtype))}, 0)
    assert keep["a"].tolist() == [2, 1]


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        ({"a": {"x": torch.ones(2)}}, "scorer 'apoz', layer 'b': its raw quantities are none, those of 'a' x"),
        ({"b": {"x": torch.ones(3)}}, "scorer 'apoz', layer 'b': its raw quantities are x, those of 'a' none"),
        ({"a": {"keep": torch.ones(2)}}, "layer 'a': a raw quantity is called 'keep'; allowed is any text but"),
        ({"a": {"x": torch.ones(5, 2)}}, r"layer 'a': its raw quantity 'x' is float32 \(5, 2\); it must be one number"),
        ({"a": {"x": [1.0, 2.0]}}, "layer 'a': its raw quantity 'x' is a list"),
    ],
)
def test_odd_quantities_are_refused(raw: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        collect_arrays(APOZ, LAYERS, results(**raw), 4)


def test_sums_are_tensors_or_rows() -> None:
    check_sums(APOZ, "a", {"x": torch.ones(2), "y": Rows(torch.ones(1, 2), 5)})
    with pytest.raises(InputError, match="scorer 'apoz', layer 'a': what it measured is a dict; it must be a dict of"):
        check_sums(APOZ, "a", {})
    with pytest.raises(InputError, match="scorer 'apoz', layer 'a': its sum 'x' is None"):
        check_sums(APOZ, "a", {"x": None})


def test_a_setting_that_json_does_not_know_is_refused() -> None:
    check_settings(resolve_scorer("random", {"seed": 3}))
    with pytest.raises(InputError, match="scorer 'mine': setting 'by' is a set, which cannot be saved"):

        def mine(layer: Layer, weight: Any, by: Any = frozenset()) -> Any: ...

        check_settings(resolve_scorer(mine, {"by": {1}}))
