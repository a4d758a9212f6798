"""A clock for tests of timing."""

import types

import pytest

from prune_fe.measure import meter


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Replace the clock of `meter` by one that advances only when a test adds to its only entry."""
    now = [0.0]
    monkeypatch.setattr(meter, "time", types.SimpleNamespace(perf_counter=lambda: now[0]))
    return now
