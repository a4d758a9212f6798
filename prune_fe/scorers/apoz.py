"""APoZ, the average percentage of zeros (Hu et al. 2016, "Network Trimming", eq. 1)."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from prune_fe.scorers.base import ActivationScorer, LayerScore, Sums, require_finite

CHUNK_ELEMENTS = 1 << 20
"""Elements to compare with 0 at a time, at most. The result should stay in the cache until it is added up."""


@dataclass(frozen=True)
class APoZ(ActivationScorer):
    """APoZ: the score is −(the share of zeros among all N·H·W activations after the ReLU).

    Activations a ≤ 0 are counted, which after a ReLU means a = 0. Where no ReLU follows (the last convolution of a
    residual branch, GELU, SiLU), the score is −(the share of activations that a ReLU would set to zero).
    """

    label: ClassVar[str] = "apoz"

    def measure_maps(self, maps: Tensor, labels: Tensor, classes: int) -> Sums:
        """Return `zeros` (units,), the number of activations a ≤ 0, and `values`, the number of activations a unit."""
        require_finite(maps)  # NaN would count as a zero because NaN > 0 is false
        maps = maps.detach()
        # torch adds numbers in vectors, and truth values one by one. Sums of ones are exact in float32 up to 2²⁴.
        number = torch.float32 if maps.shape[2:].numel() <= 2**24 else torch.float64
        active = torch.zeros(maps.shape[1], dtype=torch.int64, device=maps.device)
        for some in maps.split(max(1, CHUNK_ELEMENTS // maps.shape[1:].numel())):
            ones = torch.gt(some, 0, out=torch.empty_like(some, dtype=number))
            active += ones.sum(dim=(2, 3)).sum(dim=0).long()
        values = torch.tensor(maps[:, 0].numel())
        return {"zeros": values - active.cpu(), "values": values}

    def score_layer(self, sums: dict[str, Tensor]) -> LayerScore:
        """Return −(share of zeros) of each unit."""
        share = sums["zeros"].double() / sums["values"]
        return LayerScore(-share, {"zero_share": share})
