"""The networks that torch-pruning's tests prune (its folder tests/, version 1.6.1), written anew.

Those of torchvision are a list; the others are small networks, each with one difficulty.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

TESTED = (
    "squeezenet1_0 mnasnet0_75 mnasnet1_0 mnasnet1_3 resnet34 resnet101 resnet152 densenet161 densenet169 densenet201 "
    "regnet_y_800mf regnet_y_1_6gf regnet_y_3_2gf regnet_y_8gf regnet_y_16gf efficientnet_b1 efficientnet_b2 "
    "efficientnet_b3 efficientnet_b4 efficientnet_b5 efficientnet_b6 efficientnet_b7 efficientnet_v2_m convnext_small "
    "convnext_base resnext101_32x8d vit_b_32:224 vgg11_bn vgg13 vgg13_bn vgg16 vgg19 vgg19_bn wide_resnet101_2 "
    "efficientnet_v2_l regnet_y_32gf"
).split()
"""The networks of torchvision that are not in the zoo anyway."""

IN_THE_ZOO = (
    "alexnet convnext_tiny densenet121 efficientnet_b0 efficientnet_v2_s googlenet inception_v3 mnasnet0_5 "
    "mobilenet_v2 mobilenet_v3_large mobilenet_v3_small regnet_y_400mf resnet18 resnet50 resnext50_32x4d "
    "squeezenet1_1 vgg11 vgg16_bn vit_b_16 wide_resnet50_2"
).split()
"""Those that are."""

TOO_LARGE = "convnext_large regnet_y_128gf vit_l_16 vit_l_32 vit_h_14".split()
"""Those with 200 to 650 million parameters, which are left out."""


class Cascade(nn.Module):
    """Concatenations of concatenations (test_cascaded_concat)."""

    outputs: ClassVar = ("last",)

    def __init__(self, width: int = 10) -> None:
        super().__init__()
        shares = {1: 2, 2: 2, 3: 1, 6: 1}
        """Width of a branch -> its number of layers."""
        self.branches = nn.ModuleList(_branch(width, [share * width] * depth) for share, depth in shares.items())
        self.last = nn.Conv2d(sum(shares) * width, 10, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Return maps of ten channels."""
        joined = self.branches[0](x)
        for branch in self.branches[1:]:
            joined = torch.cat([joined, branch(x)], 1)
        return self.last(joined)


def _branch(ins: int, widths: list[int]) -> nn.Sequential:
    """Return convolutions of one pixel with norms, and a GELU between them."""
    layers: list[nn.Module] = []
    for outs in widths:
        layers += [nn.Conv2d(ins, outs, 1), nn.BatchNorm2d(outs), nn.GELU()]
        ins = outs
    return nn.Sequential(*layers[:-1])


