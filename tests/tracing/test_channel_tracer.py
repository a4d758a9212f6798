"""Whatever the code does with channels: what is removed is what would have been masked, or it is refused by name."""

import copy
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
import torch_pruning
import torchvision
from torch import Tensor, nn
from torchvision.models import vgg

from prune_fe.errors import InputError
from prune_fe.pruning.analysis import analyse
from prune_fe.pruning.prune import prune
from prune_fe.pruning.verify import randomise
from prune_fe.scoring.score import score
from prune_fe.scoring.scores import Scores
from prune_fe.tracing.channel_tracer import find_coupled_units
from prune_fe.tracing.feature_maps import mask
from prune_fe.tracing.layers import find_layers
from tests.tracing.networks import (
    Assigned,
    Attention,
    Blur,
    Body,
    Branches,
    Chunks,
    Concatenation,
    Flat,
    Gate,
    Grouped,
    Lifted,
    Multiplied,
    Net,
    Parts,
    Pools,
    Shuffle,
    Split,
    Upwards,
    X,
)

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
    Attention,
    Lifted,
    Pools,
]


@pytest.mark.parametrize("kind", NETS, ids=lambda kind: kind.__name__)
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
    assert left["c"] == left["own"]
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


class Nothing(Net):
    def forward(self, x: Tensor) -> Tensor:
        super().forward(x)
        return {"classes": 3}  # type: ignore[return-value]


def test_a_model_that_returns_no_tensor_is_refused() -> None:
    with pytest.raises(InputError, match=r"the model returns \['classes'\] int; prune.. needs tensors to compare"):
        analyse(Nothing(), X)


def test_following_leaves_the_network_as_it_was() -> None:
    model = Concatenation().train()
    before = copy.deepcopy(model.state_dict())
    analyse(model, X)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(
        module.training and not module._forward_hooks and not module._forward_pre_hooks for module in model.modules()
    )


def vgg11_bn() -> nn.Module:
    """Return the convolutions of VGG-11, and a small classifier that reads every pixel."""
    features = vgg.make_layers(vgg.cfgs["A"], batch_norm=True)
    return nn.Sequential(features, nn.Flatten(), nn.Linear(512 * 4, 16), nn.ReLU(), nn.Linear(16, 5))


def densenet() -> nn.Module:
    return torchvision.models.DenseNet(8, (2, 3, 2), 16, num_classes=5)


def googlenet() -> nn.Module:
    return torchvision.models.googlenet(num_classes=5, aux_logits=False, init_weights=False)


@pytest.mark.parametrize(
    "build", [vgg11_bn, torchvision.models.resnet18, torchvision.models.mobilenet_v2, googlenet, densenet]
)
def test_torch_pruning_cuts_the_same_where_it_can(build: Callable[[], nn.Module]) -> None:
    model = build().eval()
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
    ("name", "options"),
    [
        ("skresnet18", {"layers": (1, 1, 1, 1)}),
        ("ecaresnet26t", {"layers": (1, 1, 1, 1)}),
        ("convnextv2_atto", {"depths": (1, 1, 2, 1)}),
        ("nfnet_l0", {}),
        ("res2net50_26w_4s", {"layers": (2, 1, 1, 1)}),
        ("mixnet_s", {}),
    ],
)
def test_timm_networks_that_no_autograd_graph_can_follow_are_cut(name: str, options: dict[str, Any]) -> None:
    model = timm.create_model(name, num_classes=5, **options).eval()
    randomise(model)
    x = torch.randn(2, 3, 64, 64)
    pruned = prune(model, score(model, scorer="random", example=x), 0.5, x[:1])
    assert all(step.count == step.asked for step in pruned.steps)
    difference, largest = pruned.difference(model, x)
    assert difference < 1e-4 * largest
    assert 0.2 < pruned.parameters < 0.5


class Blocks(nn.Module):
    """A stem, a residual block, one that narrows, and one that returns no maps."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.inner, self.narrow = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1), nn.Conv2d(4, 2, 1)
        self.sum, self.both, self.pooled = nn.ReLU(), nn.Identity(), nn.Flatten()
        self.head = nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = self.sum(x + self.inner(x))
        x = self.both(torch.cat([self.narrow(x), x], dim=1))
        return self.head(self.pooled(x.mean((2, 3), keepdim=True)))


def test_units_that_are_tied_together_have_one_set() -> None:
    model = Blocks().train()
    names = ["stem", "inner", "narrow", "sum", "both", "pooled"]
    sets = find_coupled_units(model, X[:1], names)
    stream, narrow = sets["stem"].tolist(), sets["narrow"].tolist()
    assert len({*stream, *narrow}) == 6
    assert sets["inner"].tolist() == sets["sum"].tolist() == stream
    assert sets["both"].tolist() == [*narrow, *stream]
    assert "pooled" not in sets  # it returns no maps
    assert model.training


def test_outputs_that_differ_between_runs_are_left_out() -> None:
    class Reused(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two, self.act = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1), nn.ReLU()

        def forward(self, x: Tensor) -> Tensor:
            return self.act(self.two(self.act(self.one(x)))).mean((2, 3))

    assert find_coupled_units(Reused(), X[:1], ["act", "two"]).keys() == {"two"}
