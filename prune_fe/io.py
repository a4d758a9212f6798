"""Files and names: atomic writes, JSON and CSV, locks, safe file names, and hints for misspelt words.

`prune_fe.records` has the files that are read back, with a digest.

Every file and folder that the package writes appears whole or not at all: it is written under a temporary name on the
same disk, synchronised, and renamed. A program that is killed at any moment leaves the old content or the new.
"""

from __future__ import annotations

import contextlib
import csv
import difflib
import errno
import fcntl
import io
import json
import math
import os
import re
import shutil
import tempfile
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from numbers import Integral, Real
from pathlib import Path
from typing import Any, TextIO

from prune_fe.errors import EnvironmentFault, InputError

PARTIAL = ".partial"
"""The end of the names of files and folders that are not whole yet."""

CSV_DIGITS = 9
"""Significant digits of a number in a CSV file: as many as float32 has, in which networks compute."""


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file, whole or not at all.

    Args:
        path: The file; its folder must exist.
        content: What it will hold.

    Raises:
        EnvironmentFault: The file cannot be written; what was there is there still.
    """
    with explain_disk_errors(path, len(content)), replacing(path) as partial:
        partial.write_bytes(content)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield where to write a file; it replaces `path` when the block ends without an error.

    Args:
        path: The file; its folder must exist.

    Raises:
        OSError: The file cannot be written; what was there is there still.
    """
    # The temporary name is random, since several processes may write the same file.
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}{PARTIAL}")
    try:
        yield partial
        _sync(partial)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
    # Without this, a crash of the machine could bring the old file back.
    _sync(path.parent)


def write_folder(path: Path, files: Mapping[str, bytes]) -> None:
    """Write a folder of files, whole or not at all, in the place of a folder that may be there.

    Args:
        path: The folder; folders above it are made.
        files: The content of each file by name.

    Raises:
        EnvironmentFault: It cannot be written; what was there is there still.
    """
    needed = sum(map(len, files.values()))
    with explain_disk_errors(path, needed), temporary_folder(path) as aside:
        new, old = aside / "new", aside / "old"
        new.mkdir()
        for name, content in files.items():
            _write_synced(new / name, content)
        # One rename cannot replace a folder that holds files, so the old one makes room first.
        if path.exists():
            os.replace(path, old)
        try:
            os.replace(new, path)
        except BaseException:
            if old.exists():
                os.replace(old, path)
            raise
        _sync(path.parent)


@contextmanager
def new_files(path: Path, needed: int | None = None) -> Iterator[Path]:
    """Yield where to write a new file; it appears at `path` when the block ends without an error.

    Other files that the block writes beside the yielded one appear beside `path`, before it.

    Args:
        path: The new file; folders above it are made.
        needed: The size of the files in bytes, where it is known, for the error on a full disk.

    Raises:
        InputError: A file of one of these names exists.
        EnvironmentFault: A file cannot be written.
    """
    with explain_disk_errors(path, needed), temporary_folder(path) as aside:
        yield aside / path.name
        # The file itself is last: once it is there, the files that belong to it are too.
        for part in sorted(aside.iterdir(), key=lambda part: part.name == path.name):
            _sync(part)
            target = path.with_name(part.name)
            if target.exists():
                raise InputError(f"{target} exists already; choose another path")
            os.replace(part, target)


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Yield a folder to fill; it appears at `path` when the block ends without an error.

    Where another process has made `path` in the meantime, that folder stays.

    Args:
        path: The new folder; folders above it are made.

    Raises:
        OSError: The folder cannot be written.
    """
    with temporary_folder(path) as aside:
        new = aside / "new"
        new.mkdir()
        yield new
        try:
            os.replace(new, path)
        except OSError:
            if not path.is_dir():
                raise


@contextmanager
def temporary_folder(path: Path) -> Iterator[Path]:
    """Yield an empty folder beside `path`, on the same disk; it is removed when the block ends."""
    path.parent.mkdir(parents=True, exist_ok=True)
    prefix, where = f".{path.name}-", path.parent
    with tempfile.TemporaryDirectory(PARTIAL, prefix, where, ignore_cleanup_errors=True) as folder:
        yield Path(folder)


def remove_partial(path: Path) -> None:
    """Remove what killed processes have left of writing a file or folder, which no process may be writing now."""
    with contextlib.suppress(OSError):  # a folder that cannot be listed may still be written to
        _remove(path.parent.iterdir(), re.escape(path.name))


def _remove(entries: Iterable[Path], name: str) -> None:
    """Remove, as far as that is allowed, the entries that are not whole.

    Args:
        entries: Files and folders.
        name: Regular expression of the names that they would have got.
    """
    pattern = re.compile(rf"\.{name}[.-]\w{{8}}{re.escape(PARTIAL)}")
    for entry in [entry for entry in entries if pattern.fullmatch(entry.name)]:
        if entry.is_dir():
            shutil.rmtree(entry, ignore_errors=True)
        else:
            with contextlib.suppress(OSError):
                entry.unlink()


@contextmanager
def explain_disk_errors(path: Path, needed: int | None = None) -> Iterator[None]:
    """Turn an OSError of the block into an EnvironmentFault that says whether the disk is full.

    Args:
        path: What the block writes; the error names it.
        needed: Its size in bytes, where it is known.
    """
    try:
        yield
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise EnvironmentFault(f"{path}: {describe_full_disk(path, needed)}") from error
        raise EnvironmentFault(f"{path}: cannot be written ({error.strerror or error})") from error


def describe_full_disk(path: Path, needed: int | None = None) -> str:
    """Return what there is to say about a disk that is full: how much is free, how much is needed, and which disk.

    Args:
        path: What was to be written; it need not exist.
        needed: Its size in bytes, where it is known.
    """
    folder = next(parent for parent in path.absolute().parents if parent.exists())
    free = shutil.disk_usage(folder).free >> 20
    size = f", {(needed >> 20) + 1} MiB needed" if needed is not None else ""
    disk = next(parent for parent in (folder, *folder.parents) if parent.is_mount())
    return f"no space left, {free} MiB free{size} on the disk of {disk}; what is finished is kept"


def _write_synced(path: Path, content: bytes) -> None:
    """Write a file and wait until it is on the disk."""
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _sync(path: Path) -> None:
    """Wait until a file that was written before, or the entries of a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_text(path: Path, text: str) -> None:
    """Write a UTF-8 text file, whole or not at all; see `write_bytes`."""
    write_bytes(path, text.encode("utf-8"))


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON file, whole or not at all; NaN and infinite numbers become null. See `write_bytes`."""
    write_text(path, json.dumps(finite_json(content), indent=1) + "\n")


def write_csv(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write a CSV file, whole or not at all; see `write_bytes`.

    Args:
        path: The file.
        rows: The rows, at least one; the keys of the first one are the heading.
    """
    rows = list(rows)
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, fieldnames=list(rows[0]))
    writer.writeheader()
    writer.writerows({key: csv_cell(value) for key, value in row.items()} for row in rows)
    write_text(path, text.getvalue())


