"""L1 norm of the filter (Li et al. 2016, "Pruning Filters for Efficient ConvNets")."""

from dataclasses import dataclass

from torch import Tensor

from prune_fe.scorers.base import LayerScore, WeightScorer
from prune_fe.tracing.feature_maps import Layer


@dataclass(frozen=True)
class L1Filter(WeightScorer):
    """keep = Σ|w| over the filter of the unit."""

    def score_layer(self, layer: Layer, weight: Tensor) -> LayerScore:
        norm = weight.abs().flatten(1).sum(dim=1)
        return LayerScore(norm, {"l1_filter": norm})
