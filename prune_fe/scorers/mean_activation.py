"""Mean activation (Molchanov et al. 2017, "Pruning Convolutional Neural Networks for Resource Efficient Inference",
section 2.2)."""

from dataclasses import dataclass

import torch
from torch import Tensor

from prune_fe.scorers.base import LayerScore, MapScorer, Sums, map_totals


@dataclass(frozen=True)
class MeanActivation(MapScorer):
    """keep = the mean of a over the positions and the images."""

    def measure(self, maps: Tensor, labels: Tensor, classes: int) -> Sums:
        return {"total": map_totals(maps).sum(dim=0), "values": torch.tensor(maps[:, 0].numel())}

    def score_layer(self, sums: dict[str, Tensor]) -> LayerScore:
        mean = sums["total"] / sums["values"]
        return LayerScore(mean, {"mean_activation": mean})
