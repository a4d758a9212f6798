"""State dicts: weights of a network that the caller builds."""

from __future__ import annotations

import io
import pickletools
import re
import zipfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load as load_safetensors
from torch import Tensor, nn

from prune_fe.errors import CheckpointError, first_line
from prune_fe.file_types import describe_content, open_regular_file, require_path
from prune_fe.io import write_bytes
from prune_fe.models.classifier import find_unfit_keys, is_in_classifier
from prune_fe.tracing.weights import find_fault, require_sound_weights
from prune_fe.zip_seal import find_damage, seal

PREFIX = "module."
"""What nn.DataParallel puts in front of each name."""

KNOWN_GLOBALS = ("torch.", "collections.", "numpy.")
"""Beginnings of the names that checkpoints of other programs hold beside the one that is refused."""

MAX_PICKLE_BYTES = 2**24
"""How much of a pickle is searched for names."""


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
        CheckpointError: The file is missing or damaged, or a key does not fit the network or holds NaN or infinite
            values; the message names it.
    """
    path = require_path(path)
    content = _read(path)
    for key in ("state_dict", "model"):
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    if not isinstance(content, Mapping) or not all(isinstance(value, Tensor) for value in content.values()):
        raise CheckpointError(f"{path}: holds no state dict")
    expected = model.state_dict()
    state: dict[str, Tensor] = {}
    for name, value in content.items():
        key = name if name in expected else str(name).removeprefix(PREFIX)
        if key in state:
            raise CheckpointError(f"{path}: {key!r} is there twice, with and without {PREFIX!r} in front")
        state[key] = value
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
        fault = find_fault(state[key])
        # A mask with infinite values, for instance, is infinite in the network too.
        if fault is not None and find_fault(value) is None:
            raise CheckpointError(f"{source}: {key!r} {fault}")
        if value.is_floating_point() and not state[key].is_floating_point():
            raise CheckpointError(f"{source}: {key!r} is {state[key].dtype}, the model has {value.dtype}")
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
        with open_regular_file(path) as file:
            if path.suffix == ".safetensors":
                return load_safetensors(file.read())
            # torch.load notices no flipped bit of a tensor, but the checksums of its zip files do.
            if zipfile.is_zipfile(file) and (damage := find_damage(file)):
                raise CheckpointError(f"{path}: damaged ({damage})")
        return torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such file") from None
    except CheckpointError:
        raise
    except Exception as error:  # What a damaged file raises depends on where the damage is.
        reason = _describe(path) or _explain(path, error)
        raise CheckpointError(f"{path}: not a checkpoint that can be read safely ({reason})") from error


def _describe(path: Path) -> str | None:
    """Return what a file is, where that explains why it is no checkpoint."""
    content = describe_content(path)
    # The kind that was expected explains nothing.
    expected = "a safetensors file" if path.suffix == ".safetensors" else "a file of torch.save"
    return None if content is None or content.startswith(expected) else f"it is {content}"


def _explain(path: Path, error: Exception) -> str:
    """Return why torch.load failed, in one line and without its advice to let the file run code."""
    text = str(error)
    if isinstance(error, OSError):
        return error.strerror or text
    if "weights_only" not in text and "nickler" not in text:
        return first_line(error)
    names = [name for name in _find_globals(path) if not name.startswith(KNOWN_GLOBALS)]
    if refused := re.search(r"GLOBAL ([\w.]+\.\w+)", text):
        names.append(refused[1])
    if not names:
        return "it is a pickle of more than tensors; save a network's state_dict() alone"
    listed = ", ".join(list(dict.fromkeys(names))[:3])
    return f"it is a pickle that names {listed}, which is not run; save a network's state_dict() alone"


def _find_globals(path: Path) -> list[str]:
    """Return the functions and classes that a pickle, or the one in a file of torch.save, names."""
    names = list[str]()
    with suppress(Exception):  # The pickle may be damaged; what stands before the damage is found.
        with open_regular_file(path) as file:
            content = file.read(MAX_PICKLE_BYTES)
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                member = next(name for name in archive.namelist() if name.endswith("data.pkl"))
                content = archive.open(member).read(MAX_PICKLE_BYTES)
        texts, memo = [""], dict[int, str]()
        for code, argument, _ in pickletools.genops(content):
            if code.name == "GLOBAL":
                names.append(str(argument).replace(" ", "."))
            elif code.name == "STACK_GLOBAL":
                names.append(".".join(texts[-2:]))
            elif code.name == "MEMOIZE":
                memo[len(memo)] = texts[-1]
            elif code.name.endswith("BINPUT"):
                memo[int(argument)] = texts[-1]  # type: ignore[arg-type]
            elif code.name.endswith("BINGET"):
                texts.append(memo[int(argument)])  # type: ignore[arg-type]
            elif isinstance(argument, str):
                texts.append(argument)
    return names


def save_weights(model: nn.Module, path: str | Path) -> None:
    """Write a network's state dict to a .pth file with its SHA-256, whole or not at all; `load_weights` checks it.

    Args:
        model: The network.
        path: The file; missing folders are created, and an existing file is replaced.

    Raises:
        InputError: A weight is NaN or infinite.
        EnvironmentFault: The file cannot be written.
    """
    require_sound_weights(model)
    path = require_path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    content = io.BytesIO()
    torch.save(model.state_dict(), content)
    write_bytes(path, seal(content.getvalue()))
