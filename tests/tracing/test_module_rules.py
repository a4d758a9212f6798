"""What becomes of channels in convolutions, linear layers and norms."""

from typing import Any

import numpy as np
import pytest
import timm
import torch
from torch import Tensor, nn

from prune_fe.tracing.channel_tracer import build_dependency_graph
from prune_fe.tracing.module_rules import has_module_rule
from tests.tracing.networks import Body, Grouped, Multiplied, Net, X, cut_every_second, first_reason, groups_of


def test_the_blocks_of_convolutions_and_norms_are_balanced() -> None:
    assert groups_of(Grouped) == [(("stem",), 8, 2), (("conv",), 12, 4), (("last",), 6, 2)]


class Neighbours(Net):
    """A convolution over the channels, which ECA does in a module of a known name."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(1, 1, 3, padding=1)

    def body(self, x: Tensor) -> Tensor:
        return x * self.conv(x.mean((2, 3))[:, None]).transpose(1, 2)[..., None]


class FoldedNorm(Net):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(1, 2)

    def body(self, x: Tensor) -> Tensor:
        return self.norm(x.view(len(x), 2, 4, -1)).view(x.shape)


class WideNorm(Net):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm([8, 16, 16])

    def body(self, x: Tensor) -> Tensor:
        return self.norm(x)


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        (Neighbours, "layer 'conv' convolves over the channels"),
        (FoldedNorm, "GroupNorm 'norm' receives channels in several dimensions"),
        (WideNorm, "LayerNorm 'norm' normalises over more than the channels"),
    ],
    ids=lambda value: value.__name__ if isinstance(value, type) else "",
)
def test_what_cannot_be_cut_stays_and_the_reason_is_said(kind: type[Net], reason: str) -> None:
    assert first_reason(kind).startswith(reason)


def test_modules_of_known_libraries_are_handled_as_a_whole_and_no_others() -> None:
    class Own(nn.Conv2d):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x)

    class Derived(nn.Conv2d):
        """The code of its base class."""

    class EcaModule(nn.Module):
        """Only called like timm's."""

        def forward(self, x: Tensor) -> Tensor:
            return x

    whole = [nn.Conv1d(1, 1, 1), nn.ConvTranspose2d(1, 1, 1), nn.Linear(1, 1), nn.GroupNorm(1, 1), nn.PReLU()]
    assert all(
        map(has_module_rule, [*whole, Derived(1, 1, 1), timm.layers.EcaModule(8), timm.layers.BatchNormAct2d(8)])
    )
    assert not any(map(has_module_rule, [nn.ReLU(), nn.Sequential(), nn.MaxPool2d(2), Own(1, 1, 1), EcaModule()]))


def test_a_depthwise_convolution_has_one_axis_and_a_multiplying_one_two() -> None:
    def sides(kind: nn.Module) -> list[tuple[str, str]]:
        return [key for key in build_dependency_graph(kind.eval(), X).axes if key[0] in ("norm", "depthwise")]

    model = Body(lambda net, x: net.norm(net.depthwise(net.c(x))))  # type: ignore[operator]
    model.depthwise, model.norm = nn.Conv2d(8, 8, 3, groups=8), nn.BatchNorm2d(8)
    assert sides(model) == [("depthwise", "both"), ("norm", "both")]
    graph = build_dependency_graph(Multiplied().eval(), X)
    inputs, outputs = (graph.coupled_set[graph.axes["depthwise", side].channels] for side in ("in", "out"))
    np.testing.assert_array_equal(np.repeat(inputs, 2), outputs)


def test_layers_are_counted_at_the_positions_of_one_image() -> None:
    positions = build_dependency_graph(Grouped().eval(), X).output_positions
    assert positions == {"stem": 16 * 16, "conv": 14 * 14, "last": 14 * 14, "head": 1}


def test_a_linear_layer_may_work_along_a_dimension_without_channels() -> None:
    class Mixer(Net):
        def __init__(self) -> None:
            super().__init__()
            self.along, self.last = nn.Linear(16, 4), nn.Conv2d(8, 8, 1)

        def body(self, x: Tensor) -> Tensor:
            return self.last(self.along(x))

    assert groups_of(Mixer) == [(("stem",), 8, 1), (("last",), 8, 1)]
    assert build_dependency_graph(Mixer().eval(), X).output_positions["along"] == 8 * 16


