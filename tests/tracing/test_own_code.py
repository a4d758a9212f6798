"""Norms and layers with code of their own are cut, and what their code mixes is refused by name."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from prune_fe.pruning.analysis import analyse
from prune_fe.pruning.prune import prune
from prune_fe.pruning.verify import randomise
from prune_fe.scoring.score import score
from prune_fe.tracing.channel_tracer import build_dependency_graph
from prune_fe.tracing.own_code import is_own_layer
from tests.tracing.networks import Net, X


class Norm(nn.Module):
    """A scale and a shift for 8 channels, in a shape that they are broadcast from."""

    def __init__(self, *shape: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(shape or 8)), nn.Parameter(torch.zeros(shape or 8))


class CallsItsParent(nn.BatchNorm2d):
    def forward(self, x: Tensor) -> Tensor:
        return F.relu(super().forward(x.float()).to(x.dtype))


class CallsTheFunction(nn.BatchNorm2d):
    def forward(self, x: Tensor) -> Tensor:
        return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, False, 0.1, self.eps)


class LayerNorm2d(nn.LayerNorm):
    """The layer norm of maps."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class RmsNorm2d(nn.RMSNorm):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class ConvNextNorm(Norm):
    """ConvNeXt's, for maps, with a child that has no parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.drop = nn.Dropout(0.1)

    def forward(self, x: Tensor) -> Tensor:
        mean = x.mean(1, keepdim=True)
        variance = (x - mean).pow(2).mean(1, keepdim=True)
        return self.drop(
            self.weight[:, None, None] * ((x - mean) / torch.sqrt(variance + 1e-6)) + self.bias[:, None, None]
        )


class LastNorm(Norm):
    """ConvNeXt's, for maps whose channels come last."""

    def __init__(self) -> None:
        super().__init__()
        self.normalized_shape = (8,)

    def forward(self, x: Tensor) -> Tensor:
        x = x.permute(0, 2, 3, 1)
        return F.layer_norm(x, self.normalized_shape, self.weight, self.bias, 1e-6).permute(0, 3, 1, 2)


class UnbiasedNorm(Norm):
    def forward(self, x: Tensor) -> Tensor:
        x = x.permute(0, 2, 3, 1)
        x = self.weight * (x - x.mean(-1, keepdim=True)) / (x.std(-1, keepdim=True) + 1e-6) + self.bias
        return x.permute(0, 3, 1, 2)


class WholeNorm(Norm):
    """Over the channels and the pixels."""

    def __init__(self) -> None:
        super().__init__(1, 8, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        variance, mean = torch.var_mean(x, dim=(1, 2, 3), unbiased=False, keepdim=True)
        return (x - mean) / (variance + 1e-5).sqrt() * self.weight + self.bias


class WholeFunction(nn.Module):
    """Over the channels and the columns, which are the second and last dimension of what it normalises."""

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x.transpose(1, 2), x.shape[1::2]).transpose(1, 2)


class PixelNorm(nn.Module):
    """Without parameters; one module after two layers."""

    def forward(self, x: Tensor) -> Tensor:
        return x / torch.sqrt(torch.mean(x**2, dim=1, keepdim=True) + 1e-8)


class ResponseNorm(Norm):
    """ConvNeXt V2's global response norm."""

    def __init__(self) -> None:
        super().__init__(1, 1, 1, 8)

    def forward(self, x: Tensor) -> Tensor:
        x = x.permute(0, 2, 3, 1)
        size = torch.norm(x, p=2, dim=(1, 2), keepdim=True)
        relative = size / (size.mean(dim=-1, keepdim=True) + 1e-6)
        return (self.weight * (x * relative) + self.bias + x).permute(0, 3, 1, 2)


class OwnGroups(nn.GroupNorm):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x)


