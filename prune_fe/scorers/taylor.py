"""First-order Taylor importance (Molchanov et al. 2019, "Importance Estimation for Neural Network Pruning")."""

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from prune_fe.scorers.base import GradientScorer, LayerScore, Sums, check_choice, to_float64

Square = Literal["total", "image"]


@dataclass(frozen=True)
class Taylor(GradientScorer):
    """Taylor importance: the score is (∂E/∂z)², E the mean cross-entropy and z = 1 a factor on the unit's map (eq. 8).

    Of a linear layer on tokens, z multiplies the unit's value at every token; of a layer that runs several times, its
    output in every run.

    How the images are divided into batches makes no difference.

    Attributes:
        square: "total" squares the gradient of E over all images, as in the paper. "image" squares the gradient of each
            image's own loss and takes the mean over the images, which does not vanish on a converged network.
    """

    square: Square = "total"

    def __post_init__(self) -> None:
        check_choice("taylor", "square", self.square, get_args(Square))

    def measure_gradients(self, gradients: Tensor) -> Sums:
        """Return `total` and `squares` (units,), the sums of the gradients and of their squares, and `images`."""
        gradients = to_float64(gradients)
        return {
            "total": gradients.sum(dim=0).cpu(),
            "squares": gradients.square().sum(dim=0).cpu(),
            "images": torch.tensor(len(gradients)),
        }

    def score_layer(self, sums: dict[str, Tensor]) -> LayerScore:
        """Return the importance of each unit."""
        # Both are kept as sums, so that batches of any size add up to the same.
        per_image = sums["squares"] / sums["images"]
        total = (sums["total"] / sums["images"]).square()
        importance = total if self.square == "total" else per_image
        return LayerScore(importance, {"taylor_importance": importance})
