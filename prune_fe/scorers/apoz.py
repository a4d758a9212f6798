"""APoZ, the average percentage of zeros (Hu et al. 2016, "Network Trimming", eq. 1)."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from prune_fe.scorers.base import ActivationScorer, LayerScore, Sums, require_finite


@dataclass(frozen=True)
class APoZ(ActivationScorer):
    """APoZ: the score is −(the share of zeros among all N·H·W activations after the ReLU).

    Activations a ≤ 0 are counted, which after a ReLU means a = 0. Where no ReLU follows (the last convolution of a
    residual branch, GELU, SiLU), the score is −(the share of activations that a ReLU would set to zero).
    """

    label: ClassVar[str] = "apoz"

    def measure_maps(self, maps: Tensor, labels: Tensor, classes: int) -> Sums:
        """Return `zeros` (units,), the number of activations a ≤ 0, and `values`, the number of activations a unit."""
        require_finite(maps)  # NaN would count as an active value because NaN ≤ 0 is false
        # A map has fewer than 2³¹ values; torch adds them in int32 in half the time that it takes in int64.
        zeros = (maps <= 0).sum(dim=(2, 3), dtype=torch.int32).sum(dim=0)
        return {"zeros": zeros.cpu(), "values": torch.tensor(maps[:, 0].numel())}

    def score_layer(self, sums: dict[str, Tensor]) -> LayerScore:
        """Return −(share of zeros) of each unit."""
        share = sums["zeros"].double() / sums["values"]
        return LayerScore(-share, {"zero_share": share})
