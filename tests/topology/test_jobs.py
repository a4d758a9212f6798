"""Jobs: what is counted as done, and the ranks of float64 maps."""

import numpy as np
import pytest

from prune_fe.topology import birth_times, graph, jobs
from prune_fe.topology import births as births_module
from prune_fe.topology.births import layout_of
from prune_fe.topology.jobs import run_job


def test_maps_that_a_thread_did_not_finish_are_no_result() -> None:
    maps = np.zeros((5, 4, 4), np.int32)
    with pytest.raises(MemoryError, match="no memory for the birth times of 5 maps of 4 rows"):
        run_job(lambda _: None, layout_of(maps), 4, np.zeros(5, np.int32), (2, 1), 1)


@pytest.mark.parametrize("step", [1, 2, 3])
def test_ranks_number_the_different_values_of_each_map(step: int) -> None:
    values = np.array([[3.0, -1.0, 3.0, 0.0], [np.nan, 1.0, 2.0, 3.0], [5.0, 5.0, 5.0, 5.0]])
    ranks = np.empty(values.shape, np.int32)
    run_job(jobs.compile_ranks(), layout_of(values.reshape(3, 2, 2)), 2, ranks, (step, 1), 2)
    largest = np.iinfo(np.int32).max
    assert (ranks[[0, 2]] - jobs.FIRST_RANK).tolist() == [[2, 0, 2, 1], [0] * 4]
    assert ranks[1].tolist() == [largest] * 4
    assert ranks[0].view(np.float32).tolist() == [2**23 + 2, 2**23, 2**23 + 2, 2**23 + 1]
    # As many different elements as the largest map can have stay below what marks a map that is not finite.
    assert largest > jobs.FIRST_RANK + graph.MAX_ROWS**2


@pytest.mark.parametrize("is_interleaved", [False, True])
def test_float64_maps_are_ranked_some_at_a_time(is_interleaved: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    maps = np.random.default_rng(0).standard_normal((3, 7, 10, 10))
    if is_interleaved:
        maps = np.ascontiguousarray(maps.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)
    expected = birth_times(maps)
    monkeypatch.setattr(births_module, "MAX_RANKED", 450)  # four maps
    np.testing.assert_array_equal(birth_times(maps), expected)
    np.testing.assert_array_equal(birth_times(maps.astype(np.float32)), expected)
