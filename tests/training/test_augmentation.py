"""Flips and shifts against a slow twin, and when finetune applies them."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from prune_fe.training import epochs
from prune_fe.training.augmentation import flip_and_shift
from prune_fe.training.loop import finetune
from tests.training.helpers import pictures, small


def reflected(index: int, size: int) -> int:
    index = abs(index)
    return index if index < size else 2 * (size - 1) - index


def moves(image: Tensor) -> Iterator[Tensor]:
    """Slow twin: every flip of an image (channels, height, width), moved by up to an eighth, the border reflected."""
    _, height, width = image.shape
    up, left = (0 if size == 1 else max(size // 8, 1) for size in (height, width))
    for flip in (False, True):
        for down in range(-up, up + 1):
            for right in range(-left, left + 1):
                out = torch.empty_like(image)
                for y in range(height):
                    for x in range(width):
                        source = reflected(((width - 1 - x) if flip else x) + right, width)
                        out[:, y, x] = image[:, reflected(y + down, height), source]
                yield out


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 3), st.integers(1, 17), st.integers(1, 17), st.integers(0, 2**31))
def test_shifted_images_are_flips_and_small_shifts_and_nothing_else(
    channels: int, height: int, width: int, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    images = torch.rand(2, channels, height, width, generator=generator)
    out = flip_and_shift(images, generator)
    assert out.shape == images.shape
    for image, moved in zip(images, out, strict=True):
        assert any(torch.equal(moved, candidate) for candidate in moves(image))


def test_every_flip_and_shift_occurs() -> None:
    image = torch.rand(1, 8, 8)
    out = flip_and_shift(image.expand(2000, 1, 8, 8), torch.Generator().manual_seed(0))
    found = {tuple(moved.flatten().tolist()) for moved in out}
    assert found == {tuple(candidate.flatten().tolist()) for candidate in moves(image)}


def test_images_are_shifted_each_in_its_own_way() -> None:
    out = flip_and_shift(torch.rand(1, 1, 16, 16).expand(50, 1, 16, 16), torch.Generator().manual_seed(0))
    assert len({tuple(moved.flatten().tolist()) for moved in out}) > 10


@pytest.mark.parametrize("augment", [False, True])
def test_images_are_shifted_only_when_asked(monkeypatch: pytest.MonkeyPatch, augment: bool) -> None:
    calls: list[int] = []
    real: Callable[..., Tensor] = epochs.flip_and_shift

    def counted(images: Tensor, *arguments: Any) -> Tensor:
        calls.append(len(images))
        return real(images, *arguments)

    monkeypatch.setattr(epochs, "flip_and_shift", counted)
    finetune(small(), pictures(24), pictures(6), batch_size=12, epochs=1, augment=augment)
    assert calls == ([12, 12] if augment else [])
