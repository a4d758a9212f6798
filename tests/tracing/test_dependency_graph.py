"""Whatever the code does with channels: what is removed is what would have been masked, or it is refused by name."""

import copy
import threading
import warnings
from collections.abc import Callable

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
import torch_pruning
import torchvision
from torch import Tensor, nn

from prune_fe.errors import InputError
from prune_fe.pruning.analysis import analyse
from prune_fe.pruning.prune import prune
from prune_fe.pruning.verify import randomise
from prune_fe.scoring.score import score
from prune_fe.scoring.scores import Scores
from prune_fe.tracing.feature_maps import mask
from prune_fe.tracing.layers import find_layers

X = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(2))


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


NETS = [
    Concatenation,
    Chunks,
    Shuffle,
    Gate,
    Branches,
    Split,
    Parts,
    Grouped,
    Multiplied,
    Upwards,
    Blur,
    Flat,
    Assigned,
]


@pytest.mark.parametrize("kind", [*NETS, Attention, Lifted, Pools], ids=lambda kind: kind.__name__)
def test_every_group_is_cut_and_removing_is_masking(kind: type[Net]) -> None:
    torch.manual_seed(0)
    model = kind().eval()
    randomise(model)
    pruned = prune(model, score(model, scorer="random", example=X), 0.5, X)
    assert all(step.left is None or step.units == 1 for step in pruned.steps)
    assert {layer for step in pruned.steps for layer in step.layers} == {layer.name for layer in find_layers(model, X)}
    difference, largest = pruned.difference(model, X)
    assert difference < 1e-5 * largest
    assert pruned.parameters < 0.8


def groups_of(kind: type[Net]) -> list[tuple[tuple[str, ...], int, int]]:
    """(layers, units, cells) of each group."""
    return [(group.layers, len(group.sets), group.block_count) for group in analyse(kind().eval(), X).groups]


def test_what_is_added_goes_together_and_halves_lose_equally_many() -> None:
    assert groups_of(Chunks) == [(("stem", "conv"), 8, 2)]
    (group,) = analyse(Chunks().eval(), X).groups
    assert group.layer_units["conv"] == ((0,), (1,), (2,), (3,), (), (), (), ())  # tied to the first half of the stem
    assert group.units_at([1, 6]) == {"stem": (1, 6), "conv": (1,)}


def test_what_is_interleaved_goes_together() -> None:
    assert groups_of(Shuffle) == [(("stem", "conv"), 8, 1), (("last",), 16, 1)]


def test_the_blocks_of_convolutions_and_norms_are_cells() -> None:
    assert groups_of(Grouped) == [(("stem",), 8, 2), (("conv",), 12, 4), (("last",), 6, 2)]


def test_channels_that_become_pixels_go_together() -> None:
    assert groups_of(Upwards) == [(("stem",), 8, 1), (("conv",), 4, 1), (("last",), 4, 1)]


def test_a_gate_goes_with_what_it_gates() -> None:
    assert [group.other_modules for group in analyse(Gate().eval(), X).groups] == [(), ("up",)]


class Einsum(Net):
    def body(self, x: Tensor) -> Tensor:
        return torch.einsum("nchw,nchw->nchw", x, x)


class Constant(Net):
    def body(self, x: Tensor) -> Tensor:
        return x * torch.arange(8.0).view(-1, 1, 1)


class HardSplit(Net):
    """The sizes stand in the code itself."""

    def body(self, x: Tensor) -> Tensor:
        a, b = torch.split(x, [2, 6], 1)
        return torch.cat([b, a], 1)


class HandNorm(Net):
    """A layer norm by hand: every channel depends on all."""

    def body(self, x: Tensor) -> Tensor:
        return (x - x.mean(1, keepdim=True)) / (x.var(1, keepdim=True) + 1e-3).sqrt()


class ImageAdded(Net):
    def body(self, x: Tensor) -> Tensor:
        return x + self.image

    def forward(self, x: Tensor) -> Tensor:
        self.image = x.repeat(1, 3, 1, 1)[:, :8]
        return super().forward(x)


