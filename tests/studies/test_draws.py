"""Draws of images: against prune_fe.score on the same images, and what they say of the number of images."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import Subset

import prune_fe
from prune_fe.data.digits import digits
from prune_fe.data.labels import image_labels
from prune_fe.data.sampling import choose_images
from prune_fe.data.splits import hold_out
from prune_fe.models.build import build
from prune_fe.scorers.feature_entropy import FeatureEntropy
from prune_fe.studies.draws import ANEW, SAME, BirthTimes, DrawComparison, compare_draws, ladder, recommend_sizes
from prune_fe.tracing.layers import find_layers

LAYER = "features.4"
SPLITS = hold_out(digits(12), 0.1, 1)
ENTROPY = FeatureEntropy()


@pytest.fixture(scope="module")
def network() -> nn.Module:
    """An untrained network; its maps have holes as those of a trained one do."""
    torch.manual_seed(1)
    return build("vgg-small", 10, in_channels=1, stages=[[6], [8]])


@pytest.fixture(scope="module")
def births(network: nn.Module) -> BirthTimes:
    """Of every training image, in the last layer."""
    layer = find_layers(network, SPLITS.test[0][0][None], [LAYER])[0]
    return BirthTimes.measure(network, layer, SPLITS.train, FeatureEntropy())


def test_a_measurement_that_was_killed_goes_on_where_it_was(
    network: nn.Module, births: BirthTimes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("prune_fe.studies.draws.SNAPSHOT_SECONDS", 0.0)
    layer, file = find_layers(network, SPLITS.test[0][0][None], [LAYER])[0], tmp_path / "births" / "layer.npz"
    measured: list[int] = []
    hook = network.register_forward_hook(lambda _, inputs, output: measured.append(len(inputs[0])))

    def kill(done: int, total: int) -> None:
        if done >= 256:
            raise KeyboardInterrupt

    def measure(data: Any = SPLITS.train, scorer: FeatureEntropy = ENTROPY, **options: Any) -> BirthTimes:
        measured.clear()
        return BirthTimes.measure(network, layer, data, scorer, file=file, **options)

    try:
        with pytest.raises(KeyboardInterrupt):
            measure(progress=kill)
        assert sum(measured) == 256
        continued = measure()
        assert sum(measured) == len(births.values) - 192  # the last batch before the kill was not written
        assert continued.values.tolist() == births.values.tolist()
        assert continued.labels.tolist() == births.labels.tolist()
        assert measure().values.tolist() == births.values.tolist()
        assert measured == []
        assert len(measure(Subset(SPLITS.train, range(70))).values) == sum(measured) == 70
        edges = measure(scorer=FeatureEntropy(rank="edges")).values
        assert sum(measured) == len(edges)
        assert edges.tolist() != births.values.tolist()
    finally:
        hook.remove()


def fake(values: Any, labels: Any) -> BirthTimes:
    return BirthTimes(FeatureEntropy(), np.array(values), np.array(labels))


@pytest.mark.parametrize("settings", [{}, {"rank": "edges", "normalise": "samples", "p": 0.9, "by": "entropy"}])
def test_a_draw_is_what_score_finds_on_its_images(network: nn.Module, settings: dict[str, Any]) -> None:
    scorer = FeatureEntropy(**settings)
    layer = find_layers(network, SPLITS.test[0][0][None], [LAYER])[0]
    chosen = choose_images(SPLITS.train, [2, 5, 6], 15, seed=3)
    some = Subset(SPLITS.train, range(max(chosen) + 1))
    births = BirthTimes.measure(network, layer, some, scorer, batch_size=50)
    images = np.array(chosen)
    scores = prune_fe.score(network, Subset(SPLITS.train, chosen), scorer, layers=[LAYER])
    found = births.score(images)
    np.testing.assert_allclose(found.keep, scores.keep[LAYER], atol=1e-9)
    for quantity, values in found.raw.items():
        np.testing.assert_allclose(values, scores.raw[quantity][LAYER], atol=1e-9)
    entropy, ratio = births.entropies(images[np.array(image_labels(SPLITS.train))[images] == 5])
    np.testing.assert_allclose(entropy, scores.raw["feature_entropy_nats"][LAYER][1], atol=1e-9)
    np.testing.assert_allclose(ratio, scores.raw["entropy_per_rate_nats"][LAYER][1], atol=1e-9)


def test_more_images_spread_less_and_agree_better(births: BirthTimes) -> None:
    few, many = (compare_draws(births, size, 16, seed=0) for size in (5, 40))
    assert many.spread.mean() < 0.6 * few.spread.mean()
    assert many.layer_mean.std(axis=0).mean() < few.layer_mean.std(axis=0).mean()
    assert many.agreement[10][SAME].mean() > few.agreement[10][SAME].mean()
    assert few.agreement[10][SAME].mean() > few.agreement[1][ANEW].mean()
    assert {k: set(columns) for k, columns in few.agreement.items()} == {
        1: {SAME, ANEW},
        2: {SAME, ANEW},
        5: {SAME, ANEW},
        10: {SAME},
    }
    assert few.disjoint


def test_draws_of_all_images_are_the_same(births: BirthTimes) -> None:
    least = min(map(len, births.images_by_class))
    chosen = np.concatenate([members[:least] for members in births.images_by_class])
    same = BirthTimes(births.scorer, births.values[chosen], births.labels[chosen])
    comparison = compare_draws(same, least, 5, seed=0)
    assert comparison.spread.max() < 1e-12
    assert not comparison.disjoint
    assert all(columns[SAME] == pytest.approx([1, 1]) for columns in comparison.agreement.values())
    assert (comparison.agreement[1][ANEW] < 1).all()


def test_the_spread_is_that_of_the_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    births = fake(np.random.default_rng(0).integers(0, 4, (40, 3)), [0] * 20 + [7] * 20)
    asked: list[Any] = []
    entropies = BirthTimes.entropies

    def keep(self: BirthTimes, images: Any) -> Any:
        asked.append(images)
        return entropies(self, images)

    monkeypatch.setattr(BirthTimes, "entropies", keep)
    comparison = compare_draws(births, 8, 3, seed=5)
    assert len(asked) == 6  # the fourth draw, that would make a second pair, is not made
    first, second = asked[0], asked[1]
    assert not set(first) & set(second)
    assert all(len(set(images)) == 8 for images in asked)
    assert {tuple(np.unique(births.labels[images])) for images in asked} == {(0,), (7,)}
    entropy = np.array([entropies(births, images)[0] for images in (asked[0], asked[1], asked[4])])
    np.testing.assert_allclose(comparison.spread[0], entropy.std(axis=0, ddof=1))
    np.testing.assert_allclose(comparison.layer_mean[:, 0], entropy.mean(axis=1))
    assert compare_draws(births, 8, 3, seed=5).spread.tolist() == comparison.spread.tolist()
    assert compare_draws(births, 8, 3, seed=6).spread.tolist() != comparison.spread.tolist()


def test_values_too_large_to_count_up_to_are_counted() -> None:
    births = fake([[10**15, 0], [3, 0], [10**15, 2], [3, 2]], [0] * 4)
    entropy, _ = births.entropies(np.arange(4))
    assert entropy == pytest.approx([np.log(2), 0])


def test_the_ladder_ends_with_all() -> None:
    assert ladder(1) == [1]
    assert ladder(10) == [1, 2, 5, 10]
    assert ladder(200) == [1, 2, 5, 10, 20, 50, 100, 200]


def test_the_recommendation_is_the_least_number_of_images() -> None:
    nothing, few = np.zeros((2, 2)), np.array([0.2, 0.2])

    def comparison(size: int, same: float, anew: float, disjoint: bool = True) -> DrawComparison:
        better = {SAME: np.array([same, same]), ANEW: np.array([anew, anew])}
        worse = {name: values - 0.3 for name, values in better.items()}
        return DrawComparison(size, disjoint, nothing, nothing, nothing, {1: worse, 5: better})

    text = recommend_sizes([comparison(10, 0.93, 0.6), comparison(50, 0.97, 0.7)])
    assert f"{SAME}: a mean correlation of 0.9 takes 50 images, 10 of each of 5 classes" in text
    assert f"{SAME}: a mean correlation of 0.95 takes 250 images, 50 of each of 5 classes" in text
    assert f"{ANEW}: none reaches a mean correlation of 0.95, the best is 0.70" in text
    # where there is a choice, it is no draw whose images must be those of the other
    text = recommend_sizes([comparison(10, 0.93, 0.6), comparison(50, 1.25, 0.95, disjoint=False)])
    assert f"{SAME}: a mean correlation of 0.9 takes 50 images, 10 of each of 5 classes;" in text
    assert f"{ANEW}: a mean correlation of 0.95 takes 250 images, 50 of each of 5 classes, where two draws sh" in text
    # and none of the same classes, which are not anew
    agreement = {1: {SAME: few, ANEW: few}, 2: {SAME: few + 0.75}}
    text = recommend_sizes([DrawComparison(10, True, nothing, nothing, nothing, agreement)])
    assert f"{SAME}: a mean correlation of 0.9 takes 20 images, 10 of each of 2 classes" in text
    assert f"{ANEW}: none reaches a mean correlation of 0.9, the best is 0.20" in text
    text = recommend_sizes([DrawComparison(9, True, nothing, nothing, nothing, {1: {SAME: few}})])
    assert f"{ANEW}: there are no other classes" in text


def test_the_network_is_left_as_it_was(births: BirthTimes, network: nn.Module) -> None:
    network.train()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    layer = find_layers(network, SPLITS.test[0][0][None], [LAYER])[0]
    some = BirthTimes.measure(network, layer, Subset(SPLITS.train, range(30)), FeatureEntropy())
    np.testing.assert_array_equal(some.values, births.values[:30])
    assert network.training
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())
    network.eval()
