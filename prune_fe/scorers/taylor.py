"""First-order Taylor importance (Molchanov et al. 2019, "Importance Estimation for Neural Network Pruning")."""

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from prune_fe.scorers.base import GradientScorer, LayerScore, Sums, one_of, wide

Square = Literal["total", "image"]


@dataclass(frozen=True)
class Taylor(GradientScorer):
    """keep = (∂E/∂z)², z = 1 a gate on the unit's map (eq. 8, taken at a gate), E the mean cross-entropy.

    square: "total" squares the gradient of E over all images, accumulated over the batches, as the formula says;
    "image" takes the mean over the images of the squared gradient of each image's own loss, which does not vanish on
    a converged network. Neither depends on how the images are cut into batches.
    """

    square: Square = "total"

    def __post_init__(self) -> None:
        one_of("taylor", "square", self.square, get_args(Square))

    def measure_gradients(self, gradients: Tensor) -> Sums:
        gradients = wide(gradients)
        return {
            "total": gradients.sum(dim=0).cpu(),
            "squares": gradients.square().sum(dim=0).cpu(),
            "images": torch.tensor(len(gradients)),
        }

    def score_layer(self, sums: dict[str, Tensor]) -> LayerScore:
        per_image = sums["squares"] / sums["images"]
        total = (sums["total"] / sums["images"]).square()
        importance = total if self.square == "total" else per_image
        return LayerScore(importance, {"taylor_importance": importance})
