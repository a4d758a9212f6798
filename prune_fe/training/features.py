"""Keep the features in front of the trained part of a network, so that the fixed part runs once for each image."""

from __future__ import annotations

import dataclasses
import math
import os
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence, Sized
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from prune_fe.data.batches import Images, make_loader, validate_batches
from prune_fe.data.random_crops import find_crops
from prune_fe.distributed import world_size
from prune_fe.io import explain_disk_errors
from prune_fe.tracing.nested import tensors_in
from prune_fe.tracing.prefix import PrefixSplit, split_prefix
from prune_fe.tracing.split import NotSplit
from prune_fe.tracing.watching import evaluating
from prune_fe.training.batches import is_ready
from prune_fe.training.options import TrainOptions
from prune_fe.training.part import TrainedPart
from prune_fe.training.precision import autocast

BATCH_SIZE = 64
"""Images that the fixed part reads at once. A large batch of it needs more memory than one of the trained part."""

PROBES = 16
"""Number of images that are read twice to find out whether a data set changes its images at random."""


@dataclass(frozen=True)
class TrainingInput:
    """What the epochs of a training run: networks, and the data sets of images or kept features that they read.

    Attributes:
        network: The network that is trained, or the part of it that reads kept features.
        train: Map-style data set of (image or features, label).
        evaluated: The network for the validation images, or the part of it that reads their kept features.
        validation: Data set of (image or features, label).
        workers: Processes that read the data sets.
    """

    network: nn.Module
    train: Dataset[Any]
    evaluated: nn.Module
    validation: Images
    workers: int


class Features(Dataset[Any]):
    """Features of images, with the labels of these images.

    Args:
        rows: (images, features).
        labels: (images,) int64.
    """

    def __init__(self, rows: Tensor, labels: Tensor) -> None:
        self.rows, self.labels = rows, labels

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.rows[index], int(self.labels[index])


@contextmanager
def prepare_input(
    part: TrainedPart,
    train: Dataset[Any],
    validation: Images,
    options: TrainOptions,
    workers: int = 0,
    expect_steps: Callable[[int], Callable[[], None]] = lambda total: lambda: None,
) -> Iterator[TrainingInput]:
    """Compute the features in front of the trained part, where they never change, and yield what is trained on.

    They never change if the images are the same in each epoch and the network can be split in front of its trained
    part. Where that is not so, a warning says why, and the whole network runs in each epoch.

    Args:
        part: The part of the network that is trained.
        train: Map-style data set of (image, label).
        validation: Data set of (image, label), or batches, whose features are not kept.
        options: How the network is trained.
        workers: Processes that read images.
        expect_steps: Called with the number of batches of features; returns what is called after each of them.
    """
    whole = TrainingInput(part.model, train, part.model, validation, workers)
    if part.is_whole or options.cache_gib == 0:
        yield whole
        return
    network = _find_split(part, train, validation, options)
    if isinstance(network, NotSplit):
        _warn(network.reason)
        yield whole
        return
    device = next(iter(part.weights.values())).device
    sources = [_Source(network.prefix, train, device, options)]
    if isinstance(validation, Dataset) and isinstance(validation, Sized):
        # Validation does not use half precision, whatever training does.
        sources.append(_Source(network.prefix, validation, device, dataclasses.replace(options, amp=False)))
    with _allocate([source.row_like() for source in sources], list(map(len, sources)), options.cache_gib) as stores:
        if isinstance(stores, NotSplit):
            _warn(stores.reason)
            yield whole
            return
        report_step = expect_steps(sum(math.ceil(len(source) / BATCH_SIZE) for source in sources))
        kept = [source.compute(store, workers, report_step) for source, store in zip(sources, stores, strict=True)]
        if len(kept) == 2:
            yield TrainingInput(network.rest, kept[0], network.rest, kept[1], workers=0)
        else:
            yield TrainingInput(network.rest, kept[0], part.model, validation, workers=0)


def _warn(reason: str) -> None:
    warnings.warn(f"only: the fixed part of the network runs again in each epoch: {reason}", stacklevel=5)


