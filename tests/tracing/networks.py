"""Small networks that treat their channels in every way that the dependency graph knows."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from prune_fe.pruning.analysis import analyse
from prune_fe.pruning.cut import Cutter
from prune_fe.pruning.groups import Group, find_groups
from prune_fe.pruning.masking import largest_difference
from prune_fe.pruning.verify import randomise
from prune_fe.tracing.channel_tracer import build_dependency_graph
from prune_fe.tracing.copying import copy_model

X = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(2))
"""The images that they are run on."""


class Net(nn.Module):
    """A stem of 8 units, something, a mean over the map and a head."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, 8, 3, padding=1), nn.Linear(width, 3)

    def body(self, x: Tensor) -> Tensor:
        return x

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(torch.relu(self.stem(x))).mean((2, 3)))


class Concatenation(Net):
    """A dense block: the norm sees the channels of two convolutions."""

    def __init__(self) -> None:
        super().__init__(14)
        self.conv, self.norm, self.last = nn.Conv2d(8, 6, 1), nn.BatchNorm2d(14), nn.Conv2d(14, 14, 1)

    def body(self, x: Tensor) -> Tensor:
        return self.last(self.norm(torch.cat([x, self.conv(x)], 1)).relu())


class Chunks(Net):
    """Halves that go different ways, added again."""

    def __init__(self) -> None:
        super().__init__(4)
        self.conv = nn.Conv2d(4, 4, 1)

    def body(self, x: Tensor) -> Tensor:
        a, b = x.chunk(2, dim=1)
        return a + self.conv(b)


class Shuffle(Net):
    """The end of a ShuffleNet unit, by hand."""

    def __init__(self) -> None:
        super().__init__(16)
        self.conv, self.last = nn.Conv2d(8, 8, 1), nn.Conv2d(16, 16, 1)

    def body(self, x: Tensor) -> Tensor:
        x = torch.cat([x, self.conv(x)], 1)
        n, c, h, w = x.shape
        return self.last(x.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w))


class Gate(Net):
    """Squeeze and excite."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.down, self.up = nn.Conv2d(8, 8, 1), nn.Conv2d(8, 2, 1), nn.Conv2d(2, 8, 1)

    def body(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        return x * self.up(self.down(x.mean((2, 3), keepdim=True)).relu()).sigmoid()


class Branches(Net):
    """Selective kernels: two branches stacked, weighted by a softmax and summed."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.fc = nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 16, 1)

    def body(self, x: Tensor) -> Tensor:
        paths = torch.stack([self.a(x), self.b(x)], dim=1)
        weight = self.fc(paths.sum(1).mean((2, 3), keepdim=True))
        weight = weight.view(len(x), 2, -1, 1, 1).softmax(dim=1)
        return (paths * weight).sum(dim=1)


class Split(Net):
    """Res2Net: the width of a part stands in an attribute."""

    def __init__(self) -> None:
        super().__init__()
        self.width, self.conv, self.last = 4, nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(8, 8, 1)

    def body(self, x: Tensor) -> Tensor:
        a, b = torch.split(x, self.width, 1)
        return self.last(torch.cat([a, self.conv(b)], 1))


class Parts(Net):
    """Unequal parts whose sizes stand in a list and in numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes, self.first = [2, 6], 3
        self.conv, self.last = nn.Conv2d(6, 6, 1), nn.Conv2d(8, 8, 1)

    def body(self, x: Tensor) -> Tensor:
        a, b = torch.split(x, self.sizes, 1)
        x = self.last(torch.cat([self.conv(b), a], 1))
        return torch.cat([x[:, : self.first] * 2, x[:, self.first :]], 1)


class Grouped(Net):
    def __init__(self) -> None:
        super().__init__(6)
        self.conv, self.norm = nn.Conv2d(8, 12, 3, groups=2), nn.GroupNorm(4, 12)
        self.last = nn.Conv2d(12, 6, 1, groups=2)

    def body(self, x: Tensor) -> Tensor:
        return self.last(self.norm(self.conv(x)).relu())


class Multiplied(Net):
    """A depthwise convolution that gives two channels for each."""

    def __init__(self) -> None:
        super().__init__(16)
        self.depthwise, self.last = nn.Conv2d(8, 16, 3, groups=8), nn.Conv2d(16, 16, 1)

    def body(self, x: Tensor) -> Tensor:
        return self.last(self.depthwise(x))


class Upwards(Net):
    """A transposed convolution, and pixels taken out of channels."""

    def __init__(self) -> None:
        super().__init__(4)
        self.up, self.conv = nn.ConvTranspose2d(8, 16, 2, stride=2), nn.Conv2d(16, 16, 1)
        self.last = nn.Conv2d(4, 4, 1)

    def body(self, x: Tensor) -> Tensor:
        return self.last(F.pixel_shuffle(self.conv(self.up(x)), 2))


class Blur(Net):
    """A depthwise convolution by hand, with a buffer, and a scale and a shift that belong to no module."""

    filter: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("filter", torch.ones(8, 1, 3, 3) / 9)
        self.channels = 8
        self.scale, self.shift = nn.Parameter(torch.randn(8, 1, 1)), nn.Parameter(torch.randn(1, 8, 1, 1))

    def body(self, x: Tensor) -> Tensor:
        return F.conv2d(F.pad(x, (1, 1, 1, 1), "reflect"), self.filter, groups=self.channels) * self.scale + self.shift


class Flat(Net):
    """The head sees every pixel; a layer norm over channels that come last."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.head = nn.Conv2d(8, 5, 8, stride=8), nn.LayerNorm(8), nn.Linear(20, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.stem(x).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return self.head(self.conv(x).flatten(1))


