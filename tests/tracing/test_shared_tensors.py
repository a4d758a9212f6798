"""Layers that share a tensor lose the same channels and go on sharing it, or keep their channels and say why."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import prune_fe
from prune_fe.models.saved import load, save
from prune_fe.tracing.channel_tracer import build_dependency_graph
from prune_fe.tracing.shared_tensors import find_shared_memory, find_shared_tensors, full_name

X = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
pytestmark = pytest.mark.filterwarnings("ignore:left out")


class Net(nn.Module):
    """Four convolutions and a linear layer, in a row; those below share some of their tensors."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, width, 3, padding=1), nn.Conv2d(width, width, 3, padding=1)
        self.c, self.d = nn.Conv2d(width, width, 3, padding=1), nn.Conv2d(width, width, 3, padding=1)
        self.head = nn.Linear(width, 4)
        self.width = width
        self.share()

    def share(self) -> None: ...

    def middle(self, x: Tensor) -> Tensor:
        return self.c(x)

    def end(self, x: Tensor) -> Tensor:
        return self.head(x)

    def forward(self, x: Tensor) -> Tensor:
        x = self.b(self.a(x).relu()).relu()
        return self.end(self.d(self.middle(x).relu()).relu().mean((2, 3)))


class NeverRuns(Net):
    def share(self) -> None:
        self.aux = nn.Conv2d(self.width, self.width, 3, padding=1)
        self.aux.weight = self.c.weight


class NeverRunsAndIsFirst(NeverRuns):
    def share(self) -> None:
        super().share()
        self._modules = {"aux": self.aux} | self._modules


class RunsInTraining(NeverRuns):
    def middle(self, x: Tensor) -> Tensor:
        return self.aux(x) if self.training else self.c(x)


class BothRun(Net):
    def share(self) -> None:
        self.d.weight = self.b.weight


class Bias(Net):
    def share(self) -> None:
        self.d.bias = self.b.bias


class BiasOfOneThatNeverRuns(Net):
    def share(self) -> None:
        self.aux, self.norm = nn.Linear(5, 8), nn.GroupNorm(2, 8)
        self.aux.bias = self.c.bias  # type: ignore[assignment]
        self.norm.weight = self.d.bias  # type: ignore[assignment]


class Residual(Net):
    def share(self) -> None:
        self.d.weight, self.d.bias = self.b.weight, self.b.bias

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x).relu()
        x = x + self.b(x).relu()
        return self.head(self.c(x + self.d(x).relu()).relu().mean((2, 3)))


class LinearLayers(Net):
    def share(self) -> None:
        self.first, self.second = nn.Linear(8, 8), nn.Linear(8, 8)
        self.second.weight = self.first.weight

    def end(self, x: Tensor) -> Tensor:
        return self.head(self.second(self.first(x).relu()))


class HeadThatNeverRuns(Net):
    def share(self) -> None:
        self.aux = nn.Linear(8, 4)
        self.aux.weight = self.head.weight


class Statistics(Net):
    def share(self) -> None:
        self.norm, self.other = nn.BatchNorm2d(8), nn.BatchNorm2d(8)
        self.other.running_mean, self.other.running_var = self.norm.running_mean, self.norm.running_var

    def middle(self, x: Tensor) -> Tensor:
        return self.other(self.c(self.norm(x).relu()))


class StatisticsOfOneThatNeverRuns(Statistics):
    def middle(self, x: Tensor) -> Tensor:
        return self.c(self.norm(x))


class OtherAttribute(Net):
    def share(self) -> None:
        self.c.kernel = self.c.weight


class OtherAttributeOfTheCode(Net):
    def share(self) -> None:
        self.scale = nn.Parameter(torch.full((1, 8, 1, 1), 1.5))
        self.gain = self.scale

    def middle(self, x: Tensor) -> Tensor:
        return self.c(x * self.scale) * self.gain


class PlainModule(Net):
    def share(self) -> None:
        self.store: Any = nn.Module()
        self.store.kernel, self.store.shift = self.c.weight, self.d.bias  # type: ignore[assignment]


