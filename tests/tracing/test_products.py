"""The multiply-adds of products are those that `cost` counts, in the whole network and without some channels."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from prune_fe.measure.cost import cost
from prune_fe.pruning.analysis import analyse
from prune_fe.tracing.copying import copy_model
from tests.tracing.networks import Blur
from tests.tracing.test_attention_modules import Cross, Layers, vision_transformer
from tests.tracing.test_attention_rules import (
    Attending,
    Shared,
    X,
    by_einsum,
    by_hand,
    fused,
    over_channels,
    talking,
    with_flat_heads,
)


class Constant(Attending):
    """Products in which no channels are lost."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.tokens(x)
        square = self.talk(x).mT @ torch.ones(4, 5, dtype=x.dtype)
        lines = F.linear(square, torch.ones(3, 5, dtype=x.dtype)).flatten(1)
        return self.head(x.mean(1)) + torch.addmm(torch.zeros(3), lines, torch.ones(30, 3))


class Named(Attending):
    """Products whose factors are given by name, the second one first."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.tokens(x)
        square = torch.bmm(mat2=torch.ones(len(x), 4, 5, dtype=x.dtype), input=self.talk(x).mT)
        lines = F.linear(bias=None, weight=torch.ones(3, 5, dtype=x.dtype), input=square)
        maps = F.conv1d(bias=None, weight=torch.ones(2, lines.shape[1], 2, dtype=x.dtype), input=lines)
        ones = torch.ones(4, 3, dtype=x.dtype)
        return self.head(x.mean(1)) + torch.addmm(mat2=ones, mat1=maps.flatten(1), input=torch.zeros_like(ones[0]))


@pytest.mark.parametrize(
    "model",
    [
        *(Attending(attend) for attend in (fused, by_hand, by_einsum, with_flat_heads, over_channels, talking)),
        Shared(fused), Shared(by_hand), Cross(add_bias_kv=True), Layers(), vision_transformer(), Constant(fused),
        Named(fused), Blur(),
    ],
    ids=lambda model: f"{type(model).__name__}-{getattr(getattr(model, 'attend', None), '__name__', '')}",
)  # fmt: skip
def test_products_cost_what_is_counted(model: Any) -> None:
    model.eval()
    linear = [name for name, module in model.named_modules() if isinstance(module, nn.Linear | nn.MultiheadAttention)]
    analysis = analyse(model, X, linear)
    draw, removed = np.random.default_rng(0), []
    for group in analysis.groups:
        if group.reason is None:
            order = group.removal_order(draw.permutation(len(group.sets)).astype(float))
            steps = min(len(group.sets) // group.step // 2, group.count_steps(order))
            removed += [group.sets[position] for block in group.take_steps(order, 0, steps) for position in block]
    assert removed or isinstance(model, Constant | Named)
    pruned, whole = copy_model(model), cost(model, X)
    analysis.cutter.cut(pruned, analysis.cutter.all_channels(), analysis.cutter.channels_without(removed))
    assert analysis.cost.total("macs") == whole.macs
    assert analysis.cost.share("macs", removed) == pytest.approx(cost(pruned, X).macs / whole.macs, rel=1e-12)


class Windows(nn.Module):
    """A layer whose rows are windows of the images, for which the survey of the layers runs the network again."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.each, self.last = nn.Conv2d(3, 8, 4, 4), nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x).permute(0, 2, 3, 1)
        windows = x.unflatten(1, (2, -1)).flatten(0, 1)
        return self.last(self.each(windows.flatten(1, 2)).unflatten(0, (len(x), 2)).mean((1, 2)))


def test_a_network_that_is_run_again_is_counted_once() -> None:
    model = Windows().eval()
    assert analyse(model, X).cost.total("macs") == cost(model, X).macs
