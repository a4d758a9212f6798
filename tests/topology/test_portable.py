"""Birth times by plain tensor operations against the compiled kernel of the CPU."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from prune_fe.topology import birth_times, births, portable

Draw = Callable[[str, int, int], Tensor]


@pytest.mark.parametrize("by_edges", [False, True])
@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 7, 14, 28, 33, 70])
def test_plain_operations_give_the_same(size: int, kind: str, by_edges: bool, draw_maps: Draw) -> None:
    maps = draw_maps(kind, size, max(4, 3000 // size**2))
    for dtype in (torch.float32, torch.float64, torch.float16, torch.bfloat16):
        cast = maps.to(dtype)
        found = births.births_on_device(cast, by_edges, use_triton=False)
        assert found.dtype == torch.int32
        assert torch.equal(found, birth_times(cast, "edges" if by_edges else "elements"))


def test_maps_are_processed_in_parts(monkeypatch: pytest.MonkeyPatch, draw_maps: Draw) -> None:
    maps = draw_maps("few values", 6, 50)
    monkeypatch.setattr(portable, "MAX_ELEMENTS", 7 * 36)
    assert torch.equal(portable.first_births(maps, False, births.has_hole), birth_times(maps))


def test_equal_edges_are_decided_both_ways(draw_maps: Draw) -> None:
    said: set[bool] = set()

    def spy(above: Tensor, equal: Tensor) -> Tensor:
        holes = births.has_hole(above, equal)
        said.update(holes.tolist())
        return holes

    maps = draw_maps("few values", 8, 2000)
    assert torch.equal(portable.first_births(maps, False, spy), birth_times(maps))
    assert said == {False, True}
