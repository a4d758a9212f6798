"""State dicts: weights of a network that the caller builds."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load as load_safetensors
from torch import Tensor, nn

from prune_fe.errors import CheckpointError
from prune_fe.io import write_bytes
from prune_fe.models.classifier import find_unfit_keys, is_in_classifier


def load_weights(model: nn.Module, path: str | Path, *, new_classifier: bool = False) -> list[str]:
    """Read a state dict into a network. Nothing in the file is executed.

    Args:
        model: The network; it is changed only if every key and shape fits.
        path: A .pth, .pt or .safetensors file. The state dict may be the value of `state_dict` or `model` in it, and
            its keys may begin with `module.`.
        new_classifier: Accept a file of a network with another classifier, or with none. Layers of the classifier
            that the file does not fit keep the weights that they have in `model`.

    Returns:
        The keys of the classifier that kept their weights; empty if everything was read.

    Raises:
        CheckpointError: The file is missing or damaged, or a key does not fit the network; the message names it.
    """
    path = Path(path)
    content = _read(path)
    for key in ("state_dict", "model"):
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    if not isinstance(content, Mapping) or not all(isinstance(value, Tensor) for value in content.values()):
        raise CheckpointError(f"{path}: holds no state dict")
    expected = model.state_dict()
    state = {key if key in expected else str(key).removeprefix("module."): value for key, value in content.items()}
    return fill(model, state, path, new_classifier=new_classifier)


def fill(model: nn.Module, state: Mapping[str, Tensor], source: object, *, new_classifier: bool) -> list[str]:
    """Read a state dict into a network; see `load_weights`.

    Args:
        model: The network.
        state: The state dict.
        source: Where it comes from, for error messages.
        new_classifier: Whether layers of the classifier need not fit.
    """
    expected = model.state_dict()
    kept = find_unfit_keys(expected, state) if new_classifier else []
    if new_classifier:
        # The layers of the other classifier that have no place in this one.
        state = {key: value for key, value in state.items() if key in expected or not is_in_classifier(key)}
    for key in kept:
        state = {**state, key: expected[key]}
    for key, value in expected.items():
        if key not in state:
            raise CheckpointError(f"{source}: {key!r} is missing; it is a checkpoint of another model{_hint(key)}")
        if state[key].shape != value.shape:
            shapes = f"{tuple(state[key].shape)}, the model has {tuple(value.shape)}"
            raise CheckpointError(f"{source}: {key!r} is {shapes}{_hint(key)}")
    if extra := [key for key in state if key not in expected]:
        raise CheckpointError(f"{source}: {extra[0]!r} is not in the model; it is a checkpoint of another model")
    model.load_state_dict(state)
    return kept


def _hint(key: str) -> str:
    """Return what to do about a classifier that does not fit, as the end of an error message."""
    return "; training gives it a new classifier (prune-fe finetune, or train: in a recipe)" * is_in_classifier(key)


def list_checkpoints(folder: Path) -> dict[str, Path]:
    """Return the name and file of every state dict in a folder; digits in the names are ordered as numbers.

    Raises:
        CheckpointError: There is none, or two files have the same name but for their endings.
    """
    files = [path for path in folder.glob("*") if path.suffix in (".pth", ".pt", ".safetensors")]
    if not files:
        raise CheckpointError(f"{folder}: no .pth, .pt or .safetensors file there")
    parts = {path: re.split(r"(\d+)", path.stem) for path in files}
    ordered = sorted(files, key=lambda path: [(int(p), "") if p.isdigit() else (-1, p) for p in parts[path]])
    if len({path.stem for path in files}) < len(files):
        raise CheckpointError(f"{folder}: two files differ in their endings only; their scores would need one folder")
    return {path.stem: path for path in ordered}


def _read(path: Path) -> Any:
    """Return what a checkpoint file holds."""
    try:
        if path.suffix == ".safetensors":
            return load_safetensors(path.read_bytes())
        return torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such file") from None
    except Exception as error:  # What a damaged file raises depends on where the damage is.
        first_line = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(f"{path}: not a checkpoint that can be read safely ({first_line})") from error


def save_weights(model: nn.Module, path: str | Path) -> None:
    """Write a network's state dict to a .pth file, whole or not at all; `load_weights` reads it.

    Args:
        model: The network.
        path: The file; missing folders are created, and an existing file is replaced.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    content = io.BytesIO()
    torch.save(model.state_dict(), content)
    write_bytes(path, content.getvalue())
