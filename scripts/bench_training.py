"""Measure what bfloat16 and torch.compile change in training: seconds of the first step and of later ones.

    python scripts/bench_training.py --threads 2
    python scripts/bench_training.py --device cuda --size 224 --batch-size 256

Each setting trains a ResNet18 with random weights on random images that lie in memory, in channels-last. The settings
take turns, and each ratio is the median over the rounds, so that what else the machine does hits all of them. The first
step of the first round holds the compilation, which later rounds read from torch's cache.
"""

import argparse
import itertools
import statistics
import time
from typing import Any

import timm
import torch
from torch.utils.data import TensorDataset

from prune_fe.training.loop import finetune

SETTINGS: dict[str, dict[str, Any]] = {
    "float32": {},
    "bfloat16": {"amp": True},
    "float32, compile": {"compile": True},
    "bfloat16, compile": {"amp": True, "compile": True},
}


def time_steps(images: TensorDataset, device: str, batch_size: int, options: dict[str, Any]) -> list[float]:
    """Train a new network for an epoch and return the seconds of each step; the first one holds the compilation."""
    torch.manual_seed(0)
    torch.compiler.reset()
    network = timm.create_model("resnet18", num_classes=10).to(device).to(memory_format=torch.channels_last)
    ends = [time.perf_counter()]

    def note(_: object) -> None:
        if device == "cuda":
            torch.cuda.synchronize()
        ends.append(time.perf_counter())

    validation = TensorDataset(*(tensor[:1] for tensor in images.tensors))
    finetune(network, images, validation, epochs=1, batch_size=batch_size, lr=0.01, on_step=note, **options)
    return [end - begin for begin, end in itertools.pairwise(ends)]


def main() -> None:
    """Time all settings in turn and print a table in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    generator, count = torch.Generator().manual_seed(0), arguments.batch_size * arguments.steps
    shape = (count, 3, arguments.size, arguments.size)
    images = TensorDataset(torch.randn(shape, generator=generator), torch.randint(10, (count,), generator=generator))
    first, later = dict[str, float](), {name: list[float]() for name in SETTINGS}
    for _ in range(arguments.rounds):
        for name, options in SETTINGS.items():
            seconds = time_steps(images, arguments.device, arguments.batch_size, options)
            first.setdefault(name, seconds[0])
            later[name].append(statistics.median(seconds[1:]))
    print("| setting | first step, s | later steps, ms | steps/s beside float32 (rounds) |\n|---|---|---|---|")
    for name, medians in later.items():
        ratios = sorted(base / each for base, each in zip(later["float32"], medians, strict=True))
        spread = f"{statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})"
        print(f"| {name} | {first[name]:.1f} | {1000 * statistics.median(medians):.0f} | {spread} |")


if __name__ == "__main__":
    main()
