"""Files that are not what was expected: refuse pipes and devices, and say what the content of a file is."""

from __future__ import annotations

import errno
import os
import stat
import zipfile
from io import BufferedReader
from pathlib import Path
from typing import Any

from prune_fe.errors import InputError

HEAD_BYTES = 512
"""How much of a file is looked at."""

MAX_SAFETENSORS_HEADER = 100_000_000
"""Bytes of the largest header that safetensors reads."""

BEGINNINGS = (
    (b"version https://git-lfs", "a Git LFS pointer instead of the file; `git lfs pull` fetches it"),
    (b"\x1f\x8b", "a gzip file; unpack it first"),
    (b"BZh", "a bzip2 file; unpack it first"),
    (b"\xfd7zXZ\x00", "an xz file; unpack it first"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive; unpack it first"),
    (b"Rar!", "a RAR archive; unpack it first"),
    (b"\x89HDF\r\n\x1a\n", "an HDF5 file, such as Keras writes"),
    (b"\x93NUMPY", "a NumPy file"),
    (b"\x7fELF", "a program"),
    (b"%PDF", "a PDF file"),
)
"""How files of a kind begin, and what to say about them."""


def require_path(path: Any, name: str = "path") -> Path:
    """Return a text or path-like object as a path.

    Args:
        path: What the caller gave.
        name: Name of the argument.

    Raises:
        InputError: It is something else, or holds a null character.
    """
    if not isinstance(path, str | os.PathLike):
        raise InputError(f"{name} is a {type(path).__name__}; it must be a path")
    text = os.fsdecode(path)
    if "\0" in text:
        raise InputError(f"{name} is {text[:60]!r}; a path has no null character")
    return Path(text)


def open_regular_file(path: Path) -> BufferedReader:
    """Open a file for reading.

    Args:
        path: The file.

    Raises:
        OSError: It cannot be opened, or is a folder, a pipe or a device; a pipe would be waited for without end.
    """
    # O_NONBLOCK opens a pipe at once; it means nothing for a regular file.
    file = open(os.open(path, os.O_RDONLY | os.O_NONBLOCK), "rb")  # noqa: SIM115
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise OSError(errno.EINVAL, "not a regular file", str(path))
    return file


def describe_content(path: Path) -> str | None:
    """Return what a file is, as the end of the sentence "it is …"; None where that is not known.

    Args:
        path: A regular file.
    """
    try:
        with open_regular_file(path) as file:
            head = file.read(HEAD_BYTES)
    except OSError:
        return None
    return "empty" if not head else _describe_head(path, head)


def _describe_head(path: Path, head: bytes) -> str | None:
    """Return what a file is that begins with `head`; see `describe_content`."""
    known = [words for beginning, words in BEGINNINGS if head.startswith(beginning)]
    if head.lstrip(b"\xef\xbb\xbf \t\r\n").lower().startswith((b"<!doctype html", b"<html")):
        known.append("an HTML page, perhaps of a download that failed")
    if head[257:262] == b"ustar":
        known.append("a tar archive; unpack it first")
    if head.startswith(b"PK\x03\x04"):
        known.append(_describe_zip(path))
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") <= MAX_SAFETENSORS_HEADER:
        known.append("a safetensors file; call it NAME.safetensors")
    return known[0] if known else None


def _describe_zip(path: Path) -> str:
    """Return what a zip file is; torch's own formats are zip files."""
    try:
        with zipfile.ZipFile(path) as archive:
            inner = {name.partition("/")[2] for name in archive.namelist()}
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError):
        return "a damaged zip file"
    if any(name.startswith("code/") or name == "constants.pkl" for name in inner):
        return "a TorchScript program; save its state_dict() with torch.save"
    if "archive_format" in inner:
        return "an exported program (.pt2); save the network's state_dict() with torch.save"
    if "data.pkl" in inner:
        return "a file of torch.save; call it NAME.pth"
    return "a zip file; unpack it first"
