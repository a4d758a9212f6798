"""torch-pruning's search for a group ends, with an error that names the layer, where its channel numbers would grow."""

import signal
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from prune_fe import prune, score
from prune_fe.errors import InputError
from prune_fe.pruning import channel_limits, torch_pruning_engine
from prune_fe.pruning.torch_pruning_engine import build_graph
from tests.tracing.networks import Concatenation, Net

pytest.importorskip("torch_pruning", reason="torch-pruning is not installed")

SECONDS = 60
"""A search that does not end fails its test after so long."""


@pytest.fixture(autouse=True)
def _time_limit() -> Iterator[None]:
    def stop(*_: Any) -> None:
        raise TimeoutError(f"not done after {SECONDS} seconds")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(SECONDS)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


class Product(nn.Module):
    """The channels of a hidden layer, multiplied with one of them."""

    def __init__(self, channel: slice, far: bool = False) -> None:
        super().__init__()
        self.first, self.hidden, self.last = nn.Linear(12, 16), nn.Linear(16, 16), nn.Linear(16, 3)
        self.channel, self.far = channel, far

    def forward(self, x: Tensor) -> Tensor:
        """Return three logits; with `far`, other operations stand between the layers and the product."""
        x = self.hidden(self.first(x)).relu()
        if self.far:
            x = x.sigmoid().tanh()
        x = x * x[:, self.channel]
        return self.last(x.exp().sigmoid() if self.far else x)


@pytest.mark.parametrize(
    ("channel", "number"), [(slice(-1, None), -1), (slice(3, 4), 18), (slice(15, None), 30)], ids=str
)
@pytest.mark.parametrize("far", [False, True])
def test_a_product_with_one_channel_is_refused_by_name(channel: slice, number: int, far: bool) -> None:
    model, example = Product(channel, far), torch.randn(2, 12)
    with pytest.raises(
        InputError,
        match=rf"its group of layer 'hidden' names channels that do not exist: number {number} for the 16 of "
        r"'(hidden|last)'; the engine \"trace\" may be able to cut it",
    ):
        build_graph(model, example)
    scores = score(model, scorer="l1-filter", linear=True, example=example)
    assert prune(model, scores, {"first": 0.5}, example).parameters < 1


def test_maps_too() -> None:
    class Gated(Net):
        def body(self, x: Tensor) -> Tensor:
            return x * x[:, -1:]

    with pytest.raises(InputError, match="names channels that do not exist: number -1 for the 8 of"):
        build_graph(Gated(), torch.randn(1, 3, 16, 16))


def test_a_search_whose_numbers_are_not_checked_ends_too(monkeypatch: pytest.MonkeyPatch) -> None:
    model, example = Product(slice(3, 4)), torch.randn(2, 12)
    monkeypatch.setattr(channel_limits, "MOST_STEPS", 500)
    groups = torch_pruning_engine._Groups(model, example)
    with pytest.raises(InputError, match="its group of layer 'hidden' is not found within 500 steps; the engine"):
        groups.find_group("hidden", range(16))
    groups.find_group("first", range(4))  # the steps are counted anew


def test_a_cut_counts_the_steps_of_each_search_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    model, example = Concatenation(), torch.randn(1, 3, 16, 16)
    scores = score(model, scorer="l1-filter")
    counts: list[int] = []
    count_step = channel_limits.SearchGuard.count_step

    def count(self: Any) -> None:
        count_step(self)
        counts.append(self._steps)

    monkeypatch.setattr(channel_limits.SearchGuard, "count_step", count)
    prune(model, scores, 0.5, example, engine="torch-pruning")
    assert counts.count(1) > 1
    monkeypatch.setattr(channel_limits, "MOST_STEPS", max(counts))
    assert prune(model, scores, 0.5, example, engine="torch-pruning").parameters < 1
    monkeypatch.setattr(channel_limits, "MOST_STEPS", max(counts) - 1)
    with pytest.raises(InputError, match="is not found within"):
        prune(model, scores, 0.5, example, engine="torch-pruning")
