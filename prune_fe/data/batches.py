"""Batches of images and labels.

The images of a batch are what a network is called with: one tensor, a tuple or dict of tensors with a row for each
image, or a list of images, as detectors read them.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Sized
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_collate

from prune_fe.data.datasets import PixelBatch
from prune_fe.data.random_crops import find_crops
from prune_fe.data.reading import NamedSamples, read_batches
from prune_fe.data.splits import Splits
from prune_fe.distributed import all_gather
from prune_fe.errors import DataError, InputError, first_line
from prune_fe.options import BatchSize, Workers, validate_value
from prune_fe.tracing.nested import Inputs, describe, leaves, take_rows, tensors_in
from prune_fe.tracing.weights import find_layout_fault

Batch = tuple[Any, Tensor]
Batches = Iterable[Batch]
"""(images (n, channels, height, width) float or other `Inputs` of a network, labels (n,) int64), readable more than
once."""

Images = Dataset[Any] | Batches
"""The type of arguments that hold images: a map-style data set of (image, label), or batches."""


def make_loader(data: Dataset[Any], batch_size: int, workers: int = 0, **options: Any) -> Loader:
    """Return a DataLoader of `data`.

    Args:
        data: A map-style data set of (image, label).
        batch_size: Images a batch, at least 1.
        workers: Processes that read images; 0 reads them in this one.
        options: More keywords of `torch.utils.data.DataLoader`.

    Raises:
        InputError: `batch_size` or `workers` is of a wrong type or out of range.
    """
    batch_size, workers = check_reading(batch_size, workers)
    return Loader(
        NamedSamples(data, workers),
        batch_size,
        collate_fn=_collate,
        num_workers=workers,
        # Workers are spawned: the threads of numba and OpenMP do not survive a fork.
        multiprocessing_context="spawn" if workers else None,
        persistent_workers=workers > 0,
        pin_memory=torch.cuda.is_available(),
        **options,
    )


def check_reading(batch_size: int, workers: int) -> tuple[int, int]:
    """Return how many images a batch has and how many processes read, after checking both.

    Raises:
        InputError: One is of a wrong type or out of range.
    """
    return validate_value(BatchSize, batch_size, "batch_size"), validate_value(Workers, workers, "workers")


class Loader(DataLoader[Any]):
    """A DataLoader that normalises images in memory batch by batch instead of one by one."""

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        """Yield (images, labels) on the CPU."""
        return self.on(None)

    def on(self, device: torch.device | None) -> Iterator[Any]:
        """Yield (images, labels) with the images of a `PixelBatch` on a device, where they are normalised."""
        order: Any = self.sampler if self.batch_sampler is None else self.batch_sampler
        epoch = getattr(order, "epoch", getattr(self.sampler, "epoch", None))
        if epoch is not None and (crops := find_crops(self.dataset)) is not None:
            crops.set_epoch(epoch)
        for batch in read_batches(super().__iter__, self.dataset):
            yield (batch.to_images(device), batch.labels) if isinstance(batch, PixelBatch) else batch


def iterate(batches: Iterable[Any], device: torch.device | None = None) -> Iterator[Any]:
    """Return an iterator over batches; those of a DataLoader come with the errors of `read_batches`.

    Args:
        batches: The batches.
        device: Where images in memory are normalised; other images stay where they are.
    """
    if isinstance(batches, Loader):
        return batches.on(device)
    if isinstance(batches, DataLoader):
        return read_batches(batches.__iter__, batches.dataset)
    return iter(batches)


def _collate(samples: Any) -> Any:
    """Return a `PixelBatch` as it is, and collate anything else as a DataLoader does."""
    if isinstance(samples, PixelBatch):
        return samples
    try:
        batch = default_collate(samples)
    except (RuntimeError, TypeError, ValueError, KeyError) as error:
        sizes = sorted({describe(sample[0]) for sample in samples if isinstance(sample, tuple | list)})
        if len(sizes) > 1:
            raise DataError(
                f"images of different sizes do not go together in one batch: {sizes[0]} and {sizes[1]}; resize or crop "
                "them to one size"
            ) from error
        raise DataError(f"images that do not go together in one batch: {first_line(error)}") from error
    # default_collate turns a tuple of inputs into a list, which would be a single argument.
    if isinstance(samples[0], tuple) and isinstance(samples[0][0], tuple) and type(batch[0]) is list:
        batch[0] = tuple(batch[0])
    return batch


def validate_batches(batches: Batches, device: torch.device | None = None) -> Iterator[Batch]:
    """Yield the batches that hold an image, with their labels as int64 on the CPU.

    Args:
        batches: The batches.
        device: Where images in memory are normalised; a GPU does that sooner. Other images stay where they are.

    Raises:
        InputError: A batch is not (images, labels); the message says what it is.
    """
    if isinstance(batches, Splits):
        raise InputError("data is Splits: pass its .train, .validation or .test")
    if not isinstance(batches, Iterable) or isinstance(batches, str | bytes | Tensor):
        raise InputError(f"data is a {type(batches).__name__}; it must be a data set or batches of (images, labels)")
    for number, batch in enumerate(iterate(batches, device)):
        images, labels = _require_pair(batch, number)
        if labels.ndim != 1 or not _has_images(images, len(labels)) or not is_whole(labels):
            shapes = f"images {describe(images)} and labels {tuple(labels.shape)} of {labels.dtype}"
            raise InputError(f"data: batch {number} holds {shapes}; every image needs one whole number as its label")
        if len(labels):
            yield images, labels.cpu().long()


def _require_pair(batch: Any, number: int) -> tuple[Inputs, Tensor]:
    """Return the images and the labels of a batch, after checking that they consist of dense tensors."""
    pair = list(batch) if isinstance(batch, tuple | list) else []
    parts = dict(leaves(pair[0])) if len(pair) == 2 else {}
    if not parts or not all(isinstance(part, Tensor) for part in (*parts.values(), pair[1])):
        raise InputError(
            f"data: batch {number} is {_describe_batch(batch)}; it must be two tensors, images and labels, or several "
            "tensors of images in a tuple, list or dict"
        )
    for part in (*parts.values(), pair[1]):
        if fault := find_layout_fault(part):
            raise InputError(f"data: batch {number} {fault}")
    images, labels = pair
    # A DataLoader turns a tuple of inputs into a list. A list of images, as for a detector, has one for each label.
    if isinstance(images, list) and labels.ndim == 1 and len(images) != len(labels):
        images = tuple(images)
    return images, labels


def _describe_batch(batch: Any) -> str:
    """Return the type of a batch, for messages, and of its entries if it is a tuple or list of at most four."""
    entries = [type(entry).__name__ for entry in batch] if isinstance(batch, tuple | list) else []
    return f"a {type(batch).__name__}" + (f" ({', '.join(entries)})" if 0 < len(entries) <= 4 else "")


def _has_images(images: Inputs, count: int) -> bool:
    """Return whether the inputs of a network hold this number of images."""
    if isinstance(images, Tensor) and images.ndim < 2:
        return False
    return {len(tensor) if tensor.ndim else -1 for tensor in tensors_in(images)} == {count} or (
        isinstance(images, list) and len(images) == count
    )


def is_whole(labels: Tensor) -> bool:
    """Return whether a tensor's type is one of whole numbers."""
    return not (labels.is_floating_point() or labels.is_complex())


