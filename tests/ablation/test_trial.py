"""Ablation against a plain pass of the masked network for every mask."""

import copy
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import prune_fe
from prune_fe.ablation.ablate import masks_without_first
from prune_fe.ablation.curves import MaskedPredictions, UnitAblation, join
from prune_fe.ablation.trial import Run, Trial
from prune_fe.errors import DataError, InputError
from prune_fe.scoring.scores import Scores
from prune_fe.tracing.feature_maps import mask
from prune_fe.tracing.layers import find_layers
from prune_fe.tracing.split import SplitNetwork, split

CLASSES = 4


class Net(nn.Module):
    """A residual sum behind the layer `second`, whose ReLU works in place; batch norms with statistics."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 6, 3, padding=1)
        self.second = nn.Conv2d(6, 6, 3, padding=1)
        self.norm = nn.BatchNorm2d(6)
        self.relu = nn.ReLU(inplace=True)
        self.third = nn.Conv2d(6, 5, 3, padding=1)
        self.classify = nn.Linear(5, CLASSES)
        nn.init.normal_(self.norm.running_mean, std=0.1)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        skip = self.first(x)
        x = self.relu(self.norm(self.second(skip)))
        return self.classify(self.third(x + skip).relu().mean((2, 3)))


class Branching(Net):
    """Cannot be traced."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x if x.sum() > -1e9 else -x)


@pytest.fixture
def batches() -> list[tuple[Tensor, Tensor]]:
    return [(torch.randn(7, 3, 8, 8), torch.arange(7) % 3), (torch.randn(2, 3, 8, 8), torch.tensor([0, 2]))]


def scores_of(layer: str, units: int) -> Scores:
    return Scores("random", {layer: torch.randperm(units).double().numpy()})


def by_hand(model: nn.Module, batches: Sequence[tuple[Tensor, Tensor]], masks: Sequence[dict[str, list[int]]]) -> tuple:
    """(hits, called, loss), (masks, classes) each, one masked pass after the other."""
    layers = find_layers(model, batches[0][0][:1], sorted({name for units in masks for name in units}))
    images, labels = torch.cat([x for x, _ in batches]), torch.cat([y for _, y in batches])
    hits, called, loss = [], [], []
    for units in masks:
        with mask(model.eval(), layers, units), torch.no_grad():
            logits = model(images).double()
        said, wrong = logits.argmax(1), nn.functional.cross_entropy(logits, labels, reduction="none")
        hits.append([int(((said == c) & (labels == c)).sum()) for c in range(3)])
        called.append([int((said == c).sum()) for c in range(3)])
        loss.append([float(wrong[labels == c].mean()) for c in range(3)])
    return np.array(hits), np.array(called), np.array(loss)


