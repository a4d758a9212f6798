"""Unpack tar files of images, once, into a folder next to the file."""

from __future__ import annotations

import errno
import lzma
import shutil
import tarfile
import zlib
from pathlib import Path
from typing import Any

from prune_fe.errors import DataError, EnvironmentFault
from prune_fe.io import new_folder

SLACK_BYTES = 2**26
"""An archive that unpacks to more than 20 times its size plus this much is refused. Images hardly compress, so such an
archive holds something else, and could fill the disk."""


def unpack(path: Path) -> Path:
    """Return the folder that holds train/ and val/: `path`, or the first such folder one level below it.

    Args:
        path: A folder, or a .tar, .tar.gz or .tgz file. A file is unpacked once, into a folder of its name beside it.

    Raises:
        DataError: The path does not exist, or the archive is damaged, unsafe or far too large.
        EnvironmentFault: The archive cannot be unpacked next to the file.
    """
    if not path.exists():
        raise DataError(f"{path}: no such folder or tar file")
    target = path
    if not path.is_dir():
        target = path.with_name(path.name.removesuffix(".gz").removesuffix(".tgz").removesuffix(".tar"))
        if target == path:
            raise DataError(f"{path}: not a folder, .tar, .tar.gz or .tgz")
        if not target.exists():
            _unpack_to(path, target)
    inner = [entry for entry in sorted(target.iterdir()) if (entry / "train").is_dir()]
    return inner[0] if inner and not (target / "train").is_dir() else target


def _unpack_to(archive: Path, target: Path) -> None:
    """Unpack an archive into the new folder `target`, whole or not at all."""
    try:
        with new_folder(target) as folder:
            _extract(archive, folder)
    except (tarfile.TarError, EOFError, zlib.error, lzma.LZMAError) as error:
        raise DataError(f"{archive}: cannot be unpacked ({error})") from error
    except OSError as error:
        if error.errno == errno.ENOSPC:
            free = shutil.disk_usage(target.parent).free >> 20
            raise EnvironmentFault(f"{archive}: no space left while unpacking ({free} MiB free)") from error
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise EnvironmentFault(
                f"{archive}: cannot be read, or not unpacked beside itself ({error.strerror}); unpack it elsewhere"
            ) from error
        # gzip reports damage as an OSError without a number.
        raise DataError(f"{archive}: cannot be unpacked ({error})") from error


def _extract(archive: Path, folder: Path) -> None:
    """Extract an archive of plain files and folders into `folder`.

    Raises:
        DataError: A member is a link or a device, the files are larger than images can be, or the end is missing.
    """
    bound, total = 20 * archive.stat().st_size + SLACK_BYTES, 0

    def count_bytes(number: int) -> None:
        nonlocal total
        total += number
        if total > bound:
            raise DataError(f"{archive}: unpacks to more than {bound >> 20} MiB, refused")

    with tarfile.open(archive) as tar:
        for member in tar:
            count_bytes(tarfile.BLOCKSIZE + member.size)
            if not (member.isfile() or member.isdir()):
                raise DataError(f"{archive}: {member.name!r} is a link or a device, refused")
            tar.extract(member, folder, filter="data")
        stream: Any = tar.fileobj
        # tarfile reads an archive that was cut behind a member without an error. A whole archive ends with a block of
        # zeros, which tarfile reads beyond its last offset, and gzip's checksum comes after them.
        if stream.tell() < tar.offset + tarfile.BLOCKSIZE:
            raise DataError(f"{archive}: is cut short, its end is missing")
        while chunk := stream.read(2**20):
            count_bytes(len(chunk))
