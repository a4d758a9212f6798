"""What becomes of channels in convolutions, linear layers and norms."""

import numpy as np
import pytest
import timm
from torch import Tensor, nn

from prune_fe.tracing.channel_tracer import build_dependency_graph
from prune_fe.tracing.module_rules import has_module_rule
from tests.tracing.networks import Body, Grouped, Multiplied, Net, X, first_reason, groups_of


def test_the_blocks_of_convolutions_and_norms_are_balanced() -> None:
    assert groups_of(Grouped) == [(("stem",), 8, 2), (("conv",), 12, 4), (("last",), 6, 2)]


class Neighbours(Net):
    """A convolution over the channels, which ECA does in a module of a known name."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(1, 1, 3, padding=1)

    def body(self, x: Tensor) -> Tensor:
        return x * self.conv(x.mean((2, 3))[:, None]).transpose(1, 2)[..., None]


class TransposedGroups(Net):
    def __init__(self) -> None:
        super().__init__()
        self.up = nn.ConvTranspose2d(8, 8, 2, groups=2)

    def body(self, x: Tensor) -> Tensor:
        return self.up(x)


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
        (TransposedGroups, "layer 'up' is a transposed convolution with groups"),
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
