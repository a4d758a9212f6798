"""Tables, lines and chart of the study of layers, for scores that are made up."""

import numpy as np
import pytest

from prune_fe.scoring.scores import Scores
from prune_fe.studies.layer_tables import LayerComparison, blocks_of, deviation, unit_means
from prune_fe.tracing.layers import Layer

NAMES = ["stem", "body.conv", "body"]


def scores(entropy: list[float], rate: list[float], classes: str = "ab") -> Scores:
    """Return scores of layers of two units, whose values are 0.5 apart; each further class adds 1 to H."""
    raw: dict[str, dict[str, np.ndarray]] = {"feature_entropy_nats": {}, "selective_rate": {}}
    for name, h, e in zip(NAMES, entropy, rate, strict=True):
        raw["feature_entropy_nats"][name] = np.array([[h + n, h + n + 0.5] for n in range(len(classes))])
        raw["selective_rate"][name] = np.array([[e, 0.0] for _ in classes])
    keep = {name: np.zeros(2) for name in NAMES}
    return Scores("feature-entropy", keep, raw, tuple(classes), 20)


def comparison(random_classes: str = "ab") -> LayerComparison:
    layers = [Layer(name, 2, (size, size)) for name, size in zip(NAMES, (16, 8, 8), strict=True)]
    random = [
        scores([3.5, 2.25, 2.0], [0.5, 0.75, 0.25], random_classes),
        scores([4.0, 2.75, 1.0], [0.25, 1.0, 0.0], random_classes),
    ]
    readings = dict(zip(NAMES, ("activated", "not activated", "output"), strict=True))
    return LayerComparison(layers, readings, scores([3.0, 2.0, 1.5], [1.0, 0.5, 0.25]), random, "b")


def test_a_table_has_the_means_of_units_and_of_networks() -> None:
    one, every = comparison().tables(["20 images."])
    assert one.rows["stem"]["H"] == [4.0, 4.5]
    assert one.rows["stem"]["H random"] == [4.5, 5.0, 5.0, 5.5]
    assert one.rows["stem"]["H networks"] == "4.750–5.250"
    assert every.rows["stem"]["H"] == [3.5, 4.0]
    assert every.rows["body"]["ε"] == [0.25, 0.0]
    assert every.rows["body"]["maps"] == "8×8, output"
    assert every.rows["body"]["no hole"] == "1; 1, 2"
    assert every.text("stem", "H") == "3.750 (0.354)"
    assert "H is lower than in all 2 random-initialised networks in 2 of 3 layers, ε is higher in 1." in every.note
    assert "Spearman's ρ of H and depth: -1.00 trained, -1.00 random-initialised" in every.note
    assert every.note.endswith("20 images.")
    assert "scored on" not in every.note


def test_random_networks_on_fewer_classes_are_said() -> None:
    one, every = comparison("b").tables([])
    assert "scored on" not in one.note
    assert "The random-initialised networks were scored on 1 of the classes." in every.note
    assert every.rows["stem"]["H random"] == [3.5, 4.0, 4.0, 4.5]


def test_every_layer_network_and_class_has_a_line() -> None:
    rows = list(comparison("b").rows())
    assert len(rows) == 3 * (4 + 3 + 3)
    body = [row for row in rows if (row["network"], row["layer"]) == ("random 1", "body")]
    assert [(row["scope"], row["class"]) for row in body] == [
        ("all classes", None),
        ("one class", "b"),
        ("each class", "b"),
    ]
    assert (body[0]["depth"], body[0]["units_without_hole"], body[0]["map_size"]) == (3, 2, 8)
    assert body[0]["entropy_nats"] == 1.25
    assert body[0]["entropy_deviation_nats"] == pytest.approx(0.5 / 2**0.5)


def test_blocks_have_panels_of_their_own_and_bands() -> None:
    points = comparison().chart_points()
    assert list(points["panel"].unique()) == ["other layers", "body"]
    inside = points[(points["panel"] == "body") & (points["quantity"] == "entropy")]
    assert list(inside["layer"].unique()) == ["conv", "output"]
    trained, random = (inside[(inside["network"] == name) & (inside["layer"] == "conv")].iloc[0]
                       for name in ("trained", "random-initialised"))  # fmt: skip
    assert (trained["value"], trained["low"], trained["high"]) == pytest.approx((2.75, 2.275, 3.225))
    assert (random["value"], random["low"], random["high"]) == (3.25, 3.0, 3.5)


def test_without_blocks_there_is_a_panel_of_one_class_and_one_of_all() -> None:
    whole = comparison("b")
    without = LayerComparison(whole.layers[:2], whole.readings, whole.trained, whole.random, "b")
    points = without.chart_points()
    assert list(points["panel"].unique()) == ["class b", "mean of 2 classes (random-initialised: 1)"]
    one = points[(points["panel"] == "class b") & (points["network"] == "trained")]
    assert (one["low"] == one["high"]).all()
    assert list(one["layer"]) == ["stem", "body.conv"] * 2


def test_a_layer_belongs_to_the_outermost_chosen_block() -> None:
    assert blocks_of(["a", "b.c.d", "b.c", "b", "bc"]) == {"b.c.d": "b", "b.c": "b", "b": "b"}
    assert blocks_of(["a", "b"]) == {}


def test_a_single_unit_has_no_deviation() -> None:
    assert deviation(np.array([1.0])) is None
    assert unit_means(scores([1, 1, 1], [1, 1, 1]), "feature_entropy_nats", "stem", "a").tolist() == [1.0, 1.5]
