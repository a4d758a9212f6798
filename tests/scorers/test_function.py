"""A criterion of one's own: a function, or a class that derives from Scorer."""

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from prune_fe import load_scores, prune, score, score_all
from prune_fe.errors import InputError
from prune_fe.scorers.base import GradientScorer, LayerScore, MapScorer, Scorer, Sums, WeightScorer
from prune_fe.scorers.function import make_scorer_class
from prune_fe.scoring.scores import Scores
from prune_fe.tracing.layers import Layer

TWO = torch.ones(2)


def largest_weight(layer: Layer, weight: Tensor, power: float = 1.0) -> Tensor:
    """The largest weight of each filter."""
    return weight.abs().flatten(1).amax(dim=1) ** power


@dataclass(frozen=True)
class Brightest(MapScorer):
    """The largest sum over an image's map; `scale` is a setting."""

    scale: float = 1.0

    def measure(self, maps: Tensor, labels: Tensor, classes: int) -> Sums:
        return {"total": maps.double().sum(dim=(0, 2, 3)).cpu()}

    def score_layer(self, sums: Any) -> LayerScore:
        return LayerScore(self.scale * sums["total"], {"brightness": sums["total"]})


@pytest.fixture
def net() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Conv2d(6, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(4, 2),
    )  # fmt: skip


@pytest.fixture
def data() -> TensorDataset:
    return TensorDataset(torch.randn(6, 3, 9, 9), torch.arange(6) % 2)


def expected(net: nn.Sequential, power: float = 1.0) -> dict[str, Any]:
    return {
        name: net.state_dict()[f"{name}.weight"].double().abs().amax((1, 2, 3)).numpy() ** power for name in ("0", "2")
    }


def assert_keep(scores: Scores, wanted: dict[str, Any]) -> None:
    assert list(scores.keep) == list(wanted)
    for layer, values in wanted.items():
        np.testing.assert_array_equal(scores.keep[layer], values)


def test_a_function_scores_every_layer_with_and_without_data(net: nn.Sequential, data: TensorDataset) -> None:
    for scores in (score(net, scorer=largest_weight), score(net, data, largest_weight)):
        assert_keep(scores, expected(net))
        assert (scores.scorer, scores.settings, scores.images) == ("largest_weight", {"power": 1.0}, 0)


def test_its_scores_are_saved_loaded_and_pruned_by(net: nn.Sequential, tmp_path: Path) -> None:
    scores = score(net, scorer=functools.partial(largest_weight, power=2.0))
    scores.save(tmp_path / "mine")
    loaded = load_scores(tmp_path / "mine")
    assert_keep(loaded, expected(net, 2.0))
    assert (loaded.scorer, loaded.settings) == ("largest_weight", {"power": 2.0})
    assert loaded.provenance["scorer_code"]["name"] == f"{__name__}.largest_weight"
    pruned = prune(net, loaded, 0.5, torch.zeros(1, 3, 9, 9))
    assert pruned.steps[0].removed["0"] == tuple(sorted(scores.weakest("0", 3)))


def test_a_function_shares_a_pass_with_others_and_is_not_scored_again(
    net: nn.Sequential, data: TensorDataset, tmp_path: Path
) -> None:
    calls = []

    def counted(layer: Layer, weight: Tensor) -> Tensor:
        calls.append(layer.name)
        return largest_weight(layer, weight)

    for _ in range(2):
        scores = score_all(net, data, [counted, Brightest, "apoz"], folder=tmp_path)
    assert list(scores) == ["counted", "Brightest", "apoz"]
    assert calls == ["0", "2"]


def test_stored_scores_of_changed_code_are_refused(net: nn.Sequential, tmp_path: Path) -> None:
    def mine(power: float) -> Any:
        return lambda layer, weight: weight.abs().sum((1, 2, 3)) ** power

    score_all(net, None, {"mine": mine(1.0)}, folder=tmp_path)
    score_all(net, None, {"mine": mine(1.0)}, folder=tmp_path)
    with pytest.raises(InputError, match="holds scores of another model, other images or other settings"):
        score_all(net, None, {"mine": mine(2.0)}, folder=tmp_path)


