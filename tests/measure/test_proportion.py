"""Shares with intervals."""

import numpy as np
import pytest
from scipy.stats import binomtest

from prune_fe.measure.proportion import describe_share, percent, wilson_interval


@pytest.mark.parametrize(("count", "total"), [(0, 5), (5, 5), (1, 7), (685, 1000), (3, 10_000)])
def test_the_interval_is_scipys(count: int, total: int) -> None:
    expected = binomtest(count, total).proportion_ci(method="wilson")
    assert np.allclose(wilson_interval(count, total), (expected.low, expected.high), atol=1e-12)


def test_a_percentage_has_the_digits_that_its_images_give() -> None:
    assert [percent(1 / 3, total) for total in (3, 100, 360, 10_000, 10**9)] == ["33", "33", "33.3", "33.33", "33.3333"]
    assert describe_share(1, 3) == "33 % of 3 images (95 % interval 6 to 79 %)"
