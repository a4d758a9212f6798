"""Numbers as text."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from prune_fe.experiment.results import Row

MISSING = "–"
DISTURBED = "* timed while the machine was busy with other work; the network may be faster"
"""What the asterisk of `format_speed` says."""

LARGE = ((1e9, "G"), (1e6, "M"), (1e3, "k"))


def format_count(value: float) -> str:
    """Return a count with at most three digits before the point and its SI prefix.

    >>> [format_count(count) for count in (7, 34616, 4562360)]
    ['7', '34.62k', '4.56M']
    """
    for size, prefix in LARGE:
        if value >= size:
            return f"{value / size:.2f}{prefix}"
    return f"{value:.0f}"


def format_number(value: float | None, percent: bool = False) -> str:
    """Return a number with six significant digits, or a share as a percentage; a dash for what is not finite.

    >>> [format_number(1 / 3), format_number(1 / 3, percent=True), format_number(None)]
    ['0.333333', '33.33 %', '–']
    """
    if value is None or not math.isfinite(value):
        return MISSING
    return f"{100 * value:.2f} %" if percent else f"{value:.6g}"


def format_spread(values: Sequence[float | None], form: str) -> str:
    """Return the mean of the values that are not None and, of several, their standard deviation.

    >>> [format_spread(values, ".1%") for values in ([0.5, 0.75, None], [0.5], [None])]
    ['62.5 ±17.7%', '50.0%', '']
    """
    known = [value for value in values if value is not None]
    if not known:
        return ""
    mean = f"{statistics.mean(known):{form}}"
    return mean if len(known) == 1 else f"{mean} ±{statistics.stdev(known):{form}}".replace("% ±", " ±")


def format_speed(rows: Sequence[Row]) -> str:
    """Return the mean of the images a second, with an asterisk if other work disturbed any of the timings."""
    mark = "*" if any(row.is_disturbed for row in rows) else ""
    return f"{statistics.mean(row.images_per_second for row in rows):,.0f}{mark}"


def counted(count: int, noun: str, plural: str = "") -> str:
    """Return a count with its noun.

    >>> counted(1, "seed"), counted(2000, "criterion", "criteria")
    ('1 seed', '2,000 criteria')
    """
    return f"{count:,} {noun if count == 1 else plural or noun + 's'}"
