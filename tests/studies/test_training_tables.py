"""The tables of a training, from numbers written down by hand."""

import math
from typing import Any

import numpy as np
import pytest
import torch

from prune_fe.studies.training_tables import EpochStatus, TrainingCourse
from prune_fe.tracing.layers import find_layers
from prune_fe.training.loop import Epoch
from tests.training.helpers import small

LOSSES = [math.nan, 3.0, 2.0, 1.5, 1.4]
ENTROPIES = [4.0, 3.0, 2.5, 2.6, 2.4]


@pytest.fixture(scope="module")
def course() -> TrainingCourse:
    """Two classes, of which the second has 1 nat more and half of ε."""
    layer = find_layers(small(), torch.rand(1, 1, 16, 16))[-1]
    epochs = [
        EpochStatus(
            Epoch(number, 0.1, loss, 0.2 * number, 1.0, 2.0, 0.25 * number),
            np.array([[entropy], [entropy + 1]]) + np.zeros((1, layer.units)),
            np.array([[0.8], [0.4]]) + np.zeros((1, layer.units)),
        )
        for number, (loss, entropy) in enumerate(zip(LOSSES, ENTROPIES, strict=True))
    ]
    return TrainingCourse(layer, ("cat", "dog"), "dog", epochs)


def test_the_courses_are_means_over_units_and_the_ratio_is_of_the_means(course: TrainingCourse) -> None:
    assert course.course("H", None).tolist() == pytest.approx([entropy + 0.5 for entropy in ENTROPIES])
    assert course.course("H", "dog").tolist() == pytest.approx([entropy + 1 for entropy in ENTROPIES])
    assert course.course("H/ε", "dog")[0] == pytest.approx(5.0 / 0.4)


def test_the_correlation_leaves_out_the_network_before_training(course: TrainingCourse) -> None:
    epochs, correlations = course.tables(["A note."])
    row: Any = correlations.rows["H, mean of the classes"]
    assert row["before"] == [4.5]
    assert row["after epoch 1"] == [3.5]
    assert row["lowest"] == pytest.approx([2.9])
    # The ranks of H are 4, 2, 3, 1 where those of the loss are 4, 3, 2, 1; of the changes 1, 3, 2 and 1, 2, 3.
    assert row["ρ with the loss"] == pytest.approx([0.8])
    assert row["ρ of the changes"] == pytest.approx([0.5])
    assert "train loss" not in epochs.rows["0"]
    assert epochs.rows["4"]["train loss"] == [1.4]
    assert epochs.rows["2"]["H, dog"] == pytest.approx([3.5])
    assert epochs.note.endswith("A note.")


def test_a_line_of_the_file_is_an_epoch_for_a_class_or_all(course: TrainingCourse) -> None:
    rows = list(course.rows())
    assert len(rows) == 5 * 3
    assert [row["class"] for row in rows[:3]] == [None, "cat", "dog"]
    assert (rows[4]["number"], rows[4]["entropy_nats"], rows[4]["train_accuracy"]) == (1, pytest.approx(3.0), 0.25)


def test_the_points_of_the_chart_begin_with_epoch_0_but_the_loss(course: TrainingCourse) -> None:
    points = course.chart_points()
    first = {panel: int(points[points["panel"] == panel]["epoch"].min()) for panel in set(points["panel"])}
    assert first == {"loss": 1, "accuracy": 0, "entropy": 0, "rate": 0}
    assert set(points["series"]) == {"training images", "validation images", "mean of 2 classes", "class dog"}
