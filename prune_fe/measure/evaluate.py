"""Measure accuracy, balanced accuracy and loss of a network in one pass over the images."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from prune_fe.data.batches import Images, check_labels, count_images, validate_batches
from prune_fe.data.sampling import select_batches
from prune_fe.distributed import all_gather, rank, world_size
from prune_fe.errors import DataError, InputError
from prune_fe.tracing.nested import Logits, move, run, take_logits
from prune_fe.tracing.watching import evaluating, explain_run
from prune_fe.tracing.weights import require_network


@dataclass(frozen=True)
class Evaluation:
    """The predictions of a network for some images.

    Attributes:
        confusion: Numbers of images, shape (classes, classes), int64; rows are true classes, columns predicted ones.
        loss: Mean cross-entropy of an image in nats.
        correct: Whether each image is classified correctly, in the order of the data, shape (images,), bool.
    """

    confusion: Tensor
    loss: float
    correct: Tensor

    @property
    def images(self) -> int:
        """Number of images."""
        return int(self.confusion.sum())

    @property
    def accuracy(self) -> float:
        """Share of images that are classified correctly."""
        return int(self.confusion.diagonal().sum()) / self.images

    @property
    def balanced_accuracy(self) -> float:
        """Mean recall of the classes that have images, as scikit-learn defines it."""
        images = self.confusion.sum(dim=1)
        present = images > 0
        return float((self.confusion.diagonal()[present].double() / images[present]).mean())


def evaluate(
    model: nn.Module,
    data: Images,
    *,
    batch_size: int = 256,
    workers: int = 0,
    logits: Logits | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Evaluation:
    """Run a network in evaluation mode over images and compare its predictions with their labels.

    In a group of processes each one reads its share of the images, and all return the result of all images.

    Args:
        model: A classifier.
        data: A data set, a data loader or batches of images and labels. The images may be other inputs of the model: a
            tuple of positional arguments or a dict of keyword arguments.
        batch_size: Images of one forward pass.
        workers: Processes that read images.
        logits: Function that takes the logits (images, classes) out of what the model returns, such as
            `lambda out: out["logits"]`; None for a model that returns them.
        progress: Called after each batch with the numbers of images read and of all images (0 if unknown).

    Raises:
        InputError: The model returns something else than (images, classes), or values that are not finite.
        DataError: There are no images, or a label has no output.
    """
    require_network(model)
    device = next(model.parameters()).device
    confusion = torch.zeros(0, 0, dtype=torch.int64)
    loss, n_images = 0.0, 0
    correct: list[Tensor] = []
    batches = select_batches(data, batch_size=batch_size, workers=workers)
    with evaluating(model), torch.no_grad():
        for images, labels in validate_batches(batches, device):
            # Each process reads every world_size-th image.
            indices = range(
                rank() + n_images * world_size(), rank() + (n_images + len(labels)) * world_size(), world_size()
            )
            with explain_run(model, images):
                output = run(model, move(images, device))
            values = float64_logits(take_logits(output, logits), labels, indices)
            classes = values.shape[1]
            if n_images == 0:
                confusion = torch.zeros(classes, classes, dtype=torch.int64)
            predicted = values.argmax(dim=1)
            loss += float(cross_entropy(values, labels, reduction="sum"))
            correct.append(predicted == labels)
            # Row times the number of columns plus column: one bincount fills the matrix.
            confusion += torch.bincount(labels * classes + predicted, minlength=classes**2).view_as(confusion)
            n_images += len(labels)
            if progress is not None:
                progress(n_images, count_images(batches))
    if n_images == 0:
        raise DataError("no images to evaluate on")
    return _merge(all_gather((confusion, loss, torch.cat(correct))))


def _merge(shares: list[tuple[Tensor, float, Tensor]]) -> Evaluation:
    """Return the evaluation of all images from the confusion, summed loss and correctness of each process."""
    confusions, losses, corrects = zip(*shares, strict=True)
    merged = torch.zeros(sum(map(len, corrects)), dtype=torch.bool)
    # Process r has read images r, r + n, …; this puts them back in the order of the data.
    for process, correct in enumerate(corrects):
        merged[process :: len(shares)] = correct
    return Evaluation(torch.stack(confusions).sum(dim=0), sum(losses) / len(merged), merged)


def float64_logits(output: Any, labels: Tensor, indices: range) -> Tensor:
    """Return the output of a classifier as float64 on the CPU, after validating it.

    Args:
        output: What the classifier returned, one row for each label.
        labels: Labels, shape (rows,).
        indices: Index of each row's image in the data, for error messages; the indices repeat where the same images
            stand several times, as for several masks.

    Returns:
        Logits of shape (rows, classes).

    Raises:
        InputError: The output does not have the shape (rows, classes), or is not finite.
        DataError: A label has no output.
    """
    logits = take_logits(output, None).cpu().double()
    if not (finite := logits.isfinite().all(dim=1)).all():
        row = int((~finite).nonzero()[0, 0])
        index = indices[row % len(indices)]
        raise InputError(f"image {index} (of class {labels[row]}): the model's outputs hold NaN or infinite values")
    check_labels(labels, logits.shape[1])
    return logits
