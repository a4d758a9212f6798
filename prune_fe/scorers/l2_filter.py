"""L2 norm of the filter (He et al. 2018, "Soft Filter Pruning for Accelerating Deep Convolutional Neural Networks")."""

from dataclasses import dataclass

from torch import Tensor

from prune_fe.scorers.base import LayerScore, WeightScorer
from prune_fe.tracing.layers import Layer


@dataclass(frozen=True)
class L2Filter(WeightScorer):
    """L2 norm of the filter: the score is √Σw² over the weights of the unit's filter."""

    def score_layer(self, layer: Layer, weight: Tensor) -> LayerScore:
        """Return the L2 norm of each filter."""
        norm = weight.flatten(1).norm(dim=1)
        return LayerScore(norm, {"l2_filter": norm})
