"""Counts of values by class and unit, against a table that is filled one by one and against sparse tensors of torch."""

import pickle
from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from prune_fe.errors import InputError
from prune_fe.scorers import counts
from prune_fe.scorers.counts import Counts

SHAPE = (5, 3, 9)


def sample(seed: int, images: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.choice([0, 1, 4], images), rng.integers(0, SHAPE[2], (images, SHAPE[1])).astype(np.int32)


def one_by_one(labels: np.ndarray, values: np.ndarray) -> Counter[tuple[int, ...]]:
    found = Counter[tuple[int, ...]]()
    for label, row in zip(labels.tolist(), values.tolist(), strict=True):
        found.update((label, unit, value) for unit, value in enumerate(row))
    return found


def listed(counted: Counts) -> dict[tuple[int, ...], int]:
    assert not counted.pending
    assert (np.diff(counted.entries) > 0).all()
    indices = np.stack(counted.indices, axis=1).tolist()
    return dict(zip(map(tuple, indices), counted.counts.tolist(), strict=True))


@given(
    st.integers(0, 2**32 - 1), st.lists(st.integers(0, 12), min_size=1, max_size=7), st.sampled_from([0, 10, 40, 10**6])
)
@settings(max_examples=100, deadline=None)
def test_counts_of_parts_in_any_grouping_are_those_of_a_table(seed: int, sizes: list[int], limit: int) -> None:
    labels, values = sample(seed, sum(sizes))
    bounds = np.cumsum([0, *sizes])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(counts, "MAX_PENDING", limit)
        parts = [Counts.of(SHAPE, labels[a:b], values[a:b]) for a, b in pairwise(bounds)]
        while len(parts) > 1:
            first = seed % (len(parts) - 1)
            parts[first : first + 2] = [parts[first] + parts[first + 1]]
            assert parts[first].n_pending <= limit
    expected = one_by_one(labels, values)
    assert listed(parts[0].counted()) == expected
    assert parts[0].images.tolist() == np.bincount(labels, minlength=SHAPE[0]).tolist()


def test_they_are_those_of_a_coalesced_sparse_tensor() -> None:
    labels, values = sample(7, 40)
    parts = torch.broadcast_tensors(torch.from_numpy(labels)[:, None], torch.arange(SHAPE[1]), torch.from_numpy(values))
    with torch.sparse.check_sparse_tensor_invariants(True):
        sparse = torch.sparse_coo_tensor(
            torch.stack(parts).flatten(1), torch.ones(values.size, dtype=torch.int64), SHAPE
        ).coalesce()
    counted = Counts.of(SHAPE, labels, values).counted()
    assert np.array_equal(np.stack(counted.indices), sparse.indices().numpy())
    assert np.array_equal(counted.counts, sparse.values().numpy())


def test_many_small_arrays_do_not_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(counts, "MAX_PENDING_PARTS", 3)
    labels, values = sample(2, 10)
    total = Counts(SHAPE)
    for image in range(10):
        total += Counts.of(SHAPE, labels[image : image + 1], values[image : image + 1])
        assert len(total.pending) <= 3
    assert listed(total.counted()) == one_by_one(labels, values)


def test_the_labels_may_change_before_the_values_are_counted() -> None:
    labels, values = sample(9, 20)
    expected = one_by_one(labels, values)
    waiting = Counts.of(SHAPE, labels, values)
    labels[:] = 0
    assert listed(waiting.counted()) == expected


def test_they_can_be_taken_apart_put_together_and_sent_to_another_process() -> None:
    counted = Counts.of(SHAPE, *sample(3, 20)).counted()
    again = Counts.from_indices(SHAPE, counted.indices, counted.counts)
    assert listed(pickle.loads(pickle.dumps(again))) == listed(counted)
    waiting = Counts.of(SHAPE, *sample(3, 20))
    assert listed(pickle.loads(pickle.dumps(waiting)).counted()) == listed(counted)
    with pytest.raises(ValueError, match="invalid entry in coordinates array"):
        Counts.from_indices(SHAPE, [np.array([0]), np.array([3]), np.array([0])], np.array([1]))


def test_classes_without_images_can_be_left_out() -> None:
    labels, values = sample(5, 20)
    one_fewer = labels.copy()
    one_fewer[one_fewer == 4] = 2
    few = Counts.of(SHAPE, labels, values).of_classes_with_images()
    assert few.shape == (3, *SHAPE[1:])
    assert listed(few) == one_by_one(np.array([0, 1, 1, 1, 2])[labels], values)
    assert few.images.tolist() == np.bincount(labels)[[0, 1, 4]].tolist()


def test_the_index_of_the_largest_table_is_exact() -> None:
    shape = (2, 3, (2**63 - 1) // 6)
    counted = Counts.of(shape, np.array([1]), np.array([[0, 1, shape[2] - 1]])).counted()
    assert np.stack(counted.indices).tolist() == [[1, 1, 1], [0, 1, 2], [0, 1, shape[2] - 1]]


def test_what_is_outside_the_table_is_refused() -> None:
    labels, values = np.array([0, 4]), np.full((2, 3), 8)
    Counts.of(SHAPE, labels, values)
    for wrong_labels, wrong_values, text in (
        (labels + 1, values, "classes are 1 to 5; allowed: 0 to 4"),
        (labels - 1, values, "classes are -1 to 3; allowed: 0 to 4"),
        (labels, values + 1, "values are 9 to 9; allowed: 0 to 8"),
        (labels, -values, "values are -8 to -8; allowed: 0 to 8"),
        (labels, values[:1], r"values have shape \(1, 3\); allowed: \(2, 3\)"),
        (labels, values[:, :2], r"values have shape \(2, 2\); allowed: \(2, 3\)"),
    ):
        with pytest.raises(ValueError, match=text):
            Counts.of(SHAPE, wrong_labels, wrong_values)


def test_counts_of_maps_of_two_sizes_are_not_added() -> None:
    small, large = (Counts.of((2, 3, size), np.array([1]), np.zeros((1, 3), int)) for size in (17, 26))
    with pytest.raises(
        InputError, match="2 classes, 3 units and values below 17 and 2 classes, 3 units and values bel"
    ):
        small + large
