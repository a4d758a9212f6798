"""The logits of the unpruned network for the training images, from which the pruned networks learn."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from prune_fe.data.labels import hash_images
from prune_fe.distributed import all_gather, from_rank_0, rank
from prune_fe.errors import CheckpointError
from prune_fe.records import read_npz, write_npz
from prune_fe.scoring.fingerprint import hash_weights
from prune_fe.training.distillation import teacher_logits


def saved_logits(
    path: Path,
    network: nn.Module,
    images: Dataset[Any],
    *,
    workers: int = 0,
    begin_bar: Callable[[], Callable[[int, int], None]],
) -> Tensor:
    """Return a network's logits of the training images: read from a file, or computed and saved there.

    Args:
        path: The file. One of another network or of other images is replaced.
        network: The teacher.
        images: The training images.
        workers: Processes that read images.
        begin_bar: Called before they are computed; returns a function of (batches done, batches in all).

    Returns:
        (images, classes) float32, on the CPU.

    Raises:
        CheckpointError: The file is damaged.
    """
    about = {"model_sha256": hash_weights(network), "images_sha256": hash_images(images)}
    logits = from_rank_0(lambda: _read(path, about))
    if logits is None:
        logits = teacher_logits(network, images, workers=workers, progress=begin_bar())
        if rank() == 0:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_npz(path, about, {"logits": logits.numpy()})
        all_gather(None)  # a barrier: no process looks for the file before it is written
    return logits


def _read(path: Path, about: dict[str, Any]) -> Tensor | None:
    """Return the logits in a file; None if it does not exist or is about something else."""
    if not path.exists():
        return None
    try:
        known, arrays = read_npz(path)
    except CheckpointError as error:
        raise CheckpointError(f"{error}; delete it, and the next run makes it again") from error
    return torch.from_numpy(arrays["logits"]) if known == about else None
