"""The batches of training: which images each process takes in a step, and how many the step has in all."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence, Sized
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, distributed
from torch.utils.data import Dataset, DistributedSampler, Sampler, default_collate

from prune_fe.data.batches import is_whole, iterate, make_loader
from prune_fe.distributed import all_gather, rank, world_size
from prune_fe.errors import DataError, InputError
from prune_fe.tracing.nested import Inputs, describe, leaves, take_rows, tensors_in
from prune_fe.tracing.weights import find_layout_fault

SEED_STRIDE = 100_003
"""Distance between the random seeds of the epochs of two neighbouring seeds: more than there are epochs."""


@dataclass(frozen=True)
class Share:
    """A process's share of the images of a step.

    Attributes:
        images: What the network reads, with a row for each image.
        labels: (images,) whole numbers, or other labels for a loss of the user's.
        kept: The teacher's logits of the images, or None.
        n_own: How many images count: all, or none where the step has fewer images than there are processes. Then one
            image stands in, because every process has to take part in a step.
        n_all: Images of the step, over all processes.
        rows: Which of them these are; None where that is not known.
    """

    images: Inputs
    labels: Tensor
    kept: Tensor | None
    n_own: int
    n_all: int
    rows: Sequence[int] | None = None


class EpochOrder(Sampler[list[int]]):
    """This process's share of every batch of an epoch, as indices of images.

    The order of all images is a permutation that depends on seed and epoch alone. A batch is what one process would
    take, and process r of n takes every n-th image of it from the r-th on.

    Args:
        n_images: Number of images.
        batch_size: Images of a step, over all processes.
        seed: Seed of the order.
        smallest: A last batch of fewer images is left out, if there are others.
    """

    def __init__(self, n_images: int, batch_size: int, seed: int, smallest: int = 1) -> None:
        self.n_images, self.batch_size, self.seed, self.epoch = n_images, batch_size, seed, 0
        n_last = n_images % batch_size
        self.n_batches = math.ceil(n_images / batch_size)
        if 0 < n_last < smallest and self.n_batches > 1:
            self.n_batches -= 1

    def __len__(self) -> int:
        return self.n_batches

    def rows(self, number: int) -> tuple[int, int, Sequence[int]]:
        """Return how many images of a batch count in this process, how many the batch has, and which this one takes."""
        n_all = min(self.batch_size, self.n_images - number * self.batch_size)
        own = range(rank(), n_all, world_size())
        return len(own), n_all, own or [rank() % n_all]

    def __iter__(self) -> Iterator[list[int]]:
        generator = torch.Generator().manual_seed(self.seed * SEED_STRIDE + self.epoch)
        indices = torch.randperm(self.n_images, generator=generator).tolist()
        for number in range(self.n_batches):
            yield [indices[number * self.batch_size + row] for row in self.rows(number)[2]]


class DatasetBatches:
    """The batches of a map-style data set.

    Args:
        images: The data set of (image or features, label), or of these and the teacher's logits.
        order: The order of the images.
        workers: Processes that read images.
    """

    def __init__(self, images: Dataset[Any], order: EpochOrder, workers: int = 0) -> None:
        self.order, self.loader = order, make_loader(images, 1, workers, batch_sampler=order)

    def __len__(self) -> int:
        return len(self.order)

    def begin(self, epoch: int) -> None:
        """Choose the order of an epoch."""
        self.order.epoch = epoch

    def shares(self, device: torch.device) -> Iterator[Share]:
        """Yield this process's share of each batch; images in memory are normalised on the device."""
        for number, batch in enumerate(self.loader.on(device)):
            images, labels, kept = require_batch(batch)
            yield Share(images, labels, kept, *self.order.rows(number))


class ReadyBatches:
    """The batches of a DataLoader of the user's, or of a list; with several processes it gives each one its own.

    Args:
        batches: The batches, which have a length and can be read more than once.
    """

    def __init__(self, batches: Iterable[Any]) -> None:
        self.batches = batches
        if not isinstance(batches, Sized):
            raise InputError(
                f"{type(batches).__name__} has no length, which the schedule of the learning rate needs; a DataLoader "
                "of a stream gets one from a class with __len__, or from webdataset's with_length"
            )
        if len(batches) == 0:
            raise DataError("no images to train on")
        if world_size() > 1:
            self._check_processes(len(batches))

    def _check_processes(self, length: int) -> None:
        if not isinstance(getattr(self.batches, "sampler", None), DistributedSampler):
            raise InputError(
                "with several processes a DataLoader needs a torch.utils.data.DistributedSampler, so that each process "
                "reads its own images; or pass the data set"
            )
        if len(set(lengths := all_gather(length))) > 1:
            raise InputError(f"the DataLoaders of the processes have {lengths} batches; they need equally many")

    def __len__(self) -> int:
        return len(self.batches)  # type: ignore[arg-type]

    def begin(self, epoch: int) -> None:
        """Tell the loader's sampler the epoch, as DistributedSampler wants it."""
        if callable(set_epoch := getattr(getattr(self.batches, "sampler", None), "set_epoch", None)):
            set_epoch(epoch)

    def shares(self, device: torch.device) -> Iterator[Share]:
        """Yield each batch."""
        for batch in iterate(self.batches, device):
            images, labels, kept = require_batch(batch)
            yield Share(images, labels, kept, len(labels), _count_in_all(len(labels), device))


