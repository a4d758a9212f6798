"""APoZ, the average percentage of zeros (Hu et al. 2016, "Network Trimming", eq. 1)."""

from dataclasses import dataclass

import torch
from torch import Tensor

from prune_fe.scorers.base import LayerScore, MapScorer, Sums, map_totals


@dataclass(frozen=True)
class APoZ(MapScorer):
    """keep = −(share of zeros among all N·H·W activations after the ReLU).

    Counted is a ≤ 0, which behind a ReLU is a = 0. Where there is none (the last convolution of a residual branch,
    GELU, SiLU) it is the share that a ReLU would set to zero.
    """

    def measure(self, maps: Tensor, labels: Tensor, classes: int) -> Sums:
        map_totals(maps)  # NaN ≤ 0 is false: a broken map must not count as an active one
        return {"zeros": (maps <= 0).sum(dim=(0, 2, 3)).cpu(), "values": torch.tensor(maps[:, 0].numel())}

    def score_layer(self, sums: dict[str, Tensor]) -> LayerScore:
        share = sums["zeros"].double() / sums["values"]
        return LayerScore(-share, {"zero_share": share})
