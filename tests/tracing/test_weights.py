"""Networks whose weights nothing can be computed from are refused, with the name of the layer."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import prune_fe
from prune_fe.errors import InputError
from prune_fe.models.checkpoints import save_weights
from prune_fe.models.small_vgg import SmallVGG
from prune_fe.tracing.weights import all_finite, require_network, require_sound_weights


def broken(change: Callable[[Any], Any]) -> nn.Module:
    model: Any = SmallVGG(4, 3, [[4], [6]]).eval()
    with torch.no_grad():
        change(model)
    return model


def nan_weight(model: Any) -> None:
    model.features[4].weight[1, 0, 0, 0] = float("nan")


def infinite_bias(model: Any) -> None:
    model.classifier.bias[2] = float("-inf")


def nan_statistics(model: Any) -> None:
    model.features[1].running_var[0] = float("nan")


BROKEN = [
    (nan_weight, r"layer 'features.4': weight holds 1 NaN or infinite values of 216"),
    (infinite_bias, r"layer 'classifier': bias holds 1 NaN or infinite values of 4"),
    (nan_statistics, r"layer 'features.1': running_var holds 1 NaN or infinite values of 4"),
]


@pytest.mark.parametrize(
    ("change", "text"),
    [
        *BROKEN,
        (lambda model: model.to("meta"), r"layer 'features.0': weight has no values: it is on the meta device"),
        (
            lambda model: setattr(model.classifier, "weight", nn.Parameter(torch.eye(4) * 1j)),
            r"layer 'classifier': weight is complex",
        ),
        (
            lambda model: setattr(model.classifier, "weight", nn.Parameter(torch.eye(4).to_sparse())),
            "layer 'classifier': weight is sparse_coo, not dense",
        ),
        (lambda model: setattr(model, "classifier", nn.LazyLinear(4)), "layer 'classifier': weight has no values yet"),
    ],
)
def test_weights_without_finite_real_values_are_refused(change: Callable[[Any], Any], text: str) -> None:
    with pytest.raises(InputError, match=text):
        require_sound_weights(broken(change))


def test_what_is_no_network_is_refused() -> None:
    with pytest.raises(InputError, match="model is a str; it must be an nn.Module"):
        require_network("resnet18")
    with pytest.raises(InputError, match="teacher is a ReLU without any parameters"):
        require_network(nn.ReLU(), "teacher")


def test_masks_may_be_infinite_and_integers_are_no_weights() -> None:
    model = SmallVGG(4, 3, [[4]])
    model.register_buffer("mask", torch.full((2,), -torch.inf))
    require_sound_weights(model)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_values_are_finite_even_if_their_sum_is_not(dtype: torch.dtype) -> None:
    largest = torch.full((4, 3), torch.finfo(dtype).max, dtype=dtype)
    assert all_finite(largest)
    assert all_finite(largest[:0])
    for value in (torch.nan, torch.inf, -torch.inf):
        values = torch.zeros_like(largest)
        values[2, 1] = value
        assert not all_finite(values)
        values[0, 1] = -value  # the sum of both infinities is NaN
        assert not all_finite(nn.Parameter(values.T))


@pytest.mark.parametrize(("change", "text"), BROKEN)
def test_nothing_is_scored_pruned_or_saved(tmp_path: Any, change: Callable[[Any], Any], text: str) -> None:
    model, example = broken(change), torch.zeros(1, 3, 8, 8)
    whole = broken(lambda model: None)
    scores = prune_fe.score(whole, None, "l1-filter", example=example)
    for scorer in ("l1-filter", "l2-filter", "fpgm", "random", "bn-scale"):
        with pytest.raises(InputError, match=text):
            prune_fe.score(model, None, scorer, example=example)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(InputError, match=text):
        prune_fe.prune(model, scores, 0.5, example)
    with pytest.raises(InputError, match=text):
        prune_fe.save(model, tmp_path / "saved")
    with pytest.raises(InputError, match=text):
        save_weights(model, tmp_path / "weights.pth")
    assert not list(tmp_path.iterdir())
    assert all(
        torch.equal(
            value,
            before[key],
        )
        or value.isnan().any()
        for key, value in model.state_dict().items()
    )


def test_layers_without_values_yet_stay_so() -> None:
    model = nn.Sequential(nn.LazyConv2d(4, 3), nn.Flatten(), nn.LazyLinear(3))
    for call in (prune_fe.cost, prune_fe.inspect, prune_fe.find_layers):
        with pytest.raises(InputError, match="layer '0': weight has no values yet; run the network on an image first"):
            call(model, torch.zeros(1, 2, 5, 5))
    assert type(model[0]) is nn.LazyConv2d


def test_weights_of_inference_mode_are_pruned_but_not_trained() -> None:
    images = torch.utils.data.TensorDataset(torch.randn(8, 3, 8, 8), torch.arange(8) % 4)
    with torch.inference_mode():
        model = SmallVGG(4, 3, [[4], [6]]).eval()
    pruned = prune_fe.prune(model, prune_fe.score(model, scorer="l1-filter"), 0.5, torch.zeros(1, 3, 8, 8)).model
    prune_fe.finetune(pruned, images, images, epochs=1)
    for call in (
        lambda: prune_fe.finetune(model, images, images, epochs=1),
        lambda: prune_fe.recalibrate(model, images, samples=8),
        lambda: prune_fe.score(model, images, "taylor"),
    ):
        with pytest.raises(InputError, match=r"'features.0.weight' was made under torch.inference_mode\(\)"):
            call()