def _count_in_all(count: int, device: torch.device) -> int:
    """Return the sum of a number over the processes."""
    if world_size() == 1:
        return count
    total = torch.tensor(count, device=device)
    distributed.all_reduce(total)
    return int(total)


Batches = DatasetBatches | ReadyBatches


def require_batch(batch: Any) -> tuple[Inputs, Tensor, Tensor | None]:
    """Return the images and labels of a batch and the teacher's logits, after checking what it is made of.

    Raises:
        InputError: It is something else.
    """
    parts = list(batch) if isinstance(batch, tuple | list) else []
    images_by_key = dict(leaves(parts[0])) if parts else {}
    if (
        len(parts) not in (2, 3)
        or not images_by_key
        or not all(isinstance(part, Tensor) for part in (*images_by_key.values(), *parts[1:]))
    ):
        raise InputError(
            f"training images come with labels, as (image, label); a batch is a {type(batch).__name__}; "
            "unpack=FUNCTION takes both out of it, such as unpack=lambda batch: (batch['image'], batch['label'])"
        )
    images, labels = parts[:2]
    if fault := next((fault for tensor in tensors_in(images) if (fault := find_layout_fault(tensor))), None):
        raise InputError(f"a batch of training images {fault}")
    if labels.ndim != 1 or not is_whole(labels):
        raise InputError(f"the labels are {labels.dtype} {tuple(labels.shape)}; an image has one whole number")
    if {len(tensor) if tensor.ndim else 0 for tensor in tensors_in(images)} != {len(labels)}:
        raise InputError(f"a batch has {len(labels)} labels for images {describe(images)}")
    return images, labels, parts[2] if len(parts) == 3 else None


def first_image(train: Any) -> Inputs:
    """Return one training image as a batch, without changing the random numbers of the caller.

    Args:
        train: The training images: a data set or batches.
    """
    with torch.random.fork_rng(devices=[]):
        if is_ready(train):
            inputs: Inputs = take_rows(require_batch(next(iterate(train)))[0], 1)
            return inputs
        return default_collate([train[0][0]])


class UnpackedSamples(Dataset[Any]):
    """A data set whose samples a function of the user's turns into (image, label).

    Args:
        data: The map-style data set.
        unpack: The function.
    """

    def __init__(self, data: Dataset[Any], unpack: Callable[[Any], Any]) -> None:
        self.dataset, self.unpack = data, unpack

    def __len__(self) -> int:
        return len(self.dataset)  # type: ignore[arg-type]

    def __getitem__(self, index: int) -> Any:
        return _unpack(self.unpack, self.dataset[index])


class UnpackedBatches:
    """Batches that a function of the user's turns into (images, labels).

    Args:
        batches: The batches.
        unpack: The function.
    """

    def __init__(self, batches: Iterable[Any], unpack: Callable[[Any], Any]) -> None:
        self.batches, self.unpack = batches, unpack
        self.sampler = getattr(batches, "sampler", None)

    def __len__(self) -> int:
        return len(self.batches)  # type: ignore[arg-type]

    def __iter__(self) -> Iterator[Any]:
        return (_unpack(self.unpack, batch) for batch in iterate(self.batches))


def unpacked(data: Any, unpack: Callable[[Any], Any] | None) -> Any:
    """Return a data set or batches of (images, labels), which `unpack` takes out of each sample or batch."""
    if unpack is None:
        return data
    return UnpackedBatches(data, unpack) if is_ready(data, unpack) else UnpackedSamples(data, unpack)


def _unpack(unpack: Callable[[Any], Any], value: Any) -> tuple[Any, Any]:
    try:
        images, labels = unpack(value)
    except Exception as error:  # a function of the user's
        raise InputError(f"unpack= fails on a {type(value).__name__}: {error!r}") from error
    return images, labels


def is_ready(data: Any, unpack: Callable[[Any], Any] | None = None) -> bool:
    """Return whether something is batches: a DataLoader, or a list whose entries have several labels each.

    Args:
        data: A data set or batches.
        unpack: Takes (images, labels) out of an entry.
    """
    if isinstance(data, list | tuple):
        entry: Any = data[0] if data else ()
        entry = entry if unpack is None else _unpack(unpack, entry)
        return len(entry) == 2 and isinstance(entry[1], Tensor) and entry[1].ndim == 1
    is_data_set = isinstance(data, Dataset) or hasattr(data, "__getitem__")
    return isinstance(data, Iterable) and not is_data_set and not isinstance(data, Iterator)


def count_images(train: Any, batch_size: int) -> int:
    """Return the number of images of a map-style data set; raise an error if they cannot be batched like this.

    Raises:
        InputError: It is no such data set, or there are more processes than images of a step.
        DataError: There are no images.
    """
    if not isinstance(train, Sized) or not hasattr(train, "__getitem__"):
        raise InputError(
            f"training images come as a map-style data set or a DataLoader, not as a {type(train).__name__}"
        )
    if len(train) == 0:
        raise DataError("no images to train on")
    if batch_size < world_size():
        raise InputError(f"batch_size={batch_size} cannot be shared by {world_size()} processes")
    return len(train)
