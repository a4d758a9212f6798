"""torch-pruning's criteria give what a script with torch-pruning gives, group by group."""

import copy
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch_pruning as tp
import torchvision
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import TensorDataset

from prune_fe import score
from prune_fe.errors import EnvironmentFault, InputError
from prune_fe.scorers import SCORERS, resolve_scorer

CLASSES = 4
IMAGES = 6


class Net(nn.Module):
    """A residual sum of two convolutions, a concatenation that is added to another one or not, and a classifier."""

    def __init__(self, adds: bool = True) -> None:
        super().__init__()
        self.a, self.a_norm = nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6)
        self.b, self.b_norm = nn.Conv2d(6, 6, 3, padding=1), nn.BatchNorm2d(6)
        self.c, self.c_norm = nn.Conv2d(6, 5, 1), nn.BatchNorm2d(5)
        self.d, self.d_norm = nn.Conv2d(11, 7, 3), nn.BatchNorm2d(7)
        self.e = nn.Conv2d(3, 11, 1) if adds else None
        self.head = nn.Linear(7, CLASSES)
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                nn.init.uniform_(module.weight, 0.5, 1.5)

    def forward(self, x: Tensor) -> Tensor:
        added = 0 if self.e is None else self.e(x)
        x = torch.relu(self.a_norm(self.a(x)))
        x = x + torch.relu(self.b_norm(self.b(x)))
        x = torch.cat([torch.relu(self.c_norm(self.c(x))), x], dim=1) + added
        return self.head(torch.relu(self.d_norm(self.d(x))).mean((2, 3)))


@pytest.fixture
def net() -> Net:
    return Net().eval()


@pytest.fixture
def data() -> TensorDataset:
    return TensorDataset(torch.randn(IMAGES, 3, 8, 8), torch.arange(IMAGES) % CLASSES)


def their_scores(net: nn.Module, data: TensorDataset, importance: Any) -> dict[str, list[float]]:
    """Write torch-pruning's examples out: gradients of single images or of the batch, then the groups' scores."""
    twin = copy.deepcopy(net)
    images, labels = data.tensors
    graph = tp.DependencyGraph().build_dependency(twin, (images[:1],), verbose=False)
    if isinstance(importance, tp.importance.GroupHessianImportance):
        importance.zero_grad()
        for loss in F.cross_entropy(twin(images), labels, reduction="none"):
            twin.zero_grad()
            loss.backward(retain_graph=True)
            importance.accumulate_grad(twin)
    else:
        F.cross_entropy(twin(images), labels).backward()
    names = {module: name for name, module in twin.named_modules()}
    scores: dict[str, list[float]] = {}
    for group in graph.get_all_groups():
        values = importance(group)
        for item in group:
            module = item.dep.target.module
            if isinstance(module, nn.Conv2d | nn.Linear) and graph.is_out_channel_pruning_fn(item.dep.handler):
                own = scores.setdefault(names[module], [np.nan] * len(module.weight))
                for unit, root in zip(item.idxs, item.root_idxs, strict=True):
                    own[unit] = float(values[root])
    return scores


@pytest.mark.parametrize(
    ("name", "settings", "importance"),
    [
        ("tp-magnitude", {}, tp.importance.MagnitudeImportance),
        (
            "tp-magnitude",
            {"p": 1, "group_reduction": "first", "normalizer": None, "bias": True},
            lambda: tp.importance.MagnitudeImportance(p=1, group_reduction="first", normalizer=None, bias=True),
        ),
        ("tp-lamp", {}, tp.importance.LAMPImportance),
        ("tp-fpgm", {}, tp.importance.FPGMImportance),
        ("tp-taylor", {}, tp.importance.TaylorImportance),
        (
            "tp-taylor",
            {"batch_size": 2, "multivariable": True},
            lambda: tp.importance.TaylorImportance("mean", "mean", True),
        ),
        ("tp-hessian", {}, tp.importance.HessianImportance),
    ],
)
def test_scores_are_those_of_a_script_with_torch_pruning(
    net: Net, data: TensorDataset, name: str, settings: dict[str, Any], importance: Callable[[], Any]
) -> None:
    keep = score(net, data, resolve_scorer(name, settings), linear=True, batch_size=4).keep
    expected = their_scores(net, data, importance())
    assert keep.keys() == expected.keys() == {"a", "b", "c", "d", "e", "head"}
    for layer, values in keep.items():
        np.testing.assert_allclose(values, expected[layer], rtol=1e-4, err_msg=layer)
        assert len(set(values)) > 1
    np.testing.assert_array_equal(keep["a"], keep["b"])  # they are summed
    np.testing.assert_array_equal(keep["e"], [*keep["c"], *keep["a"]])


