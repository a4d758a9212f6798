"""FPGM (He et al. 2019, "Filter Pruning via Geometric Median", eq. 4)."""

from dataclasses import dataclass

import torch
from torch import Tensor

from prune_fe.scorers.base import LayerScore, WeightScorer
from prune_fe.tracing.feature_maps import Layer


@dataclass(frozen=True)
class FPGM(WeightScorer):
    """keep = g(F_i) = Σ_j ‖F_i − F_j‖₂ over the filters of the layer: a filter near the geometric median is one that
    the others can replace."""

    def score_layer(self, layer: Layer, weight: Tensor) -> LayerScore:
        filters = weight.flatten(1)
        # By differences: the matrix product that cdist takes to be faster loses the small distances.
        distance = torch.cdist(filters, filters, compute_mode="donot_use_mm_for_euclid_dist").sum(dim=1)
        return LayerScore(distance, {"fpgm_distance": distance})
