"""The tables of a set of networks, from numbers written down by hand."""

from typing import Any

import numpy as np
import pytest

from prune_fe.scoring.scores import Scores
from prune_fe.studies.generalisation_tables import EXPECTED, NetworkStatus, SetComparison
from prune_fe.tracing.layers import find_layers
from tests.training.helpers import small

CLASSES = ("cat", "dog", "eel", "fox")
SHIFTS = np.array([0.0, 0.01, 0.02, 0.03])
"""How much each class differs from the first."""


@pytest.fixture(scope="module")
def layers() -> list[Any]:
    import torch

    return list(find_layers(small(), torch.rand(1, 1, 16, 16)))


def status(layers: list[Any], label: str, entropy: float, rate: float, accuracy: float, seed: int = 0) -> NetworkStatus:
    """A network whose units have these numbers for every class, up to `SHIFTS`."""

    def per_unit(value: float) -> dict[str, Any]:
        return {layer.name: (value + SHIFTS)[:, None] + np.zeros((1, layer.units)) for layer in layers}

    keep = {layer.name: np.zeros(layer.units) for layer in layers}
    measured = {
        "label_noise": 0.2, "train_accuracy": 1.0, "true_train_accuracy": 0.5, "train_loss": 0.1,
        "test_accuracy": accuracy, "class_train_loss": [0.1] * 4, "class_train_accuracy": [1.0] * 4,
        "class_test_accuracy": (accuracy - SHIFTS).tolist(),
    }  # fmt: skip
    raw = {"feature_entropy_nats": per_unit(entropy), "selective_rate": per_unit(rate)}
    activation = Scores("class-selectivity", keep, {"class_mean_activation": per_unit(1.0)}, CLASSES)
    return NetworkStatus(label, seed, measured, Scores("feature-entropy", keep, raw, CLASSES), activation)


def test_quantities_are_means_over_the_units_and_the_ratio_is_of_the_means(layers: list[Any]) -> None:
    values = status(layers, "A", 2.0, 0.5, 0.9).of_layer(layers[-1].name)
    assert set(values) == set(EXPECTED)
    assert values["H"] == pytest.approx(2.0 + SHIFTS)
    assert values["H/ε"] == pytest.approx((2.0 + SHIFTS) / (0.5 + SHIFTS))
    no_hole = status(layers, "A", 2.0, 0.0, 0.9).of_layer(layers[-1].name)
    assert np.isinf(no_hole["H/ε"][0])


def test_pairs_are_counted_in_the_order_of_the_test_accuracy_and_against_it(layers: list[Any]) -> None:
    # H falls with the test accuracy as it should; ε falls too, which is against the order.
    networks = [status(layers, name, h, e, a) for name, h, e, a in
                (("A", 2.0, 0.2, 0.9), ("B", 3.0, 0.5, 0.6), ("C", 4.0, 0.8, 0.3))]  # fmt: skip
    tables = SetComparison("S", layers, networks, "cat").tables(["A note."])
    ranking = tables[1].rows
    assert ranking["H"]["ρ"].mean == pytest.approx(-1)
    assert [ranking["H"][name] for name in ("in the order", "against it", "not told apart")] == ["3", "0", "0"]
    assert [ranking["ε"][name] for name in ("in the order", "against it", "not told apart")] == ["0", "3", "0"]
    for quantity in ("training loss", "training accuracy", "mean activation"):
        assert ranking[quantity]["ρ"].mean == 0
        assert ranking[quantity]["not told apart"] == "3"
    assert tables[0].rows["B"]["test acc."] == [0.6]
    assert tables[0].note.endswith("A note.")


def test_two_seeds_of_one_training_are_one_row_and_no_pair(layers: list[Any]) -> None:
    networks = [status(layers, "A", 2.0, 0.5, 0.9), status(layers, "A", 2.5, 0.5, 0.8, seed=1),
                status(layers, "B", 3.0, 0.5, 0.6)]  # fmt: skip
    comparison = SetComparison("S", layers, networks, "dog")
    networks_table, ranking = comparison.tables([])
    assert networks_table.rows["A"]["H"] == pytest.approx([2.015, 2.515])
    assert [ranking.rows["H"][name] for name in ("in the order", "against it")] == ["2", "0"]
    points = comparison.layer_points()
    one = points[(points["panel"] == "class dog") & (points["network"] == "A") & (points["quantity"] == "entropy")]
    assert one[["value", "low", "high"]].iloc[-1].tolist() == pytest.approx([2.26, 2.01, 2.51])
    scatter = comparison.scatter_points()
    assert len(scatter) == 3 * 4
    assert set(scatter["panel"]) == {"seed 0", "seed 1"}


def test_a_line_of_the_file_is_a_layer_of_a_network_for_a_class_or_all(layers: list[Any]) -> None:
    rows = list(SetComparison("S", layers, [status(layers, "A", 2.0, 0.5, 0.9)] * 2, "cat").rows())
    assert len(rows) == 2 * len(layers) * 5
    assert (rows[0]["scope"], rows[0]["class"], rows[0]["entropy_nats"]) == ("all classes", None, pytest.approx(2.015))
    assert (rows[2]["class"], rows[2]["selective_rate"]) == ("dog", pytest.approx(0.51))
    assert rows[0]["class_test_accuracy"] == pytest.approx(0.885)
