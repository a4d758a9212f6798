"""What scorers share: rows, settings, sums over positions, scores of filters."""

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from prune_fe.errors import InputError
from prune_fe.scorers import SCORERS, resolve_scorer
from prune_fe.scorers.base import (
    ActivationScorer,
    GradientScorer,
    LayerScore,
    MapScorer,
    Rows,
    Sums,
    WeightScorer,
    check_choice,
    require_finite,
    sum_over_positions,
    to_float64,
)
from prune_fe.scoring.score import score, score_all
from prune_fe.tracing.layers import Layer


@dataclass(frozen=True)
class Brightness(MapScorer):
    """The sum of all maps, divided."""

    divisor: int = 1

    def measure(self, maps: Tensor, labels: Tensor, classes: int) -> Sums:
        return {"total": maps.sum(dim=(0, 2, 3))}

    def score_layer(self, sums: dict[str, Tensor]) -> LayerScore:
        return LayerScore(sums["total"] / self.divisor)


@dataclass(frozen=True)
class LargestWeight(WeightScorer):
    def score_layer(self, layer: Layer, weight: Tensor) -> LayerScore:
        return LayerScore(weight.abs().flatten(1).amax(dim=1))


@dataclass(frozen=True)
class Slope(GradientScorer):
    def measure_gradients(self, gradients: Tensor) -> Sums:
        return {"total": gradients.sum(dim=0)}

    def score_layer(self, sums: dict[str, Tensor]) -> LayerScore:
        return LayerScore(sums["total"])


def test_rows_are_appended_up_to_their_number() -> None:
    rows = Rows(torch.tensor([[1, 2]]), 3) + Rows(torch.tensor([[3, 4], [5, 6]]), 3)
    assert rows.values.tolist() == [[1, 2], [3, 4], [5, 6]]
    with pytest.raises(InputError, match=r"at most 3 are kept \(setting rows\); take fewer samples"):
        rows + rows


def test_settings_are_the_fields_of_the_dataclass() -> None:
    scorer = Brightness.with_settings("brightness", {"divisor": 2})
    assert scorer == Brightness(2)
    assert scorer.settings == {"divisor": 2}
    with pytest.raises(InputError, match="scorer 'brightness' has no setting 'factor'; it has divisor"):
        Brightness.with_settings("brightness", {"factor": 2})
    with pytest.raises(InputError, match="scorer 'largest' has no setting 'factor'; it has none"):
        LargestWeight.with_settings("largest", {"factor": 2})


def test_each_layer_is_scored_from_its_own_sums() -> None:
    layers = [Layer("a", 2, (1, 1)), Layer("b", 1, (1, 1))]
    sums: dict[str, Sums] = {"a": {"total": torch.tensor([2.0, 4.0])}, "b": {"total": torch.tensor([6.0])}}
    scores = Brightness(2).score(nn.Identity(), layers, sums)
    assert {name: score.keep.tolist() for name, score in scores.items()} == {"a": [1, 2], "b": [3]}


def test_a_layer_without_filters_is_refused_by_a_scorer_of_weights() -> None:
    with pytest.raises(InputError, match="layer '0' is a ReLU and has no filters of its own"):
        LargestWeight().score(nn.Sequential(nn.ReLU()), [Layer("0", 2, (1, 1))], {})


def test_a_scorer_refuses_the_measurement_that_it_does_not_make() -> None:
    labels = torch.zeros(1, dtype=torch.int64)
    with pytest.raises(TypeError, match="LargestWeight reads no maps"):
        LargestWeight().measure(torch.zeros(1, 1, 1, 1), labels, 1)
    with pytest.raises(TypeError, match="Slope reads no maps"):
        Slope().measure(torch.zeros(1, 1, 1, 1), labels, 1)
    with pytest.raises(TypeError, match="Brightness reads no gradients"):
        Brightness().measure_gradients(torch.zeros(1, 1))


def test_positions_are_summed_in_float64_and_values_that_are_not_finite_are_named() -> None:
    maps = torch.full((2, 3, 8, 8), 0.1, dtype=torch.float16)
    totals = sum_over_positions(maps)
    assert totals.dtype == torch.float64
    assert torch.equal(totals, maps.double().sum(dim=(2, 3)))
    assert torch.equal(sum_over_positions(-maps, torch.abs), totals)
    maps[1, 2, 4, 4] = torch.nan
    with pytest.raises(InputError, match="unit 2: the map of image 1 of the batch holds NaN or infinite values"):
        sum_over_positions(maps)


def test_values_in_float64_are_detached() -> None:
    values = nn.Parameter(torch.tensor([0.5, 2.0], dtype=torch.bfloat16))
    assert to_float64(values).tolist() == [0.5, 2]
    assert not to_float64(values).requires_grad
    assert to_float64(values).dtype == torch.float64


def test_a_choice_that_is_not_allowed_is_named() -> None:
    check_choice("taylor", "square", "image", ("total", "image"))
    with pytest.raises(InputError, match="taylor: square is 'sum', allowed are total, image"):
        check_choice("taylor", "square", "sum", ("total", "image"))


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_maps_that_are_not_finite_are_refused_and_those_with_an_infinite_float32_sum_are_not(value: float) -> None:
    for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        maps = torch.full((2, 3, 4, 4), torch.finfo(dtype).max / 2, dtype=dtype)
        if dtype != torch.float64:
            require_finite(maps)
        maps = torch.zeros_like(maps)
        maps[1, 2, 3, 0] = value
        with pytest.raises(InputError, match="unit 2: the map of image 1 of the batch holds NaN or infinite values"):
            require_finite(maps)


ACTIVATIONS = sorted(name for name in SCORERS if issubclass(SCORERS[name], ActivationScorer))


def test_these_scorers_say_where_maps_are_read() -> None:
    assert ACTIVATIONS == ["apoz", "class-selectivity", "hrank", "l1-activation", "mean-activation"]


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_before_the_norm_the_norm_plays_no_part(name: str) -> None:
    conv, head = nn.Conv2d(2, 6, 3), nn.Sequential(nn.Flatten(), nn.Linear(96, 3))
    norm = nn.BatchNorm2d(6)
    nn.init.uniform_(norm.weight, -2, 2)
    nn.init.uniform_(norm.bias, -1, 1)
    with_norm, without = nn.Sequential(conv, norm, nn.SiLU(), head), nn.Sequential(conv, nn.ReLU(), head)
    data = [(torch.randn(12, 2, 6, 6), torch.arange(12) % 3)]
    scorer = resolve_scorer(name, {"read": "before_norm"})
    found, expected = score(with_norm, data, scorer), score(without, data, name)
    for quantity, layers in expected.raw.items():
        np.testing.assert_array_equal(found.raw[quantity]["0"], layers["0"])
    # Both places are read in one pass.
    both = score_all(with_norm, data, {"before": scorer, "map": resolve_scorer(name)})
    np.testing.assert_array_equal(both["before"].keep["0"], found.keep["0"])
    np.testing.assert_array_equal(both["map"].keep["0"], score(with_norm, data, name).keep["0"])
    assert not np.allclose(both["map"].keep["0"], found.keep["0"]) or name == "hrank"