class SameModule(Net):
    def share(self) -> None:
        self.again, self.norm = self.c, nn.BatchNorm2d(8)
        self.other = self.norm

    def middle(self, x: Tensor) -> Tensor:
        return self.other(self.c(self.norm(x)))


class Decoder(Net):
    def share(self) -> None:
        self.up = nn.ConvTranspose2d(8, 8, 3, padding=1)
        self.up.weight = self.c.weight

    def middle(self, x: Tensor) -> Tensor:
        return self.up(self.c(x).relu())


class Groups(Net):
    def share(self) -> None:
        self.c, self.aux = nn.Conv2d(8, 8, 1, groups=2), nn.Conv2d(8, 8, 1, groups=2)
        self.aux.weight = self.c.weight


class OwnConvolution(nn.Conv2d):
    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input) * 2


class OwnNorm(nn.BatchNorm2d):
    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input) + 1


class OwnCode(Net):
    def share(self) -> None:
        self.c, self.d = OwnConvolution(8, 8, 3, padding=1), OwnConvolution(8, 8, 3, padding=1)
        self.d.weight = self.c.weight


class OwnCodeThatNeverRuns(Net):
    def share(self) -> None:
        self.aux, self.norm, self.other = OwnConvolution(8, 8, 3), OwnNorm(8), OwnNorm(8)
        self.aux.weight, self.other.weight = self.c.weight, self.norm.weight

    def middle(self, x: Tensor) -> Tensor:
        return self.c(self.norm(x).relu())


class Large(NeverRuns):
    """The weights are so many that verification reads those of other networks from a pool."""

    def __init__(self) -> None:
        super().__init__(48)


KINDS: dict[type[Net], dict[tuple[str, ...], int]] = {
    NeverRuns: {("a",): 4, ("b",): 4, ("c",): 4, ("d",): 4},
    NeverRunsAndIsFirst: {("a",): 4, ("b",): 4, ("c",): 4, ("d",): 4},
    RunsInTraining: {("a",): 4, ("b",): 4, ("c",): 4, ("d",): 4},
    BothRun: {("a", "c"): 4, ("b", "d"): 4},
    Bias: {("a",): 4, ("b", "d"): 4, ("c",): 4},
    BiasOfOneThatNeverRuns: {("a",): 4, ("b",): 4, ("c",): 4, ("d",): 4},
    Residual: {("a", "b", "d"): 4, ("c",): 4},
    LinearLayers: {("a",): 4, ("b",): 4, ("c",): 4, ("d",): 4},
    HeadThatNeverRuns: {("a",): 4, ("b",): 4, ("c",): 4, ("d",): 4},
    Statistics: {("a",): 4, ("b", "c"): 4, ("d",): 4},
    StatisticsOfOneThatNeverRuns: {("a",): 4, ("b",): 4, ("c",): 4, ("d",): 4},
    OtherAttribute: {("a",): 4, ("b",): 4, ("c",): 4, ("d",): 4},
    OtherAttributeOfTheCode: {("a",): 4, ("b", "c"): 4, ("d",): 4},
    PlainModule: {("a",): 4, ("b",): 4, ("c",): 4, ("d",): 4},
    SameModule: {("a",): 4, ("b", "c"): 4, ("d",): 4},
    Decoder: {("a",): 4, ("b", "up"): 4, ("c",): 4, ("d",): 4},
    OwnCode: {("a",): 4, ("b", "c", "d"): 4},
    OwnCodeThatNeverRuns: {("a",): 4, ("b",): 4, ("c",): 4, ("d",): 4},
    Groups: {("a",): 4, ("b",): 4, ("c",): 4, ("d",): 4},
    Large: {("a",): 24, ("b",): 24, ("c",): 24, ("d",): 24},
}


def names(model: nn.Module) -> list[list[str]]:
    return [list(map(full_name, shared)) for shared in find_shared_tensors(model)]


