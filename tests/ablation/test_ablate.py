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


def test_each_class_has_the_order_of_its_own_scores_where_there_are_any() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 5, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(5 * 64, 3))
    data = [(torch.rand(24, 1, 8, 8), torch.arange(24) % 3)]
    scores = prune_fe.score(model, data, "feature-entropy")
    found = prune_fe.ablate(model, data, scores, "0")
    assert found.classes == ("0", "1", "2")
    for number in range(3):
        own = scores.of_class(number)
        alone = prune_fe.ablate(model, data, own, "0", per_class=False, classes=[number])
        assert alone.units == tuple(own.weakest("0", 5)[::-1])
        np.testing.assert_array_equal(found.hits[:, number], alone.hits[:, 0])
        np.testing.assert_array_equal(found.loss[:, number], alone.loss[:, 0])
    together = prune_fe.ablate(model, data, scores, "0", per_class=False)
    assert together.units == tuple(scores.weakest("0", 5)[::-1])
    with pytest.raises(InputError, match="classes: class 5 has no scores; scored are 0, 1, 2"):
        prune_fe.ablate(model, data, scores, "0", classes=[5])
    with pytest.raises(InputError, match="all classes together"):
        prune_fe.ablate(model, data, prune_fe.score(model, data, "apoz"), "0", per_class=True)
