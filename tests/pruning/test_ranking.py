"""Scores of layers become scores of groups."""

import numpy as np
import pytest

from prune_fe.errors import InputError
from prune_fe.pruning.groups import Group
from prune_fe.pruning.options import Reduction
from prune_fe.pruning.ranking import comparable_scores, group_scores, normalise_scores, with_removed_units
from prune_fe.tracing.dependency_graph import SetId

# The second layer has two units of the first set, and none of the last.
GROUP = Group(
    layer_units={"a": ((0,), (1,), (2,)), "b": ((0, 3), (1,), ())},
    block_ids=(0, 0, 0),
    sets=(SetId(4), SetId(5), SetId(6)),
)
WIDTHS = {"a": 3, "b": 4}
A, B = np.array([1.0, 2, 3]), np.array([10.0, 0, 99, 20])


@pytest.mark.parametrize(
    ("reduction", "expected"), [("mean", [8.0, 1, 3]), ("max", [15.0, 2, 3]), ("min", [1.0, 0, 3])]
)
def test_the_layers_of_a_group_are_reduced(reduction: Reduction, expected: list[float]) -> None:
    assert group_scores(GROUP, {"a": A, "b": B}, WIDTHS, reduction).tolist() == expected


def test_layers_of_another_scorer_count_only_where_they_are_alone() -> None:
    both = {"a": A, "b": B}
    assert group_scores(GROUP, both, WIDTHS, "mean", others={"b": "taylor"}).tolist() == A.tolist()
    assert group_scores(GROUP, both, WIDTHS, "mean", others={"a", "b"}).tolist() == [8.0, 1, 3]
    assert group_scores(GROUP, {"b": B}, WIDTHS, "mean", others={"b"}).tolist() == [15, 0, 15]
    with pytest.raises(InputError, match="layer 'b': scores of 3 units, the model has 4"):
        group_scores(GROUP, {"a": A, "b": A}, WIDTHS, "mean", others={"b"})


def test_a_position_without_a_score_stays() -> None:
    assert group_scores(GROUP, {"b": B}, WIDTHS, "mean").tolist() == [15, 0, 15]
    assert group_scores(GROUP, {"a": np.array([np.nan, 2, 1])}, WIDTHS, "mean").tolist() == [2, 2, 1]


@pytest.mark.parametrize(("scores", "got"), [(np.zeros(2), "2 units"), (np.zeros((3, 1)), r"shape \(3, 1\)")])
def test_scores_of_another_model_are_refused(scores: np.ndarray, got: str) -> None:
    with pytest.raises(InputError, match=f"layer 'a': scores of {got}, the model has 3; they belong to another model"):
        group_scores(GROUP, {"a": scores}, WIDTHS, "mean")


def test_scores_are_normalised_over_the_units_that_were_scored() -> None:
    scores, existing = np.array([0.0, 4, 6]), np.array([False, True, True])
    assert normalise_scores(scores, existing).tolist() == [-np.inf, -1, 1]
    every = normalise_scores(scores, np.ones(3, bool))
    assert (every.mean().round(12), every.std().round(12)) == (0, 1)


def test_scores_that_are_not_normalised_stay_as_they_are() -> None:
    scores, existing = np.array([0.0, 4, 6]), np.array([False, True, True])
    assert comparable_scores(scores, existing, "none").tolist() == [-np.inf, 4, 6]
    assert comparable_scores(scores, existing, "group").tolist() == normalise_scores(scores, existing).tolist()


def test_equal_scores_are_all_average() -> None:
    assert normalise_scores(np.full(3, 0.1), np.ones(3, bool)).tolist() == [0, 0, 0]


def test_scores_of_a_pruned_layer_get_the_numbers_of_the_whole() -> None:
    np.testing.assert_array_equal(with_removed_units(np.array([5.0, 7]), np.array([1, 3]), 4), [np.nan, 5, np.nan, 7])
