"""Check birth times on a GPU against the CPU, then time them beside the forward pass that makes the maps.

    python scripts/bench_gpu.py | tee gpu.txt

Runs unattended on one CUDA device. Times are of device events, median (min–max) over the repeats.
"""

import argparse
import json
from collections.abc import Callable
from functools import partial

import numpy as np
import torch
import torchvision
from torch import Tensor, nn

import prune_fe
from prune_fe.experiment.run_folder import environment
from prune_fe.measure.meter import seconds_in_turn
from prune_fe.topology import birth_times, gpu, kernel
from prune_fe.tracing.feature_maps import observe
from prune_fe.tracing.layers import find_layers

SIZES = (1, 3, 4, 7, 14, 28, 33, 56, 64, 65, 112, 224)


def milliseconds(call: Callable[[], object], repeats: int) -> np.ndarray:
    """Return the milliseconds of each of some calls after a warm-up, by events on the device, shape (repeats,)."""
    call()
    spent = []
    for _ in range(repeats):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        call()
        end.record()
        end.synchronize()
        spent.append(begin.elapsed_time(end))
    return np.array(spent)


def spread(values: np.ndarray, digits: int = 3) -> str:
    """Return the median, the minimum and the maximum as text."""
    return f"{np.median(values):.{digits}f} ({values.min():.{digits}f}–{values.max():.{digits}f})"


def poison(maps: Tensor) -> None:
    """Fill the memory that the next tensors of these sizes will use with garbage, to reveal reads of unset values."""
    garbage = [torch.full((size,), 0x5A5A5A5A, dtype=torch.int32, device="cuda") for size in (len(maps), maps.numel())]
    del garbage


def check(seed: int) -> None:
    """Compare random maps with the CPU: every size and type, with and without ties, in both memory formats."""
    torch.manual_seed(seed)
    n = 0
    for size in SIZES:
        noise = torch.randn(2, 40 if size < 100 else 4, size, size)
        for maps in (
            noise,
            noise.relu(),
            (2 * noise).round(),
            noise.clamp(-0.3, 0.3),
            (noise.abs() + 3).bfloat16().float(),
        ):
            for dtype in (torch.float32, torch.float16, torch.bfloat16):
                for form in (torch.contiguous_format, torch.channels_last):
                    on_gpu = maps.to(dtype).cuda().to(memory_format=form)
                    for rank in ("elements", "edges"):
                        poison(on_gpu)
                        births = birth_times(on_gpu, rank).cpu()
                        assert torch.equal(births, birth_times(maps.to(dtype), rank)), (size, dtype, form, rank)
                        n += births.numel()
    print(f"{n} maps agree with the CPU to the bit (seed {seed})")


@torch.inference_mode()
def time_vgg16(batch: int, repeats: int, dtype: torch.dtype) -> None:
    """Print a table of the births of each layer's maps beside the forward pass.

    Args:
        batch: Images of the forward pass.
        repeats: Calls that are timed.
        dtype: Data type of the network; float32 is computed in TF32.
    """
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    model = torchvision.models.vgg16(weights=None).eval().cuda().to(dtype, memory_format=torch.channels_last)
    images = torch.randn(batch, 3, 56, 56, device="cuda")
    # Enlarging makes the images smooth, as photographs are.
    images = nn.functional.interpolate(images, size=224, mode="bicubic").to(dtype, memory_format=torch.channels_last)
    layers: list[Tensor] = []
    with observe(model, find_layers(model, images[:1]), lambda _, maps: layers.append(maps.clone())):
        model(images)
    forward = milliseconds(partial(model, images), repeats)
    print(f"\nVGG16, batch {batch}, {dtype}, channels last; forward pass {spread(forward, 2)} ms")
    print("map  units              births, ms         one reading, ms   % of forward   undecided, %")
    total = np.zeros(repeats)
    for maps in layers:
        each = milliseconds(partial(birth_times, maps), repeats)
        once = milliseconds(partial(torch.amax, maps, dim=(-2, -1)), repeats)
        undecided = (gpu.first_births(maps, False, kernel.NOT_FINITE) == gpu.UNDECIDED).float().mean().item()
        total += each
        print(
            f"{maps.shape[-1]:3d}  {maps.shape[1]:5d}  {spread(each):>22}  {spread(once):>22}"
            f"  {100 * np.median(each) / np.median(forward):13.2f}  {100 * undecided:13.2f}",
            flush=True,
        )
    print(f"all layers {spread(total)} ms, {100 * np.median(total) / np.median(forward):.1f} % of the forward pass")


def time_scorer(batch: int, batches: int) -> None:
    """Print the speed of scoring compared with an evaluation of the same batches, which are on the GPU."""
    model = torchvision.models.vgg16(weights=None).eval().cuda().to(memory_format=torch.channels_last)
    data = [(torch.randn(batch, 3, 224, 224, device="cuda"), torch.arange(batch) % 10) for _ in range(batches)]
    plain, scored = seconds_in_turn(
        [lambda: prune_fe.evaluate(model, data), lambda: prune_fe.score(model, data)],
        10.0,
        torch.device("cuda"),
        blocks=3,
    )
    ratios = np.array(plain) / np.array(scored)
    print(f"\nprune_fe.score: {spread(ratios, 2)} of the images/s of prune_fe.evaluate (VGG16, float32, batch {batch})")


def main() -> None:
    """Check the births and print all tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--seed", type=int, help="of the checked maps; default: a fresh one")
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        parser.error("there is no CUDA device")
    print(json.dumps(environment()))
    check(arguments.seed if arguments.seed is not None else torch.seed() % 2**31)
    for dtype in (torch.float32, torch.bfloat16):
        time_vgg16(arguments.batch, arguments.repeats, dtype)
    time_scorer(arguments.batch, batches=8)


if __name__ == "__main__":
    main()