class WideAndDeep(nn.Module):
    """A linear layer beside a perceptron, their outputs concatenated (test_concat)."""

    outputs: ClassVar = ("head",)

    def __init__(self) -> None:
        super().__init__()
        self.wide, self.head = nn.Linear(32, 3), nn.Linear(4, 1)
        layers = [
            layer
            for ins, outs in ((32, 32), (32, 16))
            for layer in (nn.Linear(ins, outs), nn.BatchNorm1d(outs), nn.ReLU(), nn.Dropout(0.2))
        ]
        self.deep = nn.Sequential(*layers, nn.Linear(16, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Return a share for each row."""
        x = x.flatten(1)
        return self.head(torch.cat([self.wide(x), self.deep(x)], -1)).sigmoid()


class SplitInTwo(nn.Module):
    """Channels that are split, of which one part is concatenated with others (test_concat_split).

    Where to split is computed from the widths that the layers have.
    """

    outputs: ClassVar = ("last.0",)

    def __init__(self, width: int = 10) -> None:
        super().__init__()
        self.first = _branch(width, [width, 2 * width])
        self.second = _branch(width, [width, width])
        self.last = _branch(2 * width, [width])

    def forward(self, x: Tensor) -> Tensor:
        """Return maps of the width."""
        joined: Any = self.last[0]
        second: Any = self.second[-1]
        y, whole = self.second(x), self.first(x)
        used = joined.in_channels - second.num_features
        used, rest = whole.split((used, whole.shape[1] - used), 1)
        return self.last(torch.cat([used, y], 1)) + rest


class Scale(nn.Module):
    """Rows of length 1, scaled and shifted, then a linear layer: a layer that torch-pruning has to be told of."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.scale, self.shift = nn.Parameter(torch.rand(width) + 0.5), nn.Parameter(torch.randn(width))
        self.linear = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Return rows of the same width."""
        return self.linear(x / x.square().sum(1, keepdim=True).sqrt() * self.scale + self.shift)


class Scaled(nn.Module):
    """A perceptron around `Scale` (test_customized_layer)."""

    outputs: ClassVar = ("last",)

    def __init__(self) -> None:
        super().__init__()
        self.first, self.scale, self.last = nn.Linear(128, 256), Scale(256), nn.Linear(256, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Return ten logits for each row."""
        return self.last(self.scale(self.first(x).relu()))


class Unused(Scaled):
    """The same with a parameter that nothing uses (test_unused_parameters)."""

    def __init__(self) -> None:
        super().__init__()
        self.unused = nn.Parameter(torch.ones(10))


class LeNet(nn.Sequential):
    """LeNet-5 with a ReLU after each layer, also the last (test_dependency_lenet)."""

    outputs: ClassVar = ("11",)

    def __init__(self) -> None:
        super().__init__(
            *(nn.Conv2d(1, 6, 5), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Conv2d(6, 16, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten()),
            *(nn.Linear(256, 120), nn.ReLU(), nn.Linear(120, 84), nn.ReLU(), nn.Linear(84, 10), nn.ReLU()),
        )


class ResidualPerceptron(nn.Module):
    """Linear layers with a residual sum (test_fully_connected_layers)."""

    outputs: ClassVar = ("last",)

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.last = nn.Linear(128, 256), nn.Linear(256, 256), nn.Linear(256, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Return ten logits for each row."""
        x = self.first(x).relu()
        return self.last(self.second(x).relu() + x)


class TwoInputs(nn.Module):
    """Two inputs and three outputs, of which two are read by another layer (test_multiple_inputs_and_outputs)."""

    outputs: ClassVar = ("first", "second", "third")

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = nn.Linear(128, 32), nn.Linear(64, 32), nn.Linear(64, 1000)

    def forward(self, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return rows of 32, 32 and 1000 values."""
        a, b = self.first(a).relu(), self.second(b).relu()
        return a, b, self.third(torch.cat([a, b], 1)).relu()


class Rows(nn.Module):
    """Maps that are concatenated, and split again, along their height (test_non_feature_dim_cat)."""

    outputs: ClassVar = ("last",)

    def __init__(self, width: int = 512) -> None:
        super().__init__()
        self.first, self.second = (_branch(width, [width, width]) for _ in range(2))
        self.middle, self.last = nn.Conv2d(width, width, 1), nn.Conv2d(width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Return maps of the same size."""
        upper, lower = self.first(x), self.second(x)
        both = self.middle(torch.cat([upper, lower], 2))
        return self.last(both.split([upper.shape[2], lower.shape[2]], 2)[0])


class Transposed(nn.Sequential):
    """A transposed convolution between convolutions, with norms and ReLUs (test_pruner, test_isomorphic)."""

    outputs: ClassVar = ("6",)

    def __init__(self) -> None:
        super().__init__(
            *(nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU()),
            *(nn.ConvTranspose2d(16, 64, 2, 2), nn.BatchNorm2d(64), nn.ReLU()),
            *(nn.Conv2d(64, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU()),
        )


class Reshaped(nn.Module):
    """The outputs of a linear layer seen as maps, and maps seen as a row (test_reshape)."""

    outputs: ClassVar = ("last",)

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(512, 4096)
        self.up = nn.ModuleList([nn.ConvTranspose2d(256, 128, 4, 2, 1), nn.ConvTranspose2d(128, 64, 4, 2, 1)])
        self.last = nn.Linear(16384, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Return ten logits for each row."""
        width: Any = self.up[0].in_channels
        x = self.first(x).relu().view(-1, width, 4, 4)
        for layer in self.up:
            x = F.relu(layer(x))
        return self.last(x.flatten(1))


class SingleOutput(nn.Sequential):
    """Maps of one channel at the end (test_single_channel_output)."""

    outputs: ClassVar = ("6",)

    def __init__(self) -> None:
        super().__init__(
            *(nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU()),
            *(nn.Conv2d(16, 64, 2, 2), nn.BatchNorm2d(64), nn.ReLU()),
            *(nn.Conv2d(64, 1, 3, padding=1), nn.BatchNorm2d(1), nn.ReLU()),
        )


class SplitInThree(nn.Module):
    """Channels that are split, two parts of which go through the same layer (test_split).

    Where to split is computed from the widths that the layers have.
    """

    outputs: ClassVar = ("twice.0", "once.0")

    def __init__(self, width: int = 128) -> None:
        super().__init__()
        self.first = _branch(width, [width, 4 * width])
        self.twice = _branch(width, [width])
        self.once = _branch(2 * width, [width])

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return three stacks of maps."""
        narrow: Any = self.twice[0]
        wide: Any = self.once[0]
        a, b, c = self.first(x).split([narrow.in_channels, narrow.in_channels, wide.in_channels], 1)
        return self.twice(a), self.twice(b), self.once(c)


class Residual(nn.Module):
    """Convolutions with a residual sum, the outputs of the network (graph_drawing)."""

    outputs: ClassVar = ("last",)

    def __init__(self) -> None:
        super().__init__()
        self.first, self.middle, self.last = (
            nn.Conv2d(ins, outs, 3, padding=1) for ins, outs in ((3, 16), (16, 8), (8, 16))
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return maps of sixteen channels."""
        x = self.first(x)
        return self.last(self.middle(x)) + x


SMALL: dict[str, tuple[Callable[[], nn.Module], Any]] = {
    "test_cascaded_concat": (Cascade, (10, 7, 7)),
    "test_concat": (WideAndDeep, (32,)),
    "test_concat_split": (SplitInTwo, (10, 7, 7)),
    "test_customized_layer": (Scaled, (128,)),
    "test_dependency_lenet": (LeNet, (1, 28, 28)),
    "test_fully_connected_layers": (ResidualPerceptron, (128,)),
    "test_multiple_inputs_and_outputs": (TwoInputs, {"a": (128,), "b": (64,)}),
    "test_non_feature_dim_cat": (Rows, (512, 7, 7)),
    "test_pruner": (Transposed, (3, 32, 32)),
    "test_reshape": (Reshaped, (512,)),
    "test_single_channel_output": (SingleOutput, (3, 32, 32)),
    "test_split": (SplitInThree, (128, 7, 7)),
    "test_unused_parameters": (Unused, (128,)),
    "graph_drawing": (Residual, (3, 32, 32)),
}
"""Name of a test -> its network, and the shape of an input, or shapes by argument."""


def is_tested(name: str) -> bool:
    """Return whether a network of the zoo is one that torch-pruning's tests prune."""
    group, _, model = name.partition("/")
    known = {entry.partition(":")[0] for entry in (*TESTED, *IN_THE_ZOO)}
    return group == "tested" or (group == "torchvision" and model in known)
