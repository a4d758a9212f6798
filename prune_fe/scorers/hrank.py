"""HRank (Lin et al. 2020, "HRank: Filter Pruning using High-Rank Feature Map")."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from prune_fe.scorers.base import ActivationScorer, LayerScore, Sums, require_finite
from prune_fe.tracing.layers import Layer


@dataclass(frozen=True)
class HRank(ActivationScorer):
    """HRank: the score is the mean over the images of the rank of the unit's map.

    A singular value counts if it is above max(height, width) · ε times the largest one, where ε is the machine
    precision of the maps.
    """

    label: ClassVar[str] = "hrank"

    def why_unfit(self, layer: Layer) -> str | None:
        """Return why a layer cannot be scored: its units have no maps."""
        return super().why_unfit(layer) if layer.has_map else "its units have no feature maps"

    def measure_maps(self, maps: Tensor, labels: Tensor, classes: int) -> Sums:
        """Return `ranks` (units,), the sum of the ranks, and `images`, the number of images."""
        require_finite(maps)  # refuses a map that is not finite, by name
        tolerance = max(maps.shape[2:]) * torch.finfo(maps.dtype).eps
        # torch computes no singular values in half precision; the tolerance stays that of the maps' own type.
        maps = maps if maps.dtype == torch.float64 else maps.float()
        ranks = torch.stack([torch.linalg.matrix_rank(image, rtol=tolerance) for image in maps])
        return {"ranks": ranks.sum(dim=0).cpu(), "images": torch.tensor(len(maps))}

    def score_layer(self, sums: dict[str, Tensor]) -> LayerScore:
        """Return the mean rank of each unit."""
        rank = sums["ranks"].double() / sums["images"]
        return LayerScore(rank, {"map_rank": rank})
