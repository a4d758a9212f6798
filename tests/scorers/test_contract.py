"""What every scorer promises, whatever it measures."""

import copy
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.multiprocessing
from torch import Tensor, distributed, nn
from torch.utils.data import TensorDataset

from prune_fe.errors import InputError
from prune_fe.scorers import SCORERS
from prune_fe.scores import Scores
from prune_fe.scoring import score

CLASSES = 3


class Net(nn.Module):
    """Plain, grouped and depthwise convolutions; unit 2 of `plain` is dead."""

    def __init__(self) -> None:
        super().__init__()
        self.plain = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.grouped = nn.Conv2d(8, 8, 3, padding=1, groups=2)
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.last = nn.Conv2d(8, 6, 3, padding=1)
        self.head = nn.Linear(6, CLASSES)
        with torch.no_grad():
            self.norm.weight[2], self.norm.bias[2] = 0, -1

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.plain(x)))
        x = torch.relu(self.depthwise(torch.relu(self.grouped(x))))
        return self.head(torch.relu(self.last(x)).mean((2, 3)))


@pytest.fixture
def net() -> Net:
    return Net()


@pytest.fixture
def data() -> TensorDataset:
    generator = torch.Generator().manual_seed(1)
    return TensorDataset(torch.randn(24, 3, 10, 10, generator=generator), torch.arange(24) % CLASSES)


@pytest.fixture(params=list(SCORERS))
def name(request: pytest.FixtureRequest) -> str:
    return request.param


def assert_same(one: Scores, other: Scores) -> None:
    """Counts give the same bits; sums of floats the same up to rounding."""
    assert list(one.keep) == list(other.keep)
    for layer, keep in one.keep.items():
        np.testing.assert_allclose(keep, other.keep[layer], rtol=1e-12)
    for quantity, layers in one.raw.items():
        for layer, values in layers.items():
            np.testing.assert_allclose(values, other.raw[quantity][layer], rtol=1e-12)


def test_a_finite_score_a_unit(name: str, net: Net, data: TensorDataset) -> None:
    scores = score(net, data, name)
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
    for order in (torch.arange(24), torch.randperm(24)):
        batches = list(zip(images[order].split(5), labels[order].split(5), strict=True))
        assert_same(whole, score(net, batches, name, example=images[:1]))


def _share(rank: int, name: str, net: Net, data: TensorDataset, folder: str) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    score(net, data, name, batch_size=5).save(Path(folder) / str(rank))
    distributed.destroy_process_group()


@pytest.mark.parametrize("name", [name for name in SCORERS if SCORERS[name].needs_data])
def test_two_processes_give_what_one_gives(name: str, net: Net, data: TensorDataset, tmp_path: Path) -> None:
    from prune_fe.scores import load_scores

    torch.multiprocessing.spawn(_share, (name, net, data, str(tmp_path)), nprocs=2)
    whole = score(net, data, name)
    for rank in (0, 1):
        shared = load_scores(tmp_path / str(rank))
        assert_same(whole, shared)
        assert shared.images == 24


def permuted(net: Net, order: Tensor) -> Net:
    """The same function, with the units of `plain` in another order."""
    twin = copy.deepcopy(net)
    with torch.no_grad():
        for tensor in (twin.plain.weight, twin.plain.bias, twin.norm.weight, twin.norm.bias):
            assert tensor is not None
            tensor.copy_(tensor[order])
        inner = torch.cat([order[order < 4], order[order >= 4]])
        assert torch.equal(inner, order), "permute within the halves that the grouped convolution reads"
        weight = twin.grouped.weight
        weight[:4], weight[4:] = weight[:4, order[:4]].clone(), weight[4:, order[4:] - 4].clone()
    return twin


@pytest.mark.parametrize("name", [name for name in SCORERS if name != "random"])  # random judges positions
def test_permuting_units_permutes_scores(name: str, net: Net, data: TensorDataset) -> None:
    order = torch.tensor([2, 0, 3, 1, 5, 7, 4, 6])
    plain, twin = score(net.eval(), data, name), score(permuted(net, order).eval(), data, name)
    np.testing.assert_allclose(twin.keep["plain"], plain.keep["plain"][order.numpy()], rtol=1e-6)


def test_the_model_is_left_as_it_was(name: str, net: Net, data: TensorDataset) -> None:
    net.train()
    net.norm.eval()
    net(data.tensors[0]).sum().backward()
    weights = copy.deepcopy(net.state_dict())
    gradients = {key: weight.grad.clone() for key, weight in net.named_parameters() if weight.grad is not None}
    modes = [module.training for module in net.modules()]
    attributes = [sorted(vars(module)) for module in net.modules()]

    def broken() -> Iterator[tuple[Tensor, Tensor]]:
        images, labels = data.tensors
        yield images, labels
        raise KeyError

    class Broken(list):
        def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
            return broken()

    score(net, data, name)
    if SCORERS[name].needs_data:
        with pytest.raises(KeyError):
            score(net, Broken(), name, example=data.tensors[0][:1])

    assert all(torch.equal(value, weights[key]) for key, value in net.state_dict().items())
    assert all(torch.equal(dict(net.named_parameters())[key].grad, value) for key, value in gradients.items())  # type: ignore[arg-type]
    assert [module.training for module in net.modules()] == modes
    assert [sorted(vars(module)) for module in net.modules()] == attributes
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in net.modules())


def test_a_layer_whose_every_unit_is_dead(name: str, net: Net, data: TensorDataset) -> None:
    nn.init.zeros_(net.last.weight)
    nn.init.constant_(net.last.bias, -1.0)  # type: ignore[arg-type]
    keep = score(net, data, name).keep["last"]
    assert np.isfinite(keep).all()
    if name != "random":
        assert len(set(keep)) == 1


def test_a_layer_of_one_unit(name: str, data: TensorDataset) -> None:
    net = nn.Sequential(nn.Conv2d(3, 1, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, CLASSES))
    assert score(net, data, name).keep["0"].shape == (1,)


def test_a_scorer_without_data_needs_none_and_one_with_data_says_so(name: str, net: Net, data: TensorDataset) -> None:
    if SCORERS[name].needs_data:
        with pytest.raises(InputError, match=f"scorer '{name}' needs images: pass data="):
            score(net, scorer=name)
    else:
        without, with_example = score(net, scorer=name), score(net, scorer=name, example=data.tensors[0][:1])
        assert_same(without, with_example)


def test_non_finite_activations_or_weights_are_refused_by_layer(name: str, net: Net, data: TensorDataset) -> None:
    if name == "random":
        return  # reads neither
    with torch.no_grad():
        net.grouped.weight[1] = torch.nan
    with pytest.raises(InputError, match="layer 'grouped'"):
        score(net, data, name)


def test_settings_are_checked_and_kept(name: str, net: Net, data: TensorDataset) -> None:
    with pytest.raises(InputError, match=f"scorer '{name}' has no setting 'colour'"):
        SCORERS[name].with_settings(name, {"colour": 1})
    assert score(net, data, name).settings == vars(SCORERS[name]())


def test_an_unknown_scorer_is_refused_with_the_names_there_are(net: Net) -> None:
    with pytest.raises(InputError, match="unknown scorer 'l1'; there are feature-entropy, l1-filter, random"):
        score(net, scorer="l1")
