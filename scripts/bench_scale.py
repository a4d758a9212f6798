"""Measure whether scoring, training and evaluation hold at the size of ImageNet: time, memory, and what goes to files.

    python scripts/bench_scale.py PHOTOGRAPHS WORK --counts 1000 10000 100000 | tee scale.txt
    python scripts/bench_scale.py PHOTOGRAPHS WORK --counts --listing 1281167

PHOTOGRAPHS is a folder train/CLASS/* or a tar file of one. For each count a folder of so many small JPEGs is made in
WORK from them, each image another one, and removed again. Each command is a process of its own on one thread, with a
small network on small images, so that whatever a file costs shows. Images are decoded as they are read.
"""

import argparse
import contextlib
import functools
import json
import os
import resource
import shutil
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

import prune_fe
from prune_fe.data import image_folder, splits
from prune_fe.data.archive import unpack
from prune_fe.data.image_files import FileStatus, ImageFiles
from prune_fe.data.labels import hash_images
from prune_fe.data.registry import load_data
from prune_fe.data.texts import PackedTexts
from prune_fe.experiment.run_folder import environment
from prune_fe.models.small_vgg import SmallVGG
from prune_fe.scoring import score_folder
from prune_fe.scoring.inputs import ImageList, ScoringInputs
from prune_fe.scoring.scores import Scores

COMMANDS = ("score", "finetune", "evaluate")
SIZE, STORED, TEST_SHARE = 16, 48, 0.1
FILE_BYTES = 110_000
SCORERS = ("feature-entropy", "l1-activation", "apoz")


def make_folder(photographs: Path, target: Path, count: int) -> None:
    """Write `count` different JPEGs of 48×48 pixels, a tenth of them test images, from photographs."""
    classes = sorted(path for path in (photographs / "train").iterdir() if path.is_dir())
    sources = {path.name: sorted(path.iterdir()) for path in classes}
    chance = np.random.default_rng(0)
    for part, share in (("train", 1 - TEST_SHARE), ("val", TEST_SHARE)):
        per_class = round(count * share / len(classes))
        for name, files in sources.items():
            folder = target / part / name
            folder.mkdir(parents=True)
            decoded = [np.asarray(Image.open(file).convert("RGB").resize((64, 64))) for file in files[:200]]
            for number in range(per_class):
                top, left = chance.integers(0, 64 - STORED, 2)
                patch = decoded[number % len(decoded)][top : top + STORED, left : left + STORED]
                # A gain makes every image another one, also where the same patch is drawn twice.
                patch = np.clip(patch * chance.uniform(0.7, 1.3), 0, 255).astype(np.uint8)
                Image.fromarray(patch).save(folder / f"{name}_{number}.JPEG", quality=85)


class Timer:
    """Adds up how long some functions take."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)

    def wrap(self, owner: Any, name: str, label: str) -> None:
        """Replace a function by one that is timed."""
        inner = getattr(owner, name)

        @functools.wraps(inner)
        def timed(*arguments: Any, **keywords: Any) -> Any:
            with self.measuring(label):
                return inner(*arguments, **keywords)

        setattr(owner, name, timed)

    @contextlib.contextmanager
    def measuring(self, label: str) -> Iterator[None]:
        """Time a block."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[label] += time.perf_counter() - start


def measure(command: str, folder: Path, workers: int) -> dict[str, Any]:
    """Carry out a command in this process, and return what it took."""
    torch.set_num_threads(1)
    timer, first = Timer(), list[float]()
    timer.wrap(image_folder, "find_image_files", "listing")
    timer.wrap(image_folder, "refuse_repeated_files", "repeated files")
    timer.wrap(splits, "separate_equal_images", "equal images")
    timer.wrap(ImageList, "from_data", "list of images")
    timer.wrap(ScoringInputs, "provenance", "provenance")
    timer.wrap(Scores, "save", "saving scores")
    base, start = peak_mib(), time.perf_counter()

    def note(*_: Any) -> None:
        if not first:
            first.append(time.perf_counter() - start)

    images: Any = load_data(source="folder", path=str(folder), size=SIZE, memory_gib=0.0)
    loaded, at_loading = time.perf_counter() - start, peak_mib()
    torch.manual_seed(0)
    model = SmallVGG(len(images.classes), 3, ((8, 8), (16, 16)))
    if command == "score":
        scores = prune_fe.score_all(
            model, images.train, list(SCORERS), folder=folder.parent / "scores", workers=workers, progress=note
        )
        with timer.measuring("images.csv"):
            score_folder.write_image_list(folder.parent / "scores", scores)
        count = next(iter(scores.values())).images
    elif command == "finetune":
        unfinished = folder.parent / "finetune.unfinished"
        options: dict[str, Any] = {"lr": 0.01, "final_lr": 0.01, "epochs": 1, "batch_size": 64}
        prune_fe.finetune(
            model, images.train, images.validation, workers=workers, progress=note, unfinished=unfinished, **options
        )
        count = len(images.train) + 2 * len(images.validation)
    else:
        count = prune_fe.evaluate(model, images.train, workers=workers, progress=note).images
    total = time.perf_counter() - start
    about = {"seconds": total, "until loaded": loaded, "until the first batch": first[0], "images": count}
    rest = {"images/s": count / (total - loaded), "MiB before": base, "MiB loaded": at_loading, "MiB": peak_mib()}
    return about | rest | {"parts": dict(timer.seconds)}


