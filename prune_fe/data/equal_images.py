"""Find stored images with the same content, so that no image is trained on and measured with."""

from __future__ import annotations

import contextlib
import hashlib
import json
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch

from prune_fe.data.stored_images import StoredImages
from prune_fe.errors import DataError, EnvironmentFault
from prune_fe.file_types import open_regular_file
from prune_fe.io import shorten, write_text

BEGINNING_BYTES = 2**14
"""Images of one size are compared by so many bytes first; only those that begin alike are read to their end."""

HASHED_TOGETHER = 256
"""Images that a thread is given at once."""

REMEMBERED_FROM = 10_000
"""Of so many images and more, it is remembered beside them which are equal, so that they are not read each time."""

REMEMBERED, MAX_REMEMBERED_BYTES = ".equal-images.json", 2**26
"""The file that remembers it, and the size of the largest that is read."""

Read = Callable[[int, int | None], bytes]
"""Function from an image's index and a number of bytes to these first bytes; None is all of them."""


def find_equal(sizes: Any, read: Read) -> list[list[int]]:
    """Return groups of two or more images with the same content.

    Args:
        sizes: Size of each encoded image in bytes, (images,), an array or a list.
        read: Function that reads an image.

    Returns:
        The indices of the images of each group, sorted.

    Raises:
        DataError: An image cannot be read.
    """
    size_of = np.asarray(sizes, dtype=np.int64)
    # One number for each image: those with different numbers are known to be different.
    _, kinds = np.unique(size_of, return_inverse=True)
    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        for count in (BEGINNING_BYTES, None):
            open_cases = np.bincount(kinds)[kinds] > 1
            if count is None:  # what has been read to its end is not read again
                open_cases &= size_of > BEGINNING_BYTES
            indices = open_cases.nonzero()[0]
            if len(indices) == 0:
                continue
            digests = _hash_all(indices.tolist(), read, count, pool)
            _, by_digest = np.unique(digests, return_inverse=True)
            # A digest divides a kind; other images keep their kind, apart from all new ones.
            pairs = np.stack((kinds, np.full(len(kinds), -1)), axis=1)
            pairs[indices, 1] = by_digest
            _, kinds = np.unique(pairs, axis=0, return_inverse=True)
            kinds = kinds.reshape(-1)
    order = np.argsort(kinds, kind="stable")
    groups = np.split(order, np.diff(kinds[order]).nonzero()[0] + 1)
    return sorted(group.tolist() for group in groups if len(group) > 1)


def _hash_all(indices: Sequence[int], read: Read, count: int | None, pool: ThreadPoolExecutor) -> Any:
    """Return the first 16 bytes of the SHA-256 of each image's first `count` bytes, as an array."""

    def hash_part(start: int) -> bytes:
        part = indices[start : start + HASHED_TOGETHER]
        return b"".join(hashlib.sha256(read(index, count)).digest()[:16] for index in part)

    parts = pool.map(hash_part, range(0, len(indices), HASHED_TOGETHER))
    return np.frombuffer(b"".join(parts), dtype="V16")


def separate_equal_images(
    data: Any, test: Any, train: Sequence[int], held_out: Sequence[int]
) -> tuple[list[int], list[int]]:
    """Make sure that no image is in two of three parts; a validation image that equals a training image is one too.

    Args:
        data: The data set of training and validation images; only `StoredImages` and what is decoded from them are
            checked.
        test: The data set of test images.
        train: Indices of the training images.
        held_out: Indices of the validation images.

    Returns:
        The indices of the training and of the validation images, each sorted.

    Raises:
        DataError: A test image equals a training or validation image.
    """
    stored, tests = (getattr(part, "images", part) for part in (data, test))
    if not (isinstance(stored, StoredImages) and isinstance(tests, StoredImages)):
        return list(train), list(held_out)
    indices, n_test = [*train, *held_out], len(tests)
    is_held_out, moved, leaks, pairs = set(held_out), set[int](), list[str](), list[str]()
    for group in _find_groups(stored, tests, indices):
        members = [number - n_test for number in group if number >= n_test]
        trained = [index for index in members if index not in is_held_out]
        if members and group[0] < n_test:
            leaks.append(f"{stored.where(members[0])} and {tests.where(group[0])}")
        elif trained and len(trained) < len(members):
            moved.update(set(members) - set(trained))
            pairs.append(" = ".join(map(stored.where, members)))
    if leaks:
        raise DataError(
            f"{len(leaks)} test images are training images too, with the same content: {shorten(leaks)}; remove them "
            "from one of the two"
        )
    if moved:
        warnings.warn(
            f"{len(moved)} validation images have the content of a training image and are trained on instead: "
            f"{shorten(pairs)}",
            stacklevel=2,
        )
    return sorted({*train, *moved}), sorted(is_held_out - moved)


