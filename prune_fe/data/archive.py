"""Unpack tar files of images, once, into a folder next to the file."""

from __future__ import annotations

import contextlib
import errno
import gzip
import hashlib
import io
import os
import re
import tarfile
import zlib
from pathlib import Path
from typing import Any, BinaryIO

from prune_fe.errors import DataError, EnvironmentFault
from prune_fe.file_types import describe_content, open_regular_file
from prune_fe.io import describe_full_disk, new_folder, write_text

SLACK_BYTES = 2**26
"""An archive that unpacks to more than 20 times its size plus this much is refused. Images hardly compress, so such an
archive holds something else, and could fill the disk."""

MAX_HEADER_BYTES = 2**20
"""Largest size of a member's headers, which have a few kilobytes for images; larger ones are refused, not read."""

HASH_DIGITS = 12
"""Hexadecimal digits of the archive's hash in the name of the folder."""


def unpack(path: Path) -> Path:
    """Return the folder that holds train/ and val/: `path`, or the first such folder one level below it.

    Args:
        path: A folder, or a .tar, .tar.gz or .tgz file. A file is unpacked once, into the folder NAME-HASH beside it,
            where HASH is the beginning of the file's SHA-256: another file of the same name is unpacked anew.

    Raises:
        DataError: The path does not exist, or the archive is damaged, unsafe or far too large.
        EnvironmentFault: The archive cannot be unpacked next to the file.
    """
    if not path.exists():
        raise DataError(f"{path}: no such folder or tar file")
    target = path
    if not path.is_dir():
        name = path.name.removesuffix(".gz").removesuffix(".tgz").removesuffix(".tar")
        if name == path.name:
            raise DataError(f"{path}: not a folder, .tar, .tar.gz or .tgz")
        digest, state = _hash_archive(path)
        target = path.with_name(f"{name}-{digest[:HASH_DIGITS]}")
        if not target.exists():
            _unpack_to(path, target)
        _remember_hash(path, digest, state)
    inner = [entry for entry in sorted(target.iterdir()) if (entry / "train").is_dir()]
    return inner[0] if inner and not (target / "train").is_dir() else target


def _hash_archive(path: Path) -> tuple[str, str]:
    """Return the SHA-256 of an archive, and the state that it was computed in: the archive's size, inode and times.

    It is not computed again while the file that `_remember_hash` wrote has the same state.
    """
    try:
        with open_regular_file(path) as file:
            status = os.fstat(file.fileno())
            # ctime changes with every write and cannot be set.
            state = f"{status.st_size} {status.st_ino} {status.st_mtime_ns} {status.st_ctime_ns}"
            with contextlib.suppress(OSError, ValueError):
                digest, _, then = _hash_file(path).read_text(encoding="ascii").strip().partition(" ")
                if then == state and re.fullmatch("[0-9a-f]{64}", digest):
                    return digest, state
            return hashlib.file_digest(file, "sha256").hexdigest(), state
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error})") from error


def _remember_hash(path: Path, digest: str, state: str) -> None:
    """Keep the hash of an archive beside it, so that a large one is read again only if it has changed."""
    with contextlib.suppress(OSError, EnvironmentFault):  # a folder that cannot be written to
        write_text(_hash_file(path), f"{digest} {state}\n")


def _hash_file(path: Path) -> Path:
    """Return the file that holds an archive's hash."""
    return path.with_name(f".{path.name}.sha256")


def _unpack_to(archive: Path, target: Path) -> None:
    """Unpack an archive into the new folder `target`, whole or not at all."""
    try:
        with new_folder(target) as folder:
            _extract(archive, folder)
    except (tarfile.TarError, EOFError, zlib.error) as error:
        content = describe_content(archive)
        known = "" if content is None or "tar" in content or "gzip" in content else f"; it is {content}"
        raise DataError(f"{archive}: cannot be unpacked ({error}){known}") from error
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise EnvironmentFault(f"{archive}: {describe_full_disk(target)}") from error
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise EnvironmentFault(
                f"{archive}: cannot be read, or not unpacked beside itself ({error.strerror}); unpack it elsewhere"
            ) from error
        # gzip reports damage as an OSError without a number.
        raise DataError(f"{archive}: cannot be unpacked ({error})") from error


def _extract(archive: Path, folder: Path) -> None:
    """Extract an archive of plain files and folders into `folder`.

    Raises:
        DataError: A member is a link or a device, a header or the files are larger than those of images can be, or the
            end is missing.
    """
    bound, total = 20 * archive.stat().st_size + SLACK_BYTES, 0

    def count_bytes(number: int) -> None:
        nonlocal total
        total += number
        if total > bound:
            raise DataError(f"{archive}: unpacks to more than {bound >> 20} MiB, refused")

    with open_regular_file(archive) as file, HeaderReader(archive, file) as stream:
        with tarfile.open(fileobj=stream, mode="r:") as tar:
            while member := stream.read_header(tar):
                if member.size < 0:
                    raise DataError(f"{archive}: {member.name!r} has a size of {member.size} bytes, refused")
                count_bytes(tarfile.BLOCKSIZE + member.size)
                if not (member.isfile() or member.isdir()) or member.issparse():
                    raise DataError(f"{archive}: {member.name!r} is a link or a device, refused")
                tar.extract(member, folder, filter="data")
            end = tar.offset
        # tarfile reads an archive that was cut behind a member without an error. A whole archive ends with a block of
        # zeros, which tarfile reads beyond its last offset, and gzip's checksum comes after them.
        if stream.tell() < end + tarfile.BLOCKSIZE:
            raise DataError(f"{archive}: is cut short, its end is missing")
        while chunk := stream.read(2**20):
            count_bytes(len(chunk))


class HeaderReader(io.BufferedIOBase):
    """The content of an archive, unpacked by gzip if it is packed; headers beyond reason are refused, not read.

    Long names and pax headers are members of any size, which tarfile reads into memory as a whole.

    Args:
        archive: The path, for error messages.
        file: The opened file.

    Attributes:
        is_packed: Whether gzip has packed it.
    """

    def __init__(self, archive: Path, file: BinaryIO) -> None:
        self.is_packed = file.read(2) == b"\x1f\x8b"
        file.seek(0)
        self._archive, self._stream = archive, gzip.GzipFile(fileobj=file) if self.is_packed else file
        # What a header may still have; tarfile reads the first one as it opens the archive.
        self._left: int | None = MAX_HEADER_BYTES

    def read_header(self, tar: Any) -> tarfile.TarInfo | None:
        """Return the next member of `tar`, which reads from here; None at the end."""
        self._left = MAX_HEADER_BYTES
        try:
            member: tarfile.TarInfo | None = tar.next()
        finally:
            self._left = None
        # tarfile keeps all members; those of an archive of a million images would fill the memory.
        tar.members.clear()
        return member

    def read(self, size: int | None = -1) -> bytes:
        """Read some bytes; while a header is read, at most as many as a header can have."""
        if self._left is not None:
            self._left -= size if size is not None and size >= 0 else MAX_HEADER_BYTES + 1
            if self._left < 0:
                raise DataError(f"{self._archive}: a header is larger than {MAX_HEADER_BYTES >> 10} KiB, refused")
        return self._stream.read(-1 if size is None else size)

    def seekable(self) -> bool:
        """Return True: tarfile goes from member to member."""
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Go to a position."""
        return self._stream.seek(offset, whence)

    def tell(self) -> int:
        """Return the position."""
        return self._stream.tell()
