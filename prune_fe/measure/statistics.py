"""Compute bootstrap intervals of means, and rank correlations."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 10_000
CHUNK = 2**22
"""Numbers that are drawn at a time, which limits the memory."""


@dataclass(frozen=True)
class Estimate:
    """A mean and its 95 % interval.

    Attributes:
        mean: The mean.
        low: Lower end of the interval.
        high: Upper end of the interval.
        n: Number of values whose mean it is.
    """

    mean: float
    low: float
    high: float
    n: int

    def text(self, form: str) -> str:
        """Return the mean and, unless it is of one value, the interval.

        Args:
            form: Format specification of the numbers, such as ".2f".
        """
        return f"{self.mean:{form}} [{self.low:{form}}, {self.high:{form}}]" if self.n > 1 else f"{self.mean:{form}}"

    @property
    def not_zero(self) -> bool:
        """Whether the interval excludes 0: for a difference, whether the two compared things differ."""
        return self.n > 1 and (self.low > 0 or self.high < 0)


def bootstrap(values: Sequence[float] | NDArray[Any], resamples: int = RESAMPLES, seed: int = 0) -> Estimate:
    """Return the mean of values with its percentile bootstrap interval (Efron, 1979).

    For the differences of pairs, this is the paired bootstrap.

    Args:
        values: Finite numbers, shape (n,).
        resamples: How many samples of n values are drawn with replacement.
        seed: Seed of the drawing.

    Raises:
        ValueError: There are no values, or some are not finite.
    """
    # scipy.stats.bootstrap draws the same samples, but refuses a single value, and its argument for the generator
    # has another name in older versions. Published intervals must not depend on that.
    samples = np.asarray(values, dtype=np.float64)
    if samples.ndim != 1 or samples.size == 0 or not np.isfinite(samples).all():
        raise ValueError(f"values {samples.shape}: a bootstrap needs finite numbers, and at least one")
    n, generator = samples.size, np.random.default_rng(seed)
    means = np.concatenate(
        [samples[generator.integers(n, size=(size, n))].mean(axis=1) for size in _chunk_sizes(resamples, n)]
    )
    low, high = np.percentile(means, [2.5, 97.5]).tolist()
    return Estimate(float(samples.mean()), low, high, n)


def simultaneous(
    values: NDArray[Any], pairs: Sequence[tuple[int, int]], resamples: int = RESAMPLES, seed: int = 0
) -> list[Estimate]:
    """Return the differences of the means of columns, with intervals that hold for all pairs at once in 95 % of cases.

    A reader may therefore pick any pair after looking at the results. Rows are drawn for all columns together; the
    half width of an interval is the 95 % quantile of the largest deviation of any pair, in standard errors (the
    studentised maximum; Romano & Wolf, 2005).

    Args:
        values: Finite numbers, shape (n, columns).
        pairs: Pairs (i, j) of columns, for the mean of i minus the mean of j.
        resamples: How many samples of n rows are drawn with replacement.
        seed: Seed of the drawing.

    Returns:
        One estimate for each pair.

    Raises:
        ValueError: There are no rows, or some values are not finite.
    """
    rows = np.asarray(values, dtype=np.float64)
    if rows.ndim != 2 or rows.shape[0] == 0 or not np.isfinite(rows).all():
        raise ValueError(f"values {rows.shape}: a bootstrap needs finite numbers, and at least one row")
    if not pairs:
        return []
    n, generator = len(rows), np.random.default_rng(seed)
    # How often each row is drawn gives the mean of a sample without copying rows.
    means = np.concatenate(
        [generator.multinomial(n, np.full(n, 1 / n), size=size) @ rows / n for size in _chunk_sizes(resamples, n)]
    )
    first, second = np.array(pairs).T
    centres, drawn = (mean[..., first] - mean[..., second] for mean in (rows.mean(axis=0), means))
    errors = drawn.std(axis=0)
    # A pair whose difference never varies has no deviation either; dividing by 0 would give NaN.
    scale = np.where(errors > 0, errors, np.inf)
    widths = float(np.quantile((abs(drawn - centres) / scale).max(axis=1), 0.95)) * errors
    return [
        Estimate(float(centre), float(centre - width), float(centre + width), n)
        for centre, width in zip(centres, widths, strict=True)
    ]


def _chunk_sizes(resamples: int, n: int) -> Iterator[int]:
    """Yield how many samples of `n` values are drawn at a time, until there are `resamples`."""
    size = max(1, CHUNK // n)
    for start in range(0, resamples, size):
        yield min(size, resamples - start)


def spearman(a: NDArray[Any], b: NDArray[Any]) -> float:
    """Return Spearman's ρ of two arrays of shape (n,), ties by mean ranks; 0 if one of them is constant."""
    from scipy.stats import spearmanr

    # SciPy warns about a constant array and returns NaN. Infinite values have ranks, but no difference.
    return 0.0 if (a == a[0]).all() or (b == b[0]).all() else float(spearmanr(a, b).statistic)