class Normed(Net):
    """The norm stands behind the stem and behind the last convolution."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.norm, self.conv = norm, nn.Conv2d(8, 8, 3)

    def body(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(self.norm(x)))


NORMS: dict[str, Callable[[], nn.Module]] = {
    "batch norm that calls its parent": lambda: CallsItsParent(8),
    "batch norm that calls the function": lambda: CallsTheFunction(8),
    "synchronised batch norm": lambda: nn.SyncBatchNorm(8),
    "layer norm that calls its parent": lambda: LayerNorm2d(8),
    "rms norm that calls its parent": lambda: RmsNorm2d(8),
    "group norm that calls its parent": lambda: OwnGroups(2, 8),
    "layer norm by hand": ConvNextNorm,
    "layer norm function": LastNorm,
    "layer norm with unbiased deviation": UnbiasedNorm,
    "layer norm over maps": WholeNorm,
    "layer norm function over channels and columns": WholeFunction,
    "pixel norm": PixelNorm,
    "global response norm": ResponseNorm,
}


def cut(model: nn.Module) -> Any:
    """Remove half of each layer of a network with random weights, and check that this is masking."""
    randomise(model.eval())
    pruned = prune(model, score(model, scorer="random"), 0.5, X)
    difference, largest = pruned.difference(model, X)
    assert difference < 1e-5 * largest
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    return pruned


@pytest.mark.parametrize("kind", NORMS)
def test_norms_with_code_of_their_own_are_cut(kind: str) -> None:
    pruned = cut(Normed(NORMS[kind]()))
    assert [(step.count, step.left) for step in pruned.steps if "stem" in step.layers] == [(4, None)]
    assert all(tensor.numel() in (1, 4) for _, tensor in pruned.model.norm.state_dict().items())


def test_the_numbers_of_channels_of_norms_follow() -> None:
    sizes = [cut(Normed(norm)).model.norm for norm in (CallsItsParent(8), LayerNorm2d(8), OwnGroups(2, 8))]
    assert (sizes[0].num_features, sizes[1].normalized_shape, sizes[2].num_channels) == (4, (4,), 4)
    pruned = cut(Normed(LastNorm()))
    assert pruned.model.norm.normalized_shape == (4,)
    assert pruned.notes == ("sizes in the network's code were changed too: norm.normalized_shape",)


def test_the_groups_of_a_group_norm_that_is_called_as_a_function_are_named() -> None:
    (group,) = analyse(Normed(OwnGroups(4, 8)).eval(), X).groups
    assert (group.block_count, group.demands) == (4, ("GroupNorm 'norm' with 4 groups",))

    class ByFunction(Norm):
        def forward(self, x: Tensor) -> Tensor:
            return F.group_norm(x, 2, self.weight, self.bias)

    (group,) = analyse(Normed(ByFunction()).eval(), X).groups
    assert (group.block_count, group.demands) == (2, ("group_norm() in 'norm' with 2 groups",))


class Counting(Norm):
    """Its mean is divided by a number that no cut changes."""

    def forward(self, x: Tensor) -> Tensor:
        return x - x.sum(1, keepdim=True) / 8 + x.new_tensor(x.shape[1])


class Strongest(Norm):
    def forward(self, x: Tensor) -> Tensor:
        return x / x.amax(1, keepdim=True)


class Partly(Norm):
    """A norm over the channels and the columns, with a scale for each channel at each column."""

    def __init__(self) -> None:
        super().__init__(8, 16)

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x.transpose(1, 2), (8, x.shape[3]), self.weight[:, : x.shape[3]]).transpose(1, 2)


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        (Counting, "removing its units is not masking them (the outputs differ by "),
        (Strongest, "amax() over the channels in 'norm'"),
        (Partly, "its channels go through layer_norm() in 'norm'"),
    ],
)
def test_norms_that_cannot_be_cut_keep_their_channels_with_the_reason(kind: type[Norm], reason: str) -> None:
    assert str(analyse(Normed(kind()).eval(), X).groups[0].reason).startswith(reason)


def test_what_may_mix_the_channels_is_named() -> None:
    group = analyse(Normed(Counting()).eval(), X).groups[0]
    assert str(group.reason).endswith("mixes channels in a way not known, perhaps sum() over the channels in 'norm'")


class Pooled(nn.Module):
    """It has a mean over the channels, but is no norm: it returns one channel."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mean(1, keepdim=True)


