"""L1 norm of the activation (Zhao & Zhang 2022, tables 1, 2 and 6): how strongly a unit fires."""

from dataclasses import dataclass

import torch
from torch import Tensor

from prune_fe.scorers.base import LayerScore, MapScorer, Sums, map_totals


@dataclass(frozen=True)
class L1Activation(MapScorer):
    """keep = the mean over the images of Σ|a| over the unit's map."""

    def measure(self, maps: Tensor, labels: Tensor, classes: int) -> Sums:
        return {"norm": map_totals(maps, torch.abs).sum(dim=0), "images": torch.tensor(len(maps))}

    def score_layer(self, sums: dict[str, Tensor]) -> LayerScore:
        norm = sums["norm"] / sums["images"]
        return LayerScore(norm, {"l1_activation": norm})
