"""H, ε and H/ε against the paper's formulas, written out slowly."""

import itertools
import math
import sys
from collections import Counter
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from prune_fe.errors import EnvironmentFault, InputError
from prune_fe.scorers.counts import Counts
from prune_fe.scorers.feature_entropy import FeatureEntropy, Rank, entropy_and_rate, program_births
from prune_fe.scoring.sums import add_sums
from prune_fe.topology import birth_times, characterise
from prune_fe.topology.persistence import Characteristic, Complex
from prune_fe.tracing.layers import Layer

VARIANTS: list[dict[str, Any]] = [
    {"characterise": by, "dimension": dimension, "complex": complex, "rank": rank}
    for by in get_args(Characteristic)
    for complex, dimension in [("clique", 0), ("clique", 1), ("clique", 2), ("cubical", 0), ("cubical", 1)]
    for rank in get_args(Rank)
]


def sums_of(births: np.ndarray, labels: np.ndarray, classes: int, top: int = 60) -> dict[str, Counts]:
    """births: (images, units)."""
    return {"births": Counts.of((classes, births.shape[1], top), labels, births)}


def measured(scorer: FeatureEntropy, maps: Tensor, labels: Tensor, classes: int) -> dict[str, Counts]:
    sums = scorer.measure(maps, labels, classes)
    return {key: value for key, value in sums.items() if isinstance(value, Counts)}


def table(counts: Counts) -> np.ndarray:
    """All counts, zeros included."""
    counted, result = counts.counted(), np.zeros(counts.shape, np.int64)
    result[counted.indices] = counted.counts
    return result


def by_the_paper(births: list[int], p: float, normalise: str) -> tuple[float, float]:
    """Equations 9 to 12 for one unit and one class; births: one number an image, 0 = none."""
    exists = [birth for birth in births if birth > 0]
    rate = len(exists) / len(births)
    if rate < p:
        return (1 - rate) * math.log(len(births)), rate
    divisor = len(exists) if normalise == "births" else len(births)
    shares = [count / divisor for count in Counter(exists).values()]
    return -sum(share * math.log(share) for share in shares), rate


@given(st.data(), st.sampled_from([0.0, 0.1, 0.5, 1.0]), st.sampled_from(["births", "samples"]))
@settings(max_examples=300, deadline=None)
def test_entropy_and_rate_are_the_papers(data: st.DataObject, p: float, normalise: str) -> None:
    images, units, classes = (data.draw(st.integers(1, top)) for top in (20, 3, 3))
    births = np.array(data.draw(st.lists(st.lists(st.integers(0, 6), min_size=units, max_size=units),
                                         min_size=images * classes, max_size=images * classes)))  # fmt: skip
    labels = np.arange(images * classes) % classes
    entropy, rate = entropy_and_rate(sums_of(births, labels, classes)["births"], p=p, normalise=normalise)  # type: ignore[arg-type]
    for c in range(classes):
        for unit in range(units):
            expected = by_the_paper(births[labels == c, unit].tolist(), p, normalise)
            assert entropy[c, unit].item() == pytest.approx(expected[0], abs=1e-12)
            assert rate[c, unit].item() == expected[1]
            if normalise == "births":
                assert 0 <= entropy[c, unit] <= math.log(images) + 1e-12


def test_a_case_by_hand() -> None:
    # ten images of one class: births 5 5 5 5 7 7 and four without: ε = 0.6, H of (4/6, 2/6)
    births = np.array([[5], [5], [5], [5], [7], [7], [0], [0], [0], [0]])
    score = FeatureEntropy().score_layer(sums_of(births, np.zeros(10, int), 1))
    h = -(4 / 6) * math.log(4 / 6) - (2 / 6) * math.log(2 / 6)
    assert score.raw["feature_entropy_nats"].item() == pytest.approx(h)
    assert score.raw["selective_rate"].item() == 0.6
    assert score.keep.item() == pytest.approx(-h / 0.6)


def test_a_unit_without_births_goes_first_and_more_such_classes_are_worse() -> None:
    # units: steady in both classes; no birth in class 1; no birth at all; in disorder but alive
    births = np.array([[3, 3, 0, 1], [3, 3, 0, 2], [3, 3, 0, 3], [4, 0, 0, 4], [4, 0, 0, 5], [4, 0, 0, 6]])
    score = FeatureEntropy().score_layer(sums_of(births, np.array([0, 0, 0, 1, 1, 1]), 2))
    assert score.keep.argsort().tolist() == [2, 1, 3, 0]
    assert score.raw["entropy_per_rate_nats"][:, 2].isinf().all()
    assert score.keep.isfinite().all()


