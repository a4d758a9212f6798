"""Births by plain tensor operations and by the Triton kernels against the compiled kernel of the CPU."""

import subprocess
import sys
from importlib.util import find_spec

import pytest
import torch
from torch import Tensor

from prune_fe.errors import InputError
from prune_fe.topology import birth_times, births, kernel, portable

KINDS = ("random", "rectified", "few values", "sums", "sums of few values", "flat patch")
SIZES = (1, 2, 3, 4, 5, 7, 14, 28, 33)

interpreted = pytest.mark.skipif(
    find_spec("triton") is None or torch.cuda.is_available(),
    reason="Triton's interpreter runs the kernels where triton is installed and there is no CUDA device",
)


def maps_of(kind: str, size: int, n: int) -> Tensor:
    """(n, size, size) float32."""
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
    return noise


@pytest.mark.parametrize("by_edges", [False, True])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [*SIZES, 70])
def test_plain_operations_give_the_same(size: int, kind: str, by_edges: bool) -> None:
    maps = maps_of(kind, size, max(4, 3000 // size**2))
    for dtype in (torch.float32, torch.float64, torch.float16, torch.bfloat16):
        cast = maps.to(dtype)
        found = births.births_on_device(cast, by_edges, use_triton=False)
        assert found.dtype == torch.int32
        assert torch.equal(found, birth_times(cast, "edges" if by_edges else "elements"))


def test_maps_are_worked_on_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    maps = maps_of("few values", 6, 50)
    monkeypatch.setattr(portable, "MAX_ELEMENTS", 7 * 36)
    assert torch.equal(portable.first_births(maps, False, births.has_hole), birth_times(maps))


def test_equal_edges_are_decided_both_ways() -> None:
    said: set[bool] = set()

    def spy(above: Tensor, equal: Tensor) -> Tensor:
        holes = births.has_hole(above, equal)
        said.update(holes.tolist())
        return holes

    maps = maps_of("few values", 8, 2000)
    assert torch.equal(portable.first_births(maps, False, spy), birth_times(maps))
    assert said == {False, True}


@interpreted
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", SIZES)
def test_the_gpu_kernels_give_the_same(size: int, kind: str) -> None:
    maps = maps_of(kind, size, 2 if size < 20 else 1)
    for dtype, by_edges in ((torch.float32, False), (torch.bfloat16, True)):
        cast = maps.to(dtype)
        found = births.births_on_device(cast, by_edges, use_triton=True)
        assert torch.equal(found, birth_times(cast, "edges" if by_edges else "elements"))


@interpreted
def test_the_gpu_kernels_read_more_than_64_rows() -> None:
    maps = maps_of("rectified", 113, 1)
    assert torch.equal(births.births_on_device(maps, False, use_triton=True), birth_times(maps))


@interpreted
def test_few_maps_are_left_undecided_and_they_are_decided_afterwards() -> None:
    from prune_fe.topology import gpu

    maps = maps_of("few values", 6, 20)
    found = gpu.first_births(maps, False, kernel.NOT_FINITE)
    undecided = found == gpu.UNDECIDED
    assert 1 <= int(undecided.sum()) <= 6
    assert torch.equal(found[~undecided], birth_times(maps)[~undecided])
    some = torch.cat([maps[~undecided][:2], maps[undecided]])
    assert torch.equal(births.births_on_device(some, False, use_triton=True), birth_times(some))


@interpreted
def test_the_gpu_kernels_read_maps_where_they_lie() -> None:
    from prune_fe.topology import gpu

    maps = maps_of("rectified", 5, 6).view(2, 3, 5, 5)
    expected = birth_times(maps)
    wide = torch.full((2, 3, 7, 11), torch.nan)
    wide[:, :, 1:6, :10:2] = maps
    views = {
        "channels last": maps.to(memory_format=torch.channels_last),
        "a part of wider maps": wide[:, :, 1:6, :10:2],
        "transposed": maps.transpose(2, 3).contiguous().transpose(2, 3),
        "units first": maps.transpose(0, 1).contiguous().transpose(0, 1),
    }
    for what, view in views.items():
        assert torch.equal(gpu.first_births(view, False, kernel.NOT_FINITE), expected), what
    assert torch.equal(gpu.first_births(maps[0], False, kernel.NOT_FINITE), expected[0])
    assert gpu.first_births(maps[:, :0], False, kernel.NOT_FINITE).shape == (2, 0)


@pytest.mark.parametrize("use_triton", [False, pytest.param(True, marks=interpreted)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_a_map_that_is_not_finite_is_told(use_triton: bool, dtype: torch.dtype, value: float) -> None:
    maps = maps_of("random", 5, 4).to(dtype)
    maps[2, 1, 3] = value
    found = births.births_on_device(maps, False, use_triton=use_triton)
    assert (found == kernel.NOT_FINITE).tolist() == [False, False, True, False]


@interpreted
def test_too_many_rows_are_refused_by_the_gpu_kernels() -> None:
    from prune_fe.topology import gpu

    with pytest.raises(InputError, match="maps have 257 rows; allowed here: at most 256"):
        gpu.first_births(torch.zeros(1, 257, 257), False, kernel.NOT_FINITE)


COMPILE = """
from triton import compile
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from prune_fe.topology import gpu

counts = {name: "i32" for name in gpu.fill_births.arg_names + gpu.fill_tops.arg_names}
births = {"BY_EDGES": True, "PARTS": 1, "NOT_FINITE": -1, "UNDECIDED": -2}
small = {"STRIPS": 64, "LENGTH": 4, "ROWS": 16, "WORDS": 1}
large = {"STRIPS": 1024, "LENGTH": 64, "ROWS": 256, "WORDS": 8}
for bits in ("*i16", "*i32"):
    pointers = {"maps": bits, "tops": "*i32", "lows": "*i32", "births": "*i32"}
    for kernel, constants in (
        (gpu.fill_tops, {"STRIPS": 1024, "UNITS": 1}), (gpu.fill_tops, {"STRIPS": 32, "UNITS": 32}),
        (gpu.fill_births, births | small), (gpu.fill_births, births | large),
    ):
        kinds = counts | pointers | dict.fromkeys(constants, "constexpr")
        source = ASTSource(kernel, {name: kinds[name] for name in kernel.arg_names}, constants)
        print(len(compile(source, target=GPUTarget("cuda", 90, 32)).asm["cubin"]) > 0)
"""


@pytest.mark.skipif(find_spec("triton") is None or sys.platform != "linux", reason="needs triton")
def test_the_gpu_kernels_compile_for_a_gpu() -> None:
    # In a process of its own: in this one the kernels may be interpreted.
    environment = {"TRITON_INTERPRET": "0", "PATH": "/usr/bin:/bin"}
    command = [sys.executable, "-W", "ignore", "-c", COMPILE]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.stdout.split() == ["True"] * 8, done.stderr


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("size", [*SIZES, 64, 112, 224, 300])
def test_maps_on_a_gpu_give_the_same(size: int) -> None:
    for kind in KINDS:
        maps = maps_of(kind, size, 2 if size > 64 else 64)
        for dtype in (torch.float64, torch.float32, torch.float16, torch.bfloat16):
            for rank in ("elements", "edges"):
                found = birth_times(maps.to(dtype).cuda(), rank)
                assert found.is_cuda
                assert torch.equal(found.cpu(), birth_times(maps.to(dtype), rank)), (kind, dtype)
