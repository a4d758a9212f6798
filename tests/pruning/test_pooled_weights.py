"""Weights that are read from a pool are weights, and are nowhere all at once."""

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from prune_fe.pruning import pooled_weights
from prune_fe.pruning.analysis import analyse
from prune_fe.pruning.cut import Cutter
from prune_fe.pruning.pooled_weights import (
    PooledConv2d,
    PooledLinear,
    copy_with_pooled_weights,
    cut_pooled_weights,
    find_poolable_layers,
)
from prune_fe.tracing.channel_tracer import ChannelTracer, build_dependency_graph
from prune_fe.tracing.watching import evaluating

X = torch.randn(2, 3, 6, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


@pytest.fixture(autouse=True)
def small_pool(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the weights of small layers go round the pool several times."""
    monkeypatch.setattr(pooled_weights, "PERIOD", 101)
    monkeypatch.setattr(pooled_weights, "MIN_WEIGHTS", 50)


class Net(nn.Module):
    """Its second convolution pads by a function, and `tied` reads the weight of `read`."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, bias=False)
        self.second = nn.Conv2d(8, 9, 3, padding=1, stride=2, padding_mode="circular")
        self.grouped, self.small = nn.Conv2d(9, 9, 3, padding=1, groups=3), nn.Conv2d(9, 5, 1)
        self.read, self.head = nn.Linear(5, 12), nn.Linear(12, 6)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.second(torch.relu(self.first(x))))
        x = self.read(self.small(self.grouped(x)).mean((2, 3)))
        return self.head(x + F.linear(x, self.read.weight.T).sum())


def uses(model: nn.Module) -> dict[int, set[tuple[str, str]]]:
    tracer = ChannelTracer(model)
    with evaluating(model), torch.no_grad(), tracer.tracing():
        model(X)
    return tracer.parameter_uses


def written_out(twin: nn.Module, layers: list[str]) -> nn.Module:
    """Return the network with weights that exist."""
    plain = copy.deepcopy(twin)
    for name in layers:
        module = plain.get_submodule(name)
        scale = (2 / module.get_parameter("weight")[0].numel()) ** 0.5
        weight = torch.cat([part.clone() for part in module.pooled.parts()]) * scale  # type: ignore[union-attr,operator]
        assert weight.shape == module.weight.shape
        module.__class__ = nn.Conv2d if isinstance(module, nn.Conv2d) else nn.Linear
        module.weight = nn.Parameter(weight)
    return plain


def test_only_large_plain_layers_whose_weights_nothing_else_reads_are_chosen() -> None:
    model = Net().double()
    assert find_poolable_layers(model, uses(model)) == ["first", "second", "head"]
    model.first = nn.utils.parametrizations.weight_norm(model.first)
    model.head.register_forward_pre_hook(lambda module, args: module.weight.norm() and None)
    assert find_poolable_layers(model, uses(model)) == ["second"]
    assert find_poolable_layers(model, {}) == []


def test_a_layer_computes_what_it_would_with_these_weights_whole_and_cut() -> None:
    model = Net()
    layers = ["first", "second", "head"]
    twin = copy_with_pooled_weights(model, layers, torch.float64)
    assert isinstance(twin.first, PooledConv2d)
    assert isinstance(twin.head, PooledLinear)
    assert twin.second.weight.is_meta  # type: ignore[union-attr]
    with torch.no_grad():
        torch.testing.assert_close(twin(X), written_out(twin, layers)(X))
    cutter = Cutter(model, build_dependency_graph(model, X.float()))
    first, second = (cutter.axis_sets[name, "out"] for name in ("first", "second"))
    kept = cutter.channels_without([*first[[0, 3, 4]].tolist(), *second[[2, 5, 8]].tolist()])
    plain = written_out(twin, layers)
    cutter.cut(plain, cutter.all_channels(), kept)
    cutter.cut(twin, cutter.all_channels(), kept)
    cut_pooled_weights(twin, cutter, kept)
    assert twin.second.weight.shape == (6, 5, 3, 3)  # type: ignore[union-attr]
    with torch.no_grad():
        torch.testing.assert_close(twin(X), plain(X))


def test_no_two_rows_or_columns_of_a_weight_are_the_same_and_no_two_layers() -> None:
    model = nn.Sequential(nn.Linear(40, 40), nn.Linear(40, 40))
    twin = copy_with_pooled_weights(model, ["0", "1"], torch.float64)
    first, second = (torch.cat(list(layer.pooled.parts())) for layer in twin.children())  # type: ignore[union-attr,operator]
    assert first.shape == (40, 40)
    assert len(first.unique(dim=0)) == len(first.unique(dim=1)) == 40
    assert len(torch.cat([first, second]).unique(dim=0)) == 80


def test_the_network_keeps_its_weights_and_copies_share_the_pool() -> None:
    model = Net()
    before = copy.deepcopy(model.state_dict())
    twin = copy_with_pooled_weights(model, ["first", "second"], torch.float64)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert type(model.first) is nn.Conv2d
    other = copy.deepcopy(twin)
    assert other.first.pooled.pool is twin.second.pooled.pool  # type: ignore[union-attr]


def test_groups_are_the_same_as_without_a_pool(monkeypatch: pytest.MonkeyPatch) -> None:
    model = Net()
    analysis = analyse(model, X.float())
    assert isinstance(analysis.verifier.model.first, PooledConv2d)
    monkeypatch.setattr(pooled_weights, "MIN_WEIGHTS", 10**9)
    other = analyse(model, X.float())
    assert type(other.verifier.model.first) is nn.Conv2d
    # The reason of a group that fails says by how much the outputs differ with these weights.
    reasons, others = ([str(group.reason).split(" (")[0] for group in each.groups] for each in (analysis, other))
    assert reasons == others == ["None", "None", "None", "removing its units is not masking them"]
    np.testing.assert_array_equal(analysis.cutter.graph.coupled_set, other.cutter.graph.coupled_set)
