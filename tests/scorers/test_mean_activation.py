"""The mean activation against a loop over every pixel."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from prune_fe.errors import InputError
from prune_fe.scorers.base import LayerScore
from prune_fe.scorers.mean_activation import MeanActivation
from prune_fe.scoring.score import score


def scored(maps: Tensor, labels: Tensor, classes: int) -> LayerScore:
    sums: Any = MeanActivation().measure(maps, labels, classes)
    return MeanActivation().score_layer(sums)


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=40, deadline=None)
def test_it_is_the_mean_over_positions_and_images(awkward_maps: Callable[[int], Any], seed: int) -> None:
    maps, labels, classes = awkward_maps(seed)
    keep = scored(maps, labels, classes).keep
    for unit in range(maps.shape[1]):
        values = [value for image in maps for row in image[unit].tolist() for value in row]
        assert keep[unit].item() == pytest.approx(sum(values) / len(values), rel=1e-12, abs=1e-14)


def test_by_hand() -> None:
    maps = torch.tensor([[[[1.0, -2.0], [0.0, 3.0]]], [[[-8.0, 0.0], [0.0, 0.0]]]])
    result = scored(maps, torch.tensor([0, 0]), 1)
    assert result.keep.tolist() == [-6 / 8]
    assert result.raw["mean_activation"].equal(result.keep)


def test_wrong_settings_say_what_is_allowed() -> None:
    with pytest.raises(InputError, match="scorer 'mean-activation' has no setting 'p'; it has read"):
        MeanActivation.with_settings("mean-activation", {"p": 2})
    with pytest.raises(InputError, match="mean-activation: read is 'output', allowed are map, before_norm"):
        MeanActivation(read="output")  # type: ignore[arg-type]


def test_before_the_norm_it_is_what_nni_computes() -> None:
    # A hook on the convolution, its `activation='relu'`, and the mean over images and positions.
    net = nn.Sequential(nn.Conv2d(2, 5, 3), nn.BatchNorm2d(5), nn.ReLU(), nn.Flatten(), nn.Linear(80, 3))
    nn.init.uniform_(net[1].weight, -2, 2)  # type: ignore[arg-type]
    images, outputs = torch.randn(9, 2, 6, 6), list[Tensor]()
    hook = net[0].register_forward_hook(lambda module, inputs, output: outputs.append(F.relu(output.detach())))
    net.eval()(images)
    hook.remove()
    keep = score(net, [(images, torch.arange(9) % 3)], MeanActivation(read="before_norm")).keep["0"]
    np.testing.assert_allclose(keep, outputs[0].double().mean((0, 2, 3)), rtol=1e-6)
    assert not np.allclose(keep, score(net, [(images, torch.arange(9) % 3)], MeanActivation()).keep["0"])
