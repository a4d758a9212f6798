"""Every built-in scorer on every kind of layer, against what the network's own forward pass hands out."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from prune_fe.errors import InputError
from prune_fe.scorers import SCORERS
from prune_fe.scorers.base import LayerScore, MapScorer, Sums
from prune_fe.scoring.score import score
from prune_fe.tracing.layers import Layer, find_layers_with_units

Array = NDArray[Any]

UNITS = {"up": 4, "down": 3, "squeeze": 4, "twice": 4, "cube": 3, "line": 5, "token": 6, "window": 4, "nhwc": 6,
         "hidden": 5, "head": 3}  # fmt: skip
WITH_MAPS, N = ("up", "twice"), 9


class Every(nn.Module):
    """A layer of each kind. tap: function of the name of a layer, its values behind the activation, and the dimension
    of its units."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.ConvTranspose2d(2, 4, 2, stride=2, groups=2)
        self.down, self.squeeze = nn.Conv2d(4, 3, 1), nn.Conv2d(3, 4, 1)
        self.twice, self.cube, self.line = nn.Conv2d(4, 4, 3, padding=1), nn.Conv3d(1, 3, (2, 3, 3)), nn.Conv1d(3, 5, 3)
        self.token, self.window, self.nhwc = nn.Linear(5, 6), nn.Linear(6, 4), nn.Linear(4, 6)
        self.hidden, self.norm, self.head = nn.Linear(6, 5), nn.BatchNorm1d(5), nn.Linear(5, 3)
        nn.init.normal_(self.norm.weight)

    def forward(self, x: Tensor, tap: Callable[[str, Tensor, int], Tensor] = lambda name, value, dim: value) -> Tensor:
        x = tap("up", torch.relu(self.up(x)), 1)
        gate = tap("down", torch.relu(self.down(x.mean((2, 3), keepdim=True))), 1)
        x = x * tap("squeeze", torch.sigmoid(self.squeeze(gate)), 1)
        for _ in range(2):
            x = F.avg_pool2d(tap("twice", torch.relu(self.twice(x)), 1), 2)
        x = tap("cube", torch.relu(self.cube(x[:, None])), 1)
        x = tap("line", F.gelu(self.line(x.flatten(2))), 1).transpose(1, 2)
        x = tap("token", torch.relu(self.token(x)), 2)
        x = x.reshape(len(x) * 2, 5, 6)  # two windows of each image
        x = tap("window", torch.relu(self.window(x)), 2).reshape(len(x) // 2, 5, 2, 4)
        x = tap("nhwc", F.silu(self.nhwc(x)), 3).mean((1, 2))
        x = tap("hidden", torch.relu(self.norm(self.hidden(x))), 1)
        return tap("head", self.head(x), 1)


@pytest.fixture
def net() -> Every:
    torch.manual_seed(2)
    return Every().double().eval()


@pytest.fixture
def batch() -> tuple[Tensor, Tensor]:
    return torch.randn(N, 2, 8, 8, generator=torch.Generator().manual_seed(0)).double(), torch.arange(N) % 3


def values_of(net: Every, images: Tensor) -> dict[str, list[list[Array]]]:
    """Layer -> run -> image -> (units, positions)."""
    found: dict[str, list[list[Array]]] = {}

    def tap(name: str, value: Tensor, dim: int) -> Tensor:
        own = [np.moveaxis(part, dim, 0).reshape(UNITS[name], -1) for part in np.split(value.detach().numpy(), N)]
        found.setdefault(name, []).append(own)
        return value

    net(images, tap)
    return found


def filters_of(net: Every, name: str) -> list[list[float]]:
    """The weights of each unit, one by one."""
    module: Any = net.get_submodule(name)
    weight = module.weight.detach().numpy()
    if name != "up":
        return [filter.ravel().tolist() for filter in weight]
    # A transposed convolution has (inputs, units of a group, …): here, each input is a group with two units.
    return [weight[unit // 2, unit % 2].ravel().tolist() for unit in range(4)]


def test_every_kind_is_there(net: Every, batch: Any) -> None:
    layers = {layer.name: layer for layer in find_layers_with_units(net, batch[0][:2], linear=True)}
    assert {name: layer.units for name, layer in layers.items()} == UNITS
    assert [name for name, layer in layers.items() if layer.has_map] == list(WITH_MAPS)
    assert layers["twice"].runs == layers["window"].rows == 2
    assert [layers[name].channel_dim for name in ("line", "token", "nhwc", "hidden")] == [1, 2, 3, 1]


def l1(runs: list[list[Array]], labels: Array) -> Array:
    return np.mean([np.abs(image).sum(axis=1) for run in runs for image in run], axis=0)


def mean(runs: list[list[Array]], labels: Array) -> Array:
    return np.concatenate([image for run in runs for image in run], axis=1).mean(axis=1)


def zeros(runs: list[list[Array]], labels: Array) -> Array:
    return -(np.concatenate([image for run in runs for image in run], axis=1) <= 0).mean(axis=1)


def selectivity(runs: list[list[Array]], labels: Array) -> Array:
    means = [
        np.mean(
            [image.mean(axis=1) for run in runs for image, own in zip(run, labels, strict=True) if own == c], axis=0
        )
        for c in range(3)
    ]
    keep = []
    for values in np.transpose(means):
        top = max(values)
        rest = (sum(values) - top) / 2
        keep.append((top - rest) / (abs(top) + abs(rest)) if abs(top) + abs(rest) > 0 else 0)
    return np.array(keep)


@pytest.mark.parametrize(
    ("name", "expected"),
    [("l1-activation", l1), ("mean-activation", mean), ("apoz", zeros), ("class-selectivity", selectivity)],
)
@pytest.mark.parametrize("batch_size", [N, 4])
def test_activations_of_every_kind(name: str, expected: Any, batch_size: int, net: Every, batch: Any) -> None:
    images, labels = batch
    batches = list(zip(images.split(batch_size), labels.split(batch_size), strict=True))
    scores = score(net, batches, name, linear=True)
    assert list(scores.keep) == list(UNITS)
    for layer, runs in values_of(net, images).items():
        np.testing.assert_allclose(scores.keep[layer], expected(runs, labels.numpy()), 1e-9, 1e-13, err_msg=layer)


@pytest.mark.parametrize("batch_size", [N, 4])
def test_taylor_has_one_gate_for_a_unit_in_all_its_positions_windows_and_runs(
    batch_size: int, net: Every, batch: Any
) -> None:
    images, labels = batch
    gates = {name: torch.ones(units, dtype=torch.float64, requires_grad=True) for name, units in UNITS.items()}

    def tap(name: str, value: Tensor, dim: int) -> Tensor:
        return value * gates[name].view([-1 if d == dim else 1 for d in range(value.ndim)])

    F.cross_entropy(net(images, tap), labels).backward()
    batches = list(zip(images.split(batch_size), labels.split(batch_size), strict=True))
    keep = score(net, batches, "taylor", linear=True).keep
    for name, gate in gates.items():
        assert gate.grad is not None
        np.testing.assert_allclose(keep[name], gate.grad.square(), rtol=1e-7, atol=1e-25, err_msg=name)
        assert keep[name].any()


@pytest.mark.parametrize("has_example", [True, False])
def test_filters_of_every_kind(has_example: bool, net: Every, batch: Any) -> None:
    example = batch[0][:1] if has_example else None
    for layer in UNITS:
        filters = filters_of(net, layer)
        size = [sum(abs(w) for w in own) for own in filters]
        norm = [sum(w * w for w in own) ** 0.5 for own in filters]
        distance = [
            sum(sum((a - b) ** 2 for a, b in zip(own, other, strict=True)) ** 0.5 for other in filters)
            for own in filters
        ]
        for name, expected in (("l1-filter", size), ("l2-filter", norm), ("fpgm", distance)):
            keep = score(net, scorer=name, example=example, linear=True).keep
            np.testing.assert_allclose(keep[layer], expected, rtol=1e-9, err_msg=f"{name} {layer}")


def test_transposed_convolutions_of_one_and_three_dimensions_have_filters_too() -> None:
    line, cube = nn.ConvTranspose1d(4, 6, 3, groups=2), nn.ConvTranspose3d(2, 3, 2)
    net = nn.ModuleDict({"line": line, "cube": cube})
    keep = score(net, scorer="l1-filter").keep
    weight = line.weight.detach().double().abs()
    expected = [weight[2 * (u // 3) : 2 * (u // 3) + 2, u % 3].sum().item() for u in range(6)]
    assert keep["line"] == pytest.approx(expected)
    assert keep["cube"] == pytest.approx(cube.weight.detach().double().abs().sum((0, 2, 3, 4)).tolist())


@pytest.mark.parametrize(
    ("name", "left_out"),
    [
        ("feature-entropy", [layer for layer in UNITS if layer != "up"]),
        ("hrank", [layer for layer in UNITS if layer not in WITH_MAPS]),
        ("bn-scale", [layer for layer in UNITS if layer not in ("up", "hidden")]),
        ("random", []),
    ],
)
def test_what_a_scorer_cannot_score_is_named(name: str, left_out: list[str], net: Every, batch: Any) -> None:
    if name == "bn-scale":
        with_norm: Any = nn.Sequential(net.up, nn.BatchNorm2d(4)).double().eval()  # a map without a norm is an error
        net.up = with_norm
        with pytest.warns(UserWarning, match="bn-scale leaves out layer"):
            scores = score(net, [batch], name, linear=True)
        assert np.array_equal(scores.keep["hidden"], net.norm.weight.detach().abs())
        assert list(scores.keep) == ["up.0", "hidden"]
    elif left_out:
        with pytest.warns(UserWarning, match=f"{name} leaves out layer"):
            scores = score(net, [batch], name, linear=True)
        assert list(scores.keep) == [layer for layer in UNITS if layer not in left_out]
    else:
        scores = score(net, [batch], name, linear=True)
        assert all(sorted(keep) == list(range(len(keep))) for keep in scores.keep.values())
    assert list(scores.provenance.get("left_out", {})) == left_out


def test_nisp_names_the_product_of_a_gate(net: Every, batch: Any) -> None:
    with pytest.raises(InputError, match="nisp cannot propagate scores through a product of two maps"):
        score(net, [batch], "nisp", linear=True)


def test_every_scorer_is_tested_here() -> None:
    assert set(SCORERS) >= {"l1-activation", "mean-activation", "apoz", "class-selectivity", "taylor", "l1-filter",
                            "l2-filter", "fpgm", "feature-entropy", "hrank", "bn-scale", "random", "nisp"}  # fmt: skip
    assert len([name for name in SCORERS if not name.startswith("tp-")]) == 13  # those have tests of their own


class Shapes(MapScorer):
    """A scorer of the user's own that records the shapes of the maps that it gets."""

    def measure(self, maps: Tensor, labels: Tensor, classes: int) -> Sums:
        return {"shape": torch.tensor(maps.shape[1:]), "images": torch.tensor(len(maps)), "runs": torch.tensor(1)}

    def score_layer(self, sums: dict[str, Tensor]) -> LayerScore:
        shape = (sums["shape"] // sums["runs"]).tolist()
        return LayerScore(torch.zeros(shape[0]), {f"shape {shape[1:]}": torch.zeros(shape[0])})


def test_a_scorer_of_ones_own_gets_values_at_positions_and_filters_of_inputs(net: Every, batch: Any) -> None:
    for layer, shape in {"up": [16, 16], "line": [10, 1], "cube": [12, 1], "token": [10, 1], "window": [10, 1],
                         "nhwc": [10, 1], "hidden": [1, 1], "down": [1, 1]}.items():  # fmt: skip
        assert list(score(net, [batch], Shapes, layers=[layer]).raw) == [f"shape {shape}"]
    shapes: dict[str, tuple[int, ...]] = {}

    def record(layer: Layer, weight: Tensor) -> Tensor:
        shapes[layer.name] = tuple(weight.shape)
        return weight.flatten(1).sum(dim=1)

    score(net, scorer=record, linear=True)
    assert shapes["hidden"] == (5, 6, 1, 1)
    assert shapes["line"] == (5, 3, 3, 1)
    assert shapes["cube"] == (3, 1, 18, 1)
    assert shapes["up"] == (4, 1, 2, 2)


class Norms(nn.Module):
    """A layer that two norms follow in its two runs, one that one norm follows in both, and a norm over tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.shared, self.own = nn.Conv2d(2, 2, 1), nn.Conv2d(2, 2, 1)
        self.first, self.second, self.both = nn.BatchNorm2d(2), nn.BatchNorm2d(2), nn.BatchNorm2d(2)
        self.token, self.over_tokens, self.head = nn.Linear(2, 16), nn.BatchNorm1d(16), nn.Linear(16, 2)
        nn.init.normal_(self.both.weight)

    def forward(self, x: Tensor) -> Tensor:
        for norm in (self.first, self.second):
            x = torch.relu(norm(self.shared(x)))
        for _ in range(2):
            x = torch.relu(self.both(self.own(x)))
        return self.head(self.over_tokens(self.token(x.flatten(2).transpose(1, 2))).mean(1))


def test_bn_scale_takes_no_norm_of_another_run_or_of_tokens() -> None:
    net, example = Norms(), torch.zeros(1, 2, 4, 4)
    with pytest.warns(UserWarning, match="bn-scale leaves out layer 'shared': no batch norm follows it that is the"):
        scores = score(net, scorer="bn-scale", example=example, linear=True)
    assert list(scores.keep) == ["own"]
    assert np.array_equal(scores.keep["own"], net.both.weight.detach().abs())
    assert scores.provenance["left_out"]["token"] == "no batch norm follows it"


class Table(nn.Module):
    """A layer that makes a table of weights, which is the same for all images, and one whose rows are no images."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.randn(1, 4, 2))
        self.bias, self.token, self.head = nn.Linear(2, 3), nn.Linear(3, 3), nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(1)[:, :12].view(-1, 4, 3) + torch.relu(self.bias(self.table))
        by_position = self.token(x.transpose(0, 1))  # (positions, images, units)
        return self.head(torch.relu(by_position.mean(0)))


@pytest.mark.parametrize("name", ["taylor", "apoz"])
def test_rows_that_are_not_those_of_images_are_left_out_by_name(name: str) -> None:
    torch.manual_seed(0)
    net, images, labels = Table(), torch.randn(8, 1, 4, 4), torch.arange(8) % 2
    reason = "it is not known which image a row of its output belongs to"
    with pytest.warns(UserWarning, match=f"{name} leaves out layers 'bias', 'token': {reason}"):
        scores = score(net, [(images, labels)], name, linear=True)
    assert list(scores.keep) == ["head"]
    with pytest.raises(InputError, match=f"{name}: layer 'bias': {reason}"):
        score(net, [(images, labels)], name, layers=["bias"])
    assert list(score(net, scorer="l1-filter", linear=True).keep) == ["bias", "token", "head"]
