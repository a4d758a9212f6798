"""Compilation: what is kept on the disk, and when it is made anew."""

from typing import Any

import numba
import numpy as np
import pytest

from prune_fe.topology import compiling, kernel, small_maps


def test_without_a_folder_for_the_cache_the_kernel_is_compiled_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    compile_in_memory: Any = numba.njit

    def njit(cache: bool = False, **options: bool) -> Any:
        if cache:
            raise RuntimeError("cannot cache function: no locator available")
        return compile_in_memory(**options)

    monkeypatch.setattr(numba, "njit", njit)
    assert compiling.entry_point(lambda x: x + 1)(1) == 2


@pytest.mark.parametrize("function", [kernel.fill_births, kernel.fill_ranks, small_maps.fill_births])
def test_code_on_the_disk_is_made_anew_if_any_source_file_has_changed(function: Any) -> None:
    assert compiling.sources_digest() in function._cache._cache_file._source_stamp


@pytest.mark.parametrize("dtype", [np.int16, np.int32])
def test_arrays_begin_with_a_line_of_the_cache(dtype: type[np.integer]) -> None:
    for n in (1, 33):
        array = compiling.aligned_empty((3, n), np.dtype(dtype))
        assert array.shape == (3, n)
        assert array.dtype == dtype
        assert array.ctypes.data % compiling.CACHE_LINE == 0
