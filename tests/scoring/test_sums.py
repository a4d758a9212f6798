"""Running sums."""

from typing import Any

import torch

from prune_fe.scorers.base import Rows
from prune_fe.scoring.sums import RunningSum, add_sums


def test_a_running_sum_is_the_sum_in_the_order_of_the_batches() -> None:
    for batches in range(1, 20):
        total = RunningSum()
        for number in range(batches):
            counts = torch.eye(3)[number % 3].to_sparse()
            total.add({"rows": Rows(torch.tensor([number]), 20), "sparse": counts, "dense": torch.tensor(number)})
        found: Any = total.total()
        assert found["rows"].values.tolist() == list(range(batches))
        assert found["sparse"].to_dense().tolist() == [len(range(first, batches, 3)) for first in range(3)]
        assert found["dense"] == sum(range(batches))


def test_sums_are_added_entry_by_entry() -> None:
    one: Any = {"n": torch.tensor(2), "rows": Rows(torch.tensor([1]), 9), "sparse": torch.eye(2).to_sparse()}
    total: Any = add_sums(one, one)
    assert total["n"] == 4
    assert total["rows"].values.tolist() == [1, 1]
    assert total["sparse"].is_coalesced()
    assert total["sparse"].to_dense().tolist() == [[2, 0], [0, 2]]