class Uneven(Net):
    """Three parts of which two are the same: no cut serves both splits."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.last = nn.GroupNorm(2, 8), nn.Conv2d(8, 8, 1)
        self.other = nn.Conv2d(3, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.cat([torch.relu(self.stem(x))[:, :6], self.other(x)], 1)
        return self.head(self.last(self.norm(y)).mean((2, 3)))


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


class Repeated(Net):
    def __init__(self) -> None:
        super().__init__(10)

    def body(self, x: Tensor) -> Tensor:
        return F.pad(x[None], (0, 0, 0, 0, 1, 1), mode="replicate")[0]


class Gram(Net):
    def body(self, x: Tensor) -> Tensor:
        x = x.flatten(2)
        return (x @ x.transpose(1, 2))[..., None]


class ByHand(Net):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(8, 8, 1, 1))

    def body(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight)


class Strongest(Net):
    def body(self, x: Tensor) -> Tensor:
        return x * x.amax(1, keepdim=True)


class Unfolded(Net):
    def body(self, x: Tensor) -> Tensor:
        return F.unfold(x, 1).view(x.shape)


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        (Neighbours, "layer 'conv' convolves over the channels"),
        (TransposedGroups, "'up' is transposed and grouped"),
        (FoldedNorm, "GroupNorm 'norm' is given channels in several dimensions"),
        (WideNorm, "LayerNorm 'norm' norms more than the channels"),
        (Repeated, "padding by replicate over the channels"),
        (Gram, "a product of matrices in the network's code"),
        (ByHand, "is convolved with a tensor of no layer in the network's code"),
        (Strongest, "amax() over the channels in the network's code"),
        (Unfolded, "its channels go through unfold() in the network's code"),
        (Einsum, "its channels go through einsum() in the network's code"),
        (Constant, "meets 8 numbers of no layer in the network's code"),
        (HardSplit, "without some of its units the network does not run: split_with_sizes expects split_sizes to sum"),
        (HandNorm, "removing its units is not masking them (the outputs differ by "),
        (ImageAdded, "meets 8 numbers of no layer in the network's code"),
        (Uneven, "a split, shuffle or group norm demands equal parts that its units cannot keep"),
    ],
    ids=lambda value: value.__name__ if isinstance(value, type) else "",
)
def test_what_cannot_be_cut_stays_and_the_reason_is_said(kind: type[Net], reason: str) -> None:
    groups = analyse(kind().eval(), X).groups
    assert groups[0].layers[0] == "stem"
    assert str(groups[0].reason).startswith(reason)


def test_a_part_of_a_split_keeps_a_unit() -> None:
    model = Parts().eval()
    pruned = prune(model, score(model, scorer="random", example=X), 0.9, X)
    stem = pruned.steps[0]
    assert (stem.units, stem.asked, stem.count, stem.left) == (8, 7, 6, "each of its parts keeps a unit")
    assert model.sizes == [2, 6]
    assert pruned.model.sizes == [1, 1]
    difference, largest = pruned.difference(model, X)
    assert difference < 1e-5 * largest


class Body(Net):
    """A body in a line, with a convolution `c` of 8 units beside it."""

    def __init__(self, body: Callable[["Body", Tensor], Tensor]) -> None:
        super().__init__()
        self.written, self.k, self.epochs = body, 4, 4
        self.c, self.last = nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 1)

    def body(self, x: Tensor) -> Tensor:
        return self.last(self.written(self, x))


def insist(x: Tensor) -> Tensor:
    if x.shape[1] % 4:
        raise ValueError("a multiple of 4 is needed")
    return x


def add_where_it_fits(x: Tensor, y: Tensor) -> Tensor:
    return x + y if x.shape == y.shape else y


TRICKS: dict[str, Callable[[Body, Tensor], Tensor]] = {
    "one channel scales all": lambda net, x: net.c(x) * x[:, -1].unsqueeze(1),
    "rolled": lambda net, x: net.c(x).tanh().roll(1, 1),
    "even and odd": lambda net, x: torch.cat([x[:, ::2] * 2, net.c(x)[:, 1::2]], 1),
    "looks at the width": lambda net, x: net.c(x) * (1 if x.shape[1] % 2 == 0 else 2),
    "insists on the width": lambda net, x: net.c(insist(x)),
    "added where it fits": lambda net, x: add_where_it_fits(x, net.c(x)),
    "the same number twice": lambda net, x: torch.cat([x[:, net.k :], net.c(x)[:, : net.k] * 0.5], 1),
    "all but the last": lambda net, x: torch.cat([net.c(x)[:, :-1], x[:, :1]], 1),
    "neighbours": lambda net, x: F.local_response_norm(net.c(x), 3),
}


@pytest.mark.parametrize("trick", TRICKS)
def test_the_cut_that_is_returned_is_right_whichever_units_go(trick: str) -> None:
    model = Body(TRICKS[trick]).eval()
    randomise(model)
    for seed in range(6):
        draw = np.random.default_rng(seed)
        scores = Scores("drawn", {layer.name: draw.random(8) for layer in find_layers(model, X)})
        ratio = {"stem": 0.3, "c": 0.5, "last": 0.5} if seed % 2 else 0.5
        try:
            pruned = prune(model, scores, ratio, X)
        except InputError as error:
            assert "go together, but are asked for" in str(error)  # noqa: PT017
            continue
        difference, largest = pruned.difference(model, X)
        assert difference <= 1e-5 * largest
        assert all(step.count == step.asked or step.left for step in pruned.steps)


def test_numbers_that_are_no_widths_stay_and_those_that_are_get_said() -> None:
    halves = Body(lambda net, x: torch.cat(net.c(x).chunk(2, 1), 1)).eval()
    pruned = prune(halves, score(halves, scorer="random", example=X), 0.5, X)
    assert (pruned.model.k, pruned.model.epochs, pruned.notes) == (4, 4, ())
    split = Split().eval()
    pruned = prune(split, score(split, scorer="random", example=X), 0.5, X)
    assert (pruned.model.width, pruned.notes) == (2, ("sizes in the network's code were changed too: width",))


class Gained(nn.Conv2d):
    """A convolution with code of its own."""

    def __init__(self) -> None:
        super().__init__(8, 8, 1)
        self.gain = nn.Parameter(torch.rand(1, 8, 1, 1) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x * self.gain).flip(1)


class RmsNorm(nn.Module):
    """Called like timm's, and another thing."""

    def forward(self, x: Tensor) -> Tensor:
        return x.flip(1)


