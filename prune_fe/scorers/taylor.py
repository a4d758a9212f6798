"""First-order Taylor importance (Molchanov et al. 2019, "Importance Estimation for Neural Network Pruning")."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, get_args

import torch
from torch import Tensor

from prune_fe.errors import InputError
from prune_fe.scorers.base import GradientScorer, LayerScore, Rows, Sums, check_choice, check_count, to_float64
from prune_fe.tracing.layers import Layer

Square = Literal["total", "image", "batch"]
BATCH = 32
"""How many images are a batch of `square: batch` by default."""
MAX_IMAGES = 10_000
"""At most this many images have a row of gradients each, as `square: batch` needs them."""


@dataclass(frozen=True)
class Taylor(GradientScorer):
    """Taylor importance: the score is (∂E/∂z)², E the mean cross-entropy and z = 1 a factor on the unit's map (eq. 8).

    Of a linear layer on tokens, z multiplies the unit's value at every token; of a layer that runs several times, its
    output in every run.

    How many images go through the network together makes no difference.

    Attributes:
        square: "total" squares the gradient of E over all images, as in the paper. "image" squares the gradient of each
            image's own loss and takes the mean over the images, which does not vanish on a converged network. "batch"
            squares the gradient of the mean loss of `batch` images and takes the mean over these batches, as the
            authors' program does while it trains. The size of the batches is then part of the result: 1 is "image", and
            all images "total". So is the order of the images, and with it the number of processes. A row of gradients
            is kept for each image, of at most 10,000.
        batch: For "batch", how many images are a batch; the last one may have fewer. It is not the number of images
            that go through the network together.
        shuffle: For "batch", put the images in a random order, the same one in each run, as training does. Otherwise
            they stay in the order in which they are read: sampled images come class by class.
    """

    square: Square = "total"
    batch: int = BATCH
    shuffle: bool = True
    later_settings: ClassVar[Mapping[str, Any]] = {"batch": BATCH, "shuffle": True}

    def __post_init__(self) -> None:
        check_choice("taylor", "square", self.square, get_args(Square))
        check_count("taylor", "batch", self.batch, least=1)
        if type(self.shuffle) is not bool:
            raise InputError(f"taylor: shuffle is {self.shuffle!r}, allowed are true and false")
        if self.square != "batch" and (self.batch != BATCH or not self.shuffle):
            raise InputError(
                f"taylor: batch and shuffle are of square: batch; leave them out for square: {self.square}"
            )

    def check(self, layers: Sequence[Layer], images: int = 0, labels: Collection[int] = ()) -> None:
        """Raise InputError if there are more images than `square: batch` can keep gradients of."""
        if self.square == "batch" and images > MAX_IMAGES:
            raise InputError(
                f"taylor: square: batch keeps a row for each image, at most {MAX_IMAGES}, and there are {images}; "
                "score on fewer samples"
            )

    def measure_gradients(self, gradients: Tensor) -> Sums:
        """Return what one batch adds to the sums.

        Returns:
            `total` and `squares` (units,), the sums of the gradients and of their squares, and `images`; for `square:
            batch` the `gradients` themselves, a row for each image, as the batches of the sums are not those meant.
        """
        if self.square == "batch":
            return {"gradients": Rows(gradients.detach().cpu(), MAX_IMAGES)}
        gradients = to_float64(gradients)
        return {
            "total": gradients.sum(dim=0).cpu(),
            "squares": gradients.square().sum(dim=0).cpu(),
            "images": torch.tensor(len(gradients)),
        }

    def score_layer(self, sums: dict[str, Any]) -> LayerScore:
        """Return the importance of each unit."""
        if self.square == "batch":
            importance = self._mean_over_batches(sums["gradients"].values)
        elif self.square == "total":
            importance = (sums["total"] / sums["images"]).square()
        else:
            importance = sums["squares"] / sums["images"]
        return LayerScore(importance, {"taylor_importance": importance})

    def _mean_over_batches(self, gradients: Tensor) -> Tensor:
        """Return the mean over the batches of the squared mean gradient, (units,) float64.

        Args:
            gradients: (images, units).
        """
        if self.shuffle:
            gradients = gradients[torch.randperm(len(gradients), generator=torch.Generator().manual_seed(0))]
        squares = [part.double().mean(dim=0).square() for part in gradients.split(self.batch)]
        return torch.stack(squares).mean(dim=0)