def find_shared_images(images: StoredImages, others: Any) -> list[str]:
    """Return "PATH and PATH" for each image of one data set that has the content of an image of another one.

    An image that is in both is named once.

    Args:
        images: The first data set.
        others: The other one; only `StoredImages` and what is decoded from them are checked.
    """
    stored = getattr(others, "images", others)
    if not isinstance(stored, StoredImages):
        return []
    n, sizes = len(images), images.sizes.numpy()
    # Only what is as large as one of the images can be equal to it; the others are not read.
    candidates = np.isin(stored.sizes.numpy(), sizes).nonzero()[0]

    def read(number: int, count: int | None) -> bytes:
        return images.read_bytes(number, count) if number < n else stored.read_bytes(int(candidates[number - n]), count)

    shared = []
    for group in find_equal(np.concatenate((sizes, stored.sizes.numpy()[candidates])), read):
        equal = [number for number in group if number >= n]
        if group[0] < n and equal:
            other = stored.where(int(candidates[equal[0] - n]))
            own = [images.where(number) for number in group if number < n]
            shared += [name if name == other else f"{name} and {other}" for name in own]
    return shared


def _find_groups(data: StoredImages, test: StoredImages, indices: Sequence[int]) -> list[list[int]]:
    """Return the groups of equal images among the test images and some of the others.

    Returns:
        Sorted numbers: an image's index in `test`, or its index in `data` plus the number of test images.
    """
    n_test = len(test)
    remembered = _Remembered(data, test)
    if (groups := remembered.read()) is not None:
        chosen = {index + n_test for index in indices}
        kept = [[number for number in group if number < n_test or number in chosen] for group in groups]
        return [group for group in kept if len(group) > 1]
    sizes = torch.cat((test.sizes, data.sizes[torch.tensor(indices, dtype=torch.int64)]))

    def read(number: int, count: int | None) -> bytes:
        if number < n_test:
            return test.read_bytes(number, count)
        return data.read_bytes(indices[number - n_test], count)

    groups = [
        sorted(number if number < n_test else indices[number - n_test] + n_test for number in group)
        for group in find_equal(sizes.numpy(), read)
    ]
    if len(indices) == len(data):
        remembered.write(groups)
    return groups


class _Remembered:
    """Which images of a folder are equal, in a file beside them; it holds while no image file changes.

    Args:
        data: Training and validation images.
        test: Test images.
    """

    def __init__(self, data: StoredImages, test: StoredImages) -> None:
        states = [part.state() for part in (data, test)] if len(data) + len(test) >= REMEMBERED_FROM else [None]
        self.path: Path | None = None
        if None not in states:
            self.path = Path(getattr(data, "root", ".")).parent / REMEMBERED
            self.state = hashlib.sha256(b"".join(hashlib.sha256(state or b"").digest() for state in states)).hexdigest()

    def read(self) -> list[list[int]] | None:
        """Return the groups of equal images; None if they are not known, or if a file has changed since."""
        if self.path is None:
            return None
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError, RecursionError):
            with open_regular_file(self.path) as file:
                content = json.loads(file.read(MAX_REMEMBERED_BYTES))
            if content["state"] == self.state:
                return [[int(number) for number in group] for group in content["equal"]]
        return None

    def write(self, groups: Sequence[Sequence[int]]) -> None:
        """Remember the groups, unless the folder cannot be written to."""
        if self.path is not None:
            with contextlib.suppress(OSError, EnvironmentFault):
                write_text(self.path, json.dumps({"state": self.state, "equal": groups}))