@pytest.mark.parametrize(
    ("outputs", "groups", "expected"),
    [
        (12, 1, [(("0",), 8, 1), (("2",), 12, 1)]),
        (12, 2, [(("0",), 8, 2), (("2",), 12, 2)]),
        (8, 8, [(("0", "2"), 8, 1)]),
        (16, 8, [(("0", "2"), 8, 1)]),
        (4, 4, [(("0",), 8, 4), (("2",), 4, 4)]),
    ],
)
@pytest.mark.parametrize("is_transposed", [False, True])
@pytest.mark.parametrize("dims", [1, 2, 3])
def test_convolutions_of_all_kinds_lose_inputs_and_outputs(
    dims: int, is_transposed: bool, outputs: int, groups: int, expected: list[Any]
) -> None:
    kind = getattr(nn, f"Conv{'Transpose' if is_transposed else ''}{dims}d")
    first, norm, last = (getattr(nn, f"{name}{dims}d") for name in ("Conv", "BatchNorm", "Conv"))
    model = nn.Sequential(
        first(3, 8, 3),
        nn.LeakyReLU(),
        kind(8, outputs, 2, groups=groups),
        norm(outputs),
        nn.LeakyReLU(),
        last(outputs, 2, 1),
    )
    example = torch.randn(2, 3, *(6,) * dims)
    found, cut, difference = cut_every_second(model, example, ["0", "2"])
    assert [(group.layers, len(group.sets), group.block_count) for group in found] == expected
    assert difference < 1e-12
    assert (cut[2].in_channels, cut[2].out_channels) == (4, outputs if groups == 4 else outputs // 2)


def test_the_outputs_of_a_transposed_convolution_may_be_tied_to_the_inputs_of_another_layer() -> None:
    class Tied(nn.Module):
        """An autoencoder whose decoder has the weights of its encoder."""

        def __init__(self) -> None:
            super().__init__()
            self.stem, self.down, self.up = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 12, 2, 2), nn.ConvTranspose2d(12, 8, 2, 2)
            self.last, self.up.weight = nn.Conv2d(8, 3, 1), self.down.weight

        def forward(self, x: Tensor) -> Tensor:
            return self.last(self.up(self.down(self.stem(x)).tanh()))

    groups, cut, difference = cut_every_second(Tied(), X, ["stem", "down", "up"])
    assert [(group.layers, len(group.sets)) for group in groups] == [(("stem", "up"), 8), (("down",), 12)]
    assert difference < 1e-12
    assert cut.up.weight is cut.down.weight
    assert cut.up.weight.shape == (6, 4, 2, 2)


def test_a_layer_that_runs_several_times_is_tied_to_all_that_it_reads_and_gives() -> None:
    class Levels(nn.Module):
        """A head on three maps, with a norm of each map's own."""

        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 3, 2, 1), nn.Conv2d(8, 8, 3, 2, 1)
            self.tower, self.last = nn.Conv2d(8, 12, 3, padding=1), nn.Conv2d(12, 4, 1)
            self.norms = nn.ModuleList(nn.BatchNorm2d(12) for _ in range(3))

        def forward(self, x: Tensor) -> list[Tensor]:
            maps = [x := layer(x) for layer in (self.a, self.b, self.c)]
            return [self.last(norm(self.tower(y)).tanh()) for y, norm in zip(maps, self.norms, strict=True)]

    groups, cut, difference = cut_every_second(Levels(), X, ["a", "b", "c", "tower"])
    assert [(group.layers, len(group.sets)) for group in groups] == [(("a", "b", "c"), 8), (("tower",), 12)]
    assert difference < 1e-12
    assert [norm.num_features for norm in cut.norms] == [6, 6, 6]


def test_a_module_of_two_sequentials_is_one_layer() -> None:
    shared = nn.Conv2d(8, 8, 3, padding=1)
    first, second = nn.Sequential(shared, nn.LeakyReLU(), nn.Conv2d(8, 8, 1)), nn.Sequential(shared, nn.BatchNorm2d(8))
    model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.LeakyReLU(), first, second, nn.Conv2d(8, 2, 1))
    groups, cut, difference = cut_every_second(model, X, ["0", "2.0", "2.2"])
    assert [(group.layers, len(group.sets)) for group in groups] == [(("0", "2.2"), 8), (("2.0",), 8)]
    assert difference < 1e-12
    assert cut[3][0] is cut[2][0]


@pytest.mark.parametrize("kind", [nn.Linear, lambda a, b: nn.Conv2d(a, b, 1)], ids=["linear", "convolution"])
def test_the_hidden_units_of_a_gate_can_go(kind: Any) -> None:
    class Gated(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.down, self.up, self.last = nn.Conv2d(3, 8, 1), kind(8, 4), kind(4, 8), nn.Conv2d(8, 2, 1)

        def forward(self, x: Tensor) -> Tensor:
            x = self.conv(x)
            pooled = x.mean((2, 3)) if kind is nn.Linear else x.mean((2, 3), keepdim=True)
            return self.last(x * self.up(self.down(pooled).sin()).sigmoid().view(len(x), -1, 1, 1))

    groups, cut, difference = cut_every_second(Gated(), X, ["conv", "down"])
    assert [(group.layers, group.other_modules) for group in groups] == [(("conv",), ("up",)), (("down",), ())]
    assert difference < 1e-12
    assert cut.down.weight.shape[:2] == (2, 4)
