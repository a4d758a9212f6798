"""Check birth times on a GPU against the CPU, then time them beside the forward pass that makes the maps.

    python scripts/bench_gpu.py | tee gpu.txt

Runs unattended on one CUDA device. Times are of device events, median (min–max) over the repeats. A tiny run on the
CPU, with the kernels in Triton's interpreter, takes the same steps in half a minute:

    export TRITON_INTERPRET=1
    python scripts/bench_gpu.py --device cpu --tiny --network tiny --size 5 --batch 2 --repeats 2 --seconds 1
"""

import argparse
import json
import os
import time
from collections.abc import Callable
from functools import partial
from typing import get_args

import numpy as np
import torch
import torchvision
from torch import Tensor, nn

import prune_fe
from prune_fe.experiment.device import to_device
from prune_fe.experiment.run_folder import environment
from prune_fe.measure.meter import seconds_in_turn
from prune_fe.topology import birth_times, gpu, kernel
from prune_fe.topology.births import Rank, births_on_device
from prune_fe.tracing.feature_maps import observe
from prune_fe.tracing.layers import find_layers

SIZES, TINY_SIZES = (14, 28, 56, 112, 224, 7, 1, 3, 4, 33, 64, 65), (4,)
"""Sizes of the checked maps, those of VGG16 first."""


def device_births(maps: Tensor, rank: Rank = "elements") -> Tensor:
    """Return the birth times of maps by the GPU kernels, on the CPU by their interpreter."""
    return birth_times(maps, rank) if maps.is_cuda else births_on_device(maps, rank == "edges", use_triton=True)


def milliseconds(call: Callable[[], object], repeats: int, device: str) -> np.ndarray:
    """Return the milliseconds of each of some calls after a warm-up, shape (repeats,), by events on a GPU."""
    call()
    return np.array([_milliseconds(call, device) for _ in range(repeats)])


def _milliseconds(call: Callable[[], object], device: str) -> float:
    if device == "cpu":
        start = time.perf_counter()
        call()
        return 1000 * (time.perf_counter() - start)
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    call()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end)


def spread(values: np.ndarray, digits: int = 3) -> str:
    """Return the median, the minimum and the maximum as text."""
    return f"{np.median(values):.{digits}f} ({values.min():.{digits}f}–{values.max():.{digits}f})"


def poison(maps: Tensor) -> None:
    """Fill the memory that the next tensors of these sizes will use with garbage, to reveal reads of unset values."""
    sizes = (len(maps), maps.numel())
    garbage = [torch.full((size,), 0x5A5A5A5A, dtype=torch.int32, device=maps.device) for size in sizes]
    del garbage


def check(seed: int, device: str, tiny: bool) -> None:
    """Compare random maps with the CPU: every size and type, with and without ties, in both memory formats.

    Args:
        seed: Seed of the maps.
        device: "cuda", or "cpu" for the interpreter.
        tiny: Check a few small maps only.

    Raises:
        SystemExit: A birth time differs.
    """
    torch.manual_seed(seed)
    n = 0
    for size in TINY_SIZES if tiny else SIZES:
        noise = torch.randn(1 if tiny else 2, 2 if tiny else 40 if size < 100 else 4, size, size)
        for maps in (
            noise,
            noise.relu(),
            (2 * noise).round(),
            noise.clamp(-0.3, 0.3),
            (noise.abs() + 3).bfloat16().float(),
        ):
            for dtype in (torch.float32, torch.float16, torch.bfloat16):
                for rank in get_args(Rank):
                    expected = birth_times(maps.to(dtype), rank)
                    for form in (torch.contiguous_format, torch.channels_last):
                        on_device = maps.to(dtype).to(device).to(memory_format=form)
                        poison(on_device)
                        if not torch.equal(device_births(on_device, rank).cpu(), expected):
                            raise SystemExit(f"WRONG: size {size}, {dtype}, {form}, {rank}, seed {seed}")
                        n += expected.numel()
        print(f"size {size}: {n} maps so far agree with the CPU to the bit (seed {seed})", flush=True)


