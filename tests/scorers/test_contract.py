"""What every scorer promises, whatever it measures."""

import copy
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.multiprocessing
from torch import Tensor, distributed, nn
from torch.utils.data import TensorDataset

from prune_fe.errors import InputError
from prune_fe.scorers import SCORERS, counts
from prune_fe.scoring.collection import Collection
from prune_fe.scoring.score import score, score_all
from prune_fe.scoring.scores import Scores, load_scores
from prune_fe.tracing.layers import find_layers

CLASSES = 3
READERS = [name for name in SCORERS if SCORERS[name].needs_data]
THEIRS = {name for name in SCORERS if name.startswith("tp-")}
"""These score groups of layers, with the weights that read a unit, in float32; test_tp_criteria.py has their tests."""

ROUNDED = {"l1-activation", "class-selectivity", "nisp", "taylor", "mean-activation", "tp-taylor"}
"""These add up floats; all others count, or read weights, and give the same bits."""


class Net(nn.Module):
    """Plain, grouped and depthwise convolutions, each with a norm; unit 2 of `plain` is dead."""

    def __init__(self) -> None:
        super().__init__()
        self.plain, self.plain_norm = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.grouped, self.grouped_norm = nn.Conv2d(8, 8, 3, padding=1, groups=2), nn.BatchNorm2d(8)
        self.depthwise, self.depthwise_norm = nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.BatchNorm2d(8)
        self.last, self.last_norm = nn.Conv2d(8, 6, 3, padding=1), nn.BatchNorm2d(6)
        self.head = nn.Linear(6, CLASSES)
        self.fails = False
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                nn.init.uniform_(module.weight, 0.5, 1.5)
        with torch.no_grad():
            self.plain_norm.weight[2], self.plain_norm.bias[2] = 0, -1

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.plain_norm(self.plain(x)))
        x = torch.relu(self.grouped_norm(self.grouped(x)))
        if self.fails:
            raise KeyError
        x = torch.relu(self.depthwise_norm(self.depthwise(x)))
        return self.head(torch.relu(self.last_norm(self.last(x))).mean((2, 3)))


@pytest.fixture
def net() -> Net:
    return Net().double()


@pytest.fixture
def data() -> TensorDataset:
    generator = torch.Generator().manual_seed(1)
    return TensorDataset(torch.randn(24, 3, 10, 10, generator=generator).double(), torch.arange(24) % CLASSES)


@pytest.fixture(params=[name for name in SCORERS if name != "tp-fpgm"])  # it fails at grouped convolutions
def name(request: pytest.FixtureRequest) -> str:
    return request.param


def assert_same(one: Scores, other: Scores) -> None:
    """Counts give the same bits; sums of floats the same up to rounding."""
    rtol = (1e-5 if one.scorer in THEIRS else 1e-9) if one.scorer in ROUNDED else 0
    assert list(one.keep) == list(other.keep)
    assert list(one.raw) == list(other.raw)
    for layer, keep in one.keep.items():
        np.testing.assert_allclose(other.keep[layer], keep, rtol=rtol, err_msg=f"{one.scorer} {layer}")
    for quantity, layers in one.raw.items():
        for layer, values in layers.items():
            np.testing.assert_allclose(other.raw[quantity][layer], values, rtol=rtol, err_msg=f"{quantity} {layer}")


def test_a_finite_score_a_unit_of_plain_grouped_and_depthwise_convolutions(
    name: str, net: Net, data: TensorDataset
) -> None:
    images, labels = data.tensors
    scores = score(net.float(), TensorDataset(images.float(), labels), name)
    assert {layer: len(keep) for layer, keep in scores.keep.items()} == {
        "plain": 8,
        "grouped": 8,
        "depthwise": 8,
        "last": 6,
    }
    assert all(np.isfinite(keep).all() and keep.dtype == np.float64 for keep in scores.keep.values())
    assert scores.scorer == name
    assert scores.seconds > 0


