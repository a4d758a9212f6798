"""Running sums."""

from typing import Any

import numpy as np
import torch

from prune_fe.scorers.base import Rows
from prune_fe.scorers.counts import Counts
from prune_fe.scoring.sums import RunningSum, add_sums


def test_a_running_sum_is_the_sum_in_the_order_of_the_batches() -> None:
    for batches in range(1, 20):
        total = RunningSum()
        for number in range(batches):
            counts = Counts.of((3, 1, 5), np.array([number % 3]), np.array([[4]]))
            total.add({"rows": Rows(torch.tensor([number]), 20), "counts": counts, "dense": torch.tensor(number)})
        found: Any = total.total()
        assert found["rows"].values.tolist() == list(range(batches))
        assert found["counts"].images.tolist() == [len(range(first, batches, 3)) for first in range(3)]
        assert found["dense"] == sum(range(batches))


def test_sums_are_added_entry_by_entry() -> None:
    counts = Counts.of((2, 2, 3), np.array([0, 1]), np.array([[2, 0], [1, 1]]))
    one: Any = {"n": torch.tensor(2), "rows": Rows(torch.tensor([1]), 9), "counts": counts}
    total: Any = add_sums(one, one)
    assert total["n"] == 4
    assert total["rows"].values.tolist() == [1, 1]
    assert total["counts"].counted().counts.tolist() == [2, 2, 2, 2]
