"""What a checkpoint says about the network that it is of: how many outputs and input channels, and which classes."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from prune_fe.errors import CheckpointError, InputError
from prune_fe.io import shorten
from prune_fe.models.build import build, parse_name
from prune_fe.models.checkpoints import Checkpoint
from prune_fe.models.factories import Weightless

FEW, MORE = 2, 3
"""Two sizes with which a network is built to see which of its weights depend on them."""


def build_weightless(name: str, classes: int = FEW, **settings: Any) -> nn.Module:
    """Build a network by name without values or memory for its weights.

    Args:
        name: Name of the network; see `prune_fe.models.build.build`.
        classes: Number of outputs.
        settings: Further arguments of `build`.
    """
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]), Weightless():
        warnings.simplefilter("ignore")  # The libraries warn about initial weights.
        return build(name, classes, **settings)


def find_output_keys(name: str, **settings: Any) -> list[str]:
    """Return the names of the weights and biases of a network that have a row for each class.

    Args:
        name: Name of the network.
        settings: Further arguments of `build`.
    """
    few, more = (build_weightless(name, classes, **settings).state_dict() for classes in (FEW, MORE))
    return [key for key, value in few.items() if value.shape[:1] != more[key].shape[:1]]


def read_sizes(name: str, state: Mapping[str, Tensor]) -> tuple[int | None, int | None]:
    """Return the number of outputs and of input channels of the network that a state dict is of.

    Args:
        name: Name of the network.
        state: The state dict.

    Returns:
        The numbers; None for one that the state dict does not tell.
    """
    network, wider = build_weightless(name), build_weightless(name, MORE)
    outputs = _solve(network.state_dict(), wider.state_dict(), state)
    if parse_name(name)[0] == "torchvision":  # Its networks read three channels.
        return outputs, None
    try:
        narrow, wide = (build_weightless(name, in_channels=channels) for channels in (FEW, MORE))
    except InputError:  # It cannot be built for so few channels.
        return outputs, None
    return outputs, _solve(narrow.state_dict(), wide.state_dict(), state)


def _solve(few: Mapping[str, Tensor], more: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> int | None:
    """Return the number for which a network has the shapes of a state dict.

    Args:
        few: State dict of the network for the number `FEW`.
        more: State dict of the network for the number `MORE`.
        state: The state dict.
    """
    for key, small in few.items():
        for low, high, size in zip(
            small.shape, more[key].shape, state[key].shape if key in state else (), strict=False
        ):
            if low != high:
                number = FEW + (size - low) * (MORE - FEW) // (high - low)
                return number if number > 0 else None
    return None


def match_classes(
    checkpoint: Checkpoint, classes: Sequence[str], find_keys: Callable[[], Sequence[str]], *, new_classifier: bool
) -> Checkpoint:
    """Give the outputs of a checkpoint the order of the classes of the data, by their names.

    Args:
        checkpoint: The checkpoint; without names of classes it is returned as it is.
        classes: The classes of the data.
        find_keys: Returns the names of the weights with a row for each class; see `find_output_keys`.
        new_classifier: Whether outputs for other classes are left out, so that they are made anew.

    Raises:
        CheckpointError: The checkpoint is of other classes, or names another number of them than it has outputs.
    """
    known = checkpoint.classes
    if known is None or known == tuple(classes):
        return checkpoint
    keys = [key for key in find_keys() if key in checkpoint.state]
    if len(set(known)) == len(known) and sorted(known) == sorted(classes) and keys:
        order, state = [known.index(name) for name in classes], dict(checkpoint.state)
        for key in keys:
            if len(state[key]) != len(known):
                raise CheckpointError(
                    f"{checkpoint.path}: names {len(known)} classes, {key!r} has {len(state[key])} outputs"
                )
            state[key] = state[key][order]
        notes = (*checkpoint.notes, "its outputs are re-ordered to the classes of the data")
        return dataclasses.replace(checkpoint, state=state, classes=tuple(classes), notes=notes)
    if new_classifier:
        state = {key: value for key, value in checkpoint.state.items() if key not in keys}
        return dataclasses.replace(checkpoint, state=state, classes=tuple(classes))
    raise CheckpointError(
        f"{checkpoint.path}: its classes are not the {len(classes)} of the data: {compare_classes(known, classes)}"
    )


def compare_classes(known: Sequence[str], classes: Sequence[str]) -> str:
    """Return how the classes of a network differ from those of the data, as the end of an error.

    Args:
        known: The classes of the network.
        classes: The classes of the data.
    """
    only, new = [name for name in known if name not in classes], [name for name in classes if name not in known]
    parts = [
        f"{shorten(names)} only in {whose}" for names, whose in ((only, "the network"), (new, "the data")) if names
    ]
    return "; ".join(parts) or "they are in another order"
