"""Files and names: atomic writes, JSON, CSV and npz, safe file names, and hints for misspelt words."""

from __future__ import annotations

import csv
import difflib
import io
import json
import math
import os
import re
import uuid
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from zipfile import BadZipFile

from prune_fe.errors import CheckpointError

if TYPE_CHECKING:
    from numpy.typing import NDArray


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file, whole or not at all: a temporary file beside `path` takes its place once it is on the disk.

    Raises:
        OSError: The file cannot be written; it names `path`.
    """
    # The temporary name is random, since several processes may write the same file.
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")
    try:
        with partial.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        # A failed write() does not say which file it was.
        raise OSError(error.errno, error.strerror, str(path)) from error


def write_text(path: Path, text: str) -> None:
    """Write a UTF-8 text file, whole or not at all."""
    write_bytes(path, text.encode("utf-8"))


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON file, whole or not at all. NaN and infinite numbers become null."""
    write_text(path, json.dumps(finite_json(content), indent=1) + "\n")


def write_csv(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write a CSV file, whole or not at all: one line a row, the keys of the first row as the heading."""
    rows = list(rows)
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, fieldnames=list(rows[0]))
    writer.writeheader()
    writer.writerows({key: safe_cell(value) for key, value in row.items()} for row in rows)
    write_text(path, text.getvalue())


def write_npz(path: Path, about: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]) -> None:
    """Write arrays, and `about` as JSON beside them, to one compressed npz file, whole or not at all."""
    import numpy as np

    content = io.BytesIO()
    np.savez_compressed(content, allow_pickle=False, about=np.array(json.dumps(about)), **arrays)
    write_bytes(path, content.getvalue())


def read_npz(path: Path) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
    """Read what `write_npz` wrote.

    Returns:
        The mapping `about` and the arrays by name.

    Raises:
        CheckpointError: The file is missing or damaged, or holds something else.
    """
    import numpy as np

    try:
        with path.open("rb") as content, np.load(content, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        return json.loads(str(arrays.pop("about"))), arrays
    except (OSError, ValueError, KeyError, TypeError, EOFError, BadZipFile) as error:
        raise CheckpointError(f"{path}: damaged ({error})") from error


def finite_json(value: Any) -> Any:
    """Replace NaN and infinite numbers, which JSON cannot express, by None, at any depth."""
    if isinstance(value, Mapping):
        return {key: finite_json(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [finite_json(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def safe_cell(value: Any) -> Any:
    """Return a CSV cell that no spreadsheet runs as a formula: an apostrophe in front keeps it a text."""
    return f"'{value}" if isinstance(value, str) and value.startswith(("=", "+", "-", "@", "\t", "\r")) else value


def safe_file_name(text: str) -> str:
    """Return `text` with everything but letters, digits and dots replaced by dashes, for use in a file name."""
    return re.sub(r"[^A-Za-z0-9.]", "-", text)


def nearest(word: str, known: Mapping[str, Any] | Sequence[str]) -> str:
    """Return a hint for an unknown word: the known words like it, or all of them."""
    close = difflib.get_close_matches(word, list(known), n=2)
    return f"did you mean {' or '.join(map(repr, close))}?" if close else f"allowed are {', '.join(known)}"
