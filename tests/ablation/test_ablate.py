"""The masks of an order and the numbers of units that shares are; `test_trial.py` has what the masks lead to."""

import numpy as np
import pytest
import torch
from torch import nn

import prune_fe
from prune_fe.ablation.ablate import SHARES, masks_without_first, share_counts
from prune_fe.errors import InputError
from prune_fe.scoring.scores import Scores


def test_masks_remove_the_first_units_of_an_order() -> None:
    masks = masks_without_first([2, 0, 1], [0, 1, 3])
    assert masks.dtype == torch.bool
    assert masks.tolist() == [[True, True, True], [True, True, False], [False, False, False]]


def test_shares_are_rounded_down_but_for_errors_of_floating_point() -> None:
    assert share_counts(20, SHARES) == list(range(21))
    assert share_counts(7, [0, 0.5, 0.99, 1]) == [0, 3, 6, 7]


@pytest.mark.parametrize(("order", "units"), [("ascending", (0, 2, 1)), ("descending", (1, 2, 0))])
def test_ascending_removes_the_highest_scores_first(order: str, units: tuple[int, ...]) -> None:
    """The orders are those of feature entropy, which is low where a score is high."""
    model = nn.Sequential(nn.Conv2d(1, 3, 3), nn.Flatten(), nn.Linear(12, 2))
    data = [(torch.randn(4, 1, 4, 4), torch.arange(4) % 2)]
    scores = Scores("s", {"0": np.array([3.0, 1.0, 2.0])})
    assert prune_fe.ablate(model, data, scores, "0", order).units == units  # type: ignore[arg-type]


def test_an_unknown_option_is_an_error() -> None:
    model = nn.Sequential(nn.Conv2d(1, 3, 3), nn.Flatten(), nn.Linear(12, 2))
    data = [(torch.randn(4, 1, 4, 4), torch.arange(4) % 2)]
    with pytest.raises(InputError, match="memory: unknown key; did you mean 'memory_gib'"):
        prune_fe.ablate_each(model, data, "0", memory=1.0)  # type: ignore[call-arg]
    with pytest.raises(InputError, match="memory_gib: input should be greater than 0"):
        prune_fe.ablate_each(model, data, "0", memory_gib=-1)
