"""Masking channels of a whole network."""

import pytest
import torch
from torch import Tensor, nn

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
