"""Format shares and ratios, with the same digits wherever they are printed."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from prune_fe.measure.statistics import Estimate

Z = 1.959963984540054
"""The 97.5 % quantile of the normal distribution, for intervals that hold in 95 % of cases."""


def wilson_interval(count: int, total: int) -> tuple[float, float]:
    """Return the 95 % interval of a share (Wilson 1927), which also holds for shares near 0 and 1.

    Args:
        count: How many have the property.
        total: How many there are, at least one.

    >>> [round(end, 3) for end in wilson_interval(685, 1000)]
    [0.656, 0.713]
    """
    share, z2 = count / total, Z * Z
    centre = (share + z2 / (2 * total)) / (1 + z2 / total)
    half = Z / (1 + z2 / total) * math.sqrt(share * (1 - share) / total + z2 / (4 * total**2))
    return max(0.0, centre - half), min(1.0, centre + half)


def percent_digits(total: int) -> int:
    """Return the digits behind the point of a percentage of so many images: finer steps do not occur.

    >>> [percent_digits(total) for total in (40, 360, 1000, 50_000)]
    [0, 1, 1, 3]
    """
    return min(max(math.ceil(math.log10(total)) - 2, 0), 4)


def percent(share: float, total: int) -> str:
    """Return a share of so many images as a percentage, without the sign.

    >>> percent(0.685, 1000)
    '68.5'
    """
    return f"{100 * share:.{percent_digits(total)}f}"


def describe_change(change: Estimate) -> str:
    """Format the change of an accuracy in points, with half the width of its interval.

    Args:
        change: The mean over the images (a share) with its interval.

    >>> from prune_fe.measure.statistics import Estimate
    >>> describe_change(Estimate(-0.024, -0.04, -0.008, 1000))
    '−2.4 ± 1.6'
    """
    sign = "−" if change.mean < 0 else "+"
    half = (change.high - change.low) / 2
    return f"{sign}{percent(abs(change.mean), change.n)} ± {percent(half, change.n)}"


def describe_remainder(share: float) -> str:
    """Format the share of a cost that is left after pruning as percent, with three significant digits.

    >>> describe_remainder(0.5), describe_remainder(0.09526)
    ('50 %', '9.53 %')
    """
    return f"{100 * share:.3g} %"


def describe_speed_up(ratio: float) -> str:
    """Format how many times as fast a network is as the original.

    >>> describe_speed_up(1.5512)
    '1.55×'
    """
    return f"{ratio:.2f}×"


def describe_share(count: int, total: int, of: str = "images") -> str:
    """Return a share with its interval.

    Args:
        count: How many have the property.
        total: How many there are.
        of: What they are.

    >>> describe_share(685, 1000, "test images")
    '68.5 % of 1,000 test images (95 % interval 65.6 to 71.3 %)'
    """
    low, high = wilson_interval(count, total)
    return (
        f"{percent(count / total, total)} % of {total:,} {of} (95 % interval {percent(low, total)} to "
        f"{percent(high, total)} %)"
    )
