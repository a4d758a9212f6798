"""The manifest of a saved network: which constructor, which settings, and the digest of its files."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from prune_fe.errors import CheckpointError
from prune_fe.file_types import open_regular_file

FORMAT = 1
"""The version of the format that this code writes and reads."""

MANIFEST, WEIGHTS = "manifest.json", "model.safetensors"
"""The files of a saved network."""

MAX_BYTES = 2**25
"""Size of the largest manifest that is read; those of the largest networks have a few MiB."""

KINDS: dict[str, Any] = {
    "class": str,
    "factory": str | None,
    "arguments": dict,
    "settings": dict,
    "frozen": list,
    "about": dict,
    "sha256": str,
}
"""The keys of a manifest beside "format", and the types of their values."""

OPTIONAL: dict[str, Any] = {"added": dict, "tied": dict, "channels_last": list}
"""The keys that a manifest has only if their values are not empty: attributes of modules that the constructor does not
make; further name of a tensor -> its first name; the names of tensors that are laid out in channels-last."""


def is_saved(model: str) -> bool:
    """Return whether the name of a model is that of a folder that `save` wrote, and not the name of a network."""
    path = Path(model)
    return (path / MANIFEST).exists() or (path.is_dir() and len(path.parts) > 1)


def read_manifest(path: str | Path) -> dict[str, Any]:
    """Return the manifest of the folder `path` that `save` wrote.

    Raises:
        CheckpointError: It is missing, damaged or of another format.
    """
    file = Path(path) / MANIFEST
    try:
        with open_regular_file(file) as opened:
            content = opened.read(MAX_BYTES + 1)
        if len(content) > MAX_BYTES:
            raise CheckpointError(f"{file}: larger than {MAX_BYTES >> 20} MiB, so it is not a manifest")
        manifest = json.loads(content.decode())
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no {MANIFEST} there; prune_fe.save writes one") from None
    except CheckpointError:
        raise
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{file}: cannot be read ({error})") from error
    if not isinstance(manifest, dict) or "format" not in manifest:
        raise CheckpointError(f"{file}: not a manifest of prune_fe")
    if manifest["format"] != FORMAT:
        raise CheckpointError(f"{file}: format {manifest['format']!r}, this version reads {FORMAT}")
    if fault := _find_fault(manifest):
        raise CheckpointError(f"{file}: not a manifest of prune_fe, {fault}")
    return manifest


def _find_fault(manifest: Mapping[str, Any]) -> str | None:
    """Return what is wrong with the types of a manifest's values; None if nothing is."""
    values = {key: kind() for key, kind in OPTIONAL.items()} | dict(manifest)
    for key, kind in (KINDS | OPTIONAL).items():
        if key not in values or not isinstance(values[key], kind):
            return f"{key!r} is missing or of a wrong type"
    for key in ("settings", "added"):
        if not all(isinstance(own, dict) for own in values[key].values()):
            return f"{key!r} holds something else than modules"
    names = {"frozen": values["frozen"], "tied": values["tied"].values(), "channels_last": values["channels_last"]}
    for key, listed in names.items():
        if not all(isinstance(name, str) for name in listed):
            return f"{key!r} holds something else than names"
    return None


def compute_digest(manifest: Mapping[str, Any], weights: bytes) -> str:
    """Return the SHA-256 of a manifest, without its own "sha256", and of the weights' file."""
    fields = {key: value for key, value in manifest.items() if key != "sha256"}
    return hashlib.sha256(json.dumps(fields, sort_keys=True).encode() + weights).hexdigest()
