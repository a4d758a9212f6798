"""Compute the statistics of batch norms anew, for a network whose feature maps have changed by pruning."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence, Sized
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.data import Dataset, Subset

from prune_fe.data.batches import Batches, Images, check_reading, count_images, make_loader, validate_batches
from prune_fe.data.labels import hash_images
from prune_fe.data.sampling import select_batches
from prune_fe.errors import DataError, InputError
from prune_fe.options import Count, Seed, validate_value
from prune_fe.pruning.sensitivity import Recovery
from prune_fe.tracing.watching import evaluating, explain_run
from prune_fe.tracing.weights import require_module, require_trainable

RAW_CURVES = (
    "note: the network has batch norms, and the groups are measured without recalibration: such curves show mostly "
    "damage that recalibration or fine-tuning repairs, and in our measurements they led to worse networks than equal "
    "ratios"
)
"""What the user is told before a network with batch norms is measured without recalibration."""


def has_batch_norms(model: nn.Module) -> bool:
    """Return whether a network has batch norms that a recalibration would change."""
    return any(isinstance(module, _BatchNorm) and module.track_running_stats for module in model.modules())


def recalibrating(data: Dataset[Any], samples: int, seed: int = 0, workers: int = 0) -> Recovery:
    """Return a recalibration in the form that `prune_fe.sensitivity` applies to each network before it measures it.

    Args:
        data: Training images.
        samples: How many of them are drawn.
        seed: Seed of the draw.
        workers: Processes that read images.
    """
    description = f"batch norms on {samples} images, seed {seed}, of {hash_images(data)}"
    return Recovery(description, partial(recalibrate, data=data, samples=samples, seed=seed, workers=workers))


def recalibrate(
    model: nn.Module,
    data: Images,
    *,
    samples: int | None = None,
    seed: int = 0,
    batch_size: int = 128,
    workers: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> int:
    """Replace the running means and variances of the batch norms of `model` by those on training images.

    Each batch is normalised by its own statistics, as in training, and their mean over the batches is kept, as in
    torch.optim.swa_utils.update_bn but weighted by the number of images. The variances are the unbiased ones within a
    batch; they do not contain the variance between batches. Batches of one image are left out. Dropout is off, and
    nothing else of the network changes, not even its mode. After an error the old statistics are restored.

    Args:
        model: The network. Batch norms that track no statistics, or that do not run, stay as they are.
        data: Data set of (image, label), or batches (images, labels), which are used as they are.
        samples: Images drawn from a data set, none twice; the default is all, in random order.
        seed: Seed of the choice and the order of the images.
        batch_size: Images in a batch of a data set.
        workers: Processes that read images of a data set.
        progress: Called after each batch with (images done, images in all or 0 when unknown).

    Returns:
        The number of batch norms that have new statistics.

    Raises:
        InputError: A mean or variance is not finite, or `batch_size` or `samples` is less than 2.
        DataError: There are too few images.
    """
    require_module(model)
    require_trainable(model)
    batch_size, workers = check_reading(batch_size, workers)
    seed = validate_value(Seed, seed, "seed")
    samples = None if samples is None else validate_value(Count, samples, "samples")
    if batch_size < 2:
        raise InputError(f"batch_size={batch_size}: a batch norm needs at least 2 images at once")
    averages = [_StatisticsAverage(name, norm) for name, norm in _find_tracking_norms(model)]
    if not averages:
        return 0
    batches = _draw_batches(data, samples, seed, batch_size, workers)
    n_read = n_used = 0
    with evaluating(model), _averaging(averages), torch.no_grad():
        for images, _ in validate_batches(batches):
            if len(images) > 1:
                # With momentum None and a reset before each batch, a norm's buffers hold this batch's statistics.
                for average in averages:
                    average.norm.reset_running_stats()
                with explain_run(model, images):
                    model(images.to(averages[0].device, non_blocking=True))
                for average in averages:
                    average.add_batch(len(images))
                n_used += len(images)
            n_read += len(images)
            if progress is not None:
                progress(n_read, count_images(batches))
        if n_used == 0:
            raise DataError(f"{n_read} images, none in a batch of at least 2: too few to recalibrate on")
        return sum(average.store() for average in averages)


BUFFERS = ("running_mean", "running_var", "num_batches_tracked")
"""The names of a batch norm's statistics."""


