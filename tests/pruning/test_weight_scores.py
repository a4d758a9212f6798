"""Layers that no scorer sees are scored by their weights."""

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from prune_fe.pruning.analysis import analyse
from prune_fe.pruning.prune import prune
from prune_fe.pruning.weight_scores import find_unseen_layers, score_by_weights
from prune_fe.scoring.scores import Scores

X = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(3))


class Borrowing(nn.Module):
    """Its code passes the weights of `hidden` to a function, instead of calling it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.hidden, self.mlp = nn.Conv2d(3, 4, 3), nn.Linear(4, 6), nn.Linear(6, 5)
        self.head = nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = F.linear(torch.relu(self.conv(x)).mean((2, 3)), self.hidden.weight, self.hidden.bias)
        return self.head(torch.relu(self.mlp(torch.relu(x))))


def test_they_get_scores_where_everything_else_has_some() -> None:
    analysis = analyse(Borrowing().eval(), X, ["mlp", "head"])
    assert [(group.layers, group.reason) for group in analysis.groups] == [
        (("conv",), None),
        (("hidden",), None),
        (("mlp",), None),
    ]
    assert analysis.widths == {"conv": 4, "hidden": 6, "mlp": 5, "head": 2}
    given = analysis.groups, analysis.cutter
    assert find_unseen_layers(*given, ["conv", "mlp", "head"], analysis.layers) == ["hidden"]
    # With scores of some layers, the others are left alone.
    assert find_unseen_layers(*given, ["conv"], analysis.layers) == []
    half = [group.sets[0] for group in analysis.groups]
    assert analysis.verifier.find_fault(analysis.cutter, half) is None


def test_a_unit_has_the_norm_of_its_weights() -> None:
    model = Borrowing()
    kept = {("hidden", "out"): np.array([0, 1, 2, 3, 5, 6])}
    scores = score_by_weights(model, ["hidden"], kept, {"hidden": 7})["hidden"]
    norms = model.hidden.weight.detach().abs().sum(1)
    assert np.isnan(scores[4])
    assert np.allclose(scores[[0, 1, 2, 3, 5, 6]], norms.numpy())


def test_attention_has_a_unit_for_each_query_key_and_value() -> None:
    model = nn.ModuleDict({"attn": nn.MultiheadAttention(4, 2, kdim=3)})
    kept = {("attn", "out"): np.arange(12)}
    scores = score_by_weights(model, ["attn"], kept, {"attn": 12})["attn"]
    assert np.allclose(scores[4:8], model["attn"].k_proj_weight.detach().abs().sum(1).numpy())  # type: ignore[operator]


class Partly(nn.Module):
    """The first units of `hidden`, whose weights code passes to a function, are added to those of `mlp`."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.hidden, self.mlp = nn.Conv2d(3, 4, 3), nn.Linear(4, 6), nn.Linear(4, 3)
        self.head = nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.conv(x)).mean((2, 3))
        first, second = F.linear(x, self.hidden.weight, self.hidden.bias).chunk(2, 1)
        return self.head(torch.relu(torch.cat([first + self.mlp(x), second], dim=1)))


def test_they_do_not_decide_alone_where_another_scorer_scored_the_rest_of_a_group() -> None:
    torch.manual_seed(0)
    net = Partly().eval()
    keep = {"conv": np.arange(4.0), "mlp": np.array([-100.0, 0.0, 100.0]), "head": np.zeros(2)}
    own = Scores("apoz", keep, provenance={"linear": True})
    for scores in (own, replace(own, other_scorers={"head": "taylor"}), replace(own, other_scorers={"mlp": "taylor"})):
        steps = prune(net, scores, 0.34, X[:1]).steps
        removed = next(step.removed for step in steps if "hidden" in step.layers)
        # By its weights alone, `hidden` would lose the units 1 and 2 of the first half.
        assert removed == {"hidden": (0, 1, 4, 5), "mlp": (0, 1)}