def test_batches_and_order_do_not_matter(name: str, net: Net, data: TensorDataset) -> None:
    whole = score(net, data, name, batch_size=24)
    images, labels = data.tensors
    # tp-hessian scores with the last image.
    for order in (torch.arange(24), torch.arange(24) if name == "tp-hessian" else torch.randperm(24)):
        batches = list(zip(images[order].split(5), labels[order].split(5), strict=True))
        assert_same(whole, score(net, batches, name, example=images[:1]))


def _share(rank: int, net: Net, data: TensorDataset, folder: str) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    for name, scores in score_all(net, data, READERS, batch_size=5).items():
        scores.save(Path(folder) / str(rank) / name)
    distributed.destroy_process_group()


def test_two_processes_give_what_one_gives(net: Net, data: TensorDataset, tmp_path: Path) -> None:
    torch.multiprocessing.spawn(_share, (net, data, str(tmp_path)), nprocs=2)
    for name, whole in score_all(net, data, READERS).items():
        for rank in (0, 1):
            shared = load_scores(tmp_path / str(rank) / name)
            assert_same(whole, shared)
            assert shared.images == 24


def permuted(net: Net, order: Tensor) -> Net:
    """The same function, with the units of `plain` in another order."""
    twin = copy.deepcopy(net)
    with torch.no_grad():
        for tensor in (twin.plain.weight, twin.plain.bias, twin.plain_norm.weight, twin.plain_norm.bias):
            assert tensor is not None
            tensor.copy_(tensor[order])
        inner = torch.cat([order[order < 4], order[order >= 4]])
        assert torch.equal(inner, order), "permute within the halves that the grouped convolution reads"
        weight = twin.grouped.weight
        weight[:4], weight[4:] = weight[:4, order[:4]].clone(), weight[4:, order[4:] - 4].clone()
    return twin


@pytest.mark.parametrize("name", sorted(SCORERS.keys() - THEIRS - {"random"}))  # random scores positions
def test_permuting_units_permutes_scores(name: str, net: Net, data: TensorDataset) -> None:
    order = torch.tensor([2, 0, 3, 1, 5, 7, 4, 6])
    plain, twin = score(net, data, name), score(permuted(net, order), data, name)
    np.testing.assert_allclose(twin.keep["plain"], plain.keep["plain"][order.numpy()], rtol=1e-9)
    assert len(set(plain.keep["plain"])) > 1


def test_the_model_is_left_as_it_was(name: str, net: Net, data: TensorDataset) -> None:
    net.train()
    net.plain_norm.eval()
    net(data.tensors[0]).sum().backward()
    net.head.requires_grad_(False)
    net.grouped.weight.grad = None
    weights = copy.deepcopy(net.state_dict())
    gradients = {key: copy.deepcopy(weight.grad) for key, weight in net.named_parameters()}
    required = [weight.requires_grad for weight in net.parameters()]
    modes = [module.training for module in net.modules()]
    attributes = [sorted(vars(module)) for module in net.modules()]

    failing: list[bool] = []

    class Breaking(list[Any]):
        """The network fails within the second batch."""

        def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
            yield data.tensors[0], data.tensors[1]
            net.fails = True
            failing.append(True)
            yield data.tensors[0], data.tensors[1]

    score(net, data, name)
    if SCORERS[name].needs_data:
        with pytest.raises(KeyError):
            score(net, Breaking(), name, example=data.tensors[0][:1])
        assert failing

    assert all(torch.equal(value, weights[key]) for key, value in net.state_dict().items())
    for key, weight in net.named_parameters():
        before = gradients[key]
        assert weight.grad is None if before is None else torch.equal(weight.grad, before)  # type: ignore[arg-type]
    assert [weight.requires_grad for weight in net.parameters()] == required
    assert [module.training for module in net.modules()] == modes
    assert [sorted(vars(module)) for module in net.modules()] == attributes
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in net.modules())
    assert torch.is_grad_enabled()


def test_units_that_are_all_dead_have_the_same_finite_score(name: str, net: Net, data: TensorDataset) -> None:
    for parameter in (*net.last.parameters(), net.last_norm.weight):
        nn.init.zeros_(parameter)
    nn.init.constant_(net.last_norm.bias, -1.0)
    keep = score(net, data, name).keep["last"]
    assert np.isfinite(keep).all()
    if name not in {"random"} | THEIRS:
        assert len(set(keep)) == 1