def peak_mib() -> float:
    """Return the largest memory of this process so far, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def print_listing(count: int, folder: Path) -> None:
    """Print what the list of `count` images takes in memory and files, without the files."""
    before = current_mib()
    status = FileStatus()
    times = {"st_atime_ns": 0, "st_mtime_ns": 0, "st_ctime_ns": 0}
    entry = os.stat_result((0o100644, 1, 1, 1, 0, 0, FILE_BYTES, 0, 0, 0), times)
    per_class = -(-count // 1000)

    def names() -> Iterator[str]:
        for index in range(count):
            status.add(entry)
            yield f"n{index // per_class:08}/n{index // per_class:08}_{index}.JPEG"

    seconds = dict[str, float]()

    def timed(label: str, call: Callable[[], Any]) -> Any:
        start = time.perf_counter()
        value = call()
        seconds[label] = time.perf_counter() - start
        return value

    packed = timed("names", lambda: PackedTexts(names()))
    labels = [index // per_class for index in range(count)]
    classes = [f"n{number:08}" for number in range(1000)]
    files = ImageFiles(Path("train"), classes, packed, labels, status, str, str)
    del labels
    print(f"{count:,} images: {current_mib() - before:.0f} MiB as they are listed")
    before = current_mib()
    timed("hash of names and labels", lambda: hash_images(files))
    chosen = timed("list of images", lambda: ImageList.from_data(files, range(count)))
    print(f"list of names and classes for provenance: {current_mib() - before:.0f} MiB")
    scores = Scores("apoz", {"0": np.zeros(4)}, images=count, provenance={"images": chosen.images})
    timed("scores.npz with the list", lambda: scores.save(folder / "apoz"))
    timed("images.csv", lambda: score_folder.write_image_list(folder, {"apoz": scores}))
    timed("scores.npz read", lambda: prune_fe.load_scores(folder / "apoz"))
    for path in (folder / "apoz" / "scores.npz", folder / "images.csv"):
        print(f"{path.name}: {path.stat().st_size / 2**20:.1f} MiB")
    print(", ".join(f"{label} {value:.1f} s" for label, value in seconds.items()))
    print(f"peak {peak_mib():.0f} MiB")


def current_mib() -> float:
    """Return the memory that this process has now, in MiB."""
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * resource.getpagesize() / 2**20


def print_count(photographs: Path, work: Path, count: int, workers: int) -> None:
    """Make a folder of so many images, and print what each command takes, the first and the second time."""
    folder = work / f"images-{count}"
    if not folder.exists():
        make_folder(photographs, folder, count)
    for command in COMMANDS:
        for attempt in ("first", "again") if command == "score" else ("again",):
            shutil.rmtree(work / "scores", ignore_errors=True)
            (work / "finetune.unfinished").unlink(missing_ok=True)
            words = [sys.executable, __file__, str(photographs), str(work), "--measure", command, str(count)]
            done = subprocess.run([*words, "--workers", str(workers)], check=True, stdout=subprocess.PIPE, text=True)
            found = json.loads(done.stdout.splitlines()[-1])
            parts = ", ".join(f"{label} {value:.2f}" for label, value in found.pop("parts").items())
            numbers = ", ".join(f"{label} {value:,.5g}" for label, value in found.items())
            print(f"{count:>7} {command:<9} {attempt}: {numbers}; seconds of {parts}", flush=True)
    shutil.rmtree(folder)


def main() -> None:
    """Measure what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photographs", type=Path)
    parser.add_argument("work", type=Path)
    parser.add_argument("--counts", type=int, nargs="*", default=[1000, 10_000, 100_000])
    parser.add_argument("--listing", type=int)
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--measure", nargs=2)
    arguments = parser.parse_args()
    work = arguments.work
    if arguments.measure:
        command, count = arguments.measure
        print(json.dumps(measure(command, work / f"images-{count}", arguments.workers)))
        return
    work.mkdir(parents=True, exist_ok=True)
    print(json.dumps(environment()))
    photographs = unpack(arguments.photographs)
    for count in arguments.counts:
        print_count(photographs, work, count, arguments.workers)
    if arguments.listing:
        print_listing(arguments.listing, work / "listing")


if __name__ == "__main__":
    main()
