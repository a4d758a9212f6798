"""Find image files with the same content, so that no image is trained on and measured with."""

from __future__ import annotations

import hashlib
import warnings
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import torch

from prune_fe.data.image_files import ImageFiles
from prune_fe.errors import DataError
from prune_fe.io import shorten

BEGINNING_BYTES = 2**14
"""Files of one size are compared by so many bytes first; only those that begin alike are read to their end."""


def find_equal_files(files: Sequence[tuple[str, int]]) -> list[list[int]]:
    """Return groups of two or more files with the same content.

    Args:
        files: Path and size of each file.

    Returns:
        The indices of the files of each group, sorted.

    Raises:
        DataError: A file cannot be read.
    """
    groups = _divide([list(range(len(files)))], lambda index: files[index][1])

    def divide_by_hash(groups: Sequence[Sequence[int]], size: int | None) -> list[list[int]]:
        indices = [index for group in groups for index in group]
        digests = dict(zip(indices, pool.map(partial(_hash, size), (files[i][0] for i in indices)), strict=True))
        return _divide(groups, digests.__getitem__)

    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        groups = divide_by_hash(groups, BEGINNING_BYTES)
        # What has been read to its end is not read again.
        short = [group for group in groups if files[group[0]][1] <= BEGINNING_BYTES]
        long = [group for group in groups if files[group[0]][1] > BEGINNING_BYTES]
        return sorted(short + divide_by_hash(long, None))


def _divide(groups: Iterable[Sequence[int]], key: Callable[[int], Hashable]) -> list[list[int]]:
    """Divide groups by a key, and return those of two or more."""
    divided = []
    for group in groups:
        by_key = defaultdict(list)
        for index in group:
            by_key[key(index)].append(index)
        divided += [part for part in by_key.values() if len(part) > 1]
    return divided


def _hash(size: int | None, path: str) -> bytes:
    """Return the SHA-256 of a file's first `size` bytes; None is all of it."""
    try:
        with open(path, "rb") as file:
            if size is None:
                return hashlib.file_digest(file, "sha256").digest()
            return hashlib.sha256(file.read(size)).digest()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from error


def separate_equal_images(
    data: Any, test: Any, train: Sequence[int], held_out: Sequence[int]
) -> tuple[list[int], list[int]]:
    """Make sure that no image is in two of three parts; a validation image that equals a training image is one too.

    Args:
        data: The data set of training and validation images; only `ImageFiles` and what is decoded from them are
            checked.
        test: The data set of test images.
        train: Indices of the training images.
        held_out: Indices of the validation images.

    Returns:
        The indices of the training and of the validation images, each sorted.

    Raises:
        DataError: A test image equals a training or validation image.
    """
    files, test_files = (getattr(part, "images", part) for part in (data, test))
    if not (isinstance(files, ImageFiles) and isinstance(test_files, ImageFiles)):
        return list(train), list(held_out)
    indices, n_test = [*train, *held_out], len(test_files)
    compared = [(test_files.samples[index][0], test_files.sizes[index]) for index in range(n_test)]
    compared += [(files.samples[index][0], files.sizes[index]) for index in indices]
    is_held_out, moved, leaks, pairs = set(held_out), set[int](), list[str](), list[str]()
    for group in find_equal_files(compared):
        members = [indices[number - n_test] for number in group if number >= n_test]
        trained = [index for index in members if index not in is_held_out]
        if members and group[0] < n_test:
            leaks.append(f"{files.samples[members[0]][0]} and {compared[group[0]][0]}")
        elif trained and len(trained) < len(members):
            moved.update(set(members) - set(trained))
            pairs.append(" = ".join(files.samples[index][0] for index in members))
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