@pytest.mark.parametrize(
    "criterion", [lambda layer, weight: [float(u) for u in range(layer.units)], lambda _, w: np.arange(len(w))]
)
def test_a_list_and_an_array_are_scores_too(net: nn.Sequential, criterion: Any) -> None:
    assert score(net, scorer=criterion).keep["0"].tolist() == [0, 1, 2, 3, 4, 5]


def test_a_function_that_works_in_place_leaves_the_network_as_it_was(net: nn.Sequential) -> None:
    net.double()
    before = net.state_dict()["0.weight"].clone()
    score(net, scorer=lambda layer, weight: weight.abs_().zero_().sum((1, 2, 3)))
    torch.testing.assert_close(net.state_dict()["0.weight"], before, rtol=0, atol=0)


def test_an_object_that_can_be_called_is_a_function(net: nn.Sequential) -> None:
    class Norm:
        def __init__(self, p: int) -> None:
            self.p = p

        def __call__(self, layer: Layer, weight: Tensor) -> Tensor:
            return weight.flatten(1).norm(self.p, dim=1)

    one, two = score(net, scorer=Norm(1)), score(net, scorer=Norm(2))
    assert one.scorer == "Norm"
    assert one.provenance["scorer_code"]["name"].endswith("Norm")
    assert one.provenance["key"] != two.provenance["key"]


def fails(layer: Layer, weight: Tensor) -> Tensor:
    if layer.name == "2":
        raise ZeroDivisionError("no units")
    return weight.sum((1, 2, 3))


