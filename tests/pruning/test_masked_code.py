"""Norms and layers with code of their own run as if channels were removed, on the whole network."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from prune_fe.pruning.analysis import Analysis, analyse
from prune_fe.pruning.cut import KeptChannels
from prune_fe.pruning.masked_code import OwnCodeFault
from prune_fe.pruning.masking import largest_difference, masked
from prune_fe.tracing.copying import copy_model

X = torch.randn(2, 3, 6, 6, generator=torch.Generator().manual_seed(4))


class Norm(nn.Module):
    """A layer norm by hand."""

    def forward(self, x: Tensor) -> Tensor:
        variance, mean = torch.var_mean(x, dim=1, keepdim=True)
        return (x - mean) / (variance + 1e-5).sqrt()


class Standardised(nn.Conv2d):
    """Weights without their mean; `common` takes them from those of all units."""

    common = 0.0

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight - self.weight.mean((1, 2, 3), keepdim=True) - self.common * self.weight.mean()
        return F.conv2d(x, weight, self.bias)


def network() -> Any:
    torch.manual_seed(1)
    head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 2))
    return nn.Sequential(nn.Conv2d(3, 8, 3), Norm(), Standardised(8, 6, 3), nn.ReLU(), head).eval()


def cut(model: nn.Module) -> tuple[Any, Analysis, KeptChannels]:
    """Remove the first two units of each layer."""
    analysis = analyse(model, X)
    kept = analysis.cutter.channels_without([set_id for group in analysis.groups for set_id in group.sets[:2]])
    pruned = copy_model(model)
    analysis.cutter.cut(pruned, analysis.cutter.all_channels(), kept)
    return pruned, analysis, kept


def test_statistics_are_those_of_the_kept_channels_and_all_else_runs_as_it_stands() -> None:
    model = network()
    pruned, analysis, kept = cut(model)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    seen: dict[str, Tensor] = {}
    with masked(model, pruned, analysis.cutter.axes, kept):
        model[1].register_forward_hook(lambda _, args, output: seen.update(norm=output))
        model[2].register_forward_hook(lambda _, args, output: seen.update(layer=output))
        model(X)
    stem = model[0](X)[:, 2:]
    torch.testing.assert_close(seen["norm"][:, 2:], Norm()(stem))
    with torch.no_grad():
        weight = model[2].weight[2:, 2:]
        expected = F.conv2d(Norm()(stem), weight - weight.mean((1, 2, 3), keepdim=True), model[2].bias[2:])
    torch.testing.assert_close(seen["layer"][:, 2:], expected)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_a_pruned_layer_with_other_weights_is_seen() -> None:
    model = network()
    pruned, analysis, kept = cut(model)
    difference, largest = largest_difference(model, pruned, analysis.cutter.axes, kept, X)
    assert difference < 1e-6 * largest
    pruned[1].forward = lambda x: Norm.forward(pruned[1], x) * 1.1
    assert largest_difference(model, pruned, analysis.cutter.axes, kept, X)[0] > 0.01 * largest
    with torch.no_grad():
        pruned[2].weight[0, 0] *= 2
    with pytest.raises(OwnCodeFault, match="layer '2' is a Standardised, whose weights depend on its inputs in a way"):
        largest_difference(model, pruned, analysis.cutter.axes, kept, X)


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16, torch.float64])
def test_weights_of_any_precision_are_compared(kind: torch.dtype) -> None:
    model = network()
    pruned, analysis, kept = cut(model)
    difference, largest = largest_difference(model.to(kind), pruned.to(kind), analysis.cutter.axes, kept, X.to(kind))
    assert difference < 8 * torch.finfo(kind).eps * largest


def test_a_layer_that_mixes_its_units_is_refused_and_the_model_stays_as_it_was() -> None:
    model = network()
    pruned, analysis, kept = cut(model)
    model[2].common = pruned[2].common = 1.0
    before = model[2].weight.detach().clone()
    with pytest.raises(OwnCodeFault, match="whose code computes the weights of a unit from those of others"):
        largest_difference(model, pruned, analysis.cutter.axes, kept, X)
    assert torch.equal(model[2].weight, before)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    model(X)


def test_an_error_in_a_norm_leaves_nothing_behind() -> None:
    model = network()
    pruned, analysis, kept = cut(model)
    with pytest.raises(ValueError, match="here"), masked(model, pruned, analysis.cutter.axes, kept):
        model[1].forward = fail
        model(X)
    del model[1].forward
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    with masked(model, pruned, analysis.cutter.axes, kept):
        model(X)


def fail(x: Tensor) -> Tensor:
    raise ValueError("here")