def test_code_of_the_users_own_is_followed_or_refused_whatever_it_is_called() -> None:
    model = Body(lambda net, x: net.norm(net.own(net.c(x)))).eval()  # type: ignore[operator]
    model.own, model.norm = Gained(), RmsNorm()
    pruned = prune(model, score(model, scorer="random", example=X), 0.5, X)
    left = {step.layers[0]: step.left for step in pruned.steps}
    assert left["own"] == "layer 'own' is a Gained, whose code is not torch's"
    assert str(left["c"]).startswith("is convolved with a tensor of no layer in 'own'")
    units = {layer: numbers for step in pruned.steps for layer, numbers in step.removed.items()}
    with torch.no_grad(), mask(model, find_layers(model, X), units):
        torch.testing.assert_close(pruned.model(X), model(X))


class ByKeyword(Net):
    """Layers called by keyword, a norm of maps and of features, an index, and arrays beside the modules."""

    order: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(8, 8, 1), nn.LayerNorm(8)
        self.register_buffer("order", torch.arange(8).flip(0))
        self.table = torch.ones(3, 3)

    def body(self, x: Tensor) -> Tensor:
        a, b = self.conv(input=x).chunk(2, 1)
        x = self.norm(torch.cat([b, a], 1).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return x * self.norm(x.mean((2, 3)))[..., None, None]


def test_layers_can_be_called_by_keyword_and_at_two_ranks() -> None:
    model = ByKeyword().eval()
    randomise(model)
    pruned = prune(model, score(model, scorer="random", example=X), 0.5, X)
    assert all(step.count == step.asked for step in pruned.steps)
    difference, largest = pruned.difference(model, X)
    assert difference < 1e-5 * largest


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16])
def test_half_precision_is_cut_as_well(kind: torch.dtype) -> None:
    model = torchvision.models.resnet18(num_classes=5).to(kind)
    x = torch.randn(1, 3, 64, 64, dtype=kind)
    pruned = prune(model, score(model, scorer="random", example=x), 0.5, x)
    assert all(step.count == step.asked for step in pruned.steps)
    assert next(pruned.model.parameters()).dtype == kind


def test_what_cannot_be_copied_is_refused_by_name() -> None:
    model = Gate()
    model.lock = threading.Lock()  # type: ignore[assignment]
    with pytest.raises(InputError, match="Gate cannot be copied: cannot pickle '_thread.lock' object"):
        analyse(model, X)
    with pytest.raises(InputError, match=r"example is empty: \(0, 3, 16, 16\); it is one image"):
        analyse(Gate(), X[:0])