def check(found: MaskedPredictions, expected: tuple) -> None:
    for ours, theirs in zip((found.hits, found.called), expected[:2], strict=True):
        np.testing.assert_array_equal(ours, theirs)
    np.testing.assert_allclose(found.loss, expected[2], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("network", [Net, Branching])
@pytest.mark.parametrize("order", ["ascending", "descending"])
@pytest.mark.parametrize("layer", ["first", "second", "third"])
def test_curves_are_those_of_the_masked_network(network: type[Net], order: str, layer: str, batches: list) -> None:
    model = network()
    units = model.get_submodule(layer).out_channels
    scores = scores_of(layer, units)  # type: ignore[arg-type]
    found = prune_fe.ablate(model, batches, scores, layer, order)  # type: ignore[arg-type]
    weakest = scores.weakest(layer, units)[:: -1 if order == "ascending" else 1]  # type: ignore[arg-type]
    check(found, by_hand(model, batches, [{layer: weakest[:count]} for count in range(len(weakest) + 1)]))
    assert found.units == tuple(weakest)
    assert found.removed.tolist() == list(range(len(weakest) + 1))
    assert found.images.tolist() == [4, 2, 3]
    assert found.classes == ("0", "1", "2")
    if network is Branching:
        assert "TraceError" in found.how
    else:  # only behind `third` there is nothing but pooling before the linear layer
        assert found.how == ("tail, its first layer as sums over the units" if layer == "third" else "tail")


def test_one_unit_at_a_time(batches: list) -> None:
    model = Net()
    found = prune_fe.ablate_each(model, batches, "second")
    hits, called, loss = by_hand(model, batches, [{"second": []}, *({"second": [unit]} for unit in range(6))])
    check(found, (hits, called, loss))
    assert isinstance(found, UnitAblation)
    np.testing.assert_allclose(found.loss_increase, loss[1:] - loss[0], rtol=1e-4, atol=1e-5)
    assert all(isinstance(half, UnitAblation) for half in found.halves)


@pytest.mark.parametrize("layer", ["second", "third"])
def test_runs_that_are_made_together_give_what_each_gives(batches: list, layer: str) -> None:
    model, units = Net(), {"second": 6, "third": 5}[layer]
    layers = find_layers(model, batches[0][0][:1], [layer])
    orders = [torch.randperm(units).tolist() for _ in range(3)]
    masks = [masks_without_first(order, counts) for order, counts in zip(orders, [[0, 5], [0, 2, 5], [1]], strict=True)]
    runs = [Run([some], order, [number]) for number, (some, order) in enumerate(zip(masks, orders, strict=True))]
    together = Trial(model, batches, layers).run_all(runs)
    for run, found in zip(runs, together, strict=True):
        alone = Trial(model, batches, layers).run(run.masks, units=run.units, classes=run.classes)
        assert (found.units, found.classes, found.how) == (alone.units, alone.classes, alone.how)
        for name in ("removed", "images", "hits", "called"):
            np.testing.assert_array_equal(getattr(found, name), getattr(alone, name))
        np.testing.assert_allclose(found.loss, alone.loss, rtol=1e-5)


def test_several_layers_lose_the_same_share(batches: list) -> None:
    model = Net()
    scores = Scores("s", {"first": np.arange(6.0), "third": -np.arange(5.0)})
    found = prune_fe.ablate_layers(model, batches, scores, ["first", "third"], [0, 0.5, 1])
    gone: list[tuple[list[int], list[int]]] = [([], []), ([5, 4, 3], [0, 1]), (list(range(6)), list(range(5)))]
    check(found, by_hand(model, batches, [{"first": first, "third": third} for first, third in gone]))
    assert found.removed.tolist() == [0, 5, 11]
    assert "several layers" in found.how


def test_looks_may_be_further_apart(batches: list) -> None:
    model, scores = Net(), scores_of("second", 6)
    every, some = (prune_fe.ablate(model, batches, scores, "second", every=step) for step in (1, 4))
    assert some.removed.tolist() == [0, 4, 6]
    np.testing.assert_array_equal(some.hits, every.hits[[0, 4, 6]])


@pytest.mark.parametrize(("layer", "units"), [("second", 6), ("third", 5)])
def test_little_memory_changes_nothing(batches: list, layer: str, units: int) -> None:
    model, scores = Net(), scores_of(layer, units)
    plenty, little = (prune_fe.ablate(model, batches, scores, layer, memory_gib=gib) for gib in (1.0, 1e-9))
    np.testing.assert_array_equal(plenty.hits, little.hits)
    np.testing.assert_allclose(plenty.loss, little.loss, rtol=1e-5)


def test_the_model_is_left_as_it_was(batches: list) -> None:
    model = Net().train()
    before = copy.deepcopy(model.state_dict())
    prune_fe.ablate(model, batches, scores_of("second", 6), "second")
    assert all(module.training and not module._forward_hooks for module in model.modules())
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in before.items())


def test_classes_are_chosen_by_number(batches: list) -> None:
    model, scores = Net(), scores_of("second", 6)
    whole, one = (prune_fe.ablate(model, batches, scores, "second", classes=chosen) for chosen in (None, [2]))
    np.testing.assert_array_equal(one.balanced_accuracy[:, 0], whole.balanced_accuracy[:, 2])
    assert one.classes == ("2",)
    with pytest.raises(DataError, match="class '3': there are no images of it to ablate on"):
        prune_fe.ablate(model, batches, scores, "second", classes=[3])


def test_halves_are_every_other_image_of_a_class(batches: list) -> None:
    model, scores = Net(), scores_of("second", 6)
    found = prune_fe.ablate(model, batches, scores, "second")
    assert [half.images.tolist() for half in found.halves] == [[2, 1, 2], [2, 1, 1]]  # of 4, 2 and 3
    for name in ("hits", "called", "all_images", "images"):
        np.testing.assert_array_equal(sum(getattr(half, name) for half in found.halves), getattr(found, name))
    images, labels = torch.cat([x for x, _ in batches]), torch.cat([y for _, y in batches])
    first = [0, 1, 2, 6, 8]  # the labels are 0 1 2 0 1 2 0 0 2
    half = prune_fe.ablate(model, [(images[first], labels[first])], scores, "second")
    np.testing.assert_array_equal(half.hits, found.halves[0].hits)
    np.testing.assert_array_equal(half.called, found.halves[0].called)
    np.testing.assert_allclose(half.loss, found.halves[0].loss, rtol=1e-5)


def test_classes_are_joined_to_what_they_are_together(batches: list) -> None:
    model, scores = Net(), scores_of("second", 6)
    whole, *parts = (prune_fe.ablate(model, batches, scores, "second", classes=some) for some in (None, [0], [1, 2]))
    joined = join(parts)
    for one, other in ((joined, whole), *zip(joined.halves, whole.halves, strict=True)):
        assert (one.classes, one.units, one.all_images) == (other.classes, other.units, other.all_images)
        for name in ("images", "hits", "called", "loss"):
            np.testing.assert_array_equal(getattr(one, name), getattr(other, name))
    with pytest.raises(InputError, match="different numbers of removed units"):
        join([whole, prune_fe.ablate(model, batches, scores, "second", every=2)])