def build(name: str, device: str) -> nn.Module:
    """Return a network with random weights: one of torchvision, or "tiny"."""
    torch.manual_seed(0)
    if name == "tiny":
        steps = [nn.Conv2d(3, 3, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.LazyLinear(10)]
        model = nn.Sequential(*steps)
        model(torch.zeros(1, 3, 5, 5))
    else:
        model = getattr(torchvision.models, name)(weights=None)
    return to_device(model.eval(), torch.device(device))


@torch.inference_mode()
def time_network(arguments: argparse.Namespace, dtype: torch.dtype) -> None:
    """Print a table of the births of each layer's maps beside the forward pass.

    Args:
        arguments: Arguments of the command line.
        dtype: Data type of the network; float32 is computed in TF32.
    """
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    device, repeats = arguments.device, arguments.repeats
    model = build(arguments.network, device).to(dtype)
    images = torch.randn(arguments.batch, 3, max(arguments.size // 4, 1), max(arguments.size // 4, 1), device=device)
    # Enlarging makes the images smooth, as photographs are.
    images = nn.functional.interpolate(images, size=arguments.size, mode="bicubic")
    images = images.to(dtype, memory_format=torch.channels_last)
    layers: list[Tensor] = []
    with observe(model, find_layers(model, images[:1]), lambda _, maps: layers.append(maps.clone())):
        model(images)
    forward = milliseconds(partial(model, images), repeats, device)
    print(
        f"\n{arguments.network}, batch {arguments.batch}, {dtype}, channels last; forward pass {spread(forward, 2)} ms"
    )
    print("map  units              births, ms         one reading, ms   % of forward   undecided, %")
    total = np.zeros(repeats)
    for maps in layers:
        each = milliseconds(partial(device_births, maps), repeats, device)
        once = milliseconds(partial(torch.amax, maps, dim=(-2, -1)), repeats, device)
        undecided = (gpu.first_births(maps, False, kernel.NOT_FINITE) == gpu.UNDECIDED).float().mean().item()
        total += each
        print(
            f"{maps.shape[-1]:3d}  {maps.shape[1]:5d}  {spread(each):>22}  {spread(once):>22}"
            f"  {100 * np.median(each) / np.median(forward):13.2f}  {100 * undecided:13.2f}",
            flush=True,
        )
    print(f"all layers {spread(total)} ms, {100 * np.median(total) / np.median(forward):.1f} % of the forward pass")


def time_scorer(arguments: argparse.Namespace) -> None:
    """Print the speed of scoring compared with an evaluation of the same batches, which are on the device."""
    model, device = build(arguments.network, arguments.device), torch.device(arguments.device)
    shape = (arguments.batch, 3, arguments.size, arguments.size)
    data = [(torch.randn(shape, device=device), torch.arange(arguments.batch) % 10) for _ in range(8)]
    data *= 1 if arguments.tiny else 8  # of a pass over few images, the hash of the weights would be the largest part
    plain, scored = seconds_in_turn(
        [lambda: prune_fe.evaluate(model, data), lambda: prune_fe.score(model, data)],
        arguments.seconds,
        device,
        blocks=3,
    )
    ratios = np.array(plain) / np.array(scored)
    print(
        f"\nprune_fe.score: {spread(ratios, 2)} of the images/s of prune_fe.evaluate "
        f"({arguments.network}, float32, {len(data)} batches of {arguments.batch})",
        flush=True,
    )


def main() -> None:
    """Check the births and print all tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--seconds", type=float, default=10.0, help="for which each task of the last table is timed")
    parser.add_argument("--size", type=int, default=224, help="of the images of the timed passes")
    parser.add_argument("--network", default="vgg16", help='of torchvision, or "tiny"; with random weights')
    parser.add_argument("--seed", type=int, help="of the checked maps; default: a fresh one")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--tiny", action="store_true", help="check a few small maps only")
    parser.add_argument("--only", choices=("check", "times"), help="do one of both")
    arguments = parser.parse_args()
    if arguments.device == "cuda" and not torch.cuda.is_available():
        parser.error("there is no CUDA device")
    if arguments.device == "cpu" and os.environ.get("TRITON_INTERPRET") != "1":
        parser.error("on the CPU the kernels need TRITON_INTERPRET=1")
    print(json.dumps(environment()), flush=True)
    if arguments.only != "times":
        check(torch.seed() % 2**31 if arguments.seed is None else arguments.seed, arguments.device, arguments.tiny)
    if arguments.only != "check":
        for dtype in (torch.float32, torch.bfloat16):
            time_network(arguments, dtype)
        time_scorer(arguments)


if __name__ == "__main__":
    main()
