"""The digest of a zip file in its comment, which the programs that read .npz and .pth files ignore."""

from __future__ import annotations

import hashlib
import zipfile
from typing import BinaryIO

MARK = b"sha256 "
"""What stands before the digest."""

COMMENT_BYTES = len(MARK) + 2 * hashlib.sha256().digest_size
"""Length of the comment in bytes."""

CHUNK_BYTES = 2**20
"""How much of a file is hashed at a time."""


def seal(content: bytes) -> bytes:
    """Return a zip file without a comment, with its SHA-256 as the comment."""
    # A zip file ends with the length of its comment and the comment.
    body = content[:-2] + COMMENT_BYTES.to_bytes(2, "little")
    return body + MARK + hashlib.sha256(body).hexdigest().encode()


def find_damage(file: BinaryIO) -> str | None:
    """Return what is wrong with a zip file, by its seal if it has one, and by the checksums of its members.

    Args:
        file: The opened file; it can be at any position afterwards.
    """
    size = file.seek(0, 2)
    file.seek(max(size - COMMENT_BYTES, 0))
    comment = file.read()
    if comment.startswith(MARK):
        digest = hashlib.sha256()
        file.seek(0)
        for start in range(0, size - COMMENT_BYTES, CHUNK_BYTES):
            digest.update(file.read(min(CHUNK_BYTES, size - COMMENT_BYTES - start)))
        if comment != MARK + digest.hexdigest().encode():
            return "its SHA-256 is another one"
    try:
        with zipfile.ZipFile(file) as archive:
            damaged = archive.testzip()
    except Exception as error:  # What a damaged file raises depends on where the damage is.
        return str(error) or type(error).__name__
    return None if damaged is None else f"the checksum of {damaged!r} in it is another one"