def test_a_mean_over_channels_that_is_no_norm_counts_the_masked_ones() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), Pooled(), nn.Conv2d(1, 4, 3), nn.Flatten(), nn.LazyLinear(2)).eval()
    model(X)
    assert str(analyse(model, X).groups[0].reason).startswith("removing its units is not masking them")


def standardised(weight: Tensor) -> Tensor:
    variance, mean = torch.var_mean(weight, dim=[1, 2, 3], keepdim=True, unbiased=False)
    return (weight - mean) / torch.sqrt(variance + 1e-10)


class Standardised(nn.Conv2d):
    """As in the authors' code of weight standardisation."""

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight
        weight = weight - weight.mean(dim=1, keepdim=True).mean(dim=2, keepdim=True).mean(dim=3, keepdim=True)
        deviation = weight.view(weight.size(0), -1).std(dim=1).view(-1, 1, 1, 1) + 1e-5
        weight = weight / deviation.expand_as(weight)
        return F.conv2d(x, weight, self.bias, self.stride, self.padding, self.dilation, self.groups)


class ScaledStandardised(nn.Conv2d):
    """As in timm, by a batch norm of the weights, with a gain."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.gain = nn.Parameter(torch.ones(self.out_channels, 1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        flat, gain = self.weight.reshape(1, self.out_channels, -1), (self.gain * 0.5).view(-1)
        weight = F.batch_norm(flat, None, None, weight=gain, training=True, momentum=0.0).reshape_as(self.weight)
        return F.conv2d(x, weight, self.bias, self.stride, self.padding, self.dilation, self.groups)


class InnerStandardised(nn.Conv2d):
    def _conv_forward(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return super()._conv_forward(x, standardised(weight), bias)


class Padded(nn.Conv2d):
    """It calls its parent, on a padded map, and scales what it returns by its own parameter."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.scale = nn.Parameter(torch.ones(self.out_channels))

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(F.pad(x, (0, 1, 0, 1))) * self.scale[:, None, None]


