"""Measure accuracy, balanced accuracy and loss of a network in one pass over the images."""

from __future__ import annotations

from collections.abc import Callable, Sequence
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

BINS = 15
"""Intervals of the confidence for the expected calibration error, as in Guo et al. 2017."""


@dataclass(frozen=True)
class Evaluation:
    """The predictions of a network for some images.

    Attributes:
        confusion: Numbers of images, shape (classes, classes), int64; rows are true classes, columns predicted ones.
        loss: Mean cross-entropy of an image in nats.
        correct: Whether each image is classified correctly, in the order of the data, shape (images,), bool.
        in_top_5: Number of images whose class is among the five with the largest logits; None where it was not counted.
        calibration: For each of `BINS` equal intervals of the confidence (the largest probability of an image): the
            number of images, the sum of their confidences, and how many of them are classified correctly, shape
            (bins, 3), float64; None where it was not counted.
    """

    confusion: Tensor
    loss: float
    correct: Tensor
    in_top_5: int | None = None
    calibration: Tensor | None = None

    @property
    def images(self) -> int:
        """Number of images."""
        return int(self.confusion.sum())

    @property
    def accuracy(self) -> float:
        """Share of images that are classified correctly."""
        return int(self.confusion.diagonal().sum()) / self.images

    @property
    def top_5_accuracy(self) -> float | None:
        """Share of images whose class is among the five with the largest logits; None where it was not counted."""
        return None if self.in_top_5 is None else self.in_top_5 / self.images

    @property
    def calibration_error(self) -> float | None:
        """Expected calibration error: the mean distance of confidence and accuracy over the bins (Guo et al. 2017).

        None where it was not counted.
        """
        if self.calibration is None:
            return None
        images, confidence, correct = self.calibration.T
        return float((confidence - correct).abs().sum() / images.sum())

    def by_class(self, names: Sequence[str] = ()) -> list[dict[str, Any]]:
        """Return a row for each class: its images, its recall and precision, and the class it is most confused with.

        Args:
            names: The name of each class; by default its number.
        """
        rows: list[dict[str, Any]] = []
        called = self.confusion.sum(dim=0)
        for label, row in enumerate(self.confusion):
            images, right = int(row.sum()), int(row[label])
            wrong = row.clone()
            wrong[label] = 0
            other = int(wrong.argmax())
            rows.append(
                {
                    "class": names[label] if names else str(label),
                    "images": images,
                    "correct": right,
                    "recall": right / images if images else None,
                    "precision": right / int(called[label]) if called[label] else None,
                    "confused_with": (names[other] if names else str(other)) if wrong[other] else None,
                    "confused": int(wrong[other]),
                }
            )
        return rows

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
    loss, n_images, in_top_5 = 0.0, 0, 0
    calibration = torch.zeros(BINS, 3, dtype=torch.float64)
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
            in_top_5 += int((values.topk(min(5, classes), dim=1).indices == labels[:, None]).sum())
            calibration += _calibration(values, correct[-1])
            # Row times the number of columns plus column: one bincount fills the matrix.
            confusion += torch.bincount(labels * classes + predicted, minlength=classes**2).view_as(confusion)
            n_images += len(labels)
            if progress is not None:
                progress(n_images, count_images(batches))
    if n_images == 0:
        raise DataError("no images to evaluate on")
    return _merge(all_gather((confusion, loss, torch.cat(correct), in_top_5, calibration)))


def _calibration(logits: Tensor, correct: Tensor) -> Tensor:
    """Return what a batch adds to `Evaluation.calibration`, (bins, 3)."""
    confidence = logits.softmax(dim=1).amax(dim=1)
    bins = (confidence * BINS).long().clamp(max=BINS - 1)
    values = torch.stack([torch.ones_like(confidence), confidence, correct.double()], dim=1)
    return torch.zeros(BINS, 3, dtype=torch.float64).index_add_(0, bins, values)


def _merge(shares: list[tuple[Tensor, float, Tensor, int, Tensor]]) -> Evaluation:
    """Return the evaluation of all images from what each process has counted of its share."""
    confusions, losses, corrects, in_top_5, calibrations = zip(*shares, strict=True)
    merged = torch.zeros(sum(map(len, corrects)), dtype=torch.bool)
    # Process r has read images r, r + n, …; this puts them back in the order of the data.
    for process, correct in enumerate(corrects):
        merged[process :: len(shares)] = correct
    return Evaluation(
        torch.stack(confusions).sum(dim=0),
        sum(losses) / len(merged),
        merged,
        sum(in_top_5),
        torch.stack(calibrations).sum(dim=0),
    )


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