def lock_folder(folder: Path) -> TextIO:
    """Lock a folder against other processes until the returned file is closed.

    What killed processes have left of writing in it is removed.

    Raises:
        EnvironmentFault: Another process has locked it; the text names that process.
    """
    lock = _lock(folder / ".lock", folder)
    _remove(folder.rglob(f".*{PARTIAL}"), ".+")
    return lock


@contextmanager
def claimed(path: Path) -> Iterator[None]:
    """Claim a file or folder that will be written, against other processes, until the block ends.

    The claim is a lock on the file `.NAME.lock` beside `path`. The system releases it when the process ends, however
    it ends. What killed processes have left of writing `path` is removed.

    Args:
        path: The file or folder; folders above it are made, and removed again where they are empty at the end.

    Raises:
        EnvironmentFault: Another process has claimed it; the text names that process.
    """
    missing = [folder for folder in path.absolute().parents if not folder.exists()]
    name = path.with_name(f".{path.name}.lock")
    with explain_disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        while True:
            lock = _lock(name, path)
            # The owner before may remove the file at any moment until this process holds its lock.
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(lock.fileno()), name.stat()):
                    break
            lock.close()
    try:
        remove_partial(path)
        yield
    finally:
        name.unlink(missing_ok=True)
        lock.close()
        with contextlib.suppress(OSError):  # a folder that is not empty stays
            for folder in missing:
                folder.rmdir()


def _lock(name: Path, what: Path) -> TextIO:
    """Lock the file `name`, which stands for `what`, until the returned file is closed."""
    # "a+" does not empty the file, which names the process that may hold the lock.
    with explain_disk_errors(name):
        lock = name.open("a+")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        lock.seek(0)
        owner = lock.read()
        lock.close()
        # A process that has just locked the folder may not have written its number yet.
        process = f" (process {owner})" if owner else ""
        raise EnvironmentFault(f"{what} is in use by another run{process}") from None
    except OSError as error:
        lock.close()
        reason = error.strerror or error
        raise EnvironmentFault(
            f"{what}: the file system cannot lock files ({reason}); choose another folder, or mount it with locks "
            "(Lustre: flock, NFS: without nolock)"
        ) from error
    lock.truncate(0)
    with contextlib.suppress(OSError):  # on a full disk the lock holds without its owner's number
        # Not through the buffer, which close() would try to write once more.
        os.write(lock.fileno(), str(os.getpid()).encode())
    return lock


def finite_json(value: Any) -> Any:
    """Replace NaN and infinite numbers, which JSON cannot express, by None, at any depth."""
    if isinstance(value, Mapping):
        return {key: finite_json(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [finite_json(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def csv_cell(value: Any) -> Any:
    """Return a cell of a CSV file for people: a number with at most `CSV_DIGITS` digits, and no formula.

    An apostrophe in front keeps a text that a spreadsheet would run as a formula. Numbers that are read back to the bit
    stand in JSON or npz files beside the table.

    >>> csv_cell(2 / 3), csv_cell(1234567), csv_cell("=1+1")
    (0.666666667, 1234567, "'=1+1")
    """
    if isinstance(value, Real) and not isinstance(value, Integral):  # also NumPy's numbers
        return float(f"{value:.{CSV_DIGITS}g}")
    return f"'{value}" if isinstance(value, str) and value.startswith(("=", "+", "-", "@", "\t", "\r")) else value


def safe_file_name(text: str) -> str:
    """Return `text` with everything but letters, digits and dots replaced by dashes, for use in a file name."""
    return re.sub(r"[^A-Za-z0-9.]", "-", text)


def shorten(texts: Sequence[str], most: int = 3) -> str:
    """Return the first of some texts, and how many more there are.

    >>> shorten(["a", "b", "c", "d", "e"])
    'a, b, c and 2 more'
    """
    more = f" and {len(texts) - most} more" if len(texts) > most else ""
    return ", ".join(texts[:most]) + more


def nearest(word: str, known: Mapping[str, Any] | Sequence[str]) -> str:
    """Return a hint for an unknown word: the known words like it, or all of them.

    >>> nearest("digts", ["digits", "folder"])
    "did you mean 'digits'?"
    >>> nearest("x", ["digits", "folder"])
    'allowed are digits, folder'
    """
    close = difflib.get_close_matches(word, list(known), n=2)
    return f"did you mean {' or '.join(map(repr, close))}?" if close else f"allowed are {', '.join(known)}"
