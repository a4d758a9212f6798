"""Infinite feature selection, "Inf-FS" (Roffo et al. 2015), which scores the final responses for NISP."""

from __future__ import annotations

from typing import Literal

import scipy.stats
import torch
from torch import Tensor

from prune_fe.errors import InputError

Sigma = Literal["raw", "minmax"]

ROUNDING = 1e-12
"""Largest share of a deviation that may be rounding."""


def infinite_feature_selection(responses: Tensor, alpha: float, r: float | None = None, sigma: Sigma = "raw") -> Tensor:
    """Return the Inf-FS score of each feature, 0 throughout where A is 0.

    Features with the same responses have the same score, to the bit, and so have all that never vary.

    Args:
        responses: (images, features).
        alpha: α, see `NISP`.
        r: See `NISP`.
        sigma: See `NISP`.

    Returns:
        (features,) float64.

    Raises:
        InputError: The sum over all paths diverges for this r.
    """
    varies = responses.amax(dim=0) > responses.amin(dim=0)
    deviation = torch.where(varies, responses.double().std(dim=0), 0)  # rounding may give equal values a deviation
    if sigma == "minmax":
        # The same as to scale the matrix of max(σ_i, σ_j), whose smallest and largest entries are those of σ.
        largest, deviation = deviation.max(), deviation - deviation.min()
        span = deviation.max()
        # Deviations that differ by rounding only are equal, and must not be scaled to 0 and 1.
        deviation = deviation / span if span > ROUNDING * largest else torch.zeros_like(deviation)
    correlation = torch.where(varies[:, None] & varies, spearman(responses), 1).abs()
    A = alpha * torch.maximum(deviation[:, None], deviation) + (1 - alpha) * (1 - correlation)
    radius = float(torch.linalg.eigvalsh(A).abs().max())
    if radius == 0:
        return torch.zeros(len(A), dtype=torch.float64)
    if r is None:
        r = 0.9 / radius
    elif r >= 1 / radius:
        raise InputError(f"nisp: r is {r}; the sum over all paths only exists below 1 / ρ(A) = {1 / radius:.6g}")
    # The row sums of (I − rA)⁻¹ − I, without the inverse.
    identity, ones = torch.eye(len(A), dtype=torch.float64), torch.ones(len(A), dtype=torch.float64)
    return _equal_where_equal(torch.linalg.solve(identity - r * A, ones) - 1, responses.where(varies, 0))


def _equal_where_equal(scores: Tensor, responses: Tensor) -> Tensor:
    """Return the scores with the mean score of all features that have the same responses.

    The solver's rounding errors differ between equal rows of A, and would decide which of equal units is pruned.

    Args:
        scores: (features,).
        responses: (images, features).
    """
    _, numbers, copies = torch.unique(responses, dim=1, return_inverse=True, return_counts=True)
    if len(copies) == len(scores):
        return scores
    totals = torch.zeros(len(copies), dtype=scores.dtype).index_add_(0, numbers, scores)
    return torch.where(copies[numbers] > 1, (totals / copies)[numbers], scores)


def spearman(values: Tensor) -> Tensor:
    """Return the rank correlations of the columns; equal values share their mean rank.

    Args:
        values: (images, features).

    Returns:
        (features, features) float64, undefined for constant columns.
    """
    # Twice the mean ranks are whole numbers, so the sums are exact: responses in the same order correlate with exactly
    # 1, whatever the order of the images.
    doubled = 2 * torch.from_numpy(scipy.stats.rankdata(values.double().numpy(), axis=0))
    centred = doubled - (len(values) + 1)
    products = centred.T @ centred
    squares = products.diagonal().clamp(min=1)
    return (products / (squares[:, None] * squares).sqrt()).clamp(-1, 1)
