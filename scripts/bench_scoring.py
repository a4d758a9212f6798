"""Compare the time and memory of scoring by feature entropy with an evaluation of the same images.

    GOMP_SPINCOUNT=10000 python scripts/bench_scoring.py --images FOLDER --network vgg16 --count 2000 --channels-last

`prune-fe` sets this variable too (prune_fe/openmp.py), and puts networks into channels-last. --each-scorer prints the
same for every scorer and for all at once. FOLDER holds a folder of photographs for each class. The two passes alternate
in one process; each memory figure is the peak of a process of its own. With --in-memory the photographs are decoded
beforehand, as for a GPU, which one decoder cannot keep busy; the speed of reading them without a network is printed as
well.
"""

import argparse
import functools
import json
import math
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torchvision
from torch import nn
from torch.utils.data import Subset
from torchvision.transforms import v2

import prune_fe
from prune_fe.data.batches import make_loader, validate_batches
from prune_fe.data.datasets import DecodedWhenDrawn
from prune_fe.data.image_files import find_image_files
from prune_fe.data.preprocessing import IMAGENET_MEAN, IMAGENET_STD, Preprocessing
from prune_fe.data.transforms import Normalise, ToPixels, read_image
from prune_fe.errors import PruneFEError
from prune_fe.experiment.run_folder import environment
from prune_fe.scorers import SCORERS