@pytest.mark.parametrize(
    ("criterion", "message"),
    [
        (fails, "scorer 'fails', layer '2': ZeroDivisionError: no units"),
        (lambda layer, weight: weight, r"'lambda', layer '0': its scores are float64 \(6, 3, 3, 3\); they must be 6"),
        (lambda layer, weight: weight.sum((1, 2, 3))[:3], r"layer '0': its scores are float64 \(3,\); they must be 6"),
        (lambda layer, weight: weight.sum((1, 2, 3)).log(), "'lambda', layer '0', unit .: the score is nan, it must"),
        (lambda layer, weight: weight.sum((1, 2, 3)) / 0, "layer '0', unit 0: the score is -?inf, it must be finite"),
        (lambda layer, weight: weight.sum((1, 2, 3)) + 0j, "layer '0': its scores are complex128"),
        (lambda layer, weight: weight.sum((1, 2, 3)) > 0, "layer '0': its scores are bool"),
        (lambda layer, weight: None, "scorer 'lambda', layer '0': its scores are float64 ()"),
        (lambda layer, weight: "high", "scorer 'lambda', layer '0': it returned a str, allowed are 6 numbers"),
        (lambda layer, weight: [[1], [1, 2]], "scorer 'lambda', layer '0': it returned a list, allowed are 6"),
        (lambda layer, weight, other: weight, r"'lambda' is a function of .*missing a required argument: 'other'"),
        (lambda weight: weight, "is a function of .*too many positional arguments; it is called with"),
        (lambda layer, weight, *, score=1: weight, "its parameter 'score' has the name of a method of Scorer"),
        (lambda layer, weight, by=TWO: weight, "setting 'by' is a Tensor, which cannot be saved with the"),
        (int, "scorer <class 'int'> is the class int; allowed are a class that derives from"),
        (WeightScorer, "scorer 'WeightScorer' has no method 'score_layer'"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_function_is_said_with_its_name_and_the_layer(
    net: nn.Sequential, criterion: Any, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        score(net, scorer=criterion)


def test_a_function_with_the_name_of_a_scorer_is_refused(net: nn.Sequential) -> None:
    def random(layer: Layer, weight: Tensor) -> Tensor:
        return weight.sum((1, 2, 3))

    with pytest.raises(InputError, match="has the name of another one, 'random'; rename it"):
        score(net, scorer=random)


def test_a_class_and_its_instance_give_the_same_scores(net: nn.Sequential, data: TensorDataset) -> None:
    one, other = score(net, data, Brightest), score(net, data, Brightest())
    assert one.provenance == other.provenance
    assert one.scorer == "Brightest"
    assert_keep(one, dict(other.keep))
    assert score(net, data, Brightest(2.0)).settings == {"scale": 2.0}


class WrongMeasure(MapScorer):
    """Has no settings, and therefore need be no dataclass."""

    def measure(self, maps: Tensor, labels: Tensor, classes: int) -> Any:
        return maps.sum((0, 2, 3))

    def score_layer(self, sums: Any) -> LayerScore:
        raise NotImplementedError


class BareNumber(WrongMeasure):
    def measure(self, maps: Tensor, labels: Tensor, classes: int) -> Any:
        return {"total": 3.0}


class ThatRaises(WrongMeasure):
    def measure(self, maps: Tensor, labels: Tensor, classes: int) -> Any:
        return {"total": maps @ labels}


class OneRowAnImage(WrongMeasure):
    def measure(self, maps: Tensor, labels: Tensor, classes: int) -> Any:
        return {"total": maps.sum((2, 3))}


class FailsAtTheEnd(WrongMeasure):
    def measure(self, maps: Tensor, labels: Tensor, classes: int) -> Any:
        return {"total": maps.sum((0, 2, 3))}

    def score_layer(self, sums: Any) -> LayerScore:
        return sums["totals"]


class NoLayerScore(FailsAtTheEnd):
    def score_layer(self, sums: Any) -> Any:
        return sums["total"]


class OddQuantity(FailsAtTheEnd):
    def score_layer(self, sums: Any) -> LayerScore:
        return LayerScore(sums["total"], {"share": sums["total"][:2]})


class OfGradients(GradientScorer):
    def measure_gradients(self, gradients: Tensor) -> Any:
        raise KeyError("x")

    def score_layer(self, sums: Any) -> LayerScore:
        raise NotImplementedError


class OneLayerOnly(Scorer):
    needs_data = False

    def score(self, model: nn.Module, layers: Any, sums: Any, example: Any = None) -> dict[str, LayerScore]:
        return {"0": LayerScore(torch.ones(6))}


class NoScores(OneLayerOnly):
    def score(self, model: nn.Module, layers: Any, sums: Any, example: Any = None) -> Any:
        return [1.0]


class WithInit(OneLayerOnly):
    def __init__(self, power: float) -> None:
        self.power = power


@dataclass(frozen=True)
class NeedsSetting(OneLayerOnly):
    power: float


@pytest.mark.parametrize(
    ("scorer", "message"),
    [
        (WrongMeasure, r"scorer 'WrongMeasure', layer '0': what it measured is float32 \(6,\); it must be a dict of"),
        (BareNumber, "scorer 'BareNumber', layer '0': its sum 'total' is a float; it must be a tensor of sums"),
        (ThatRaises, "scorer 'ThatRaises', layer '0': RuntimeError: "),
        (OneRowAnImage, r"scorer 'OneRowAnImage', layer '0': RuntimeError: The size of tensor a \(4\) must match"),
        (FailsAtTheEnd, "scorer 'FailsAtTheEnd', layer '0': KeyError: 'totals'"),
        (NoLayerScore, r"scorer 'NoLayerScore', layer '0': its result is float32 \(6,\); it must be a LayerScore"),
        (OddQuantity, r"layer '0': its raw quantity 'share' is float32 \(2,\); it must be one number for each of 6"),
        (OfGradients, "scorer 'OfGradients': KeyError: 'x'"),
        (OneLayerOnly, "scorer 'OneLayerOnly', layer '2': its result is None; it must be a LayerScore"),
        (NoScores, "scorer 'NoScores' returned a list; it must be layer name -> LayerScore"),
        (WithInit, "scorer 'WithInit' has an __init__: make its class a frozen dataclass"),
        (WithInit(2.0), "scorer 'WithInit' has an __init__: make its class a frozen dataclass"),
        (NeedsSetting, "scorer 'NeedsSetting' has no default for its setting 'power'; give it a value"),
    ],
)
def test_what_is_wrong_with_a_class_is_said_with_its_name_and_the_layer(
    net: nn.Sequential, data: TensorDataset, scorer: Any, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        score(net, data, scorer, batch_size=4)


def test_the_fields_of_a_function_are_its_settings() -> None:
    made = make_scorer_class(largest_weight, "my-criterion")
    assert made.__name__ == "my-criterion"
    assert made().settings == {"power": 1.0}
    assert made.with_settings("my-criterion", {"power": 3}).settings == {"power": 3}
    with pytest.raises(InputError, match="scorer 'my-criterion' has no setting 'powr'; it has power"):
        made.with_settings("my-criterion", {"powr": 3})
