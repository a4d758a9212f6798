"""Intervals and agreement: the bootstrap, and rank correlations."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 10_000
CHUNK = 2**22
"""Numbers that are drawn at a time."""


@dataclass(frozen=True)
class Estimate:
    """A mean and its 95 % interval. n: values that it is the mean of."""

    mean: float
    low: float
    high: float
    n: int

    def text(self, form: str) -> str:
        """One value has no interval."""
        return f"{self.mean:{form}} [{self.low:{form}}, {self.high:{form}}]" if self.n > 1 else f"{self.mean:{form}}"

    @property
    def not_zero(self) -> bool:
        """Whether the interval says so: what two things that are compared differ by."""
        return self.n > 1 and (self.low > 0 or self.high < 0)


def bootstrap(values: Sequence[float] | NDArray[Any], resamples: int = RESAMPLES, seed: int = 0) -> Estimate:
    """The mean of values (n,), finite, and the percentiles 2.5 and 97.5 of the means of resamples (Efron 1979).

    Of the differences of pairs it is the paired bootstrap.
    """
    known = np.asarray(values, dtype=np.float64)
    if known.ndim != 1 or known.size == 0 or not np.isfinite(known).all():
        raise ValueError(f"values {known.shape}: a bootstrap needs finite numbers, and at least one")
    generator = np.random.default_rng(seed)
    each = max(1, CHUNK // known.size)
    means = np.concatenate(
        [
            known[generator.integers(known.size, size=(min(each, resamples - first), known.size))].mean(axis=1)
            for first in range(0, resamples, each)
        ]
    )
    low, high = np.percentile(means, [2.5, 97.5])
    return Estimate(float(known.mean()), float(low), float(high), known.size)


def simultaneous(
    values: NDArray[Any], pairs: Sequence[tuple[int, int]], resamples: int = RESAMPLES, seed: int = 0
) -> list[Estimate]:
    """For pairs (i, j) of columns of values (n, columns) the mean of i less that of j, with intervals that hold for all
    pairs at once in 95 % of cases: whichever of them is picked, and for whatever it shows, its interval may be trusted.

    The rows are resampled for all columns together; the half width is the 95 % quantile of the largest deviation, in
    standard errors, of any pair (the studentised maximum, Romano & Wolf 2005).
    """
    known = np.asarray(values, dtype=np.float64)
    if known.ndim != 2 or known.shape[0] == 0 or not np.isfinite(known).all():
        raise ValueError(f"values {known.shape}: a bootstrap needs finite numbers, and at least one row")
    if not pairs:
        return []
    n, (one, other) = len(known), np.array(pairs).T
    generator, each = np.random.default_rng(seed), max(1, CHUNK // n)
    means = np.concatenate(
        [
            generator.multinomial(n, np.full(n, 1 / n), size=min(each, resamples - first)) @ known / n
            for first in range(0, resamples, each)
        ]
    )
    centre, drawn = (m[..., one] - m[..., other] for m in (known.mean(axis=0), means))
    error = drawn.std(axis=0)
    scale = np.where(error > 0, error, np.inf)
    width = float(np.quantile((abs(drawn - centre) / scale).max(axis=1), 0.95)) * error
    return [
        Estimate(float(mean), float(mean - half), float(mean + half), n)
        for mean, half in zip(centre, width, strict=True)
    ]


def spearman(a: NDArray[Any], b: NDArray[Any]) -> float:
    """Spearman's ρ of a and b (n,), ties by mean ranks; 0 where one of them is constant and ranks nothing."""
    from scipy.stats import spearmanr

    return 0.0 if np.ptp(a) == 0 or np.ptp(b) == 0 else float(spearmanr(a, b).statistic)


def kendall(a: NDArray[Any], b: NDArray[Any]) -> float:
    """Kendall's τ-b of a and b (n,); 0 where one of them is constant."""
    from scipy.stats import kendalltau

    return 0.0 if np.ptp(a) == 0 or np.ptp(b) == 0 else float(kendalltau(a, b).statistic)