def test_what_is_kept_of_the_images_serves_the_next_run(batches: list) -> None:
    data = torch.utils.data.TensorDataset(torch.cat([x for x, _ in batches]), torch.cat([y for _, y in batches]))
    model = Net()
    layers, keep = find_layers(model, batches[0][0][:1], ["second"]), torch.rand(5, 6) < 0.5
    plenty, little = (Trial(model, data, layers, batch_size=4, memory_gib=gib) for gib in (1.0, 1e-9))
    first, second, third = plenty.run([keep]), plenty.run([keep]), little.run([keep])
    assert plenty.cached is not None
    assert little.cached is None
    for other in (second, third):
        np.testing.assert_array_equal(first.called, other.called)
        np.testing.assert_allclose(first.loss, other.loss, rtol=1e-5)


def test_all_images_are_kept_or_none() -> None:
    """A last batch of one image looks smaller than it is: what a masked unit leaves is the same for all its images."""
    data = torch.utils.data.TensorDataset(torch.randn(9, 3, 8, 8), torch.arange(9) % 3)
    model = Net()
    layers, keep = find_layers(model, torch.randn(1, 3, 8, 8), ["second"]), torch.rand(3, 6) < 0.5
    tail = split(model.eval(), layers[0], torch.randn(2, 3, 8, 8))
    assert isinstance(tail, SplitNetwork)
    sizes = [tail.tail_inputs(torch.randn(n, 3, 8, 8)).image_bytes for n in (8, 1)]
    assert sizes[1] < sizes[0]
    between = 2 * 9 * (sizes[0] + sizes[1]) / 2 / 2**30
    trial = Trial(model, data, layers, batch_size=8, memory_gib=between)
    assert [trial.run([keep]).all_images for _ in range(2)] == [9, 9]


def test_bad_input_is_named(batches: list) -> None:
    model, scores = Net(), scores_of("second", 6)
    with pytest.raises(InputError, match="layer 'secnd': the model has no such module; did you mean 'second'"):
        prune_fe.ablate(model, batches, scores, "secnd")
    with pytest.raises(InputError, match="layer 'first' has no scores; scored are second"):
        prune_fe.ablate(model, batches, scores, "first")
    with pytest.raises(InputError, match="layer 'second' has 6 units, its scores are of 4: of another network, or of"):
        prune_fe.ablate(model, batches, scores_of("second", 4), "second")
    with pytest.raises(InputError, match="the scores of layer 'second' are of a network with other weights"):
        prune_fe.ablate(model, batches, prune_fe.score(Net(), batches, "apoz"), "second")
    with pytest.raises(InputError, match="order is 'up'; allowed: ascending, descending"):
        prune_fe.ablate(model, batches, scores, "second", "up")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="every: input should be greater than or equal to 1"):
        prune_fe.ablate(model, batches, scores, "second", every=0)
    with pytest.raises(InputError, match="memory_gib: input should be greater than 0"):
        prune_fe.ablate(model, batches, scores, "second", memory_gib=0)
    with pytest.raises(InputError, match=r"shares: 1.5 is out of range; allowed: 0 to 1"):
        prune_fe.ablate_layers(model, batches, scores, ["second"], [1.5])
    with pytest.raises(InputError, match=r"shares is \[1, 0.5\]; it must hold one or more, ascending"):
        prune_fe.ablate_layers(model, batches, scores, ["second"], [1, 0.5])
    with pytest.raises(InputError, match=r"classes is \[1, 1\]: one of them is given twice"):
        prune_fe.ablate(model, batches, scores, "second", classes=[1, 1])
    with pytest.raises(DataError, match="label 9: the model has 4 classes; allowed: 0 to 3"):
        prune_fe.ablate(model, [(batches[0][0], torch.full((7,), 9))], scores, "second")
    model.classify.bias.data[0] = torch.nan
    with pytest.raises(InputError, match=r"image 0 \(of class \d\): the model's outputs hold NaN or infinite values"):
        prune_fe.ablate(model, batches, scores, "second")


@pytest.mark.parametrize("memory_gib", [1.0, 1e-6])
def test_an_image_that_gives_nan_is_named(batches: list, memory_gib: float) -> None:
    model = Net()
    scores = prune_fe.score(model, batches, "apoz")
    batches[1][0][1] = 1e38  # finite, and beyond float32 behind the convolutions
    number, label = len(batches[0][1]) + 1, int(batches[1][1][1])
    with pytest.raises(InputError, match=rf"image {number} \(of class {label}\): the model's outputs hold NaN"):
        prune_fe.ablate(model, batches, scores, "second", memory_gib=memory_gib)


def test_scores_of_a_network_fit_it(batches: list) -> None:
    model = Net()
    found = prune_fe.ablate(model, batches, prune_fe.score(model, batches, "apoz"), "second")
    assert sorted(found.units) == list(range(6))