def test_the_scale_of_a_batch_norm(data: TensorDataset) -> None:
    net, whole = Net(adds=False).eval(), Net()
    # It gives up a group whose first batch norm is narrower than the group.
    with pytest.raises(
        InputError, match="tp-bn-scale: .*'a', 'b'.*: torch-pruning fails: RuntimeError: index 6 is out"
    ):
        score(whole, scorer="tp-bn-scale", example=data.tensors[0][:1])
    keep = score(net, scorer="tp-bn-scale", example=data.tensors[0][:1]).keep
    both = (net.a_norm.weight.abs() + net.b_norm.weight.abs()).detach()
    np.testing.assert_allclose(keep["a"], both / both.mean(), rtol=1e-5)
    with pytest.raises(InputError, match="tp-bn-scale: layer 'head': its group has no batch norm; leave out"):
        score(net, scorer="tp-bn-scale", example=data.tensors[0][:1], linear=True)


def test_fpgm_takes_opposite_filters_for_the_same() -> None:
    net = nn.Sequential(
        nn.Conv2d(1, 3, 1, bias=False), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 2, bias=False)
    )
    nn.init.zeros_(net[3].weight)  # type: ignore[arg-type]
    net[0].weight.data = torch.tensor([1.0, -1.0, 2.0]).view(3, 1, 1, 1)
    criterion = resolve_scorer("tp-fpgm", {"p": 1, "normalizer": None, "group_reduction": "sum"})
    assert score(net, scorer=criterion, example=torch.ones(1, 1, 2, 2)).keep["0"].tolist() == [1, 1, 2]
    assert score(net, scorer="fpgm", layers=["0"]).keep["0"].tolist() == [3, 5, 4]


def test_the_hessian_is_that_of_the_last_image(net: Net, data: TensorDataset) -> None:
    images, labels = data.tensors
    whole = score(net, data, "tp-hessian").keep
    last = score(net, TensorDataset(images[-1:], labels[-1:]), "tp-hessian").keep
    first = score(net, TensorDataset(images[:1], labels[:1]), "tp-hessian").keep
    for layer, values in whole.items():
        np.testing.assert_allclose(values, last[layer], rtol=1e-4)
        assert not np.allclose(values, first[layer], rtol=1e-2)


def test_batch_norms_do_not_count_for_taylor(net: Net, data: TensorDataset) -> None:
    group_sum = resolve_scorer("tp-taylor", {"group_reduction": "sum", "normalizer": None})
    twin = copy.deepcopy(net)
    loss = F.cross_entropy(twin(data.tensors[0]), data.tensors[1])
    own, read = torch.autograd.grad(loss, [twin.d.weight, twin.head.weight])
    expected = (twin.d.weight * own).abs().sum((1, 2, 3)) + (twin.head.weight * read).abs().sum(0)
    np.testing.assert_allclose(score(net, data, group_sum).keep["d"], expected.detach(), rtol=1e-4)


def test_random_numbers_follow_the_seed_and_leave_the_generator_alone(net: Net, data: TensorDataset) -> None:
    def keep(seed: int) -> list[float]:
        return score(net, data, resolve_scorer("tp-random", seed=seed)).keep["d"].tolist()

    before = torch.get_rng_state()
    assert keep(1) == keep(1) != keep(2)
    assert torch.equal(torch.get_rng_state(), before)
    with pytest.raises(InputError, match="tp-random: seed is '1', allowed are whole numbers"):
        resolve_scorer("tp-random", {"seed": "1"})


def test_frozen_layers_have_the_same_scores(net: Net, data: TensorDataset) -> None:
    free = {name: score(net, data, name).keep for name in ("tp-magnitude", "tp-taylor")}
    net.requires_grad_(False)
    net.head.requires_grad_(True)
    for name, keep in free.items():
        again = score(net, data, name).keep
        assert all(np.array_equal(values, again[layer]) for layer, values in keep.items())
    assert not net.a.weight.requires_grad
    assert net.a.weight.grad is None


def test_a_group_that_is_all_zero_scores_zero(data: TensorDataset) -> None:
    net = Net(adds=False)
    nn.init.zeros_(net.c_norm.weight)
    keep = score(net, scorer="tp-bn-scale", example=data.tensors[0][:1]).keep
    assert keep["c"].tolist() == [0] * 5
    assert keep["d"].any()


