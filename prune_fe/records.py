"""Files that are read back: JSON, npz and bytes, each with a SHA-256 of its content.

Whatever a later command believes, such as results, scores and unfinished work, is written and read here. A flipped bit
is found by the digest and named. Files of earlier versions have no digest; the checksums of npz files are checked then.
"""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prune_fe.errors import CheckpointError
from prune_fe.file_types import open_regular_file
from prune_fe.io import finite_json, write_bytes, write_text
from prune_fe.zip_seal import find_damage, seal

if TYPE_CHECKING:
    from numpy.typing import NDArray

DIGEST_KEY, FORMAT_KEY = "file_sha256", "file_format"
"""The last and the first key of a JSON file: its digest, and a 1 that says that there must be one.

A flipped bit in the name of the digest would otherwise turn the file into one of an earlier version."""

YAML_HEAD = "# The last line holds the digest.\n"
"""The first line of a YAML file, which says the same."""

YAML_MARK = "# sha256 of the lines above: "
"""What stands before the digest of a YAML file, in its last line."""


def write_record(path: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON file with its digest, whole or not at all; NaN and infinite numbers become null.

    Args:
        path: The file; its folder must exist.
        content: Anything that JSON can express, without the keys `DIGEST_KEY` and `FORMAT_KEY`.

    Raises:
        EnvironmentFault: The file cannot be written.
    """
    # The digest is of what will be read: JSON turns tuples into lists and numbers as keys into texts.
    plain = json.loads(json.dumps({FORMAT_KEY: 1} | finite_json(content)))
    write_text(path, json.dumps(plain | {DIGEST_KEY: _digest_json(plain)}, indent=1) + "\n")


def read_record(path: Path) -> dict[str, Any]:
    """Return the content of a JSON file that `write_record` wrote, or that an earlier version wrote without a digest.

    Raises:
        CheckpointError: The file is missing or damaged, or holds no JSON object.
    """
    try:
        content = json.loads(_read(path).decode())
        if not isinstance(content, dict):
            raise ValueError("not a JSON object")
        if not content.keys().isdisjoint((DIGEST_KEY, FORMAT_KEY)):
            if content.pop(DIGEST_KEY, None) != _digest_json(content):
                raise ValueError("its SHA-256 is another one")
            del content[FORMAT_KEY]
    except (OSError, ValueError, KeyError, RecursionError) as error:
        raise damaged(path, error) from error
    return content


def write_yaml(path: Path, text: str) -> None:
    """Write a YAML file with its digest in a comment, whole or not at all.

    Args:
        path: The file; its folder must exist.
        text: YAML that ends with a line break.

    Raises:
        EnvironmentFault: The file cannot be written.
    """
    text = YAML_HEAD + text
    write_text(path, f"{text}{YAML_MARK}{hashlib.sha256(text.encode()).hexdigest()}\n")


def read_yaml(path: Path) -> dict[str, Any]:
    """Return the mapping in a file that `write_yaml` wrote, or that an earlier version wrote without a digest.

    Raises:
        CheckpointError: The file is missing or damaged, or holds no mapping.
    """
    import yaml

    try:
        text, mark, digest = _read(path).decode().rpartition(YAML_MARK)
        if not mark:
            text = digest
        if (mark or text.startswith(YAML_HEAD)) and digest != hashlib.sha256(text.encode()).hexdigest() + "\n":
            raise ValueError("its SHA-256 is another one")
        content = yaml.safe_load(text)
        if not isinstance(content, dict):
            raise ValueError("not what a run writes")
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise damaged(path, error) from error
    return content


def write_npz(path: Path, about: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]) -> None:
    """Write arrays to a compressed npz file with its digest, whole or not at all.

    Args:
        path: The file; its folder must exist.
        about: Anything that JSON can express; it is stored as the array "about".
        arrays: The arrays by name; none is called "about" or holds Python objects.

    Raises:
        EnvironmentFault: The file cannot be written.
    """
    import numpy as np

    # NumPy before 2.2 would store the argument allow_pickle=False as an array.
    if objects := [name for name, array in arrays.items() if array.dtype.hasobject]:
        raise TypeError(f"{path}: array {objects[0]!r} holds Python objects, which npz can only pickle")
    buffer = io.BytesIO()
    np.savez_compressed(buffer, about=np.array(json.dumps(about)), **arrays)  # type: ignore[arg-type]
    write_bytes(path, seal(buffer.getvalue()))


def read_npz(path: Path, names: Collection[str] | None = None) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
    """Return the mapping `about` and the arrays by name that `write_npz` wrote to a file.

    Args:
        path: The file; one of an earlier version has no digest.
        names: The arrays to read; default all.

    Raises:
        CheckpointError: The file is missing or damaged, or holds something else.
    """
    from numpy.lib.format import read_array

    try:
        content = _read(path)
        if damage := find_damage(io.BytesIO(content)):
            raise ValueError(damage)
        arrays = {}
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            for member in archive.namelist():
                name = member.removesuffix(".npy")
                if names is None or name in (*names, "about"):
                    arrays[name] = read_array(io.BytesIO(archive.read(member)), allow_pickle=False)
        about = json.loads(str(arrays.pop("about")))
        if not isinstance(about, dict):
            raise ValueError("not written by prune_fe")
    except Exception as error:  # What a damaged file raises depends on where the damage is.
        raise damaged(path, error) from error
    return about, arrays


def write_sealed(path: Path, content: bytes) -> None:
    """Write bytes behind their SHA-256 digest, whole or not at all.

    Args:
        path: The file; its folder must exist.
        content: The bytes.

    Raises:
        EnvironmentFault: The file cannot be written.
    """
    write_bytes(path, hashlib.sha256(content).digest() + content)


def read_sealed(path: Path) -> bytes:
    """Return the bytes that `write_sealed` wrote.

    Raises:
        CheckpointError: The file is missing or damaged.
    """
    try:
        content = _read(path)
    except OSError as error:
        raise damaged(path, error) from error
    size = hashlib.sha256().digest_size
    if hashlib.sha256(content[size:]).digest() != content[:size]:
        raise damaged(path, "its SHA-256 is another one")
    return content[size:]


def damaged(path: Path, why: object) -> CheckpointError:
    """Return the error of a file that cannot be used; its text begins with the path."""
    return CheckpointError(f"{path}: damaged ({why})")


def _digest_json(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _read(path: Path) -> bytes:
    with open_regular_file(path) as file:
        return file.read()