class Assigned(Net):
    """Channels written into a tensor of zeros, in place."""

    def body(self, x: Tensor) -> Tensor:
        y = torch.zeros_like(x)
        y[:, :] = x
        y += x
        return y.relu_()


class Attention(Net):
    """A global context: a softmax over the places, multiplied with the channels."""

    def __init__(self) -> None:
        super().__init__()
        self.where, self.what = nn.Conv2d(8, 1, 1), nn.Conv2d(8, 8, 1)

    def body(self, x: Tensor) -> Tensor:
        weights = self.where(x).flatten(2).softmax(-1).transpose(1, 2)
        context = torch.matmul(x.flatten(2), weights)[..., None]
        return x + self.what(context)


class Lifted(Net):
    """An activation that makes something of nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.bias, self.conv = nn.Parameter(torch.ones(1)), nn.Conv2d(8, 8, 1)

    def body(self, x: Tensor) -> Tensor:
        return self.conv(torch.relu(x) ** 2 + self.bias).exp()


class Pools(Net):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(8, 8, 1)

    def body(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(x, 3, 2, 1) + F.avg_pool2d(x, 2)
        x = F.interpolate(self.conv(x), scale_factor=2)
        return F.adaptive_avg_pool2d(x, 2) * torch.amax(x, dim=(2, 3), keepdim=True)


class Body(Net):
    """A body in a line, with a convolution `c` of 8 units at its disposal."""

    def __init__(self, body: Callable[["Body", Tensor], Tensor]) -> None:
        super().__init__()
        self.written, self.k, self.epochs = body, 4, 4
        self.c, self.last = nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 1)

    def body(self, x: Tensor) -> Tensor:
        return self.last(self.written(self, x))


def first_reason(kind: type[Net]) -> str:
    """Return why the group of the stem cannot be pruned."""
    group = analyse(kind().eval(), X).groups[0]
    assert group.layers[0] == "stem"
    return str(group.reason)


def groups_of(kind: type[Net]) -> list[tuple[tuple[str, ...], int, int]]:
    """Return (layers, units, blocks) of each group."""
    return [(group.layers, len(group.sets), group.block_count) for group in analyse(kind().eval(), X).groups]


def cut_every_second(model: nn.Module, example: Tensor, layers: list[str]) -> tuple[list[Group], Any, float]:
    """Cut every second coupled set of each block out of all groups of some layers, as far as nothing holds them.

    Returns:
        The groups, the cut network, and its largest difference from the masked one, as a share of the largest output.
    """
    model, example = model.double().eval(), example.double()
    randomise(model)
    graph = build_dependency_graph(model, example)
    cutter, groups = Cutter(model, graph), find_groups(model, graph, layers)
    removed = []
    for group in groups:
        if group.reason is None:
            blocks = [
                [s for s, b in zip(group.sets, group.block_ids, strict=True) if b == block]
                for block in set(group.block_ids)
            ]
            removed += [s for sets in blocks for s in sets[1::2]]
    kept, twin = cutter.channels_without(removed), copy_model(model)
    cutter.cut(twin, cutter.all_channels(), kept)
    difference, largest = largest_difference(model, twin, cutter.axes, kept, example)
    return list(groups), twin, difference / largest


class Awkward(nn.Module):
    """A functional, an in-place and a shared activation, and a residual sum that writes over its operand."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.d = (nn.Conv2d(3 if i == 0 else 4, 4, 3, padding=1) for i in range(4))
        self.norm = nn.BatchNorm2d(4)
        self.shared = nn.ReLU(inplace=True)
        self.unused = nn.Conv2d(4, 4, 1)
        self.head = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.a(x)))
        x = self.shared(self.b(x))
        y = self.shared(self.c(x))
        z = self.d(y)
        z += x
        return self.head(F.max_pool2d(z, 2).mean((2, 3)))
