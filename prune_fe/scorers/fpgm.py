"""FPGM (He et al. 2019, "Filter Pruning via Geometric Median", eq. 4)."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, ClassVar

import torch
from torch import Tensor

from prune_fe.errors import InputError
from prune_fe.scorers.base import LayerScore, WeightScorer
from prune_fe.tracing.layers import Layer


@dataclass(frozen=True)
class FPGM(WeightScorer):
    """FPGM: the score is g(F_i) = Σ_j ‖F_i − F_j‖₂ over the filters F_j of the layer.

    The others can replace a filter near their geometric median, so it is pruned first.

    With `norm_share`, this is FPGM-mix of the same paper, as its authors' program computes it
    (github.com/he-y/filter-pruning-geometric-median, `get_filter_similar`): the floor(share · n) filters with the
    smallest L2 norms of a layer's n filters are pruned first, and the others in the order of their distances to each
    other, in which the first have no part. FPGM-mix with a ratio of 0.4, of which 0.1 is pruned by the norm, is a
    `norm_share` of 0.1. The score of the first filters is then ‖F_i‖₂ − max ‖F‖₂ − 1 over these filters,
    which is below 0 and in no proportion to the distances: rank within layers (`ranking: layer`).

    The program truncates n · (1 − rate) in binary numbers, so that its rate 0.9 takes 0 of 10 filters; here the share
    is the decimal that it is written as, and 0.1 takes 1 of 10.

    Attributes:
        norm_share: Share of the filters that are pruned first, by their norms; in [0, 1].
    """

    norm_share: float = 0.0
    later_settings: ClassVar[Mapping[str, Any]] = {"norm_share": 0.0}

    def __post_init__(self) -> None:
        if type(self.norm_share) not in (int, float) or not 0 <= self.norm_share <= 1:
            raise InputError(f"fpgm: norm_share is {self.norm_share!r}, allowed are numbers from 0 to 1")

    def score_layer(self, layer: Layer, weight: Tensor) -> LayerScore:
        """Return the sum of each filter's distances to all filters of the layer, or the scores of FPGM-mix."""
        filters = weight.flatten(1)
        if self.norm_share == 0:
            distance = _distances(filters)
            return LayerScore(distance, {"fpgm_distance": distance})
        norm = filters.norm(dim=1)
        first = math.floor(Fraction(str(self.norm_share)) * len(filters))
        order = norm.argsort(stable=True)
        small, large = order[:first], order[first:].sort().values
        distance = torch.zeros_like(norm)
        distance[large] = _distances(filters[large])
        keep = distance.clone()
        if first:
            keep[small] = norm[small] - norm[small].max() - 1
        return LayerScore(keep, {"fpgm_distance": distance, "l2_filter": norm})


def _distances(filters: Tensor) -> Tensor:
    """Return the sum of each filter's distances to all filters, (filters,).

    Args:
        filters: (filters, weights).
    """
    # cdist's faster way, by a matrix product, loses small distances to rounding.
    return torch.cdist(filters, filters, compute_mode="donot_use_mm_for_euclid_dist").sum(dim=1)
