"""The file of an unfinished training, from which an interrupted one continues to the same bits."""

from __future__ import annotations

import dataclasses
import io
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from prune_fe.data.labels import hash_images
from prune_fe.distributed import from_rank_0, rank
from prune_fe.errors import CheckpointError, InputError
from prune_fe.io import remove_partial
from prune_fe.records import damaged, read_sealed, write_sealed
from prune_fe.scoring.fingerprint import hash_architecture, hash_tensors, hash_weights
from prune_fe.tracing.nested import leaves
from prune_fe.training.batches import is_ready
from prune_fe.training.features import is_constant
from prune_fe.training.options import PaperTrainOptions, TrainOptions

WRITING_SHARE = 0.05
"""Share of the time of training that writing the file may take; a network of gigabytes is not written each epoch."""

Tensors = dict[str, Tensor]


@dataclass
class TrainingState:
    """What training goes on from after an epoch.

    Attributes:
        epochs: The fields of each `Epoch` so far, in their order.
        weights: The trained weights and the buffers.
        momentum: The momentum of the trained weights.
        best_weights: The weights and buffers of the best epoch; None where it is the last one.
        best_momentum: The momentum of the best epoch; empty where it is the network before training.
        update: The state of an optimizer other than SGD, of a scheduler and of the scaling of the loss; earlier
            versions had none of them.
        average: The moving averages of the weights by name; empty without.
        has_ended: Whether training ends with this epoch, whatever the options say.
    """

    epochs: list[list[float]]
    weights: Tensors
    momentum: Tensors
    best_weights: Tensors | None
    best_momentum: Tensors
    update: dict[str, Any] = dataclasses.field(default_factory=dict)
    average: Tensors = dataclasses.field(default_factory=dict)
    has_ended: bool = False


class UnfinishedTraining:
    """The file of an unfinished training; it is written whole or not at all, with a digest.

    Args:
        path: The file; None keeps nothing.
        key: Text that identifies the training.
    """

    def __init__(self, path: Path | None, key: str) -> None:
        self.path, self.key = path, key
        self._writing_seconds, self._last_written = 0.0, -float("inf")

    def read(self) -> TrainingState | None:
        """Return the state in the file, on the CPU; None where there is no file.

        Raises:
            CheckpointError: The file is damaged.
            InputError: It is of another training.
        """
        path = self.path
        return None if path is None else from_rank_0(lambda: self._read(path))

    def _read(self, path: Path) -> TrainingState | None:
        remove_partial(path)
        if not path.exists():
            return None
        advice = "delete it, and the training begins again"
        try:
            content = read_sealed(path)
            # weights_only: the file is data, and loading it must not run code.
            saved = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
            if _is_same_training(saved.pop("key"), self.key):
                return TrainingState(**saved)
        except CheckpointError as error:
            raise CheckpointError(f"{error}; {advice}") from error
        except Exception as error:  # torch raises what it likes for a file that something else has written
            raise CheckpointError(f"{damaged(path, error)}; {advice}") from error
        raise InputError(
            f"{path}: an unfinished training of other weights, images, options or objects of your own; {advice}"
        )

    def is_due(self, is_last: bool) -> bool:
        """Return whether there is a file that is to be written after this epoch, which may be the last one."""
        waited = time.monotonic() - self._last_written
        return self.path is not None and (is_last or waited >= self._writing_seconds / WRITING_SHARE)

    def write(self, state: TrainingState) -> None:
        """Write the state.

        Raises:
            EnvironmentFault: The file cannot be written; the one before is there still.
        """
        if self.path is None or rank() > 0:
            return
        start = time.monotonic()
        buffer = io.BytesIO()
        torch.save({"key": self.key} | {name: getattr(state, name) for name in FIELDS}, buffer)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_sealed(self.path, buffer.getvalue())
        self._last_written = time.monotonic()
        self._writing_seconds = self._last_written - start


FIELDS = tuple(field.name for field in dataclasses.fields(TrainingState))
"""The names of what is written."""


FIRST_OPTIONS = (
    "lr", "lr_by_layer", "schedule", "epochs", "final_lr", "momentum", "weight_decay", "batch_size", "augment", "amp",
    "only", "cache_gib", "distill",
)  # fmt: skip
"""The options of the version that wrote the first such files, in their order; further ones count if they are used."""


def identify_training(
    model: nn.Module,
    images: Any,
    options: TrainOptions,
    seed: int,
    momentum_buffers: Mapping[str, Tensor],
    teacher: nn.Module | Tensor | None,
    own: Sequence[str] = (),
) -> str:
    """Return a text that identifies everything that training depends on, but the hardware and the versions.

    Args:
        model: The network before training.
        images: The training images: a data set or batches.
        options: How it is trained.
        seed: Seed of everything that is random.
        momentum_buffers: The momentum that it starts with.
        teacher: What it learns from beside the labels.
        own: A text for each object of the user's own.
    """
    # Names do not say how the images were resized, but the pixels of one of them do.
    first = _hash_first(images) if is_constant(images) else None
    taught_by = hash_tensors({"logits": teacher}) if isinstance(teacher, Tensor) else None
    if isinstance(teacher, nn.Module):
        taught_by = hash_weights(teacher)
    network = [hash_weights(model), hash_architecture(model), hash_tensors(momentum_buffers)]
    data = getattr(images, "dataset", images) if is_ready(images) else images
    names = hash_images(data) if hasattr(data, "__getitem__") else type(data).__name__
    given, neutral = dataclasses.asdict(options), dataclasses.asdict(PaperTrainOptions())
    values = {name: given[name] for name in FIRST_OPTIONS}
    values |= {name: value for name, value in given.items() if name not in values and value != neutral[name]}
    parts = [values, seed, 1, network, names, first, taught_by]
    return json.dumps([*parts, *own])


def _hash_first(images: Any) -> str:
    image = images[0][0]
    return hash_tensors({"first": image} if isinstance(image, Tensor) else dict(leaves(image)))


def _is_same_training(saved: str, key: str) -> bool:
    """Return whether two keys belong to the same training.

    The number of processes, which earlier versions wrote into the key, is not compared.
    """
    if saved == key:
        return True
    one, other = json.loads(saved), json.loads(key)
    return bool([*one[:2], *one[3:]] == [*other[:2], *other[3:]])


def trained_tensors(model: nn.Module, trained: Mapping[str, nn.Parameter]) -> Tensors:
    """Return the entries of a network's state dict that training may change, without copying them.

    Args:
        model: The network.
        trained: The trained weights by name.
    """
    fixed = {name for name, _ in model.named_parameters() if name not in trained}
    return {name: value for name, value in model.state_dict().items() if name not in fixed}
