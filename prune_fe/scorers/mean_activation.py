"""Mean activation.

Molchanov et al. 2017, "Pruning Convolutional Neural Networks for Resource Efficient Inference", section 2.2.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from prune_fe.scorers.base import ActivationScorer, LayerScore, Sums, sum_over_positions


@dataclass(frozen=True)
class MeanActivation(ActivationScorer):
    """Mean activation: the score is the mean of a over the positions of the unit's map and over the images."""

    label: ClassVar[str] = "mean-activation"

    def measure_maps(self, maps: Tensor, labels: Tensor, classes: int) -> Sums:
        """Return `total` (units,), the sum of the activations, and `values`, the number of activations a unit."""
        return {"total": sum_over_positions(maps).sum(dim=0), "values": torch.tensor(maps[:, 0].numel())}

    def score_layer(self, sums: dict[str, Tensor]) -> LayerScore:
        """Return the mean activation of each unit."""
        mean = sums["total"] / sums["values"]
        return LayerScore(mean, {"mean_activation": mean})
