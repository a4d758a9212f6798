"""The cost of a network without some units is that of the network without them."""

import numpy as np
import pytest
import torch
import torchvision
from torch import nn
from torch.nn import functional as F

from prune_fe.measure.cost import cost
from prune_fe.pruning.analysis import analyse
from prune_fe.pruning.options import Engine
from prune_fe.pruning.prune import prune
from prune_fe.scoring.scores import Scores
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


class Attending(nn.Module):
    """Tokens that attend to each other, whose products are a large part of the multiply-adds."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.qkv = nn.Conv2d(3, 12, 4, 4), nn.Linear(12, 72)
        self.out, self.last = nn.Linear(24, 12), nn.Linear(12, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.embed(x).flatten(2).mT
        q, k, v = self.qkv(x).unflatten(2, (3, -1, 4)).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        return self.last((x + self.out(y)).mean(1))


@pytest.mark.parametrize("engine", ["trace", "torch-pruning"])
def test_a_target_is_met_in_a_network_with_attention(engine: Engine) -> None:
    torch.manual_seed(0)
    model, x = Attending().eval(), torch.randn(2, 3, 32, 32)
    scores = Scores("by hand", {"qkv": np.arange(72.0), "embed": np.arange(12.0)})
    before = cost(model, x)
    pruned = prune(model, scores, example=x, target_macs=0.5, engine=engine)
    share = cost(pruned.model, x).macs / before.macs
    assert share == pytest.approx(pruned.macs)
    assert share == pytest.approx(0.5, abs=0.04)


class Borrowing(nn.Module):
    """Code passes the weights of a large linear layer to the layer's function."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.hidden = nn.Conv2d(3, 16, 3, 4), nn.Conv2d(16, 16, 3), nn.Linear(576, 200)
        self.last = nn.Linear(200, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.second(self.first(x).relu()).relu().flatten(1)
        return self.last(F.linear(x, self.hidden.weight, self.hidden.bias).relu())


def test_torch_pruning_counts_layers_that_do_not_run_themselves() -> None:
    pytest.importorskip("torch_pruning", reason="torch-pruning is not installed")
    model = Borrowing().eval()
    scores = Scores("by hand", {"first": np.arange(16.0), "second": np.arange(16.0)})
    pruned = prune(model, scores, example=X, target_macs=0.8, engine="torch-pruning")
    share = cost(pruned.model, X).macs / cost(model, X).macs
    assert share == pytest.approx(pruned.macs)
    assert share == pytest.approx(0.8, abs=0.04)


def test_a_linear_layer_is_applied_at_one_position() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 100))
    analysis = analyse(model, X[:, :, :2, :2])
    removed = list(analysis.groups[0].sets[:2])
    assert analysis.cost.share("macs", removed) == 0.5
    # Of 416 + 100 parameters, the 100 biases of the linear layer stay.
    assert analysis.cost.share("parameters", removed) == pytest.approx((8 + 300) / 516)
