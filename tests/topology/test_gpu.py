"""The Triton kernels against the compiled kernel of the CPU: interpreted, and on a GPU where there is one."""

import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from typing import get_args

import pytest
import torch
from torch import Tensor

from prune_fe.errors import InputError
from prune_fe.topology import birth_times, births, kernel
from prune_fe.topology.births import Rank

Draw = Callable[[str, int, int], Tensor]
SIZES = (1, 2, 3, 4, 5, 7, 14, 28, 33)

# Of NumPy, at the interpreter of Triton 3.6.
pytestmark = pytest.mark.filterwarnings("ignore:Conversion of an array with ndim > 0:DeprecationWarning")

interpreted = pytest.mark.skipif(
    find_spec("triton") is None or torch.cuda.is_available(),
    reason="Triton's interpreter runs the kernels where triton is installed and there is no CUDA device",
)


@interpreted
@pytest.mark.parametrize("size", SIZES)
def test_the_gpu_kernels_give_the_same(size: int, kind: str, draw_maps: Draw) -> None:
    if size > 14 and kind in ("saturated", "distances"):
        pytest.skip("the interpreter needs seconds for such a map, in which groups of equal edges enter")
    maps = draw_maps(kind, size, 3 if size < 7 else 1)
    for dtype, by_edges in ((torch.float32, False), (torch.bfloat16, True)):
        cast = maps.to(dtype)
        found = births.births_on_device(cast, by_edges, use_triton=True)
        assert torch.equal(found, birth_times(cast, "edges" if by_edges else "elements"))


@interpreted
def test_the_gpu_kernels_read_more_than_64_rows(draw_maps: Draw) -> None:
    maps = draw_maps("rectified", 113, 1)
    assert torch.equal(births.births_on_device(maps, False, use_triton=True), birth_times(maps))


@interpreted
def test_few_maps_are_left_undecided_and_they_are_decided_afterwards(draw_maps: Draw) -> None:
    from prune_fe.topology import gpu

    maps = draw_maps("few values", 6, 20)
    found = gpu.first_births(maps, False, kernel.NOT_FINITE)
    undecided = found == gpu.UNDECIDED
    assert 1 <= int(undecided.sum()) <= 6
    assert torch.equal(found[~undecided], birth_times(maps)[~undecided])
    some = torch.cat([maps[~undecided][:2], maps[undecided]])
    assert torch.equal(births.births_on_device(some, False, use_triton=True), birth_times(some))


@interpreted
def test_the_gpu_kernels_read_maps_where_they_lie(draw_maps: Draw) -> None:
    from prune_fe.topology import gpu

    maps = draw_maps("rectified", 5, 6).view(2, 3, 5, 5)
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
def test_a_map_that_is_not_finite_is_marked(
    use_triton: bool, dtype: torch.dtype, value: float, draw_maps: Draw
) -> None:
    maps = draw_maps("random", 5, 4).to(dtype)
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
    completed = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert completed.stdout.split() == ["True"] * 8, completed.stderr


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("size", [*SIZES, 64, 112, 224, 300])
def test_maps_on_a_gpu_give_the_same(size: int, kind: str, draw_maps: Draw) -> None:
    maps = draw_maps(kind, size, 2 if size > 64 else 64)
    for dtype in (torch.float64, torch.float32, torch.float16, torch.bfloat16):
        for rank in get_args(Rank):
            on_gpu = birth_times(maps.to(dtype).cuda(), rank)
            assert on_gpu.is_cuda
            assert torch.equal(on_gpu.cpu(), birth_times(maps.to(dtype), rank)), dtype
