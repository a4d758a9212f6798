"""Compilation: what is kept on the disk, and when it is made anew."""

import functools
from pathlib import Path
from typing import Any

import numba
import numpy as np
import pytest
from numba import carray
from numba.core.ccallback import CFunc

from prune_fe.topology import compiling

PAIR = np.dtype([("a", np.int64), ("b", np.int64)])


def add(pointer: Any) -> None:
    pair = carray(pointer, 1)
    pair[0].a += pair[0].b


def call_add() -> int:
    pair = np.array([(2, 3)], PAIR)
    compiling.c_function(add, PAIR)(pair.ctypes.data)
    return int(pair[0]["a"])


def test_without_a_folder_for_the_cache_the_kernel_is_compiled_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: Any) -> None:
        raise RuntimeError("cannot cache function: no locator available")

    monkeypatch.setattr(CFunc, "enable_caching", refuse)
    assert call_add() == 5


def test_code_on_the_disk_is_made_anew_if_any_source_file_has_changed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    compiled = []

    def compile_anew(self: Any) -> Any:
        compiled.append(self)
        return compile_uncached(self)

    kind: Any = CFunc  # mypy does not know its private functions
    compile_uncached = kind._compile_uncached
    monkeypatch.setattr(kind, "_compile_uncached", compile_anew)
    monkeypatch.setattr(numba.config, "CACHE_DIR", str(tmp_path))
    for digest, expected in (("a", 1), ("a", 1), ("b", 2)):
        monkeypatch.setattr(compiling, "sources_digest", functools.partial(str, digest))
        assert call_add() == 5
        assert len(compiled) == expected


def test_the_digest_changes_with_each_source_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(compiling, "__file__", str(tmp_path / "compiling.py"))
    digests = set()
    for name in ("compiling.py", "kernel.py", "kernel.py"):
        with (tmp_path / name).open("a") as file:
            file.write("# a line\n")
        digests.add(compiling.sources_digest.__wrapped__())
    assert len(digests) == 3


@numba.njit
def aligned_empty(n, like):
    """Call the compiled function, which has no wrapper for Python."""
    return compiling.aligned_empty(n, like)


@pytest.mark.parametrize("dtype", [np.int16, np.int32])
def test_arrays_begin_with_a_line_of_the_cache(dtype: type[np.integer]) -> None:
    for n in (1, 33, 1000):
        array = aligned_empty(n, np.zeros(1, dtype))
        assert array.shape == (n,)
        assert array.dtype == dtype
        assert array.ctypes.data % compiling.CACHE_LINE == 0
