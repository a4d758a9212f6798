"""Read files of weights: what they hold, without running anything in them."""

from __future__ import annotations

import argparse
import json
import pickletools
import re
import zipfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load as load_safetensors

from prune_fe.errors import CheckpointError, describe_error, first_line
from prune_fe.file_types import describe_content, open_regular_file
from prune_fe.zip_seal import find_damage

KNOWN_GLOBALS = ("torch.", "collections.", "numpy.", "argparse.Namespace")
"""Beginnings of the names that checkpoints of other programs hold beside the one that is refused."""

MAX_PICKLE_BYTES = 2**24
"""How much of a pickle is searched for names."""

MODULES = "torch.nn."
"""Beginning of the names that only the pickle of a whole network has."""

INDEX = ".index.json"
"""How the index of weights in several files ends, as in model.safetensors.index.json."""

PART = re.compile(r"-\d{5}-of-\d{5}\.")
"""What the names of these files contain."""

MAX_INDEX_BYTES = 2**26
"""Size of the largest index that is read."""


def read_content(path: Path) -> Any:
    """Return what a file of weights holds: one of torch.save, a safetensors file, or the index of several.

    Args:
        path: The file. The files that an index names lie next to it.

    Raises:
        CheckpointError: A file is missing, damaged, or holds more than tensors, numbers, texts and containers.
    """
    if path.name.endswith(INDEX):
        return _read_parts(path)
    if PART.search(path.name) and (indices := sorted(path.parent.glob(f"*{INDEX}"))):
        raise CheckpointError(f"{path}: one part of a network; give the index of all parts, {indices[0]}")
    return _read(path)


def _read_parts(index: Path) -> dict[str, Any]:
    """Return the tensors of the files that an index names."""
    try:
        with open_regular_file(index) as file:
            files = json.loads(file.read(MAX_INDEX_BYTES))["weight_map"]
        parts = sorted(set(files.values()))
    except FileNotFoundError:
        raise CheckpointError(f"{index}: no such file") from None
    except Exception as error:  # Any JSON may be there.
        raise CheckpointError(f"{index}: not an index of files with weights ({describe_error(error)})") from error
    tensors = dict[str, Any]()
    for part in parts:
        if not isinstance(part, str) or Path(part).name != part or part.endswith(INDEX):
            raise CheckpointError(f"{index}: names {part!r} as a part; parts are files next to the index")
        content = _read(index.with_name(part))
        if not isinstance(content, Mapping):
            raise CheckpointError(f"{index.with_name(part)}: holds no state dict")
        tensors |= content
    if missing := [key for key in files if key not in tensors]:
        raise CheckpointError(f"{index}: {missing[0]!r} is not in {files[missing[0]]}")
    return tensors


def _read(path: Path) -> Any:
    """Return what a checkpoint file holds."""
    try:
        with open_regular_file(path) as file:
            if path.suffix == ".safetensors":
                return load_safetensors(file.read())
            # torch.load notices no flipped bit of a tensor, but the checksums of its zip files do.
            if zipfile.is_zipfile(file) and (damage := find_damage(file)):
                raise CheckpointError(f"{path}: damaged ({damage})")
        # Many training scripts save their arguments as a Namespace, which does nothing but hold values.
        with torch.serialization.safe_globals([argparse.Namespace]):
            return torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such file") from None
    except CheckpointError:
        raise
    except Exception as error:  # What a damaged file raises depends on where the damage is.
        reason = _describe(path) or _explain(path, error)
        advice = "" if path.suffix == ".safetensors" else _advise(path)
        raise CheckpointError(f"{path}: not a checkpoint that can be read safely ({reason}){advice}") from error


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
    names = [name for name, _ in _find_globals(path) if name.startswith(MODULES) or not name.startswith(KNOWN_GLOBALS)]
    if refused := re.search(r"GLOBAL ([\w.]+\.\w+)", text):
        names.append(refused[1])
    if not names:
        return "it is a pickle of more than tensors; save a network's state_dict() alone"
    listed = ", ".join(list(dict.fromkeys(names))[:3])
    return f"it is a pickle that names {listed}, which is not run; save a network's state_dict() alone"


def _advise(path: Path) -> str:
    """Return how to make a state dict of the pickle of a whole network, as the end of an error; "" for other files."""
    names = _find_globals(path)
    if not any(name.startswith(MODULES) for name, _ in names):
        return ""
    key = next(key for name, key in names if name.startswith(MODULES) or not name.startswith(KNOWN_GLOBALS))
    entry = f"[{key!r}]" if key else ""
    return (
        ". It holds a whole network; where its code is installed, and if you trust the file, three lines make a state "
        f"dict of it: import torch; model = torch.load({str(path)!r}, weights_only=False){entry}; "
        f"torch.save(model.state_dict(), {f'{path.stem}-state.pth'!r})"
    )


def _find_globals(path: Path) -> list[tuple[str, str]]:
    """Return the functions and classes that a pickle, or the one in a file of torch.save, names.

    Returns:
        (name, the text before it), which is the key of what it makes where that is an entry of a dict.
    """
    names = list[tuple[str, str]]()
    with suppress(Exception):  # The pickle may be damaged; what stands before the damage is found.
        with open_regular_file(path) as file:
            content = file.read(MAX_PICKLE_BYTES)
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                member = next(name for name in archive.namelist() if name.endswith("data.pkl"))
                content = archive.open(member).read(MAX_PICKLE_BYTES)
        texts, memo = ["", ""], dict[int, str]()
        for code, argument, _ in pickletools.genops(content):
            if code.name == "GLOBAL":
                names.append((str(argument).replace(" ", "."), texts[-1]))
            elif code.name == "STACK_GLOBAL":
                names.append((".".join(texts[-2:]), texts[-3]))
            elif code.name == "MEMOIZE":
                memo[len(memo)] = texts[-1]
            elif code.name.endswith("BINPUT"):
                memo[int(argument)] = texts[-1]  # type: ignore[arg-type]
            elif code.name.endswith("BINGET"):
                texts.append(memo[int(argument)])  # type: ignore[arg-type]
            elif isinstance(argument, str):
                texts.append(argument)
    return names