def check_labels(labels: Tensor, outputs: int) -> None:
    """Check that a network has an output for each label of a batch.

    Args:
        labels: The labels, int64 on the CPU.
        outputs: Number of the network's outputs.

    Raises:
        DataError: A label has none.
    """
    if wrong := [label for label in labels.tolist() if not 0 <= label < outputs]:
        raise DataError(f"label {wrong[0]}: the model has {outputs} classes; allowed: 0 to {outputs - 1}")


def hash_batches(batches: Batches) -> str:
    """Return the SHA-256 of all images and labels, in their order; it does not depend on the size of the batches."""
    digests: dict[str, Any] = {}
    for images, labels in validate_batches(batches):
        for path, tensor in [*leaves(images), ("labels", labels)]:
            digest = digests.setdefault(path, hashlib.sha256(f"{path} {tensor.dtype} {tensor.shape[1:]}".encode()))
            digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    own = {path: digest.hexdigest() for path, digest in digests.items()}
    every = json.dumps(all_gather(own), sort_keys=True)  # each process reads its share of the images
    return hashlib.sha256(every.encode()).hexdigest()


def count_images(batches: Batches) -> int:
    """Return the number of images in the data set behind a DataLoader; 0 for batches without a data set."""
    data = getattr(batches, "dataset", None)
    return len(data) if isinstance(data, Sized) else 0


def first_image(batches: Batches) -> Any:
    """Return the first image, as a batch of one: (1, channels, height, width), or other inputs of a network.

    Raises:
        DataError: There is no image.
    """
    for images, _ in validate_batches(batches):
        return take_rows(images, 1)
    raise DataError("no images: the data is empty")