class Adapted(nn.Conv2d):
    """A 1×1 convolution with a low-rank addition, in modules inside."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.down, self.up = nn.Conv2d(self.in_channels, 2, 3), nn.Conv2d(2, self.out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + self.up(self.down(x))


class OwnLinear(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return F.linear(input=x, weight=self.weight - self.weight.mean(1, keepdim=True), bias=self.bias)


class Layered(nn.Module):
    """Convolutions with code of their own from the image on, one with groups, one depthwise, and a linear layer."""

    def __init__(self, kind: type[nn.Conv2d]) -> None:
        super().__init__()
        self.stem, self.grouped = kind(3, 8, 3), kind(8, 16, 3, groups=2)
        self.depthwise, self.last = kind(16, 16, 3, groups=16), nn.Conv2d(16, 8, 1)
        self.hidden, self.head = OwnLinear(8, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.grouped(torch.relu(self.stem(x))))
        x = self.last(torch.relu(self.depthwise(x))).mean((2, 3))
        return self.head(torch.relu(self.hidden(x)))


@pytest.mark.parametrize("kind", [Standardised, ScaledStandardised, InnerStandardised, Padded])
def test_layers_with_code_of_their_own_are_cut(kind: type[nn.Conv2d]) -> None:
    pruned = cut(Layered(kind))
    assert [(step.layers, step.count, step.left) for step in pruned.steps] == [
        (("stem",), 4, None),
        (("grouped", "depthwise"), 8, None),
        (("last",), 4, None),
    ]
    assert pruned.model.grouped.weight.shape == (8, 2, 3, 3)


class Tied(Layered):
    """A layer that never runs has the weight of one that does."""

    def __init__(self) -> None:
        super().__init__(Standardised)
        self.spare = Standardised(8, 16, 3, groups=2)
        self.spare.weight = self.grouped.weight


@pytest.mark.filterwarnings("ignore:left out. layer .spare.")
def test_a_layer_with_code_of_its_own_that_does_not_run_follows_its_weight() -> None:
    model = cut(Tied()).model
    assert model.spare.weight is model.grouped.weight
    assert (model.spare.in_channels, model.spare.out_channels, len(model.spare.bias)) == (4, 8, 8)
    assert model.spare(torch.zeros(1, 4, 3, 3)).shape == (1, 8, 1, 1)


def test_modules_inside_a_layer_follow_it() -> None:
    model = Net()
    model.stem = Adapted(3, 8, 3)
    pruned = cut(model)
    assert [(step.layers, step.count) for step in pruned.steps] == [(("stem.down",), 1), (("stem.up", "stem"), 4)]


class Neighbours(nn.Conv2d):
    """Each filter is added to the next."""

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight + self.weight.roll(1, 0), self.bias)


class Spectral(nn.Conv2d):
    """All filters are divided by their common norm."""

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight / torch.linalg.matrix_norm(self.weight.flatten(1), 2), self.bias)


class NeighbouringInputs(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight + self.weight.roll(1, 1), self.bias)


class ScaledByWidth(nn.Conv2d):
    """A pruned layer would have larger weights."""

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight / self.weight[0].numel() ** 0.5, self.bias)


class Flipped(nn.Conv2d):
    """It returns its units in another order than that of its weights."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).flip(1)


class FlippedInputs(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.flip(1))


class Twice(nn.Conv2d):
    """It calls its function once more when it has many units."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + (super().forward(x) if self.weight.shape[0] > 7 else 0)


@pytest.mark.parametrize(
    ("kind", "layer", "reason"),
    [
        (Neighbours, 1, "layer 'conv' is a Neighbours, whose code computes the weights of a unit from those of others"),
        (Spectral, 1, "layer 'conv' is a Spectral, whose code computes the weights of a unit from those of others"),
        (
            NeighbouringInputs,
            0,
            "layer 'conv' is a NeighbouringInputs, whose weights depend on its inputs in a way not known",
        ),
        (ScaledByWidth, 0, "layer 'conv' is a ScaledByWidth, whose weights depend on its inputs in a way not known"),
        (Flipped, 1, "layer 'conv' is a Flipped, whose code is not torch's"),
        (FlippedInputs, 0, "layer 'conv' is a FlippedInputs, whose code is not torch's"),
        (Twice, 1, "layer 'conv' is a Twice, whose code depends on the number of its units"),
    ],
)
def test_layers_whose_code_mixes_units_keep_them_with_the_reason(kind: Any, layer: int, reason: str) -> None:
    model = Normed(nn.Identity())
    model.conv = kind(8, 8, 3)
    assert analyse(model.eval(), X).groups[layer].reason == reason


def test_layers_of_known_libraries_have_no_code_of_their_own() -> None:
    assert not any(map(is_own_layer, [nn.Conv2d(1, 1, 1), nn.Linear(1, 1), nn.BatchNorm2d(1), Norm()]))
    assert all(map(is_own_layer, [Standardised(1, 1, 1), InnerStandardised(1, 1, 1), OwnLinear(1, 1)]))


def test_statistics_have_axes_with_the_run_and_the_call() -> None:
    graph = build_dependency_graph(Normed(PixelNorm()).eval(), X)
    calls = {axis.side: axis.call for axis in graph.axes.values() if axis.module == "norm"}
    assert calls == {"statistic 0.0": (0, 0), "statistic 1.0": (1, 0)}
