"""Compare the time and memory of prune() with those of torch-pruning's pruner and of one forward pass.

    python scripts/bench_prune.py | tee prune.txt

prune() verifies that removing units equals masking them and returns a copy; torch-pruning does neither. Both remove
half of the units of every convolution, and keep those of linear layers. The three calls alternate in one process with
one thread. Times are seconds of CPU time, which other programs disturb less than the clock on the wall; each is the
median over the repeats, with minimum and maximum. Memory is the peak of the resident memory of a process of its own
above what it had before the call, when the network and its input existed already; it is given in MiB and as a multiple
of the memory of the network's weights. Needs pip install 'prune-fe[dev]'.
"""

import argparse
import copy
import ctypes
import gc
import json
import re
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch_pruning
import torchvision
from torch import Tensor, nn

import prune_fe
from prune_fe.experiment.run_folder import environment
from prune_fe.scoring.scores import Scores

NETWORKS = ("resnet18", "resnet50", "vgg16")
RATIO = 0.5
CALLS = ("forward", "torch-pruning", "prune")

MOST_TIMES, MOST_MEMORY = 2, 1.2
"""The aim: at most 2 × torch-pruning's time plus one forward pass, and 1.2 × the memory of the network's weights."""


def run_forward(model: nn.Module, image: Tensor) -> Tensor:
    """Run the network once."""
    with torch.no_grad():
        return model(image)


def prune_by_torch_pruning(model: nn.Module, image: Tensor) -> nn.Module:
    """Prune the network in place."""
    keep = [module for module in model.modules() if isinstance(module, nn.Linear)]
    importance = torch_pruning.importance.MagnitudeImportance(p=1)
    pruner = torch_pruning.pruner.BasePruner(model, (image,), importance, pruning_ratio=RATIO, ignored_layers=keep)
    pruner.step()
    return model


def prune_by_prune_fe(model: nn.Module, image: Tensor, scores: Scores) -> Any:
    """Prune a copy of the network."""
    return prune_fe.prune(model, scores, RATIO, image)


def make_call(name: str, network: str, side: int) -> tuple[Callable[[], object], nn.Module]:
    """Prepare one call.

    Args:
        name: One of CALLS.
        network: Name of a network of torchvision.
        side: Height and width of the image.

    Returns:
        The call, and the network that it is given.
    """
    torch.manual_seed(0)
    model, image = torchvision.models.get_model(network).eval(), torch.randn(1, 3, side, side)
    if name == "prune":
        return partial(prune_by_prune_fe, model, image, prune_fe.score(model, None, scorer="l1-filter")), model
    return partial(run_forward if name == "forward" else prune_by_torch_pruning, model, image), model


def cpu_seconds(call: Callable[[], object]) -> float:
    """Return the seconds of CPU time that a call takes."""
    gc.collect()
    start = time.process_time()
    call()
    return time.process_time() - start


def measure_times(network: str, side: int, repeats: int) -> dict[str, np.ndarray]:
    """Return call -> (repeats,) seconds; the calls alternate."""
    calls = {name: make_call(name, network, side)[0] for name in CALLS}
    spent: dict[str, list[float]] = {name: [] for name in CALLS}
    theirs = calls["torch-pruning"]
    assert isinstance(theirs, partial)
    for _ in range(repeats):
        # torch-pruning changes the network that it is given, so that each repeat needs a copy.
        fresh = partial(theirs.func, copy.deepcopy(theirs.args[0]), theirs.args[1])
        for name, call in (calls | {"torch-pruning": fresh}).items():
            spent[name].append(cpu_seconds(call))
    return {name: np.array(seconds) for name, seconds in spent.items()}


def print_peak(name: str, network: str, side: int) -> None:
    """Print the MiB by which a call raises the resident memory of this process at most, and the MiB of the weights."""
    for warm in CALLS:  # what libraries load and compile at the first call is not counted
        make_call(warm, "squeezenet1_1", 64)[0]()
    call, model = make_call(name, network, side)
    weights = count_mib(model)  # torch-pruning changes it
    print(measure_growth(call), weights)


def measure_growth(call: Callable[[], object]) -> float:
    """Return the MiB by which a call raises the resident memory of this process at most."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before = _status_mib("VmRSS")
    result = call()
    peak = _status_mib("VmHWM")
    del result
    return peak - before


def count_mib(model: nn.Module) -> float:
    """Return the MiB of a network's weights."""
    return sum(weight.numel() * weight.element_size() for weight in model.parameters()) / 2**20


def _status_mib(key: str) -> float:
    match = re.search(rf"^{key}:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
    assert match is not None
    return int(match[1]) / 2**10


def measure_peak(name: str, network: str, side: int) -> tuple[float, float]:
    """Return what `print_peak` prints in a process of its own."""
    command = [sys.executable, __file__, "--peak", name, network, str(side)]
    output = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
    peak, weights = map(float, output.splitlines()[-1].split())
    return peak, weights


def spread(values: np.ndarray) -> str:
    """Return the text "median (min–max)"."""
    return f"{np.median(values):.3f} ({values.min():.3f}–{values.max():.3f})"


def main() -> None:
    """Print the environment and a block of figures for each network and size."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", default=NETWORKS, help="of torchvision, with random weights")
    parser.add_argument("--sizes", nargs="+", type=int, default=(64, 224), help="heights and widths of the image")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--no-peaks", action="store_true", help="measure no memory")
    parser.add_argument("--peak", nargs=3, metavar=("CALL", "NETWORK", "SIZE"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    if arguments.peak:
        name, network, side = arguments.peak
        return print_peak(name, network, int(side))
    packages = {"torch-pruning": version("torch-pruning")}
    print(json.dumps(environment() | packages | {"ratio": RATIO, "repeats": arguments.repeats}), flush=True)
    for name in CALLS:
        make_call(name, "squeezenet1_1", 64)[0]()
    for network in arguments.networks:
        for side in arguments.sizes:
            print(f"{network}, one image of {side}×{side}", flush=True)
            times = measure_times(network, side, arguments.repeats)
            for name in CALLS:
                print(f"  {name:<14}{spread(times[name])} s", flush=True)
            ratios = times["prune"] / times["torch-pruning"]
            limit = MOST_TIMES * times["torch-pruning"] + times["forward"]
            print(f"  prune / torch-pruning: {spread(ratios)}")
            print(f"  prune / (2 × torch-pruning + forward), aim 1: {spread(times['prune'] / limit)}", flush=True)
            for name in () if arguments.no_peaks else CALLS:
                peak, weights = measure_peak(name, network, side)
                aim = f", aim {MOST_MEMORY}" if name == "prune" else ""
                print(f"  peak of {name}: {peak:.0f} MiB, {peak / weights:.2f} × the weights{aim}", flush=True)
    return None


if __name__ == "__main__":
    main()
