"""FPGM (He et al. 2019, "Filter Pruning via Geometric Median", eq. 4)."""

from dataclasses import dataclass

import torch
from torch import Tensor

from prune_fe.scorers.base import LayerScore, WeightScorer
from prune_fe.tracing.layers import Layer


@dataclass(frozen=True)
class FPGM(WeightScorer):
    """FPGM: the score is g(F_i) = Σ_j ‖F_i − F_j‖₂ over the filters F_j of the layer.

    The others can replace a filter near their geometric median, so it is pruned first.
    """

    def score_layer(self, layer: Layer, weight: Tensor) -> LayerScore:
        """Return the sum of each filter's distances to all filters of the layer."""
        filters = weight.flatten(1)
        # cdist's faster way, by a matrix product, loses small distances to rounding.
        distance = torch.cdist(filters, filters, compute_mode="donot_use_mm_for_euclid_dist").sum(dim=1)
        return LayerScore(distance, {"fpgm_distance": distance})