def test_wrong_answers_of_rescore_are_refused() -> None:
    model = Concatenation().eval()
    scores = score(model, scorer="random", example=X)
    with pytest.raises(InputError, match=r"rescore.. returned a NoneType; it is asked for Scores of stem, conv, last"):
        prune(model, scores, 0.5, X, rounds=2, rescore=lambda model, layers: None)  # type: ignore[arg-type, return-value]
    part = Scores("part", {"stem": np.zeros(6)})
    with pytest.raises(InputError, match=r"rescore.. returned no scores of 'conv'"):
        prune(model, scores, 0.5, X, rounds=2, rescore=lambda model, layers: part)


def test_scores_of_another_width_in_a_later_round_are_refused() -> None:
    model = Concatenation().eval()

    def rescore(current: nn.Module, layers: tuple[str, ...]) -> Scores:
        return Scores("wrong", {layer: np.zeros(99) for layer in layers})

    with pytest.raises(InputError, match="layer 'stem': scores of 99 units, it has 6 left"):
        prune(model, score(model, scorer="random", example=X), 0.5, X, rounds=2, rescore=rescore)


def test_weights_that_two_modules_share_are_refused() -> None:
    model = Gate()
    model.conv.weight = model.stem.weight = nn.Parameter(torch.randn(8, 8, 1, 1))
    model.stem.in_channels, model.stem.kernel_size, model.stem.padding = 8, (1, 1), (0, 0)
    with pytest.raises(
        Exception, match="parameter 'conv.weight' is also 'stem.weight'; shared weights cannot be pruned"
    ):
        analyse(model, torch.randn(1, 8, 8, 8))


class Two(Net):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x), x  # type: ignore[return-value]


def test_a_model_that_returns_no_tensor_is_refused() -> None:
    with pytest.raises(InputError, match="the model returns a tuple; prune.. needs one that returns a tensor"):
        analyse(Two(), X)


def test_following_leaves_the_network_as_it_was() -> None:
    model = Concatenation().train()
    before = copy.deepcopy(model.state_dict())
    analyse(model, X)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(
        module.training and not module._forward_hooks and not module._forward_pre_hooks for module in model.modules()
    )


@pytest.mark.parametrize("name", ["vgg11_bn", "resnet18", "mobilenet_v2", "googlenet", "densenet121"])
def test_torch_pruning_cuts_the_same_where_it_can(name: str) -> None:
    heads = {"aux_logits": False, "init_weights": False} if name == "googlenet" else {}
    model = torchvision.models.get_model(name, num_classes=5, **heads).eval()
    x = torch.randn(1, 3, 64, 64)
    pruned = prune(model, score(model, scorer="random", example=x), 0.4, x)
    twin = copy.deepcopy(model)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        graph = torch_pruning.DependencyGraph().build_dependency(twin, (x,), verbose=False)
    for step in pruned.steps:
        layer = step.layers[0]
        root = twin.get_submodule(layer)
        function = graph.get_pruner_of_module(root).prune_out_channels
        graph.get_pruning_group(root, function, list(step.removed[layer])).prune()
    theirs = twin.state_dict()
    assert {key: value.shape for key, value in pruned.model.state_dict().items()} == {
        k: v.shape for k, v in theirs.items()
    }
    assert all(torch.equal(value, theirs[key]) for key, value in pruned.model.state_dict().items())


@pytest.mark.parametrize(
    "name", ["skresnet18", "ecaresnet26t", "convnextv2_atto", "nfnet_l0", "res2net50_26w_4s", "mixnet_s"]
)
def test_timm_networks_that_no_autograd_graph_can_follow_are_cut(name: str) -> None:
    model = timm.create_model(name, num_classes=5).eval()
    randomise(model)
    x = torch.randn(2, 3, 64, 64)
    pruned = prune(model, score(model, scorer="random", example=x), 0.5, x[:1])
    assert all(step.count == step.asked for step in pruned.steps)
    difference, largest = pruned.difference(model, x)
    assert difference < 1e-4 * largest
    assert 0.2 < pruned.parameters < 0.5


def test_shares_are_what_the_counters_say() -> None:
    from prune_fe.measure.cost import cost

    for name in ("resnext50_32x4d", "mobilenet_v2"):
        model = torchvision.models.get_model(name, num_classes=5).eval()
        x = torch.randn(1, 3, 64, 64)
        pruned = prune(model, score(model, scorer="random", example=x), 0.3, x)
        before, after = cost(model, x), cost(pruned.model, x)
        np.testing.assert_allclose(pruned.parameters, after.parameters / before.parameters, rtol=1e-12)
        np.testing.assert_allclose(pruned.macs, after.macs / before.macs, rtol=1e-12)
