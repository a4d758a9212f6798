"""The cost of a network without some units is that of the network without them."""

import numpy as np
import pytest
import torch
import torchvision
from torch import nn

from prune_fe.measure.cost import cost
from prune_fe.pruning.analysis import analyse
from prune_fe.tracing.copying import copy_model

X = torch.zeros(1, 3, 32, 32)


@pytest.mark.parametrize("name", ["squeezenet1_1", "mobilenet_v2", "regnet_x_400mf"])
def test_shares_are_those_of_the_cut_network(name: str) -> None:
    model = torchvision.models.get_model(name, num_classes=3).eval()
    analysis = analyse(model, X)
    rng = np.random.default_rng(0)
    removed = []
    for group in analysis.groups:
        if group.reason is None:
            blocks = group.removal_order(rng.permutation(len(group.sets)).astype(float))
            count = rng.integers(0, min(map(len, blocks)))
            removed += [group.sets[position] for block in blocks for position in block[:count]]
    pruned = copy_model(model)
    analysis.cutter.cut(pruned, analysis.cutter.all_channels(), analysis.cutter.channels_without(removed))
    before, after = cost(model, X), cost(pruned, X)
    assert analysis.cost.share("parameters", removed) == pytest.approx(after.parameters / before.parameters)
    assert analysis.cost.share("macs", removed) == pytest.approx(after.macs / before.macs)
    assert analysis.cost.share("macs", []) == analysis.cost.share("parameters", []) == 1


def test_a_linear_layer_is_applied_at_one_position() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 100))
    analysis = analyse(model, X[:, :, :2, :2])
    removed = list(analysis.groups[0].sets[:2])
    assert analysis.cost.share("macs", removed) == 0.5
    # Of 416 + 100 parameters, the 100 biases of the linear layer stay.
    assert analysis.cost.share("parameters", removed) == pytest.approx((8 + 300) / 516)