def counts(model: nn.Module) -> dict[str, tuple[int, ...]]:
    """What layers say of their channels, which has to be what their tensors have."""
    found: dict[str, tuple[int, ...]] = {}
    for name, module in model.named_modules():
        sizes = {
            key: tuple(value.shape)
            for key, value in (*module._parameters.items(), *module._buffers.items())
            if value is not None
        }
        if isinstance(module, nn.ConvTranspose2d):
            found[name] = (module.in_channels, module.out_channels)
            assert sizes["weight"][:2] == found[name]
        elif isinstance(module, nn.Conv2d):
            found[name] = (module.out_channels, module.in_channels)
            assert sizes["weight"][:2] == (module.out_channels, module.in_channels // module.groups)
        elif isinstance(module, nn.Linear):
            found[name] = (module.out_features, module.in_features)
            assert sizes["weight"] == found[name]
        elif isinstance(module, nn.BatchNorm2d):
            assert {sizes[key] for key in ("weight", "bias", "running_mean", "running_var")} == {(module.num_features,)}
        elif isinstance(module, nn.GroupNorm):
            assert sizes["weight"] == sizes["bias"] == (module.num_channels,)
        if "bias" in sizes and name in found:
            assert sizes["bias"] == ((module.out_channels,) if hasattr(module, "out_channels") else found[name][:1])
    return found


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_a_network_with_shared_tensors_is_cut_saved_and_loaded(kind: type[Any], tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, carry = kind().eval(), {}
    state, shared = {key: value.clone() for key, value in model.state_dict().items()}, names(model)
    carry = {key: weight.detach().clone() for key, weight in model.named_parameters()}
    pruned = prune_fe.prune(model, prune_fe.score(model, scorer="l1-filter"), 0.5, X, rounds=2, carry=carry)
    assert {step.layers: step.count for step in pruned.steps} == KINDS[kind]
    assert [step.left for step in pruned.steps] == [None] * len(pruned.steps)
    difference, scale = pruned.difference(model, X)
    assert difference <= 1e-4 * scale
    assert bool(shared) == (kind is not SameModule)
    assert names(pruned.model) == shared, "what was one tensor is one"
    assert counts(pruned.model).keys() == counts(model).keys()
    assert carry.keys() == dict(pruned.model.named_parameters()).keys()
    assert all(torch.equal(carry[key], weight) for key, weight in pruned.model.named_parameters())
    assert names(model) == shared
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    size = sum(weight.numel() for weight in pruned.model.parameters()) / sum(w.numel() for w in model.parameters())
    assert pruned.parameters == pytest.approx(size)
    back = load(save(pruned.model, tmp_path / "pruned"), kind())
    assert names(back) == shared
    assert torch.equal(back(X), pruned.model(X))
    assert pruned.model.train()(X).shape == (2, 4)


def test_a_layer_that_never_runs_loses_what_it_shares_and_what_depends_on_that() -> None:
    model = NeverRuns().eval()
    pruned: Any = prune_fe.prune(model, prune_fe.score(model, scorer="l1-filter"), {"c": 0.5, "b": 0.25}, X)
    assert counts(pruned.model)["aux"] == (4, 6)
    assert len(pruned.model.aux.bias) == 4
    assert [step.also for step in pruned.steps if step.layers == ("c",)] == [("aux",)]


class Split(Net):
    """One tensor, which one layer divides in two and the other not."""

    def share(self) -> None:
        self.c, self.aux = nn.Conv2d(8, 8, 1, groups=2), nn.Conv2d(4, 8, 1)
        self.aux.weight = self.c.weight


class Untrue(Net):
    """A layer whose counts are not those of the tensor that it was given."""

    def share(self) -> None:
        self.aux = nn.Conv2d(8, 5, 3)
        self.aux.weight = self.c.weight


class OverAll(Net):
    """A norm that reads the tensor beside one with channels."""

    def share(self) -> None:
        self.first, self.second = nn.LayerNorm(8), nn.LayerNorm(8)
        self.second.weight = self.first.weight

    def middle(self, x: Tensor) -> Tensor:
        return self.c(x) * self.second(x.new_ones(1, 8)).sum()

    def end(self, x: Tensor) -> Tensor:
        return self.head(self.first(x))


@pytest.mark.parametrize(
    ("kind", "layers", "tensor"),
    [
        (Split, ["b"], "'c.weight' and 'aux.weight'"),
        (Untrue, ["c"], "'c.weight' and 'aux.weight'"),
        (OverAll, ["d"], "'first.weight' and 'second.weight'"),
    ],
)
def test_layers_that_read_a_tensor_differently_keep_it_and_both_names_are_said(
    kind: type[Any], layers: list[str], tensor: str
) -> None:
    model = kind().eval()
    pruned = prune_fe.prune(model, prune_fe.score(model, scorer="l1-filter", example=X), 0.5, X)
    text = f"{tensor} are one tensor, whose channels its layers read differently"
    assert [step.layers[0] for step in pruned.steps if step.left == text] == layers
    assert sum(step.count > 0 for step in pruned.steps) == 4 - len(layers)


def test_the_multiply_adds_of_a_shared_weight_count_for_each_layer() -> None:
    model = BothRun().eval()
    pruned = prune_fe.prune(model, prune_fe.score(model, scorer="l1-filter"), 0.5, X)
    before, after = (prune_fe.cost(network, X[:1]) for network in (model, pruned.model))
    assert pruned.macs == pytest.approx(after.macs / before.macs)


def test_a_function_that_reads_a_layers_weight_keeps_the_layer() -> None:
    class Function(Net):
        def share(self) -> None:
            self.store: Any = nn.Module()
            self.store.kernel = self.c.weight

        def middle(self, x: Tensor) -> Tensor:
            return F.conv2d(self.c(x), self.store.kernel, padding=1)

    model = Function().eval()
    pruned = prune_fe.prune(model, prune_fe.score(model, scorer="l1-filter"), 0.5, X)
    text = "'c.weight' and 'store.kernel' are one tensor, which the network's own code reads too"
    assert {step.layers[0]: step.left for step in pruned.steps if not step.count}["b"] == text
    assert {step.layers[0] for step in pruned.steps if step.count} == {"a", "d"}
    assert names(pruned.model) == [["c.weight", "store.kernel"]]


def test_names_come_in_the_order_of_the_parameters() -> None:
    model = PlainModule()
    assert names(model) == [["c.weight", "store.kernel"], ["d.bias", "store.shift"]]
    assert not names(Net())
    graph = build_dependency_graph(NeverRuns(), X)
    assert (
        graph.coupled_set[graph.axes["aux", "in"].channels] == graph.coupled_set[graph.axes["c", "in"].channels]
    ).all()


def test_parameters_that_share_memory_without_being_one_are_named() -> None:
    class Views(Net):
        def share(self) -> None:
            self.d.weight = nn.Parameter(self.b.weight.data)

    model = Views().eval()
    assert find_shared_memory(model) == [("b.weight", "d.weight")]
    pruned = prune_fe.prune(model, prune_fe.score(model, scorer="l1-filter"), 0.5, X)
    text = (
        "parameters 'b.weight' and 'd.weight' have the same memory, but are not one parameter; each has its own "
        "memory in the pruned network"
    )
    assert pruned.notes == (text,)
    assert find_shared_memory(pruned.model) == find_shared_memory(NeverRuns()) == []
    assert find_shared_memory(nn.Sequential(nn.ParameterList([torch.ones(0), torch.zeros(0)]))) == []


class Embedded(Net):
    """The classifier's weight is that of an embedding, whose rows are read in the network's code."""

    def share(self) -> None:
        self.table = nn.Embedding(4, 8)
        self.head.weight = self.table.weight

    def end(self, x: Tensor) -> Tensor:
        return self.head(x) + self.table(torch.zeros(len(x), dtype=torch.int64)).mean()


def test_a_weight_that_an_embedding_reads_keeps_its_channels() -> None:
    model = Embedded().eval()
    pruned = prune_fe.prune(model, prune_fe.score(model, scorer="l1-filter"), 0.5, X)
    text = "'head.weight' and 'table.weight' are one tensor, which the code of 'table' reads too"
    assert {step.layers[0]: step.left for step in pruned.steps} == {"a": None, "b": None, "c": None, "d": text}
    assert names(pruned.model) == names(model) == [["head.weight", "table.weight"]]
