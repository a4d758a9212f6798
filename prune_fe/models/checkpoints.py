"""State dicts: weights of a network that the caller builds."""

from __future__ import annotations

import io
import re
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from prune_fe.errors import CheckpointError
from prune_fe.file_types import require_path
from prune_fe.io import shorten, write_bytes
from prune_fe.models.checkpoint_files import read_content
from prune_fe.models.classifier import find_unfit_keys, is_in_classifier
from prune_fe.tracing.quantised import ADVICE, is_quantised_name
from prune_fe.tracing.weights import find_fault, require_sound_weights
from prune_fe.zip_seal import seal

STATE_KEYS = (
    *("state_dict", "model", "model_state_dict", "net", "weights", "params"),
    *("state_dict_ema", "model_ema", "ema"),
)
"""The keys under which training programs save the state dict; of several, the first one here is read."""

CLASS_KEYS = ("classes", "class_names", "class_to_idx", "idx_to_class")
"""The keys under which they save the names of the classes."""

PREFIXES = ("module.", "_orig_mod.", "model.", "backbone.", "net.")
"""What nn.DataParallel, torch.compile and classes that hold the network put in front of each name."""

WRAPPER = re.compile(r"(?:^|(?<=\.))(?:module|_orig_mod)\.")
"""What nn.DataParallel and torch.compile leave in a name if a part of the network was wrapped."""

COUNTERS = ("num_batches_tracked", "n_averaged", "total_ops", "total_params")
"""Last parts of names that hold counters, not weights: those of batch norms, averaged models and the tool thop."""

MAX_DEPTH = 4
"""How deep a state dict may lie in other dicts."""


@dataclass(frozen=True)
class Checkpoint:
    """The weights of a network that a file holds.

    Attributes:
        path: The file.
        state: The state dict, with the names that the network has.
        classes: The names of the classes in the order of the outputs; None if the file does not say them.
        stripped: What was taken off the names in the file.
        ignored: The entries of the file, and the tensors of its state dict, that are not used.
        notes: What else was done to the state dict.
    """

    path: Path
    state: Mapping[str, Tensor]
    classes: tuple[str, ...] | None = None
    stripped: tuple[str, ...] = ()
    ignored: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def summary(self) -> str | None:
        """One line about what was stripped, ignored and changed; None if nothing was."""
        stripped = [f"without {' and '.join(map(repr, self.stripped))} in its names"] if self.stripped else []
        ignored = [f"ignored are {shorten(self.ignored, most=5)}"] if self.ignored else []
        if not (stripped or ignored or self.notes):
            return None
        return f"{self.path}: " + "; ".join([" ".join(["read", *stripped]), *ignored, *self.notes])


def read_checkpoint(path: str | Path, expected: Collection[str]) -> Checkpoint:
    """Read a file of weights, find its state dict, and give it the names of the network. Nothing in it is executed.

    Args:
        path: A file of torch.save, a safetensors file, or the index of several (model.safetensors.index.json). The
            state dict may be an entry of the file, and its names may have prefixes; see `STATE_KEYS` and `PREFIXES`.
        expected: The names in the network's state dict.

    Raises:
        CheckpointError: The file is missing or damaged, holds no state dict or that of a quantised network, or has a
            weight twice.
    """
    path = require_path(path)
    content, classes, ignored = _find_state(path, read_content(path))
    state = {str(name): value for name, value in content.items() if isinstance(value, Tensor)}
    for name, value in content.items():
        if is_quantised_name(str(name)) or (isinstance(value, Tensor) and value.is_quantized):
            raise CheckpointError(f"{path}: {str(name)!r} is of a quantised network; {ADVICE}")
    if not state:
        raise CheckpointError(f"{path}: holds no state dict (its keys are {shorten([*map(repr, content)]) or 'none'})")
    renamed, stripped, outside = _rename(path, state, expected)
    extra = [name for name in renamed if name not in expected and name.rpartition(".")[2] in COUNTERS]
    missing = [key for key in expected if key not in renamed and _is_counter_of_norm(key)]
    return Checkpoint(
        path,
        {name: value for name, value in renamed.items() if name not in extra},
        classes,
        tuple(stripped),
        (*ignored, *outside, *extra),
        ("num_batches_tracked is missing and begins at 0",) if missing else (),
    )


def _find_state(path: Path, content: Any) -> tuple[Mapping[Any, Any], tuple[str, ...] | None, list[str]]:
    """Return the dict of a file that holds the weights, the names of the classes, and the keys beside the dict."""
    classes, ignored = None, list[str]()
    for _ in range(MAX_DEPTH):
        if not isinstance(content, Mapping):
            raise CheckpointError(f"{path}: holds no state dict (it is a {type(content).__name__})")
        usable = {key: names for key in CLASS_KEYS if (names := _class_names(content.get(key)))}
        classes = classes or next(iter(usable.values()), None)
        key = _find_state_key(content)
        beside = [name for name in content if name not in usable and name != key]
        if key is None:
            return content, classes, ignored + [str(n) for n in beside if not isinstance(content[n], Tensor)]
        ignored += map(str, beside)
        content = content[key]
    raise CheckpointError(f"{path}: holds no state dict (it has {MAX_DEPTH} dicts in each other)")


