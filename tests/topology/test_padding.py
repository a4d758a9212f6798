"""Birth times of maps that are not square, against ripser on graphs that are built edge by edge."""

from math import inf

import numpy as np
import pytest
import torch
from ripser import ripser
from torch import Tensor

from prune_fe.topology import birth_times, padding
from prune_fe.topology.padding import apply_to_squares, pad_to_square

SIZES = [(5, 9), (9, 5), (2, 12), (12, 2), (7, 8), (1, 9), (3, 70)]


def birth_by_ripser(values: np.ndarray) -> int:
    """1 + the map's own elements above the first threshold with a hole, from a list of edges without any padding."""
    side = max(values.shape)
    edges: dict[frozenset[int], float] = {}
    for row, column in np.ndindex(values.shape):
        pair = frozenset((row, column))
        if len(pair) == 2:
            edges[pair] = max(edges.get(pair, -inf), float(values[row, column]))
    levels = sorted(set(edges.values()) | {float(values.min())}, reverse=True)
    # Edges that no element stands for enter at the smallest value.
    distances = np.full((side, side), float(len(levels)))
    np.fill_diagonal(distances, 0)
    for (a, b), weight in ((tuple(pair), weight) for pair, weight in edges.items()):
        distances[a, b] = distances[b, a] = 1 + levels.index(weight)
    bars = ripser(distances, maxdim=1, distance_matrix=True)["dgms"][1]
    births = [birth for birth, death in bars if death > birth]
    return 1 + int((values > levels[int(min(births)) - 1]).sum()) if births else 0


def draw(kind: str, height: int, width: int, n: int) -> Tensor:
    noise = torch.randn(n, 3, height, width, generator=torch.Generator().manual_seed(height * 100 + width))
    return {"random": noise, "rectified": noise.relu(), "few values": (2 * noise).round() / 2}[kind]


@pytest.mark.parametrize("kind", ["random", "rectified", "few values"])
@pytest.mark.parametrize(("height", "width"), SIZES)
def test_births_of_padded_maps_are_ripsers(kind: str, height: int, width: int) -> None:
    maps = draw(kind, height, width, 4)
    births = apply_to_squares(birth_times, maps)
    expected = [[birth_by_ripser(values) for values in image] for image in maps.numpy()]
    assert births.tolist() == expected
    assert births.any() or height == 1


def test_the_layer_is_padded_some_images_at_a_time_and_in_any_memory_format(monkeypatch: pytest.MonkeyPatch) -> None:
    maps = draw("rectified", 6, 9, 7)
    whole = birth_times(pad_to_square(maps))
    monkeypatch.setattr(padding, "MAX_ELEMENTS", 2 * 3 * 81)
    shapes = []

    def births_of(squares: Tensor) -> Tensor:
        shapes.append(tuple(squares.shape))
        return birth_times(squares)

    assert torch.equal(apply_to_squares(births_of, maps), whole)
    assert shapes == [(2, 3, 9, 9)] * 3 + [(1, 3, 9, 9)]
    assert torch.equal(apply_to_squares(birth_times, maps.contiguous(memory_format=torch.channels_last)), whole)
    assert torch.equal(
        apply_to_squares(birth_times, maps.transpose(2, 3)), birth_times(pad_to_square(maps.transpose(2, 3)))
    )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_each_map_is_filled_with_its_own_smallest_value(dtype: torch.dtype) -> None:
    maps = torch.tensor([[[[3, 1, 2], [5, 4, 6]], [[-7, 0, 0], [0, 0, 0]]]], dtype=dtype)
    expected = [[[[3, 1, 2], [5, 4, 6], [1, 1, 1]], [[-7, 0, 0], [0, 0, 0], [-7, -7, -7]]]]
    squares = pad_to_square(maps)
    assert squares.dtype == dtype
    assert squares.tolist() == expected
    tall = pad_to_square(maps.transpose(2, 3))
    assert torch.equal(tall, squares.transpose(2, 3))