def _find_tracking_norms(model: nn.Module) -> Iterator[tuple[str, _BatchNorm]]:
    """Yield name and module of every batch norm that tracks its statistics."""
    for name, module in model.named_modules():
        if isinstance(module, _BatchNorm) and all(getattr(module, buffer) is not None for buffer in BUFFERS):
            yield name, module


def _draw_batches(data: Images, samples: int | None, seed: int, batch_size: int, workers: int) -> Batches:
    """Return batches of images in random order: in a sorted data set a batch would hold only one class."""
    if not isinstance(data, Dataset):
        return select_batches(data, samples=samples)
    if not isinstance(data, Sized):
        raise InputError(f"{type(data).__name__} has no length: pass a map-style data set")
    if samples is not None and samples < 2:
        raise InputError(f"samples={samples}: a batch norm needs at least 2 images")
    if samples is not None and samples > len(data):
        raise DataError(f"{len(data)} images, {samples} asked for")
    generator = torch.Generator().manual_seed(seed)
    indices = torch.randperm(len(data), generator=generator)[:samples].tolist()
    return make_loader(Subset(data, indices), batch_size, workers, generator=generator)


class _StatisticsAverage:
    """The mean of one batch norm's statistics over batches, weighted by their images.

    The norm is reset before each batch, so that afterwards its buffers hold the statistics of this batch alone.
    """

    def __init__(self, name: str, norm: _BatchNorm) -> None:
        self.name, self.norm, self.momentum = name, norm, norm.momentum
        self._buffers = [norm.get_buffer(buffer) for buffer in BUFFERS]
        self._old_values = [value.clone() for value in self._buffers]
        mean, var, batches = self._buffers
        # A mean over many batches of half precision needs more digits.
        exact = torch.promote_types(mean.dtype, torch.float32)
        self._mean, self._var = torch.zeros_like(mean, dtype=exact), torch.zeros_like(var, dtype=exact)
        self._images, self._batches = torch.zeros_like(batches), torch.zeros_like(batches)

    @property
    def device(self) -> torch.device:
        """The device of the norm."""
        return self._mean.device

    def add_batch(self, images: int) -> None:
        """Add the statistics that the norm holds after a batch: their mean, if the norm ran several times."""
        mean, var, runs = self._buffers
        # The sign of the runs, 0 or 1, stays a tensor: reading a number would wait for the GPU after each batch.
        has_run = runs.sign()
        self._images += has_run * images
        self._batches += has_run
        share = (has_run * images).to(self._mean.dtype) / self._images.clamp(min=1)
        self._mean.lerp_(mean.to(share.dtype), share)
        self._var.lerp_(var.to(share.dtype), share)

    def store(self) -> bool:
        """Give the norm the averaged statistics, and return whether there are any because the norm ran."""
        if not self._batches:
            self.restore()
            return False
        if not (self._mean.isfinite().all() and self._var.isfinite().all()):
            raise InputError(f"layer {self.name!r}: its mean or variance on these images is NaN or infinite")
        for buffer, value in zip(self._buffers, (self._mean, self._var, self._batches), strict=True):
            buffer.copy_(value)
        return True

    def restore(self) -> None:
        """Restore the norm's old statistics."""
        for buffer, value in zip(self._buffers, self._old_values, strict=True):
            buffer.copy_(value)


@contextmanager
def _averaging(averages: Sequence[_StatisticsAverage]) -> Iterator[None]:
    """Let batch norms average the statistics of their runs inside; an error restores the old statistics."""
    try:
        for average in averages:
            average.norm.momentum = None
            # Set the flag instead of calling train(), which would turn on the dropout inside timm's batch norms.
            average.norm.training = True
        yield
    except BaseException:
        for average in averages:
            average.restore()
        raise
    finally:
        for average in averages:
            average.norm.momentum = average.momentum