def spearman_over_groups(a: NDArray[Any], b: NDArray[Any], resamples: int = RESAMPLES, seed: int = 0) -> Estimate:
    """Return Spearman's ρ of the means of columns, with the interval that comes from drawing the rows.

    An example: how well a quantity ranks networks by their accuracy, where both are known for each class. The rows are
    drawn for both arrays together.

    Args:
        a: Finite numbers, shape (n, columns).
        b: Finite numbers of the same shape.
        resamples: How many samples of n rows are drawn with replacement.
        seed: Seed of the drawing.

    Returns:
        ρ of the means of all rows as the mean, and the interval.
    """
    from scipy.stats import rankdata

    n, generator = len(a), np.random.default_rng(seed)
    weights = generator.multinomial(n, np.full(n, 1 / n), size=resamples) / n

    def correlations(one: NDArray[Any], other: NDArray[Any]) -> NDArray[Any]:
        """Return ρ of each pair of rows, 0 where one of them is constant."""
        ranks = [rankdata(each, axis=1) - (each.shape[1] + 1) / 2 for each in (one, other)]
        sizes = np.sqrt((ranks[0] ** 2).sum(axis=1) * (ranks[1] ** 2).sum(axis=1))
        products: NDArray[Any] = (ranks[0] * ranks[1]).sum(axis=1)
        return np.divide(products, sizes, out=np.zeros_like(sizes), where=sizes > 0)

    # Sums in another order would break ties between equal columns, so the drawn means are rounded.
    drawn = correlations(*(np.round(weights @ each, 12) for each in (a, b)))
    low, high = np.percentile(drawn, [2.5, 97.5]).tolist()
    whole = correlations(*(np.round(each.mean(axis=0, keepdims=True), 12) for each in (a, b)))
    return Estimate(float(whole[0]), low, high, n)


def partial_spearman(a: NDArray[Any], b: NDArray[Any], given: NDArray[Any]) -> float:
    """Return the partial rank correlation of two arrays given a third, all of shape (n,).

    It is the correlation of what remains of the ranks of `a` and `b` when what the ranks of `given` say of each,
    linearly, is taken away (Kendall & Stuart, The Advanced Theory of Statistics, chapter 27). 0 if nothing remains of
    one of them.
    """
    ab, ag, bg = spearman(a, b), spearman(a, given), spearman(b, given)
    remaining = (1 - ag**2) * (1 - bg**2)
    # Rounding leaves up to 1e-15 of an array that has the same ranks as the third.
    return 0.0 if remaining < 1e-12 else float(np.clip((ab - ag * bg) / np.sqrt(remaining), -1, 1))


def kendall(a: NDArray[Any], b: NDArray[Any]) -> float:
    """Return Kendall's τ-b of two arrays of shape (n,); 0 if one of them is constant."""
    from scipy.stats import kendalltau

    return 0.0 if np.ptp(a) == 0 or np.ptp(b) == 0 else float(kendalltau(a, b).statistic)
