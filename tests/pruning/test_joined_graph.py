"""torch-pruning's graph, joined with what prune_fe's own trace knows about the network's code."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from prune_fe import prune
from prune_fe.pruning import torch_pruning_engine
from prune_fe.pruning.analysis import analyse
from prune_fe.pruning.records import Pruned
from prune_fe.scoring.score import score
from tests.pruning.test_torch_pruning_engine import assert_same
from tests.tracing.networks import Net, Parts, Shuffle

pytest.importorskip("torch_pruning", reason="torch-pruning is not installed")

X = torch.randn(1, 3, 16, 16)


def prune_with_both(model: nn.Module, **settings: Any) -> tuple[Pruned, Pruned]:
    """Prune half of the units of a network, linear layers included, with each engine."""
    scores = score(model, None, scorer="l2-filter", example=X, linear=True)
    first, second = (prune(model, scores, 0.5, X, engine=engine, **settings) for engine in ("trace", "torch-pruning"))
    return first, second


class Response(nn.Module):
    """A norm by hand that divides each channel by the mean of all."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.rand(channels) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        size = x.norm(dim=(2, 3), keepdim=True)
        return x * (size / (size.mean(1, keepdim=True) + 1e-6)) * self.weight[:, None, None]


class Normed(Net):
    """A norm between the stem and the next convolution."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.norm, self.conv = norm, nn.Conv2d(8, 8, 1)

    def body(self, x: Tensor) -> Tensor:
        return self.conv(self.norm(x)).relu()


def test_a_hand_written_norm_leaves_masked_channels_out_of_its_means() -> None:
    first, second = prune_with_both(Normed(Response(8)))
    assert [(step.layers, step.count) for step in second.steps] == [(("stem",), 4), (("conv",), 4)]
    assert_same(first, second)


def test_a_norm_that_torch_pruning_does_not_know_is_cut() -> None:
    layers = pytest.importorskip("timm.layers.grn", reason="timm is not installed")
    norm = layers.GlobalResponseNorm(8, channels_last=False)
    nn.init.uniform_(norm.weight)
    first, second = prune_with_both(Normed(norm))
    assert [(step.layers, step.count) for step in second.steps] == [(("stem",), 4), (("conv",), 4)]
    assert_same(first, second)


class Scale(nn.Module):
    """A scale for each channel, whose shape stands in an attribute."""

    def __init__(self) -> None:
        super().__init__()
        self.shape, self.scale = (8, 1, 1), nn.Parameter(torch.rand(8) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale.view(self.shape)


@pytest.mark.parametrize("rounds", [1, 2])
def test_numbers_in_the_code_change_with_the_channels(rounds: int) -> None:
    first, second = prune_with_both(Normed(Scale()), rounds=rounds)
    assert second.model.get_submodule("norm").shape == (4, 1, 1)
    assert any("norm.shape" in note for note in second.notes)
    assert_same(first, second)


class Heads(nn.Module):
    """Attention of 4 heads over the places of a map, scaled by the width of a head."""

    def __init__(self) -> None:
        super().__init__()
        self.heads, self.width = 4, 3
        self.stem, self.qkv = nn.Conv2d(3, 8, 4, stride=4), nn.Linear(8, 36)
        self.proj, self.head = nn.Linear(12, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).flatten(2).transpose(1, 2)
        parts = self.qkv(x).reshape(len(x), -1, 3, self.heads, self.width).permute(2, 0, 3, 1, 4)
        seen = F.scaled_dot_product_attention(*parts.unbind(0)).transpose(1, 2)
        return self.head((x + self.proj(seen.reshape(len(x), -1, self.heads * self.width))).mean(1))


def test_the_channels_of_a_head_are_removed_together() -> None:
    first, second = prune_with_both(Heads())
    assert [(step.layers, step.count) for step in second.steps] == [(("stem", "proj"), 4), (("qkv",), 2)]
    assert second.model.heads == 2
    assert second.model.get_parameter("qkv.weight").shape == (18, 4)
    assert_same(first, second)


def test_ties_that_leave_nothing_to_remove_are_not_made() -> None:
    stem, conv, last = analyse(Shuffle(), X, engine="torch-pruning").groups
    for group in (stem, conv):
        assert len(group.sets) == 8
        assert str(group.reason).startswith("removing its units is not masking them")
    assert last.reason is None


@pytest.mark.parametrize("can_cut", [True, False])
def test_what_torch_pruning_cannot_cut_keeps_its_units(can_cut: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    model = Parts()
    scores = score(model, None, scorer="l2-filter", example=X)

    def cut_others(self: torch_pruning_engine._Groups, name: str, units: list[int]) -> list[torch_pruning_engine.Part]:
        return prune_as_asked(self, name, [0, 1, 2, 3] if name == "stem" and not can_cut else units)

    prune_as_asked = torch_pruning_engine._Groups.prune
    monkeypatch.setattr(torch_pruning_engine._Groups, "prune", cut_others)
    pruned = prune(model, scores, 0.5, X, engine="torch-pruning")
    counts = {step.layers: step.count for step in pruned.steps}
    assert counts == {("stem",): 4 if can_cut else 0, ("conv",): 3, ("last",): 0}
    assert "split_with_sizes" in str(pruned.steps[0].left) or can_cut


class Last(nn.Module):
    """torch's RMSNorm over the channels, which torch-pruning knows by its parameter only."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.RMSNorm(8)
        nn.init.uniform_(self.norm.weight)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x.movedim(1, -1)).movedim(-1, 1)


class Listed(Scale):
    """A scale that the code reads from a list."""

    def __init__(self) -> None:
        super().__init__()
        self.scales = [self.scale]

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scales[0][:, None, None]


class Counting(nn.Module):
    """A norm that counts its runs."""

    count: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(8)
        self.register_buffer("count", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.count += 1
        return self.norm(x)


class Clamped(Scale):
    """A scale that the code limits before it uses it."""

    def forward(self, x: Tensor) -> Tensor:
        self.scale.data.clamp_(0.7, 1.2)
        return x * self.scale[:, None, None]


@pytest.mark.parametrize("kind", [Last, Listed, Counting, Clamped])
def test_all_that_goes_with_a_parameter_is_cut(kind: type[nn.Module]) -> None:
    first, second = prune_with_both(Normed(kind()), rounds=2)
    assert [(step.layers, step.count) for step in second.steps] == [(("stem",), 4), (("conv",), 4)]
    assert_same(first, second)
    torch.testing.assert_close(second.model(X), first.model(X))