@functools.cache
def photographs(folder: str, count: int, size: int, in_memory: bool) -> Subset:
    """Return `count` images, evenly spread over those of all classes, size×size."""
    steps = [v2.Resize(size * 256 // 224), v2.CenterCrop(size), v2.ToImage(), v2.ToDtype(torch.float32, scale=True)]
    transform = v2.Compose([*steps, v2.Normalize(IMAGENET_MEAN, IMAGENET_STD)])
    data = find_image_files(Path(folder), read_image, transform)
    chosen = np.linspace(0, len(data) - 1, count).astype(int).tolist()
    if not in_memory:
        return Subset(data, chosen)
    decoded = DecodedWhenDrawn(data, ToPixels(Preprocessing(size)), Normalise(IMAGENET_MEAN, IMAGENET_STD))
    decoded.decode(chosen)
    return Subset(decoded, chosen)


def print_reading_speed(data: Subset, arguments: argparse.Namespace) -> None:
    """Print how many images a second are read, decoded or not, and brought to the device."""
    device, last = torch.device(arguments.device), torch.empty(0)
    start = time.perf_counter()
    for images, _ in validate_batches(make_loader(data, arguments.batch, arguments.workers), device):
        last = images.to(device, non_blocking=True)
    last.cpu()  # waits for the device
    print(f"reading   {len(data) / (time.perf_counter() - start):9.2f} images/s", flush=True)


def network(arguments: argparse.Namespace) -> nn.Module:
    """Return the network with random weights."""
    torch.manual_seed(0)
    model = getattr(torchvision.models, arguments.network)(weights=None).eval().to(arguments.device)
    return model.to(memory_format=torch.channels_last) if arguments.channels_last else model


def task(name: str, model: nn.Module, arguments: argparse.Namespace, count: int) -> partial:
    """Return a function that does one pass.

    Args:
        name: Public function, "evaluate" or "score".
        model: The network. Both functions should get the same one: a copy of it may take 8 % longer or shorter.
        arguments: Arguments of the command line.
        count: Number of images.
    """
    options = {"batch_size": arguments.batch, "workers": arguments.workers}
    data = photographs(arguments.images, count, arguments.size, arguments.in_memory)
    return partial(getattr(prune_fe, name), model, data, **options)


CLOCKS = {"wall": time.perf_counter, "processor": time.process_time}


def measure_seconds(call: Callable[[], object], clock: str) -> float:
    """Return the seconds that a call takes, by a clock of CLOCKS."""
    start = CLOCKS[clock]()
    call()
    return CLOCKS[clock]() - start


def compare_scorers(model: nn.Module, arguments: argparse.Namespace) -> None:
    """Print a table of the time of a pass for each scorer alone, and for all that can score the network in one pass."""
    data = photographs(arguments.images, arguments.count, arguments.size, arguments.in_memory)
    options = {"batch_size": arguments.batch, "workers": arguments.workers}
    print("scorer                      seconds   evaluate = 1")
    names: list[str] = []
    for name in [*SCORERS, "all"]:
        scorers = names if name == "all" else [name]
        spent = []
        try:
            for _ in range(arguments.passes):
                plain = measure_seconds(partial(prune_fe.evaluate, model, data, **options), arguments.clock)
                own = measure_seconds(partial(prune_fe.score_all, model, data, scorers, **options), arguments.clock)
                spent.append((own, own / plain))
        except PruneFEError as error:
            print(f"{name:<24}  cannot score it: {error}", flush=True)
            continue
        names.append(name)
        own, ratios = np.array(spent).T
        spread = f"{np.median(ratios):13.2f} ({ratios.min():.2f}–{ratios.max():.2f})"
        print(f"{name:<24}  {np.median(own):9.1f}  {spread}", flush=True)
    print("taylor has a backward pass; hrank takes, by its definition, the singular values of every map.")
    print(
        "Each pass starts with a hash of the weights and a run of one image, whatever the number of images.", flush=True
    )


def peak_mib(name: str, arguments: argparse.Namespace, count: int) -> float:
    """Return the peak memory in MiB of a process that does one pass and nothing else."""
    process = subprocess.run(
        [sys.executable, *sys.argv, "--peak", name, str(count)], stdout=subprocess.PIPE, check=True
    )
    return float(process.stdout)


def print_peak(name: str, arguments: argparse.Namespace, count: int) -> None:
    """Do one pass and print the peak memory of this process in MiB."""
    task(name, network(arguments), arguments, count)()
    if arguments.device.startswith("cuda"):
        print(torch.cuda.max_memory_allocated() / 2**20)
    else:
        match = re.search(r"^VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
        print(int(match[1]) / 2**10 if match else math.nan)


def main() -> None:
    """Time both passes and print the environment, the times and the memory."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", required=True, help="folder with a folder of images for each class")
    parser.add_argument("--network", default="vgg16", help="of torchvision, with random weights")
    parser.add_argument("--count", type=int, default=2000)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--passes", type=int, default=2)
    parser.add_argument(
        "--clock", choices=CLOCKS, default="wall", help="processor is for a machine with other work, with --threads 1"
    )
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--channels-last", action="store_true")
    parser.add_argument("--size", type=int, default=224, help="height and width of the images")
    parser.add_argument("--in-memory", action="store_true", help="decode the photographs beforehand")
    parser.add_argument("--each-scorer", action="store_true", help="time every scorer alone, and all in one pass")
    parser.add_argument("--no-peaks", action="store_true", help="measure no memory")
    parser.add_argument("--peak", nargs=2, metavar=("FUNCTION", "COUNT"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.peak:
        return print_peak(arguments.peak[0], arguments, int(arguments.peak[1]))
    settings = {name: value for name, value in vars(arguments).items() if name not in ("images", "peak")}
    settings["spins"] = os.environ.get("GOMP_SPINCOUNT")
    print(json.dumps(environment() | settings), flush=True)
    model = network(arguments)
    # The first call compiles.
    task("score", model, arguments, arguments.batch)()
    print_reading_speed(photographs(arguments.images, arguments.count, arguments.size, arguments.in_memory), arguments)
    evaluate, score = (task(name, model, arguments, arguments.count) for name in ("evaluate", "score"))
    own: list[float] = []
    tasks: list[Callable[[], object]] = [evaluate, lambda: own.append(score().own_seconds)]
    spent = [[measure_seconds(call, arguments.clock) for call in tasks] for _ in range(arguments.passes)]
    plain, scored = np.array(spent).T
    for name, times in (("evaluate", plain), ("score", scored)):
        print(
            f"{name:<9}{arguments.count / np.median(times):9.2f} images/s  ({', '.join(f'{t:.1f} s' for t in times)})"
        )
    ratios = plain / scored
    print(f"score / evaluate, images/s: {np.median(ratios):.3f} ({ratios.min():.3f}–{ratios.max():.3f})", flush=True)
    # By the wall clock. The rest of the difference is a hash of the weights, the search for layers, and noise.
    shares = np.array(own) / plain
    print(f"scorer alone / evaluate: {np.median(shares):.3f} ({shares.min():.3f}–{shares.max():.3f})", flush=True)
    if arguments.each_scorer:
        compare_scorers(model, arguments)
    for count in () if arguments.no_peaks else (arguments.batch * 2, arguments.batch * 8):
        peaks = {name: peak_mib(name, arguments, count) for name in ("evaluate", "score")}
        print(
            f"peak of the process, {count} images: "
            + ", ".join(f"{name} {peak:.0f} MiB" for name, peak in peaks.items())
        )
        print(f"  score / evaluate: {peaks['score'] / peaks['evaluate']:.3f}", flush=True)
    return None


if __name__ == "__main__":
    main()
