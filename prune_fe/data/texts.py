"""A list of many texts in little memory, which processes share instead of copying it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import overload

import torch
from torch import Tensor

BULK = 1000
"""So many texts at once are cut out of a copy of all."""


class PackedTexts(Sequence[str]):
    """A list of texts that are kept in one tensor as UTF-8.

    A million names in a list of `str` take about 100 MB, and each process that reads images would have a copy. Tensors
    take what the letters take, and a DataLoader shares them with its processes.

    >>> names = PackedTexts(["cat/1.png", "dog/2.png"])
    >>> names[1], len(names), list(names.select([1, 0]))
    ('dog/2.png', 2, ['dog/2.png', 'cat/1.png'])

    Args:
        texts: The texts.
    """

    def __init__(self, texts: Iterable[str]) -> None:
        content, ends = bytearray(), [0]
        for text in texts:
            content += text.encode()
            ends.append(len(content))
        # frombuffer refuses an empty buffer.
        self._content = torch.frombuffer(content, dtype=torch.uint8) if content else torch.empty(0, dtype=torch.uint8)
        self._ends = torch.tensor(ends)

    def __len__(self) -> int:
        return len(self._ends) - 1

    @overload
    def __getitem__(self, index: int) -> str: ...

    @overload
    def __getitem__(self, index: slice) -> PackedTexts: ...

    def __getitem__(self, index: int | slice) -> str | PackedTexts:
        if isinstance(index, slice):
            return self.select(range(len(self))[index])
        place = range(len(self))[index]
        start, end = self._ends[place : place + 2].tolist()
        return self._content[start:end].numpy().tobytes().decode()

    def __iter__(self) -> Iterator[str]:
        return iter(self.take(range(len(self))))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, PackedTexts):
            return NotImplemented
        return torch.equal(self._ends, other._ends) and torch.equal(self._content, other._content)

    __hash__ = None  # type: ignore[assignment]

    def take(self, indices: Sequence[int]) -> list[str]:
        """Return the texts with these indices as a list, in their order."""
        if len(indices) < BULK:
            return [self[index] for index in indices]
        # Slices of bytes are much faster than slices of a tensor.
        content, ends = self._content.numpy().tobytes(), self._ends.tolist()
        return [content[ends[index] : ends[index + 1]].decode() for index in indices]

    def select(self, indices: Sequence[int]) -> PackedTexts:
        """Return the texts with these indices, in their order."""
        return PackedTexts(self.take(indices))

    @property
    def tensors(self) -> tuple[Tensor, Tensor]:
        """The letters, (bytes,) uint8, and where each text ends, (texts + 1,) int64, beginning with 0."""
        return self._content, self._ends
