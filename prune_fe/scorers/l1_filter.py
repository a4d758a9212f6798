"""L1 norm of the filter (Li et al. 2016, "Pruning Filters for Efficient ConvNets")."""

from dataclasses import dataclass

from torch import Tensor

from prune_fe.scorers.base import LayerScore, WeightScorer
from prune_fe.tracing.layers import Layer


@dataclass(frozen=True)
class L1Filter(WeightScorer):
    """L1 norm of the filter: the score is Σ|w| over the weights of the unit's filter."""

    def score_layer(self, layer: Layer, weight: Tensor) -> LayerScore:
        """Return the L1 norm of each filter."""
        norm = weight.abs().flatten(1).sum(dim=1)
        return LayerScore(norm, {"l1_filter": norm})