def _find_state_key(content: Mapping[Any, Any]) -> Any:
    """Return the key of a dict whose value holds the weights; None if they are not one level down."""
    keys = [key for key, value in content.items() if isinstance(value, Mapping) and _holds_weights(value)]
    if known := [key for key in STATE_KEYS if key in keys]:
        return known[0]
    has_tensors = any(isinstance(value, Tensor) for value in content.values())
    return keys[0] if len(keys) == 1 and not has_tensors else None


def _holds_weights(content: Mapping[Any, Any], depth: int = MAX_DEPTH) -> bool:
    """Return whether a dict holds tensors, or a dict that does under one of `STATE_KEYS`, at most so deep."""
    if any(isinstance(value, Tensor) for value in content.values()):
        return True
    inner = [content[key] for key in STATE_KEYS if key in content]
    return depth > 0 and any(isinstance(value, Mapping) and _holds_weights(value, depth - 1) for value in inner)


def _class_names(value: Any) -> tuple[str, ...] | None:
    """Return the names of classes from a list, or from a dict from or to their indices; None if it is neither."""
    if isinstance(value, Mapping):
        pairs = [(key, index) if isinstance(key, str) else (index, key) for key, index in value.items()]
        names = {index: name for name, index in pairs if isinstance(index, int)}
        value = [names.get(index) for index in range(len(pairs))]
    if isinstance(value, list | tuple) and value and all(isinstance(name, str) for name in value):
        return tuple(value)
    return None


def _rename(
    path: Path, state: Mapping[str, Tensor], expected: Collection[str]
) -> tuple[dict[str, Tensor], list[str], list[str]]:
    """Take the prefix off the names of a state dict with which most of them are the network's.

    Returns:
        The state dict, what was taken off, and the names without the prefix, which are of something else.
    """
    prefix = _find_prefix(state, expected)
    renamed, sources, stripped, outside = dict[str, Tensor](), dict[str, str](), [prefix] * bool(prefix), list[str]()
    for name, value in state.items():
        key = name.removeprefix(prefix)
        inner = WRAPPER.sub("", key)
        if key not in expected and inner in expected:
            stripped += WRAPPER.findall(key)
            key = inner
        elif not name.startswith(prefix) and name not in expected:
            outside.append(name)
            continue
        if key in renamed:
            raise CheckpointError(f"{path}: {key!r} is there twice, as {sources[key]!r} and as {name!r}")
        renamed[key], sources[key] = value, name
    return renamed, list(dict.fromkeys(stripped)), outside


def _find_prefix(state: Mapping[str, Tensor], expected: Collection[str]) -> str:
    """Return what to take off the names so that most are the network's; of equals, the least."""
    fitting, nearly = Counter[str](), Counter[str]()
    for name in state:
        for prefix in _prefixes(name):
            rest = name.removeprefix(prefix)
            fitting[prefix] += rest in expected
            nearly[prefix] += rest in expected or WRAPPER.sub("", rest) in expected
    return max(nearly, key=lambda prefix: (nearly[prefix], fitting[prefix]), default="")


def _prefixes(name: str) -> Iterator[str]:
    """Yield every sequence of prefixes that a name begins with, beginning with none.

    >>> list(_prefixes("module.model.fc.weight"))
    ['', 'module.', 'module.model.']
    """
    end = 0
    yield ""
    while prefix := next((each for each in PREFIXES if name.startswith(each, end)), None):
        end += len(prefix)
        yield name[:end]


def _is_counter_of_norm(key: str) -> bool:
    """Return whether a name is that of a batch norm's count of batches, which earlier files do not have."""
    return key.endswith("num_batches_tracked")


def load_weights(model: nn.Module, source: str | Path | Checkpoint, *, new_classifier: bool = False) -> list[str]:
    """Read a state dict into a network. Nothing in the file is executed.

    Args:
        model: The network; it is changed only if every key and shape fits.
        source: A file (see `read_checkpoint`), or what was read from it.
        new_classifier: Accept a file of a network with another classifier, or with none. Layers of the classifier
            that the file does not fit keep the weights that they have in `model`.

    Returns:
        The keys of the classifier that kept their weights; empty if everything was read.

    Raises:
        CheckpointError: The file is missing or damaged, or a key does not fit the network or holds NaN or infinite
            values; the message names it.
    """
    checkpoint = source if isinstance(source, Checkpoint) else read_checkpoint(source, model.state_dict().keys())
    return fill(model, checkpoint.state, checkpoint.path, new_classifier=new_classifier)


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
    own = [key for key, value in expected.items() if not isinstance(value, Tensor)]
    own += [key for key in expected if key not in state and _is_counter_of_norm(key)]
    state = {**state, **{key: expected[key] for key in (*kept, *own)}}
    for key, value in expected.items():
        if not isinstance(value, Tensor):
            continue
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
