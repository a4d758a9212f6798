"""Let a network learn from a teacher: from its class probabilities beside the labels (Hinton et al. 2015)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import Dataset

from prune_fe.data.batches import validate_batches
from prune_fe.data.sampling import select_batches
from prune_fe.distributed import all_gather, rank, world_size
from prune_fe.errors import InputError
from prune_fe.measure.evaluate import float64_logits
from prune_fe.tracing.nested import Inputs, move, run
from prune_fe.tracing.watching import evaluating
from prune_fe.training.options import DistillOptions

BATCH_SIZE = 64
"""Images that the teacher reads at once."""


Criterion = Callable[[Tensor, Tensor], Tensor]
"""Function from logits (images, classes) and labels to the mean loss of an image."""


def distillation_loss(
    logits: Tensor,
    labels: Tensor,
    teacher: Tensor,
    options: DistillOptions,
    criterion: Criterion = F.cross_entropy,
) -> Tensor:
    """Return the mean loss of an image, in nats.

    It is (1 - w) cross-entropy + w T² KL(p || q) with the weight w and the temperature T of the options, the class
    probabilities p = softmax(teacher / T) and q = softmax(logits / T). The factor T² keeps the size of the gradients,
    which the temperature divides by T² (Hinton et al. 2015, section 2).

    Args:
        logits: Outputs of the network that learns, (images, classes).
        labels: (images,) int64.
        teacher: Outputs of the teacher for the same images, (images, classes).
        options: Weight and temperature.
        criterion: The loss by the labels, in place of the cross-entropy.
    """
    temperature = options.temperature
    own, other = ((values / temperature).log_softmax(dim=1) for values in (logits, teacher))
    divergence = F.kl_div(own, other, reduction="batchmean", log_target=True)
    return (1 - options.weight) * criterion(logits, labels) + options.weight * temperature**2 * divergence


def teacher_logits(
    teacher: nn.Module,
    images: Dataset[Any],
    *,
    workers: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> Tensor:
    """Run a teacher in evaluation mode over images, and return its logits in the order of the images.

    In a group of processes each one reads its share of the images, and all return the logits of all images.

    Args:
        teacher: The network.
        images: Map-style data set of (image, label).
        workers: Processes that read images.
        progress: Called after each batch with (batches done, batches in all) of this process.

    Returns:
        (images, classes) float32, on the CPU.

    Raises:
        InputError: The teacher returns something else than (images, classes), or values that are not finite.
    """
    device, parts, n_read = next(teacher.parameters()).device, list[Tensor](), 0
    # A loader draws a number, and the random numbers of the caller are not changed.
    with evaluating(teacher), torch.no_grad(), torch.random.fork_rng(devices=[]):
        batches = select_batches(images, batch_size=BATCH_SIZE, workers=workers)
        for number, (pixels, labels) in enumerate(validate_batches(batches), 1):
            indices = range(rank() + n_read * world_size(), len(images), world_size())  # type: ignore[arg-type]
            output = teacher(pixels.to(device, non_blocking=True))
            parts.append(float64_logits(output, labels, indices[: len(labels)]).float())
            n_read += len(labels)
            if progress is not None:
                progress(number, len(batches))  # type: ignore[arg-type]
    shares = all_gather(torch.cat(parts))
    merged = torch.empty(sum(map(len, shares)), shares[0].shape[1])
    # Process r has read images r, r + n, …; this puts them back in the order of the data.
    for process, logits in enumerate(shares):
        merged[process :: len(shares)] = logits
    return merged


class WithLogits(Dataset[Any]):
    """A data set of (image or features, label, the teacher's logits).

    Args:
        images: Map-style data set of (image or features, label).
        logits: (images, classes).
    """

    def __init__(self, images: Dataset[Any], logits: Tensor) -> None:
        self.images, self.logits = images, logits

    def __len__(self) -> int:
        return len(self.logits)

    def __getitem__(self, index: int) -> tuple[Any, Any, Tensor]:
        image, label = self.images[index]
        return image, label, self.logits[index]


@dataclass(frozen=True)
class Teaching:
    """What a network learns from beside the labels.

    Attributes:
        options: Weight and temperature.
        network: The teacher, where it runs on every batch because the images change from epoch to epoch.
        logits: Otherwise its logits of the training images, (images, classes).
    """

    options: DistillOptions
    network: nn.Module | None
    logits: Tensor | None

    def wrap(self, images: Dataset[Any]) -> Dataset[Any]:
        """Return the training images (or features) together with the teacher's logits, where these are kept."""
        return images if self.logits is None else WithLogits(images, self.logits)

    def loss(self, logits: Tensor, labels: Tensor, images: Inputs, kept: Tensor | None, criterion: Criterion) -> Tensor:
        """Return the mean loss of an image.

        Args:
            logits: Outputs of the network, (images, classes).
            labels: (images,), or the classes' shares (images, classes).
            images: What the network read.
            kept: The teacher's logits that came with the batch.
            criterion: The loss by the labels.
        """
        if kept is None:
            assert self.network is not None
            with torch.no_grad(), evaluating(self.network):
                kept = _logits(self.network, images)
        return distillation_loss(logits, labels, kept.to(logits.device), self.options, criterion)


def make_teaching(
    model: nn.Module,
    teacher: nn.Module | Tensor,
    train: Dataset[Any],
    options: DistillOptions,
    *,
    image: Inputs,
    changes: bool,
    compute: Callable[[nn.Module], Tensor],
) -> Teaching:
    """Check a teacher, and compute its logits once where the images are the same in each epoch.

    Args:
        model: The network that learns.
        teacher: A network, or its logits of the training images in their order, (images, classes).
        train: The training images: a data set, or batches if the images change.
        options: Weight and temperature.
        image: One training image, as a batch.
        changes: Whether the images differ from epoch to epoch.
        compute: Function from the teacher to its logits of all training images.

    Raises:
        InputError: The teacher is the network itself, it has another number of outputs, or its logits do not fit the
            images.
    """
    if teacher is model:
        raise InputError("teacher is the network that is trained; give a copy of it, copy.deepcopy(model)")
    if isinstance(teacher, Tensor) and changes:
        raise InputError(
            "teacher is a tensor of logits, but the images change from epoch to epoch; give the teacher itself"
        )
    if isinstance(teacher, Tensor) and (teacher.ndim != 2 or len(teacher) != len(train)):  # type: ignore[arg-type]
        n_images = len(train)  # type: ignore[arg-type]
        raise InputError(f"teacher has logits of shape {tuple(teacher.shape)}, there are {n_images} training images")
    outputs, others = count_outputs(model, image), count_outputs(teacher, image)
    if outputs != others:
        raise InputError(f"the teacher has {others} outputs, the network {outputs}; both need the same classes")
    if isinstance(teacher, Tensor):
        return Teaching(options, None, teacher.float())
    return Teaching(options, teacher, None) if changes else Teaching(options, None, compute(teacher))


def count_outputs(network: nn.Module | Tensor, inputs: Inputs) -> int:
    """Return the number of outputs of a classifier, or of the logits that stand for it.

    Args:
        network: The classifier.
        inputs: One image, as a batch.

    Raises:
        InputError: It returns something else than (images, classes).
    """
    if isinstance(network, Tensor):
        return network.shape[1]
    with evaluating(network), torch.no_grad():
        output = _logits(network, inputs)
    if not isinstance(output, Tensor) or output.ndim != 2:
        raise InputError(f"{type(network).__name__} does not return (images, classes), as a classifier does")
    return output.shape[1]


def _logits(network: nn.Module, inputs: Inputs) -> Tensor:
    output: Tensor = run(network, move(inputs, next(network.parameters()).device))
    return output
