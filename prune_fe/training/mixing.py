"""Mix the images of a batch, and their labels: mixup and CutMix."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from prune_fe.training.options import TrainOptions

Mixing = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""Function from images (images, channels, height, width) and labels (images,) to mixed images and the shares of the
classes in each, (images, classes)."""


def make_mixing(options: TrainOptions, n_classes: int) -> Mixing | None:
    """Return torchvision's MixUp, its CutMix, or for each batch one of both; None for options without.

    They draw from torch's global random numbers, in each process its own.

    Args:
        options: The parameters of the beta distributions.
        n_classes: Number of the network's outputs.
    """
    # torchvision's import takes a second.
    from torchvision.transforms import v2

    kinds = []
    if options.mixup:
        kinds.append(v2.MixUp(alpha=options.mixup, num_classes=n_classes))
    if options.cutmix:
        kinds.append(v2.CutMix(alpha=options.cutmix, num_classes=n_classes))
    if len(kinds) < 2:
        return kinds[0] if kinds else None
    return v2.RandomChoice(kinds)
