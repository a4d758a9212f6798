"""Maps of every kind, for the tests that hold one implementation of the birth times to another."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

KINDS = ("random", "rectified", "few values", "sums", "sums of few values", "flat patch", "saturated", "distances")


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    """The kind of maps that `draw_maps` draws."""
    return request.param


@pytest.fixture(scope="session")
def draw_maps() -> Callable[[str, int, int], Tensor]:
    """Function (kind, size, n) -> n maps, (n, size, size) float32."""

    def draw(kind: str, size: int, n: int) -> Tensor:
        noise, rows, columns = torch.randn(n, size, size), torch.rand(n, size, 1), torch.rand(n, 1, size)
        if kind == "rectified":
            return noise.relu()
        if kind == "few values":
            return (2 * noise).round() / 2
        if kind == "sums":
            return rows + columns + 0.05 * noise
        if kind == "sums of few values":
            return ((rows + columns + 0.05 * noise) * 5).round()
        if kind == "flat patch":
            noise[:, size // 3 :, size // 3 :] = 0.5
        if kind == "saturated":
            noise[:, :, -1] = 3
            noise = noise.clamp(max=float(torch.rand(())))
        if kind == "distances":  # of points on a circle, of which groups of equal edges fill the hole
            steps = (rows - rows.transpose(1, 2)).abs()
            noise = (-40 * torch.minimum(steps, 1 - steps)).round()
        return noise

    return draw
