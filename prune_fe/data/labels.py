"""The labels and names of the images and classes of any map-style data set."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from torch.utils.data import Dataset, Subset

from prune_fe.data.texts import PackedTexts
from prune_fe.errors import DataError

HASHED_AT_ONCE = 2**17
"""How many names are in memory at once while a list of images is hashed."""


def image_labels(data: Dataset[Any]) -> list[int]:
    """Return the label of every image, from the data set's `targets` where it has them.

    Without `targets`, every image is read.
    """
    if isinstance(data, Subset):
        labels = image_labels(data.dataset)
        return [labels[index] for index in data.indices]
    every: Iterable[Any] = data.targets if hasattr(data, "targets") else (data[i][1] for i in range(len(data)))  # type: ignore[arg-type]
    if type(every) is list and set(map(type, every)) == {int} and -(2**63) < min(every) <= max(every) < 2**63:
        return every  # at once, for there may be a million
    return [_whole_number(label, index) for index, label in enumerate(every)]


def _whole_number(label: Any, index: int) -> int:
    """Return a label of any type of whole numbers as an int."""
    try:
        number = int(label)
        if number == label and abs(number) < 2**63:
            return number
    except (TypeError, ValueError, RuntimeError, OverflowError):
        pass
    raise DataError(f"image {index}: its label is {str(label)[:40]!r}; it must be a whole number")


def has_labels(data: Dataset[Any]) -> bool:
    """Return whether `image_labels` knows the labels without reading the images."""
    return has_labels(data.dataset) if isinstance(data, Subset) else hasattr(data, "targets")


def image_names(data: Dataset[Any], indices: Sequence[int]) -> list[str]:
    """Return a name that identifies each of some images.

    Args:
        data: A data set, or a subset of one.
        indices: Which images, in the order of the result.

    Returns:
        The image's entry in `data.names`; or its path relative to the root of a torchvision `ImageFolder`; or its
        index in the underlying data set.
    """
    if isinstance(data, Subset):
        return image_names(data.dataset, [data.indices[index] for index in indices])
    names: Sequence[str] = getattr(data, "names", ())
    if isinstance(names, PackedTexts) and names:
        return names.take(indices)
    if names:
        return [names[index] for index in indices]
    if hasattr(data, "samples") and hasattr(data, "root"):
        return [Path(data.samples[index][0]).relative_to(data.root).as_posix() for index in indices]
    return [str(index) for index in indices]


def class_names(data: Any) -> tuple[str, ...]:
    """Return the names of the classes of a data set, also through `Subset` and `DataLoader`; () if it has none."""
    while not hasattr(data, "classes"):
        if not hasattr(data, "dataset"):
            return ()
        data = data.dataset
    return tuple(map(str, data.classes))


def hash_images(data: Dataset[Any]) -> str:
    """Return the SHA-256 of the names and labels of a data set's images, in their order; no image is read."""
    labels = image_labels(data) if has_labels(data) else None
    count: int = len(data)  # type: ignore[arg-type]
    # The text of [names, labels] as JSON, a part at a time: a million names together take 270 MB.
    digest = hashlib.sha256(b"[[")
    for start in range(0, count, HASHED_AT_ONCE):
        names = image_names(data, range(start, min(start + HASHED_AT_ONCE, count)))
        digest.update(((", " if start else "") + json.dumps(names)[1:-1]).encode())
    digest.update(f"], {json.dumps(labels)}]".encode())
    return digest.hexdigest()
