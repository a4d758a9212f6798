"""Masking channels of a whole network."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from prune_fe import prune, score
from prune_fe.errors import InputError
from prune_fe.pruning.analysis import Analysis, analyse
from prune_fe.pruning.cut import KeptChannels
from prune_fe.pruning.masking import largest_difference, masked
from prune_fe.tracing.copying import copy_model

X = torch.randn(2, 3, 6, 6, generator=torch.Generator().manual_seed(4))


class Net(nn.Module):
    """A sigmoid makes 0.5 of a masked zero; a layer norm and a raw parameter have channels too."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.last = nn.Conv2d(3, 4, 1), nn.GroupNorm(1, 4), nn.Conv2d(4, 5, 1)
        self.scale = nn.Parameter(torch.full((1, 4, 1, 1), 2.0))
        self.head = nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.sigmoid(self.norm(self.conv(x)) * self.scale)
        return self.head(self.last(x).mean((2, 3)))


def cut(model: nn.Module) -> tuple[nn.Module, Analysis, KeptChannels]:
    """Remove the first two units of each layer."""
    analysis = analyse(model, X)
    kept = analysis.cutter.channels_without([set_id for group in analysis.groups for set_id in group.sets[:2]])
    pruned = copy_model(model)
    analysis.cutter.cut(pruned, analysis.cutter.all_channels(), kept)
    return pruned, analysis, kept


def test_masking_is_removing_and_leaves_nothing_behind() -> None:
    model = Net()
    pruned, analysis, kept = cut(model)
    before = model(X)
    difference, largest = largest_difference(model, pruned, analysis.cutter.axes, kept, X)
    assert difference < 1e-6 * largest
    assert not torch.allclose(pruned(X), before)
    assert torch.equal(model(X), before)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_masked_channels_are_zero_where_layers_read_and_write() -> None:
    model = Net()
    pruned, analysis, kept = cut(model)
    seen: dict[str, Tensor] = {}
    with masked(model, pruned, analysis.cutter.axes, kept):
        model.conv.register_forward_hook(lambda _, args, output: seen.update(conv=output))
        model.last.register_forward_hook(lambda _, args, output: seen.update(read=args[0], last=output))
        model(X)
        assert model.scale.flatten().tolist() == [0, 0, 2, 2]
    for value in seen.values():
        assert (value[:, :2] == 0).all()
        assert (value[:, 2:] != 0).all()
    assert model.scale.flatten().tolist() == [2, 2, 2, 2]


def test_an_error_inside_restores_the_model() -> None:
    model = Net()
    pruned, analysis, kept = cut(model)
    with pytest.raises(KeyError), masked(model, pruned, analysis.cutter.axes, kept):
        raise KeyError
    assert model.scale.flatten().tolist() == [2, 2, 2, 2]
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_outputs_of_other_shapes_are_refused() -> None:
    model = Net()
    pruned, analysis, kept = cut(model)
    pruned.head = nn.Linear(3, 7)
    with pytest.raises(InputError, match=r"the pruned model returns \(2, 7\), the original \(2, 2\)"):
        largest_difference(model, pruned, analysis.cutter.axes, kept, X)


class Finding(nn.Module):
    """A network that returns what it found: nothing, or the numbers of classes."""

    def __init__(self, found: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.first, self.last, self.found = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 4, 1), found

    def forward(self, x: Tensor) -> Any:
        return self.found(self.last(self.first(x).relu()).mean((2, 3)))


@pytest.mark.parametrize(
    "found",
    [
        lambda scores: [{"boxes": scores[:0]}],
        lambda scores: {"class": scores.argmax(1)},
        lambda scores: (scores.mean(), scores[scores > 1e9]),
    ],
)
def test_a_wrong_cut_is_seen_where_the_outputs_show_little(found: Callable[[Tensor], Any]) -> None:
    model = Finding(found).eval()
    analysis = analyse(model, X)
    (group,) = [group for group in analysis.groups if group.reason is None]
    assert group.layers == ("first",)
    kept = analysis.cutter.channels_without(group.sets[:3])
    pruned = copy_model(model)
    analysis.cutter.cut(pruned, analysis.cutter.all_channels(), kept)
    difference, largest = largest_difference(model, pruned, analysis.cutter.axes, kept, X)
    assert difference < 1e-5 * largest
    with torch.no_grad():
        pruned.get_parameter("last.weight")[0, 0] += 1
    difference, largest = largest_difference(model, pruned, analysis.cutter.axes, kept, X)
    assert difference > 1e-2 * largest


def test_a_cut_of_layers_that_read_nothing_is_refused() -> None:
    class Empty(Finding):
        def forward(self, x: Tensor) -> Any:
            maps = self.first(x).relu()
            return self.last(F.interpolate(maps, scale_factor=2.0)[maps.mean((1, 2, 3)) > 1e9])

    model = Empty(lambda scores: scores).eval()
    analysis = analyse(Finding(lambda scores: scores).eval(), X)
    (group,) = [group for group in analysis.groups if group.layers == ("first",)]
    kept = analysis.cutter.channels_without(group.sets[:3])
    pruned = copy_model(model)
    analysis.cutter.cut(pruned, analysis.cutter.all_channels(), kept)
    with pytest.raises(InputError, match="layer 'last' reads nothing when the inputs are random, so its cut cannot be"):
        largest_difference(model, pruned, analysis.cutter.axes, kept, X)
    # Neither is such a group cut where the network itself is analysed.
    assert all(group.reason is not None for group in analyse(model, X).groups)


def test_a_network_that_shows_nothing_is_refused() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Flatten(), Nothing()).eval()
    with pytest.raises(InputError, match="has no values to compare"):
        largest_difference(model, copy_model(model), {}, {}, X)


class Nothing(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x[:0]


def test_layers_that_return_tuples_are_compared_where_the_outputs_show_little() -> None:
    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
            self.hidden, self.last = nn.Linear(8, 12), nn.Linear(12, 3)
            nn.init.zeros_(self.last.weight)  # as the heads of torchvision's vision transformers

        def forward(self, x: Tensor) -> Tensor:
            return self.last(self.hidden(self.attention(x, x, x)[0]).relu().mean(1))

    model, x = Attention(), torch.randn(2, 5, 8)
    pruned = prune(model, score(model, scorer="l1-filter", linear=True, example=x), {"hidden": 0.5}, x)
    difference, largest = pruned.difference(model, x)
    assert difference < 1e-5 < largest
