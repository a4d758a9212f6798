"""L1 norm of the activation (Zhao & Zhang 2022, tables 1, 2 and 6)."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from prune_fe.scorers.base import ActivationScorer, LayerScore, Sums, sum_over_positions


@dataclass(frozen=True)
class L1Activation(ActivationScorer):
    """L1 norm of the activation: the score is the mean over the images of Σ|a| over the unit's map.

    Of a layer that runs several times, it is the mean over the runs too.
    """

    label: ClassVar[str] = "l1-activation"

    def measure_maps(self, maps: Tensor, labels: Tensor, classes: int) -> Sums:
        """Return `norm` (units,), the sum of the norms, and `images`, the number of images."""
        return {"norm": sum_over_positions(maps, torch.abs).sum(dim=0), "images": torch.tensor(len(maps))}

    def score_layer(self, sums: dict[str, Tensor]) -> LayerScore:
        """Return the mean L1 norm of each unit."""
        norm = sums["norm"] / sums["images"]
        return LayerScore(norm, {"l1_activation": norm})
