"""HRank (Lin et al. 2020, "HRank: Filter Pruning using High-Rank Feature Map")."""

from dataclasses import dataclass

import torch
from torch import Tensor

from prune_fe.scorers.base import LayerScore, MapScorer, Sums, map_totals


@dataclass(frozen=True)
class HRank(MapScorer):
    """keep = the mean over the images of the rank of the unit's map.

    A singular value counts when it is above max(height, width) · ε · the largest one, ε the precision of the maps.
    """

    def measure(self, maps: Tensor, labels: Tensor, classes: int) -> Sums:
        map_totals(maps)  # names a map that is not finite
        tolerance = max(maps.shape[2:]) * torch.finfo(maps.dtype).eps
        maps = maps if maps.dtype == torch.float64 else maps.float()
        ranks = torch.stack([torch.linalg.matrix_rank(image, rtol=tolerance) for image in maps])
        return {"ranks": ranks.sum(dim=0).cpu(), "images": torch.tensor(len(maps))}

    def score_layer(self, sums: dict[str, Tensor]) -> LayerScore:
        rank = sums["ranks"].double() / sums["images"]
        return LayerScore(rank, {"map_rank": rank})
