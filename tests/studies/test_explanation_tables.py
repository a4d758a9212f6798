"""Correlations of scores with damage, what is left of them at equal values of another score, and the tables."""

import numpy as np
import pytest

from prune_fe.measure.statistics import partial_spearman, spearman
from prune_fe.studies.explanation_tables import (
    DEAD,
    ENTROPY,
    EXPLAINED,
    IN_FIGURE,
    LEFT,
    MEAN,
    RATE,
    RATIO,
    LayerDamage,
    class_rows,
    correlation_frame,
    explained_share,
    explanation_tables,
)

CLASSES, UNITS = 6, 400


def layer(entropy_matters: bool, seed: int = 0) -> LayerDamage:
    """Damage that depends on ε, and on H as well or not; some units have no hole."""
    random = np.random.default_rng(seed)
    rate = random.random((CLASSES, UNITS)).round(1)
    entropy = random.random((CLASSES, UNITS)) + 1
    with np.errstate(divide="ignore"):
        ratio = entropy / rate
    damage = rate - (entropy if entropy_matters else 0) + random.normal(0, 0.3, (CLASSES, UNITS))
    return LayerDamage(
        "conv",
        [f"c{number}" for number in range(CLASSES)],
        np.full(CLASSES, 5),
        {"loss": damage, "error": np.zeros((CLASSES, UNITS))},
        {RATIO: -ratio, ENTROPY: -entropy, RATE: rate, MEAN: random.random((CLASSES, UNITS))},
    )


def test_correlations_are_those_of_each_class() -> None:
    found = layer(entropy_matters=True)
    correlations = found.correlations["loss"]
    for number in (0, 5):
        ratio, rate = found.scores[RATIO][number], found.scores[RATE][number]
        assert np.isinf(ratio).any()
        finite = np.where(np.isinf(ratio), -1e9, ratio)  # the last rank, whatever the value
        damage = found.damage["loss"][number]
        assert correlations[RATIO][number] == spearman(finite, damage)
        assert correlations[LEFT][number] == partial_spearman(finite, damage, rate)
        assert correlations[f"{RATE} at equal {RATIO}"][number] == partial_spearman(rate, damage, finite)
    assert (correlations[RATIO] > 0.3).all()
    assert (found.correlations["error"][RATIO] == 0).all()


def test_what_the_rate_alone_explains() -> None:
    """Without an influence of H, nothing is left between units of equal ε; with one, most is."""
    shares = {matters: explained_share(layer(matters).correlations["loss"]) for matters in (False, True)}
    assert shares[False] == pytest.approx(1, abs=0.1)
    assert shares[True] == pytest.approx(0.1, abs=0.1)
    assert explained_share({RATIO: np.array([0.1, -0.1]), LEFT: np.zeros(2)}) is None
    assert explained_share({RATIO: np.array([0.5]), LEFT: np.array([0.1])}) == pytest.approx(0.8)
    assert explained_share({RATIO: np.array([0.0]), LEFT: np.array([0.0])}) is None


def test_tables_say_what_is_left() -> None:
    found = [layer(entropy_matters=False), layer(entropy_matters=True)]
    for number, each in enumerate(found):
        object.__setattr__(each, "layer", f"conv{number}")
    plain, partial = explanation_tables(found, "About.")
    assert list(plain.rows) == list(partial.rows) == ["conv0, loss", "conv0, error", "conv1, loss", "conv1, error"]
    assert plain.note == "About."
    assert plain.rows["conv0, loss"][RATE].mean == pytest.approx(found[0].correlations["loss"][RATE].mean())
    assert partial.rows["conv0, error"][EXPLAINED] == "–"
    assert partial.text("conv0, loss", EXPLAINED).endswith("%")
    dead = (found[0].scores[RATE] == 0).sum() / CLASSES
    assert 0 < dead < UNITS
    assert partial.rows["conv0, loss"][DEAD] == [dead]
    first, second = partial.note.split(" conv1: ")
    assert first.startswith("conv0: of ρ = 0.")
    assert "which is not told apart from 0" in first
    assert "which is not 0" in second
    assert all(table.markdown() for table in (plain, partial))


def test_rows_and_points() -> None:
    found = layer(entropy_matters=True)
    rows = list(class_rows([found]))
    assert [(row["damage"], row["class"]) for row in rows[:2]] == [("loss", "c0"), ("loss", "c1")]
    assert rows[1][f"rho {RATE}"] == found.correlations["loss"][RATE][1]
    assert rows[1]["units_without_hole"] == (found.scores[RATE][1] == 0).sum()
    assert rows[1]["mean_damage"] == pytest.approx(found.damage["loss"][1].mean())
    frame = correlation_frame([found])
    assert list(frame["score"]) == list(IN_FIGURE)
    point = frame.iloc[0]
    assert point["low"] < point["value"] < point["high"]
    assert point["value"] == pytest.approx(found.correlations["loss"][RATIO].mean())