def test_what_torch_pruning_cannot_do_names_the_layer(data: TensorDataset) -> None:
    grouped = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3, groups=2), nn.Conv2d(4, 2, 3))
    with pytest.raises(InputError, match="tp-fpgm: layer '0': torch-pruning fails: RuntimeError: Number of dim"):
        score(grouped, scorer="tp-fpgm", example=data.tensors[0])
    assert [*score(grouped, scorer="tp-fpgm", layers=["2"], example=data.tensors[0]).keep] == ["2"]

    class Broken(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)

        def forward(self, x: Tensor) -> list[str | Tensor]:
            return ["text", self.conv(x)]

    with pytest.raises(InputError, match="tp-magnitude: torch-pruning cannot follow Broken: AttributeError: "):
        score(Broken(), scorer="tp-magnitude", example=data.tensors[0])

    class Recurrent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.gru = nn.Conv2d(3, 12, 3), nn.GRU(12, 10, batch_first=True)

        def forward(self, x: Tensor) -> Tensor:
            return self.gru(self.conv(x).mean(2).transpose(1, 2))[0][:, -1]

    with pytest.raises(InputError, match="tp-magnitude: torch-pruning cannot group the layers of Recurrent: IndexErr"):
        score(Recurrent(), scorer="tp-magnitude", example=data.tensors[0])


def test_too_many_images_are_an_error_before_any_is_read(net: Net, data: TensorDataset) -> None:
    criterion = resolve_scorer("tp-taylor", {"rows": 5})
    with pytest.raises(InputError, match="tp-taylor keeps the images, at most 5, and there are 6; score on fewer"):
        score(net, data, criterion)
    batches = [(data.tensors[0], data.tensors[1])]
    with pytest.raises(InputError, match=r"each image leaves a row, at most 5 are kept \(setting rows\)"):
        score(net, batches, criterion)


@pytest.mark.parametrize(
    ("name", "settings", "match"),
    [
        ("tp-magnitude", {"normalizer": "lamp"}, "tp-magnitude: normalizer is 'lamp', allowed are mean, sum, "),
        ("tp-lamp", {"group_reduction": "median"}, "tp-lamp: group_reduction is 'median', allowed are mean, sum, max"),
        ("tp-hessian", {"rows": 0}, "tp-hessian: rows is 0, allowed are whole numbers from 1"),
        ("tp-taylor", {"batch_size": 1.5}, "tp-taylor: batch_size is 1.5, allowed are whole numbers from 1"),
    ],
)
def test_settings_that_are_not_allowed(name: str, settings: dict[str, Any], match: str) -> None:
    with pytest.raises(InputError, match=match):
        resolve_scorer(name, settings)


def test_labels_without_logits_and_infinite_losses_are_refused(net: Net, data: TensorDataset) -> None:
    images, labels = data.tensors
    with pytest.raises(InputError, match=r"tp-taylor: the logits are \(6, 4\), the largest label is 5"):
        many = TensorDataset(images, labels.clamp(min=2) + 2)
        many.classes = [*"abcdef"]  # type: ignore[attr-defined]
        score(net, many, "tp-taylor")
    with torch.no_grad():
        net.head.weight.mul_(1e38)
        net.d_norm.weight.mul_(1e4)
    for name in ("tp-taylor", "tp-hessian"):
        with pytest.raises(InputError, match=f"{name}: the network's cross-entropy is NaN or infinite"):
            score(net, data, name)


def test_without_torch_pruning_the_error_says_how_to_get_it(
    net: Net, data: TensorDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torch_pruning", None)
    assert "tp-magnitude" in SCORERS
    with pytest.raises(EnvironmentFault, match="torch-pruning cannot be imported .* pip install 'torch-pruning>=1.6.1"):
        score(net, scorer="tp-magnitude", example=data.tensors[0][:1])


def test_every_layer_of_a_resnet_has_scores() -> None:
    model = torchvision.models.resnet18(num_classes=5)
    keep = score(model, scorer="tp-magnitude", example=torch.randn(1, 3, 32, 32)).keep
    assert {layer: len(values) for layer, values in keep.items()} == {
        name: module.out_channels for name, module in model.named_modules() if isinstance(module, nn.Conv2d)
    }
    np.testing.assert_array_equal(keep["conv1"], keep["layer1.1.conv2"])