def test_a_layer_of_one_unit(name: str, data: TensorDataset) -> None:
    net = nn.Sequential(nn.Conv2d(3, 1, 3), nn.BatchNorm2d(1), nn.ReLU(), nn.Flatten(), nn.Linear(64, CLASSES)).double()
    keep = score(net, data, name).keep["0"]
    assert keep.shape == (1,)
    assert np.isfinite(keep).all()


def test_a_scorer_without_data_needs_none_and_one_with_data_says_so(name: str, net: Net, data: TensorDataset) -> None:
    example = data.tensors[0][:1]
    if SCORERS[name].needs_data:
        with pytest.raises(InputError, match=f"scorer '{name}' needs images: pass data="):
            score(net, scorer=name, example=example)
        return
    if SCORERS[name].needs_example:
        with pytest.raises(InputError, match=f"scorer '{name}' looks at the network as it runs: pass example="):
            score(net, scorer=name)
    else:
        assert_same(score(net, scorer=name, example=example), score(net, scorer=name))
    assert_same(score(net, scorer=name, example=example), score(net, scorer=name, example=torch.zeros_like(example)))
    assert_same(score(net, scorer=name, example=example), score(net, data, name))


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_what_is_not_finite_is_refused_with_its_layer(name: str, net: Net, data: TensorDataset, value: float) -> None:
    with torch.no_grad():
        net.grouped.weight[1] = value
    with pytest.raises(InputError, match="layer 'grouped': weight holds 36 NaN or infinite values of 288"):
        score(net, data, name)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_maps_that_are_not_finite_are_refused_with_the_layer_where_they_were_seen(
    name: str, net: Net, data: TensorDataset, value: float
) -> None:
    if not SCORERS[name].needs_data:
        return  # reads no maps
    images = data.tensors[0].clone()
    images[1] = value
    with pytest.raises(InputError, match="layer '|final responses|NaN"):
        score(net, TensorDataset(images, data.tensors[1]), name)


def test_settings_are_checked_and_kept(name: str, net: Net, data: TensorDataset) -> None:
    with pytest.raises(InputError, match=f"scorer '{name}' has no setting 'colour'"):
        SCORERS[name].with_settings(name, {"colour": 1})
    assert score(net, data, name).settings == vars(SCORERS[name]())


def held(name: str, net: Net, batch: tuple[Tensor, Tensor], times: int) -> tuple[int, int, int]:
    """(bytes of tensors, counts, values still to be counted) that are held after `times` times the same batch."""
    layers = find_layers(net, batch[0][:1])
    collection = Collection({name: SCORERS[name]()}, {name: layers}, "abc", torch.device("cpu"))
    collection.run(net, lambda: [batch] * times)
    assert collection.images == times * len(batch[0])
    totals = list(collection.totals[name].values())
    dense: list[Any] = [value for total in totals for value in total._dense.values()]
    counts: list[Any] = [value for total in totals for _, sums in total._parts for value in sums.values()]
    entries, pending = sum(len(value.entries) for value in counts), sum(value.n_pending for value in counts)
    return sum(value.nbytes for value in dense), entries, pending


@pytest.mark.parametrize("name", sorted({*READERS} - {"nisp", "tp-taylor", "tp-hessian"}))  # these keep a row an image
def test_memory_does_not_grow_with_the_number_of_images(
    name: str, net: Net, data: TensorDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch = (data.tensors[0][:4], data.tensors[1][:4])
    for limit in (0, 50):
        monkeypatch.setattr(counts, "MAX_PENDING", limit)
        two, three, twenty = (held(name, net, batch, times) for times in (2, 3, 20))
        assert two[0] == three[0] == twenty[0]
        assert twenty[1] <= (math.log2(20) + 1) * 4 * 30  # 4 images of 30 units have at most so many different births
        assert twenty[2] <= (math.log2(20) + 1) * 4 * (limit or 30)  # of 4 layers
        assert sum(two) > 0
