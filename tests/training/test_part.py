"""Which weights `only` selects, what runs in training mode, and that the user's network is left as it was."""

import pytest
import torch
from torch import nn

from prune_fe.errors import InputError
from prune_fe.training.options import TrainOptions
from prune_fe.training.part import check_part, rate_factors, select_part
from tests.training.helpers import small


def network() -> nn.Module:
    return nn.Sequential(
        nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.5)),
        nn.Flatten(),
        nn.Sequential(nn.Dropout(0.5), nn.Linear(144, 3)),
    )


@pytest.mark.parametrize(
    ("only", "weights", "in_training"),
    [
        (["2"], ["2.1.weight", "2.1.bias"], {"2", "2.0", "2.1"}),
        (["2.*"], ["2.1.weight", "2.1.bias"], {"2.0", "2.1"}),
        (["2.1"], ["2.1.weight", "2.1.bias"], {"2.1"}),
        (["*.bias"], ["0.0.bias", "0.1.bias", "2.1.bias"], {"0.0", "0.1", "2.1"}),
        (["0.1", "2.1.bias"], ["0.1.weight", "0.1.bias", "2.1.bias"], {"0.1", "2.1"}),
    ],
)
def test_names_and_patterns_select_modules_and_parameters(
    only: list[str], weights: list[str], in_training: set[str]
) -> None:
    model = network().eval()
    with select_part(model, only) as part:
        assert list(part.weights) == weights
        assert [name for name, weight in model.named_parameters() if weight.requires_grad] == weights
        part.begin_training()
        assert {name for name, module in model.named_modules() if module.training} == in_training
    assert all(weight.requires_grad for weight in model.parameters())


def test_without_a_choice_everything_is_trained() -> None:
    model = network().eval()
    with select_part(model) as part:
        part.begin_training()
        assert part.is_whole
        assert len(part.weights) == 6
        assert all(module.training for module in model.modules())


def test_what_the_user_froze_stays_frozen_and_an_error_restores_the_rest() -> None:
    model = network()
    model.get_parameter("2.1.bias").requires_grad_(False)
    with pytest.raises(KeyError), select_part(model, ["2"]) as part:
        assert list(part.weights) == ["2.1.weight"]
        raise KeyError
    assert [name for name, weight in model.named_parameters() if not weight.requires_grad] == ["2.1.bias"]


def test_a_weight_that_two_modules_share_is_trained_under_either_name() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4, bias=False))
    model[2].weight = model[0].weight
    with select_part(model, ["2"]) as part:
        assert list(part.weights) == ["0.weight"]


@pytest.mark.parametrize(
    ("only", "text"),
    [
        (["clasifier"], "only: no module or parameter is called 'clasifier'; near it are classifier"),
        (["classifier", "x*"], "only: no module or parameter is called 'x\\*'; there are features, "),
        (["pool"], "only: pool: what these name has no weights, there is nothing to train"),
    ],
)
def test_a_choice_of_nothing_is_refused_by_name(only: list[str], text: str) -> None:
    model = small()
    model.pool = nn.AdaptiveAvgPool2d(1)
    with pytest.raises(InputError, match=text), select_part(model, only):
        pass


def test_a_choice_of_frozen_weights_is_refused() -> None:
    model = small()
    model.classifier.requires_grad_(False)
    with (
        pytest.raises(InputError, match="only: classifier: what these name is frozen"),
        select_part(model, ["classifier"]),
    ):
        pass
    assert torch.is_grad_enabled()


@pytest.mark.parametrize(
    ("factors", "expected"),
    [
        ({}, {}),
        ({"0.*": 0.1}, {"0.0.weight": 0.1, "0.0.bias": 0.1, "0.1.weight": 0.1, "0.1.bias": 0.1}),
        ({"0": 0.1, "0.1": 0.5, "*.bias": 3.0}, {"0.0.weight": 0.1, "0.0.bias": 0.1, "0.1.weight": 0.5,
                                                 "0.1.bias": 0.5, "2.1.bias": 3.0}),
        ({"2": 0.1, "2.1.bias": 2.0}, {"2.1.weight": 0.1, "2.1.bias": 2.0}),
    ],
)  # fmt: skip
def test_names_win_over_patterns_and_inner_names_over_outer_ones(
    factors: dict[str, float], expected: dict[str, float]
) -> None:
    model = network()
    with select_part(model) as part:
        assert rate_factors(part, factors) == dict.fromkeys(part.weights, 1.0) | expected


@pytest.mark.parametrize(
    ("factors", "text"),
    [
        ({"3": 0.1}, "lr_by_layer: no module or parameter is called '3'"),
        ({"0": 0.1}, "lr_by_layer: '0' matches no weight that is trained"),
        ({"2.*": 0.1, "*.bias": 0.2}, r"lr_by_layer: '2.1.bias' is matched by 2.\* and \*.bias, which differ"),
    ],
)
def test_factors_that_are_wrong_are_refused(factors: dict[str, float], text: str) -> None:
    with pytest.raises(InputError, match=text):
        check_part(network(), TrainOptions(only=("2",), lr_by_layer=factors))