def _find_split(
    part: TrainedPart, train: Dataset[Any], validation: Images, options: TrainOptions
) -> PrefixSplit | NotSplit:
    """Split the network in front of its trained part, or say why its features cannot be kept."""
    if options.changes_images:
        name = next(name for name in ("augment", "mixup", "cutmix") if getattr(options, name))
        return NotSplit(f"{name} changes the images in each epoch")
    if is_ready(train):
        return NotSplit("its images come in batches, whose order is not known")
    if world_size() > 1:
        return NotSplit("several processes share the images, each in another order in each epoch")
    for images in (train, validation):
        if isinstance(images, Dataset) and not is_constant(images):
            return NotSplit("its data set gives other values when an image is read again")
    pictures = [train[index][0] for index in range(min(2, len(train)))]  # type: ignore[arg-type]
    if not all(isinstance(picture, Tensor) for picture in pictures):
        return NotSplit("an image consists of several tensors")
    device = next(iter(part.weights.values())).device
    with evaluating(part.model):
        part.begin_training()
        return split_prefix(part.model, torch.stack(pictures).to(device))


def is_constant(images: Any) -> bool:
    """Return whether some images of a data set are the same when they are read twice."""
    if not isinstance(images, Sized) or not hasattr(images, "__getitem__") or is_ready(images):
        return False
    if find_crops(images) is not None:
        return False
    # Images far apart, because neighbours are of one class and may be alike.
    indices = range(0, len(images), max(len(images) // PROBES, 1))[:PROBES]
    pairs = ((tensors_in(images[index][0]), tensors_in(images[index][0])) for index in indices)
    return all(torch.equal(one, other) for first, again in pairs for one, other in zip(first, again, strict=True))


@dataclass(frozen=True)
class _Source:
    """The images of a data set as the prefix of a network sees them."""

    prefix: nn.Module
    images: Any
    device: torch.device
    options: TrainOptions

    def __len__(self) -> int:
        return len(self.images)

    def row_like(self) -> Tensor:
        """Return the features of the first image, (1, features)."""
        return self._run(self.images[0][0][None])

    def compute(self, rows: Tensor, workers: int, report_step: Callable[[], None]) -> Features:
        """Fill (images, features) with the features of all images, and return them with the labels."""
        start, all_labels = 0, list[Tensor]()
        # A loader draws a number, and the random numbers of the caller are not changed.
        with torch.random.fork_rng(devices=[]):
            for images, labels in validate_batches(make_loader(self.images, BATCH_SIZE, workers), self.device):
                rows[start : start + len(labels)] = self._run(images)
                start += len(labels)
                all_labels.append(labels)
                report_step()
        return Features(rows, torch.cat(all_labels))

    def _run(self, images: Tensor) -> Tensor:
        device = self.device
        with (
            evaluating(self.prefix),
            torch.no_grad(),
            autocast(device, self.options),
        ):
            features: Tensor = self.prefix(images.to(device, non_blocking=True))
        return features


@contextmanager
def _allocate(like: Sequence[Tensor], counts: Sequence[int], memory_gib: float) -> Iterator[list[Tensor] | NotSplit]:
    """Yield an empty tensor (images, features) for each data set, in memory or in files that are deleted afterwards.

    Args:
        like: A row of each data set, (1, features).
        counts: The number of images of each.
        memory_gib: Tensors that take more than this together are kept in files.
    """
    sizes = [row.numel() * row.element_size() * count for row, count in zip(like, counts, strict=True)]
    if sum(sizes) <= memory_gib * 2**30:
        yield [torch.empty(count, row.shape[1], dtype=row.dtype) for row, count in zip(like, counts, strict=True)]
        return
    directory = Path(tempfile.gettempdir())
    free = shutil.disk_usage(directory).free
    if sum(sizes) > free / 2:
        yield NotSplit(
            f"its features take {sum(sizes) / 2**30:.2f} GiB, cache_gib is {memory_gib:g}, and half of the free space "
            f"of {directory} is {free / 2**31:.2f} GiB"
        )
        return
    with tempfile.TemporaryDirectory(prefix="prune-fe-") as folder:
        yield [
            _map_file(Path(folder, str(number)), row, count, size)
            for number, (row, count, size) in enumerate(zip(like, counts, sizes, strict=True))
        ]


def _map_file(path: Path, row: Tensor, count: int, size: int) -> Tensor:
    """Return a tensor (count, features) of the type of a row whose memory is a new file of `size` bytes."""
    # Reserving the space first turns a full disk into an error; a write to mapped memory would kill the process.
    with explain_disk_errors(path, size), path.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, size)
    values = torch.from_file(str(path), shared=True, size=count * row.shape[1], dtype=row.dtype)
    return values.view(count, row.shape[1])
