"""How good a network is: accuracy, balanced accuracy and loss from one pass over the images."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from prune_fe.data.batches import Images, count_images, validate_batches
from prune_fe.data.sampling import select_batches
from prune_fe.distributed import all_gather, rank, world_size
from prune_fe.errors import DataError, InputError
from prune_fe.tracing.feature_maps import evaluating


@dataclass(frozen=True)
class Evaluation:
    """confusion: (classes, classes) int64, rows = the true class, columns = the predicted one.

    correct: (images,) bool, whether each is told right, in the order of the data.
    """

    confusion: Tensor
    loss: float
    correct: Tensor

    @property
    def images(self) -> int:
        return int(self.confusion.sum())

    @property
    def accuracy(self) -> float:
        """Correct images / images."""
        return int(self.confusion.diagonal().sum()) / self.images

    @property
    def balanced_accuracy(self) -> float:
        """Mean recall over the classes that have images (scikit-learn's definition)."""
        images = self.confusion.sum(dim=1)
        present = images > 0
        return float((self.confusion.diagonal()[present].double() / images[present]).mean())


def evaluate(
    model: nn.Module,
    data: Images,
    *,
    batch_size: int = 256,
    workers: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> Evaluation:
    """Run `model` over `data` in evaluation mode. loss: mean cross-entropy an image, in nats.

    Raises InputError when the model's outputs are not finite, DataError when they are too few for the labels.
    """
    device = next(model.parameters()).device
    confusion, loss, done = torch.zeros(0, 0, dtype=torch.int64), 0.0, 0
    right: list[Tensor] = []
    batches = select_batches(data, batch_size=batch_size, workers=workers)
    with evaluating(model), torch.no_grad():
        for images, labels in validate_batches(batches):
            numbers = range(done * world_size() + rank(), (done + len(labels)) * world_size() + rank(), world_size())
            logits = class_logits(model(images.to(device, non_blocking=True)), labels, numbers)
            classes = logits.shape[1]
            if done == 0:
                confusion = torch.zeros(classes, classes, dtype=torch.int64)
            loss += float(torch.nn.functional.cross_entropy(logits, labels, reduction="sum"))
            said = logits.argmax(dim=1)
            right.append(said == labels)
            pairs = labels * classes + said
            confusion += torch.bincount(pairs, minlength=classes**2).view_as(confusion)
            done += len(labels)
            if progress is not None:
                progress(done, count_images(batches))
    if done == 0:
        raise DataError("no images to evaluate on")
    shares = all_gather((confusion, loss, torch.cat(right)))
    total = sum(len(share[2]) for share in shares)
    correct = torch.zeros(total, dtype=torch.bool)
    for process, share in enumerate(shares):  # each had every world_size-th image
        correct[process :: len(shares)] = share[2]
    return Evaluation(
        torch.stack([share[0] for share in shares]).sum(dim=0), sum(share[1] for share in shares) / total, correct
    )


def class_logits(output: Any, labels: Tensor, numbers: range) -> Tensor:
    """What a classifier returned for images of these labels, (images, classes) float64 on the CPU.

    numbers: those of the images, from 0 in the order in which they are read; once for each time that all stand here.

    InputError for what is no such output or is not finite, DataError for a label that it has no class for.
    """
    if not isinstance(output, Tensor) or output.ndim != 2:
        shape = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
        raise InputError(f"the model returns {shape}, a classifier returns (images, classes)")
    logits = output.cpu().double()
    if not (finite := logits.isfinite().all(dim=1)).all():
        row = int((~finite).nonzero()[0, 0])
        number = numbers[row % len(numbers)]
        raise InputError(f"image {number} (of class {labels[row]}): the model's outputs hold NaN or infinite values")
    classes = logits.shape[1]
    if odd := [label for label in labels.tolist() if not 0 <= label < classes]:
        raise DataError(f"label {odd[0]}: the model tells {classes} classes apart")
    return logits
