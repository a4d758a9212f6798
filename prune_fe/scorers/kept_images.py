"""Keep the images of the pass over the data, for scorers that need the gradients of weights when it is finished.

The gradients of weights cannot be added up image by image like those of units: one image has as many as the network
has weights, and a square of a batch's gradient needs all images of the batch at once.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from prune_fe.errors import InputError
from prune_fe.scorers.base import Rows, Sums
from prune_fe.tracing.layers import Layer
from prune_fe.tracing.nested import Inputs, run, take_logits
from prune_fe.tracing.weights import all_finite


def network_input(example: Inputs, scorer: str) -> Layer:
    """Return the network itself as a layer whose input is read.

    Args:
        example: One input of the network.
        scorer: Name of the scorer, for the message.

    Raises:
        InputError: The network's input is not one tensor.
    """
    if not isinstance(example, Tensor):
        raise InputError(f"{scorer} keeps the images, which have to be one tensor; this network has other inputs")
    return Layer("", 0, (0, 0), at_input=True)


def keep_images(images: Tensor, labels: Tensor, rows: int) -> Sums:
    """Return the images of a batch and their labels as a measurement.

    Args:
        images: (images, channels, height, width).
        labels: The class of each image, (images,) int64.
        rows: The largest number of images of all batches.

    Raises:
        InputError: An image is not finite.
    """
    if not all_finite(images):
        raise InputError("the images hold NaN or infinite values")
    return {"images": Rows(images.cpu().clone(), rows), "labels": Rows(labels.cpu(), rows)}


def kept_images(sums: Sums) -> tuple[Tensor, Tensor]:
    """Return the images and the labels of a total of `keep_images`."""
    images, labels = sums["images"], sums["labels"]
    assert isinstance(images, Rows)
    assert isinstance(labels, Rows)
    return images.values, labels.values


def logits_of(model: nn.Module, images: Tensor, labels: Tensor, scorer: str) -> Tensor:
    """Return the logits of some images, (images, classes).

    Args:
        model: The network.
        images: (images, channels, height, width).
        labels: (images,) int64.
        scorer: Name of the scorer, for the message.

    Raises:
        InputError: The network does not return logits for every label.
    """
    logits = take_logits(run(model, images.to(next(model.parameters()).device)), None, f"{scorer} needs")
    if int(labels.max()) >= logits.shape[1]:
        raise InputError(f"{scorer}: the logits are {tuple(logits.shape)}, the largest label is {int(labels.max())}")
    return logits


def summed_loss(logits: Tensor, labels: Tensor, scorer: str) -> Tensor:
    """Return the sum of the images' cross-entropies.

    Args:
        logits: (images, classes).
        labels: (images,) int64.
        scorer: Name of the scorer, for the message.

    Raises:
        InputError: It is not finite.
    """
    loss = F.cross_entropy(logits, labels.to(logits.device), reduction="sum")
    if not loss.isfinite():
        raise InputError(f"{scorer}: the network's cross-entropy is NaN or infinite")
    return loss
