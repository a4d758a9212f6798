"""Networks are split in front of what training changes; what cannot be split says why."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from prune_fe.tracing.prefix import PrefixSplit, split_prefix
from prune_fe.tracing.split import NotSplit


class Residual(nn.Module):
    """A trained layer that reads two fixed values of different shapes."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.branch = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.block, self.head = nn.Conv2d(4, 4, 1), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        x = F.relu(self.branch(x), inplace=True) + self.block(x)
        return self.head(x.mean((2, 3)))


def part(model: nn.Module, *names: str) -> nn.Module:
    """Freeze all modules but these, which are in training mode."""
    model.eval().requires_grad_(False)
    for name in names:
        model.get_submodule(name).train().requires_grad_()
    return model


def images(count: int = 2) -> Tensor:
    return torch.randn(count, 1, 6, 6, generator=torch.Generator().manual_seed(0))


def dropping() -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Dropout(0.5), nn.Flatten(), nn.Linear(32, 3))


@pytest.mark.parametrize(
    ("model", "names", "width"),
    [
        (dropping(), ["4"], 32),
        (nn.Sequential(nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(True)), nn.Flatten(), nn.Linear(32, 3)), ["2"], 32),
        (Residual(), ["head"], 4),
        (Residual(), ["block", "head"], 2 * 4 * 36),
        (Residual(), ["branch"], 4 * 36 + 4 * 36),
    ],
)
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_the_parts_give_the_output_and_the_gradients_of_the_network(
    model: nn.Module, names: list[str], width: int, memory_format: torch.memory_format
) -> None:
    part(model, *names).to(memory_format=memory_format)
    network = split_prefix(model, images())
    assert isinstance(network, PrefixSplit)
    with torch.no_grad():
        rows = network.prefix(images(5))
    assert rows.shape == (5, width)
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    expected = torch.autograd.grad(model(images(5)).square().sum(), weights)
    found = torch.autograd.grad(network.rest(rows).square().sum(), weights)
    torch.testing.assert_close(found, expected)


def test_dropout_of_the_trained_part_stays_in_it() -> None:
    model = part(dropping(), "2", "4")
    network = split_prefix(model, images())
    assert isinstance(network, PrefixSplit)
    with torch.no_grad():
        rows = network.prefix(images())
        assert torch.equal(rows, network.prefix(images()))
        assert not torch.equal(network.rest(rows), network.rest(rows))
    assert model.get_submodule("2").training
    assert not model.training


def test_a_weight_that_is_read_by_name_belongs_to_what_changes() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.flat, self.inner = nn.Flatten(), nn.Linear(36, 36)

        def forward(self, x: Tensor) -> Tensor:
            return self.inner(F.linear(self.flat(x), self.inner.weight))

    network = split_prefix(part(Tied(), "inner"), images())
    assert isinstance(network, PrefixSplit)
    with torch.no_grad():
        assert torch.equal(network.prefix(images()), images().flatten(1))


class Branching(nn.Module):
    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind, self.stem, self.head = kind, nn.Conv2d(1, 2, 3), nn.Linear(32, 3)
        self.norm = nn.BatchNorm2d(2, track_running_stats=False)

    def forward(self, x: Tensor) -> Tensor:
        y = self.stem(x)
        if self.kind == "branch" and y.sum() > 0:
            y = -y
        if self.kind.startswith("sized") and y.shape[-1] < 9:
            y = F.pad(y, (0, 0)) * 2
        if self.kind == "sized, twice":
            y = y + self.head(y.flatten(1)).mean()
        if self.kind == "random":
            y = F.dropout(y)
        if self.kind == "batch":
            y = self.norm(y)
        if self.kind == "size":
            return self.head(y.flatten(1)).view(y.size(0), -1)
        if self.kind == "shape":
            return self.head(y.flatten(1)) + y.mean(0).flatten()[:3]
        if self.kind == "mixed":
            return self.head(y.flatten(1)) * y.flatten(1).argmax(1, keepdim=True)
        y = self.head(y.flatten(1))
        return y + 1 if self.kind == "sized, not last" else y


def test_a_network_that_cannot_be_traced_is_split_in_front_of_its_last_module() -> None:
    model = part(Branching("sized"), "head")
    network = split_prefix(model, images())
    assert isinstance(network, PrefixSplit)
    with torch.no_grad():
        rows = network.prefix(images(5))
        assert rows.shape == (5, 32)
        assert torch.equal(network.rest(rows), model(images(5)))
    network.rest(rows).sum().backward()
    assert model.get_submodule("head").weight.grad is not None


@pytest.mark.parametrize(
    ("kind", "names", "reason"),
    [
        ("branch", ["head"], "its code depends on the values of a tensor"),
        ("sized", ["stem", "head"], "it cannot be traced"),
        ("sized, not last", ["head"], "it cannot be traced"),
        ("sized, twice", ["head"], "it cannot be traced"),
        ("random", ["head"], "its features of one image differ from call to call"),
        ("batch", ["head"], "its features of an image depend on the other images of the batch"),
        ("size", ["head"], "reads a value of type int, which is no tensor"),
        ("shape", ["head"], "reads a value that has no row for each image"),
        ("mixed", ["head"], "reads values of several types"),
        ("plain", ["stem", "head"], "no layer stands in front of the trained part"),
        ("plain", [""], "the network's own code is in training mode"),
    ],
)
def test_a_network_that_is_not_split_says_why(kind: str, names: list[str], reason: str) -> None:
    outcome = split_prefix(part(Branching(kind), *names), images())
    assert isinstance(outcome, NotSplit)
    assert reason in outcome.reason


def test_a_weight_that_a_fixed_module_shares_with_a_trained_one_belongs_to_what_changes() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(36, 36), nn.Tanh(), nn.Linear(36, 36))
    model.get_submodule("1").weight = model.get_submodule("3").weight
    part(model, "3")
    network = split_prefix(model, images())
    assert isinstance(network, PrefixSplit)
    with torch.no_grad():
        assert torch.equal(network.prefix(images()), images().flatten(1))


def test_a_trained_module_asks_for_its_mode_each_time_that_it_runs() -> None:
    class Head(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(32, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.linear(F.dropout(x, training=self.training))

    model = part(nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), Head()), "2")
    network = split_prefix(model, images())
    assert isinstance(network, PrefixSplit)
    with torch.no_grad():
        rows = network.prefix(images())
        assert not torch.equal(network.rest(rows), network.rest(rows))
        model.eval()
        assert torch.equal(network.rest(rows), model(images()))