def test_one_infinite_class_does_not_hide_the_finite_ones() -> None:
    births = np.array([[3, 3], [3, 4], [3, 5], [0, 0], [0, 0], [0, 0]])
    keep = FeatureEntropy().score_layer(sums_of(births, np.array([0, 0, 0, 1, 1, 1]), 2)).keep
    assert keep[0] > keep[1]


def test_the_worst_finite_unit_is_better_than_one_infinite_class() -> None:
    # N = 40: one birth in each class makes the largest finite H/ε there is, (N − 1) ln N
    births = np.zeros((80, 2), int)
    births[[0, 40], 0] = 5  # alive in both classes, barely
    births[:40, 1] = 5  # perfect in class 0, dead in class 1
    keep = FeatureEntropy().score_layer(sums_of(births, np.arange(80) // 40, 2)).keep
    assert keep[0] == pytest.approx(-39 * math.log(40))
    assert keep[0] > keep[1]


def test_classes_without_images_do_not_count() -> None:
    births, labels = np.array([[3], [4], [3]]), np.array([2, 2, 2])
    score = FeatureEntropy().score_layer(sums_of(births, labels, 5))
    alone = FeatureEntropy().score_layer(sums_of(births, np.zeros(3, int), 1))
    assert score.keep.equal(alone.keep)
    assert score.raw["selective_rate"].shape == (1, 1)


@pytest.mark.parametrize("rank", ["elements", "edges"])
def test_measure_counts_the_birth_of_every_unit_and_image(rank: Rank) -> None:
    maps, labels = torch.rand(12, 5, 8, 8).relu(), torch.arange(12) % 3
    counts = table(measured(FeatureEntropy(rank=rank), maps, labels, 4)["births"])
    births = birth_times(maps, rank=rank).numpy()
    for c in range(4):
        for unit in range(5):
            assert counts[c, unit].nonzero()[0].tolist() == sorted(set(births[labels == c, unit]))
            assert counts[c, unit].sum() == (labels == c).sum()


def test_scaling_the_map_by_a_power_of_two_changes_no_bit() -> None:
    maps, labels, scorer = torch.randn(20, 6, 9, 9).relu(), torch.arange(20) % 2, FeatureEntropy()
    plain = scorer.score_layer(measured(scorer, maps, labels, 2))
    for factor in (0.5, 2.0, 1024.0):
        scaled = scorer.score_layer(measured(scorer, maps * factor, labels, 2))
        assert torch.equal(plain.keep, scaled.keep)


def test_sums_of_parts_are_the_sum_of_the_whole_to_the_bit() -> None:
    maps, labels = torch.randn(20, 6, 9, 9), torch.arange(20) % 2
    for scorer in (FeatureEntropy(), FeatureEntropy(characterise="integral", dimension=0)):
        whole = measured(scorer, maps, labels, 2)["births"]
        parts = add_sums(scorer.measure(maps[13:], labels[13:], 2), scorer.measure(maps[:13], labels[:13], 2))["births"]
        assert isinstance(parts, Counts)
        whole, parts = whole.counted(), parts.counted()
        assert np.array_equal(whole.entries, parts.entries)
        assert np.array_equal(whole.counts, parts.counts)
        assert torch.equal(scorer.score_layer({"births": whole}).keep, scorer.score_layer({"births": parts}).keep)


def test_keep_is_made_of_what_was_asked_by_hand() -> None:
    # class 0: births 5 5 7 and none; class 1: none, none, none, 4, so that ε = 1/4
    births = np.array([[5], [5], [7], [0], [0], [0], [0], [4]])
    sums = sums_of(births, np.arange(8) // 4, 2)
    h = math.log(3) - 2 / 3 * math.log(2)
    low = 0.75 * math.log(4)  # eq. 12, for ε < p = 0.3
    for by, keep in {"entropy": -(h + low) / 2, "rate": 0.5, "entropy_per_rate": -(h / 0.75 + low / 0.25) / 2}.items():
        score = FeatureEntropy(by=by, p=0.3).score_layer(sums)  # type: ignore[arg-type]
        assert score.keep.item() == pytest.approx(keep)
        assert score.raw["feature_entropy_nats"].flatten().tolist() == pytest.approx([h, low])
        assert score.raw["selective_rate"].flatten().tolist() == [0.75, 0.25]
        assert score.raw["entropy_per_rate_nats"].flatten().tolist() == pytest.approx([h / 0.75, low / 0.25])


@pytest.mark.parametrize(("by", "keep"), [("entropy", -math.log(3)), ("rate", 0.0)])
def test_a_unit_without_births_by_entropy_and_by_rate(by: Any, keep: float) -> None:
    assert FeatureEntropy(by=by).score_layer(sums_of(np.zeros((3, 1), int), np.zeros(3, int), 1)).keep.item() == keep


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda variant: "-".join(map(str, variant.values())))
def test_every_variant_has_the_entropy_of_its_characteristic(variant: dict[str, Any]) -> None:
    maps, labels = torch.randn(14, 2, 8, 8, generator=torch.Generator().manual_seed(0)).relu(), torch.arange(14) % 2
    maps[:, 1] = maps[:, 1].round()
    maps[:5, 1] = 0
    scorer = FeatureEntropy(**variant)
    scorer.check([Layer("conv", 2, (8, 8))], images=14, labels=[0, 1])
    raw = scorer.score_layer(measured(scorer, maps, labels, 2)).raw
    numbers = characterise(maps, variant["characterise"], variant["dimension"], variant["complex"], variant["rank"])
    for c in range(2):
        for unit in range(2):
            entropy, rate = by_the_paper(numbers[labels == c, unit].tolist(), 0.1, "births")
            assert raw["feature_entropy_nats"][c, unit].item() == pytest.approx(entropy, abs=1e-12)
            assert raw["selective_rate"][c, unit].item() == rate


@given(st.sampled_from(VARIANTS), st.integers(1, 9), st.integers(0, 2**32 - 1), st.integers(0, 3))
@settings(max_examples=200, deadline=None)
def test_no_map_has_a_larger_characteristic(variant: dict[str, Any], size: int, seed: int, levels: int) -> None:
    rng = np.random.default_rng(seed)
    values = rng.standard_normal((size, size)) if levels == 0 else rng.integers(0, levels, (size, size)).astype(float)
    number = int(characterise(values, variant["characterise"], variant["dimension"], variant["complex"]))
    assert number <= FeatureEntropy(**variant).largest_characteristic(size, size)


def test_the_cubical_complex_takes_maps_that_are_not_square() -> None:
    scorer = FeatureEntropy(complex="cubical")
    scorer.check([Layer("conv", 3, (5, 9))])
    assert (
        measured(scorer, torch.randn(4, 3, 5, 9), torch.zeros(4, dtype=torch.int64), 1)["births"].counted().counts.sum()
        == 12
    )


def test_a_table_of_counts_may_be_huge_but_not_unbounded() -> None:
    # 2·10¹¹ possible integrals of 224×224 maps, times classes and units: only indices of what occurs are stored.
    scorer = FeatureEntropy(characterise="integral", dimension=2)
    layer = Layer("conv", 64, (224, 224))
    scorer.check([layer], labels=range(1000))
    largest = scorer.largest_characteristic(224, 224)
    assert largest == 224 * 224 * math.comb(224, 3)
    values = np.zeros((3, 64), np.int64)
    values[:2, 63], values[2, 0] = largest, 7
    counts = Counts.of((1000, 64, largest + 1), np.array([999, 999, 3]), values)
    twice = add_sums({"births": counts}, {"births": counts.counted()})["births"]
    assert isinstance(twice, Counts)
    rate = entropy_and_rate(twice)[1]
    assert rate[999, 63] == rate[3, 0] == 1
    assert rate.sum() == 2
    with pytest.raises(InputError, match=r"layer 'conv': the integral in dimension 4 of 224×224 maps has 1\.\de"):
        FeatureEntropy(characterise="integral", dimension=4).check([layer], labels=range(1000))


def test_maps_that_can_have_no_hole_are_refused_before_any_work() -> None:
    with pytest.raises(InputError, match="layer 'features.40': maps are 2×2, a hole needs at least 4×4; use a larger"):
        FeatureEntropy().check([Layer("features.40", 512, (2, 2))])
    refused = "layer 'stem': maps are 8×6, a map must be square; use square images, or the setting rectangular: pad"
    with pytest.raises(InputError, match=refused):
        FeatureEntropy().check([Layer("stem", 4, (8, 6))])


PADDED = [variant for variant in VARIANTS if variant["complex"] == "clique"]


@given(st.sampled_from(PADDED), st.integers(1, 9), st.integers(1, 9), st.integers(0, 2**32 - 1), st.integers(0, 3))
@settings(max_examples=100, deadline=None)
def test_padded_maps_have_no_hole_below_the_smallest_size_and_no_larger_characteristic(
    variant: dict[str, Any], height: int, width: int, seed: int, levels: int
) -> None:
    rng = np.random.default_rng(seed)
    shape = (1, 2, height, width)
    values = rng.standard_normal(shape) if levels == 0 else rng.integers(0, levels, shape).astype(float)
    scorer = FeatureEntropy(**variant, rectangular="pad")
    numbers = scorer.characteristic(torch.from_numpy(values))
    assert int(numbers.max()) < scorer.counts_shape(1, 1, height, width)[2]
    if variant["dimension"] > 0 and scorer.map_size_fault(Layer("conv", 2, (height, width))):
        assert not numbers.any()


@pytest.mark.parametrize(
    ("dimension", "size", "needs"),
    [(0, (1, 2), "dimension 0 needs at least 1×2"), (1, (4, 2), "a hole needs at least 2×4"),
     (2, (4, 6), "dimension 2 needs at least 4×6")],
)  # fmt: skip
def test_the_smallest_padded_maps_have_holes(dimension: int, size: tuple[int, int], needs: str) -> None:
    scorer = FeatureEntropy(dimension=dimension, rectangular="pad")
    scorer.check([Layer("conv", 8, size)])
    maps = torch.ones(1, 1, *size)
    for a in range(0, min(size) - 1, 2):  # all edges but those between two opposite corners, the last in the padding
        maps[..., [a, a + 1], [a + 1, a]] = 0.5
    maps[..., 0, 0] = 0.25
    assert scorer.characteristic(maps).all()
    for small in ((size[0] - 1, size[1]), (size[0], size[1] - 1)):
        with pytest.raises(InputError, match=f"layer 'conv': maps are {small[0]}×{small[1]}, {needs}; use a larger"):
            scorer.check([Layer("conv", 8, small)])


def test_padding_leaves_square_maps_as_they_are_and_is_for_cliques_only() -> None:
    maps = torch.randn(3, 4, 9, 9).relu()
    padding = FeatureEntropy(rectangular="pad")
    assert torch.equal(padding.characteristic(maps), FeatureEntropy().characteristic(maps))
    assert padding.settings["rectangular"] == "pad"
    maps = maps[..., :6]
    padded = torch.cat([maps, maps.amin(dim=(2, 3), keepdim=True).expand(3, 4, 9, 3)], dim=3)
    labels = torch.zeros(3, dtype=torch.int64)
    assert torch.equal(padding.characteristic(maps), birth_times(padded))
    assert measured(padding, maps, labels, 1)["births"].shape == (1, 4, 82)
    maps[1, 2, 3, 4] = math.nan
    with pytest.raises(InputError, match="unit 2: the map of image 1 of the batch holds NaN"):
        padding.measure(maps, labels, 1)
    with pytest.raises(InputError, match="a cubical complex takes maps that are not square as they are"):
        FeatureEntropy(complex="cubical", rectangular="pad")
    with pytest.raises(InputError, match="rectangular is 'crop', allowed are refuse, pad"):
        FeatureEntropy(rectangular="crop")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("complex", "dimension", "least", "what"),
    [
        ("clique", 0, 2, "dimension 0"),
        ("clique", 1, 4, "a hole"),
        ("clique", 2, 6, "dimension 2"),
        ("cubical", 0, 1, "dimension 0"),
        ("cubical", 1, 3, "a hole"),
    ],
)
def test_the_smallest_map_depends_on_the_variant(complex: Complex, dimension: int, least: int, what: str) -> None:
    scorer = FeatureEntropy(complex=complex, dimension=dimension)
    scorer.check([Layer("conv", 8, (least, least))])
    side = least - 1
    with pytest.raises(
        InputError, match=f"maps are {side}×{side}, {what} needs at least {least}×{least}; use a larger"
    ):
        scorer.check([Layer("conv", 8, (side, side))])


def test_a_missing_library_is_named_before_any_image_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ripser", None)
    monkeypatch.setitem(sys.modules, "gudhi", None)
    layers = [Layer("conv", 8, (8, 8))]
    FeatureEntropy().check(layers)  # needs neither
    with pytest.raises(EnvironmentFault, match=r"needs ripser: pip install 'prune-fe\[topology\]'"):
        FeatureEntropy(characterise="maximum").check(layers)
    with pytest.raises(EnvironmentFault, match=r"needs gudhi: pip install 'prune-fe\[topology\]'"):
        FeatureEntropy(complex="cubical").check(layers)


def rank_over_gf2(rows: list[int]) -> int:
    pivots: dict[int, int] = {}
    for row in rows:
        rest = row
        while rest and (high := rest.bit_length()) in pivots:
            rest ^= pivots[high]
        if rest:
            pivots[high] = rest
    return len(pivots)


def first_betti_number(graph: np.ndarray) -> int:
    """Of the clique complex: the dimensions of cycles less that of boundaries, over GF(2)."""
    vertices = range(len(graph))
    edges = [pair for pair in itertools.combinations(vertices, 2) if graph[pair]]
    number = {pair: index for index, pair in enumerate(edges)}
    triangles = [
        sum(1 << number[side] for side in itertools.combinations(three, 2))
        for three in itertools.combinations(vertices, 3)
        if all(side in number for side in itertools.combinations(three, 2))
    ]
    return len(edges) - rank_over_gf2([1 << i | 1 << j for i, j in edges]) - rank_over_gf2(triangles)


def birth_by_the_program(values: np.ndarray) -> int:
    """The steps of the authors' program for one map: order of the edges, Betti curve, its first step that is not 0."""
    weights = np.maximum(values, values.T).astype(float)
    np.fill_diagonal(weights, np.inf)
    last = math.ceil(math.comb(len(values), 2) * 0.8)
    order = np.zeros(weights.shape)
    for step, weight in enumerate(np.unique(weights)[::-1]):
        order[weights == weight] = step if step <= last else np.inf
    for step in range(1, last + 1):
        if step - 1 > 50:
            return 0
        if first_betti_number(order <= step):
            return step - 1  # the first step, of the largest edges, is written as 0 like no birth
    return 0


def filled(edges: list[tuple[int, int]], rows: int) -> np.ndarray:
    """A map whose edges enter one by one, in the order of the list, and then all others."""
    values = np.zeros((rows, rows), np.float32)
    for number, pair in enumerate(edges):
        values[pair] = len(edges) - number
    return values


def late_hole(clique: int, spokes: int) -> list[tuple[int, int]]:
    """A clique, whose edges close no hole, with spokes to two more vertices, and a fourth that closes a ring."""
    edges = [(i, j) for j in range(clique) for i in range(j)]
    x, y, z = clique, clique + 1, clique + 2
    return edges + [(i, x) for i in range(spokes)] + [(i, y) for i in range(spokes)] + [(x, z), (y, z)]


PROGRAM_MAPS: list[tuple[np.ndarray, int]] = [
    (filled(late_hole(6, 6), 9), 28),  # step 29 of the 29 that are 80 % of 36
    (filled(late_hole(7, 7), 10), 0),  # step 37 of 36
    (filled([*late_hole(10, 1), (0, 14)], 15), 48),
    (filled([(0, 13), (0, 14), *late_hole(10, 1)], 15), 50),
    (filled([(0, 13), (0, 14), (13, 14), *late_hole(10, 1)], 15), 0),  # step 52
    (np.roll(np.eye(5, dtype=np.float32), 1, axis=1), 0),  # a ring at the first step
]


@pytest.mark.parametrize(("values", "expected"), PROGRAM_MAPS)
def test_births_that_the_program_keeps_and_loses(values: np.ndarray, expected: int) -> None:
    assert birth_times(values[None], rank="edges") > 0
    assert program_births(torch.from_numpy(values)[None, None]).item() == birth_by_the_program(values) == expected


@pytest.mark.parametrize("levels", [2, 4, 1000])
def test_births_of_the_program_are_those_of_its_steps(levels: int) -> None:
    rng = np.random.default_rng(levels)
    for rows in (4, 5, 7):
        maps = rng.integers(0, levels, (12, rows, rows)).clip(levels // 4).astype(np.float32)
        found = program_births(torch.from_numpy(maps)[:, None])[:, 0].tolist()
        assert found == [birth_by_the_program(values) for values in maps]


RECORDED = Path(__file__).resolve().parents[2].parent / "shared/data/birth_times.npz"


@pytest.mark.skipif(not RECORDED.exists(), reason="needs the recorded births")
def test_births_of_the_program_are_what_it_printed() -> None:
    recorded = np.load(RECORDED)
    compared = 0
    for name in (name.removesuffix("_authors") for name in recorded.files if name.endswith("_authors")):
        printed, maps = recorded[f"{name}_authors"], recorded[f"{name}_maps"]
        if (was_run := printed >= 0).any():
            found = program_births(torch.from_numpy(maps[was_run])[:, None])[:, 0]
            assert found.tolist() == printed[was_run].tolist(), name
            compared += len(found)
    assert compared > 50


def ineffectiveness_by_the_program(births: list[int]) -> float:
    """H/ε of one unit and one class with what the authors' ranking does to it; 0 = no birth."""
    zeros = births.count(0) / len(births)
    shares = [count / len([b for b in births if b]) for b, count in Counter(births).items() if b]
    entropy = -sum(share * math.log(share) for share in shares)
    ratio = entropy / (1 - zeros) if zeros != 1 else entropy
    return 100 * math.log(100) if abs(ratio) < 0.1 else ratio


@given(st.integers(0, 2**32 - 1), st.sampled_from([1, 2, 5]))
@settings(max_examples=60, deadline=None)
def test_scores_of_the_program_are_its_ranking(seed: int, top: int) -> None:
    rng = np.random.default_rng(seed)
    births = rng.integers(0, top, (40, 6)) * (rng.random((40, 6)) < rng.random(6))
    births[:, 0] = 0
    births[:39, 1] = 3  # nearly always the same: H/ε < 0.1 in one class
    labels = np.arange(40) % 2
    scored = FeatureEntropy(variant="program").score_layer(sums_of(births, labels, 2))
    for unit in range(6):
        ratios = [ineffectiveness_by_the_program(births[labels == c, unit].tolist()) for c in range(2)]
        assert scored.raw["entropy_per_rate_nats"][:, unit].tolist() == pytest.approx(ratios, rel=1e-12)
        assert scored.keep[unit].item() == pytest.approx(-sum(ratios) / 2, rel=1e-12)
    assert scored.keep[0] == scored.keep.min()
    assert scored.raw["classes_without_birth"][0] == 2


def test_the_program_is_measured_as_it_is_scored() -> None:
    maps, labels = torch.rand(30, 3, 6, 6), torch.arange(30) % 2
    scorer = FeatureEntropy(variant="program")
    births = np.array([[birth_by_the_program(values) for values in image] for image in maps.double().numpy()])
    assert (
        table(measured(scorer, maps, labels, 2)["births"]) == table(sums_of(births, labels.numpy(), 2, 37)["births"])
    ).all()


def test_the_program_has_no_settings_of_its_own_but_by() -> None:
    assert FeatureEntropy(variant="program", by="rate").variant == "program"
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"p": 0.2}, "p"),
        ({"rank": "edges", "normalise": "samples"}, "rank, normalise"),
        ({"rectangular": "pad"}, "rectangular"),
    ]
    for given_settings, names in wrong:
        with pytest.raises(InputError, match=f"variant: program has no {names}; leave out what it fixes"):
            FeatureEntropy(variant="program", **given_settings)
    with pytest.raises(InputError, match="feature-entropy: variant is 'code', allowed are paper, program"):
        FeatureEntropy(variant="code")  # type: ignore[arg-type]


def test_wrong_settings_say_what_is_allowed() -> None:
    with pytest.raises(InputError, match="rank is 'vertices', allowed are elements, edges"):
        FeatureEntropy(rank="vertices")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="normalise is 'none', allowed are births, samples"):
        FeatureEntropy(normalise="none")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="p is 2, allowed are numbers from 0 to 1"):
        FeatureEntropy(p=2)
    with pytest.raises(InputError, match="by is 'epsilon', allowed are entropy_per_rate, entropy, rate"):
        FeatureEntropy(by="epsilon")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="characterise is 'death', allowed are birth, maximum, integral"):
        FeatureEntropy(characterise="death")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="complex is 'rips', allowed are clique, cubical"):
        FeatureEntropy(complex="rips")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="feature-entropy: dimension is -1; allowed: 0, 1, 2, …"):
        FeatureEntropy(dimension=-1)
    with pytest.raises(InputError, match="feature-entropy: dimension is 2; allowed: 0, 1 for a cubical complex"):
        FeatureEntropy(complex="cubical", dimension=2)
