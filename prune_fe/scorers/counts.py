"""Counts of whole numbers for each class and unit, which add up over batches and processes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from prune_fe.errors import InputError

Array = npt.NDArray[np.int64]
Shape = tuple[int, int, int]
Measured = tuple[Array, npt.NDArray[Any]]
"""The class of each image, (images,), and the value of each of its units, (images, units) of any integer type."""

MAX_PENDING = 1 << 19
"""Largest number of values that wait to be counted. Up to twice as many are counted at once, which takes 31 MiB."""

MAX_PENDING_PARTS = 1 << 10
"""Largest number of arrays that wait to be counted, however small: each takes memory beside that of its values."""


def _no_numbers() -> Array:
    return np.zeros(0, np.int64)


@dataclass(frozen=True, eq=False)
class Counts:
    """How often each value was measured for each class and unit; `+` adds the counts of the other.

    Most counts are 0, so only the others are stored, by their index in the flattened table of all counts. Values wait
    as they were measured until there are more than MAX_PENDING, and are then counted together. They are not counted at
    once because the cache is cold between two layers of a network, so that even their indices take long to compute.
    Once counted, each different value of a class and unit takes 16 bytes, however often it occurs.

    Attributes:
        shape: Numbers of classes, units and possible values (0, 1, …): the shape of the table.
        entries: Indices of the counts that are not 0, ascending, (entries,) int64.
        counts: These counts, (entries,) int64.
        pending: The values that are not counted yet.
    """

    shape: Shape
    entries: Array = field(default_factory=_no_numbers)
    counts: Array = field(default_factory=_no_numbers)
    pending: tuple[Measured, ...] = ()

    @classmethod
    def of(cls, shape: Shape, labels: npt.NDArray[Any], values: npt.NDArray[Any]) -> Self:
        """Return the counts of the values of some images.

        Args:
            shape: Numbers of classes, units and possible values.
            labels: The class of each image, (images,) of any integer type.
            values: (images, units), of any integer type. The array is kept, not copied: do not change it afterwards.

        Raises:
            ValueError: A class or value is outside the shape, or the values are not those of all images and units.
        """
        if values.shape != (len(labels), shape[1]):
            raise ValueError(f"values have shape {values.shape}; allowed: {(len(labels), shape[1])}")
        for name, numbers, size in (("classes", labels, shape[0]), ("values", values, shape[2])):
            if numbers.size and not 0 <= numbers.min() <= numbers.max() < size:
                raise ValueError(f"{name} are {numbers.min()} to {numbers.max()}; allowed: 0 to {size - 1}")
        return cls(shape, pending=((labels.astype(np.int64), values),) if values.size else ())

    @classmethod
    def from_indices(cls, shape: Shape, indices: Sequence[npt.NDArray[Any]], counts: Array) -> Self:
        """Return the counts at ascending indices of the table; the inverse of `indices`.

        Args:
            shape: Numbers of classes, units and possible values.
            indices: Class, unit and value of each count, three times (entries,).
            counts: (entries,) int64.

        Raises:
            ValueError: An index is outside the shape.
        """
        return cls(shape, np.ravel_multi_index(tuple(indices), shape), counts)

    @property
    def indices(self) -> tuple[Array, ...]:
        """The class, the unit and the value of each entry."""
        return np.unravel_index(self.entries, self.shape)

    @property
    def n_pending(self) -> int:
        """The number of values that are not counted yet."""
        return sum(values.size for _, values in self.pending)

    @property
    def images(self) -> Array:
        """The number of images of each class, (classes,) int64."""
        (classes, units, size), counted = self.shape, self.counted()
        return np.bincount(counted.entries // (units * size), counted.counts, classes).astype(np.int64) // units

    def of_classes_with_images(self) -> Counts:
        """Return the counts of the classes that have images, which are numbered anew, in the same order."""
        counted = self.counted()
        _, units, size = self.shape
        classes = counted.entries // (units * size)
        present, numbers = np.unique(classes, return_inverse=True)
        entries = counted.entries - (classes - numbers) * (units * size)
        return replace(counted, shape=(len(present), units, size), entries=entries)

    def __add__(self, other: Counts) -> Counts:
        if self.shape != other.shape:
            sizes = " and ".join(
                "{} classes, {} units and values below {}".format(*each.shape) for each in (self, other)
            )
            raise InputError(
                f"all maps of a layer must have one size, so the images too: resize or crop them (counts of {sizes} "
                "cannot be added)"
            )
        entries, counts = _merge(self, other)
        total = Counts(self.shape, entries, counts, self.pending + other.pending)
        is_full = total.n_pending > MAX_PENDING or len(total.pending) > MAX_PENDING_PARTS
        return total.counted() if is_full else total

    def counted(self) -> Counts:
        """Return the same counts with no value left to count."""
        if not self.pending:
            return self
        _, units, size = self.shape
        labels, values = (np.concatenate(parts) for parts in zip(*self.pending, strict=True))
        indices = ((labels[:, None] * units + np.arange(units)) * size + values).ravel()
        indices.sort()
        starts = _starts_of_runs(indices)
        entries, counts = _merge(self, Counts(self.shape, indices[starts], np.diff(starts, append=len(indices))))
        return replace(self, entries=entries, counts=counts, pending=())


def _merge(one: Counts, other: Counts) -> tuple[Array, Array]:
    """Return the entries of both in ascending order, and their counts; those of the same entry are added."""
    if not (len(one.entries) and len(other.entries)):
        return _join(one.entries, other.entries), _join(one.counts, other.counts)
    entries = np.concatenate([one.entries, other.entries])
    order = entries.argsort(kind="stable")  # of all sorts the one that takes two sorted parts and merges them
    entries = entries[order]
    starts = _starts_of_runs(entries)
    return entries[starts], np.add.reduceat(np.concatenate([one.counts, other.counts])[order], starts)


def _join(one: Array, other: Array) -> Array:
    """Return one array after the other, without a copy where one of them is empty."""
    if not (len(one) and len(other)):
        return one if len(one) else other
    return np.concatenate([one, other])


def _starts_of_runs(ascending: Array) -> Array:
    """Return where each different number begins in an ascending array with at least one number."""
    return np.concatenate([[0], np.flatnonzero(ascending[1:] != ascending[:-1]) + 1])
