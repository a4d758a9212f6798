"""Attack the program, and count what goes wrong: damaged files, kills at random moments, and full disks.

    python scripts/attack.py            # at most 15 minutes on two cores
    python scripts/attack.py --short    # at most two minutes, for CI

1. Files that are read back are damaged at random. Right is the same content, or an error that names the file.
2. Commands are ended at random moments (kill -9, Ctrl-C, SIGTERM) and continued. Right are the bits of an uninterrupted
   run, and for a signal exit 130 with one line.
3. Commands write to a disk that is full. Right is exit 5 with the file and the space, and that the same command
   succeeds when there is space again. This part mounts small file systems and is left out where that is not allowed.

Prints a table of what was tried, right and wrong, and the first wrong ones; exits with 1 if anything was wrong.
"""

from __future__ import annotations

import argparse
import ctypes
import dataclasses
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"  # The thread count changes the last bits. It is read when torch is imported.

import numpy as np
import safetensors.torch
import torch
from torch.utils.data import TensorDataset

import prune_fe
from prune_fe.errors import PruneFEError
from prune_fe.experiment.results import load_result
from prune_fe.models.checkpoints import load_weights, save_weights
from prune_fe.models.small_vgg import SmallVGG
from prune_fe.records import read_npz, read_record, read_yaml
from prune_fe.scoring.score import score_all
from prune_fe.training.loop import finetune

RECIPE = """
name: attack
data: {source: digits, size: 12, validation: 0.6}
model: {name: vgg-small, arguments: {stages: [[4], [6]]}}
train: {lr: 0.05, schedule: cosine, epochs: 6, batch_size: 64}
score: {samples: 10}
scorers: [feature-entropy, l1-filter]
prune: {ratio: 0.5}
finetune: {lr: 0.01, schedule: cosine, epochs: 4, batch_size: 64}
ablate: {every: 2, control_seeds: 1}
compare: {ratios: [0.5], scratch: [1]}
threads: 1
device: cpu
"""
TRAINING: dict[str, Any] = {"lr": 0.1, "schedule": "cosine", "epochs": 2, "batch_size": 12}
TIMINGS = {"seconds", "own_seconds", "scoring_seconds", "peak_bytes", "environment", "time", "timed_with"}
FULL, REFUSED = 5, 2
"""Exit codes."""


@dataclass
class Tally:
    """What was tried, by kind of attack.

    Attributes:
        counts: Kind -> [right, wrong].
        wrong: A text for each wrong outcome.
    """

    counts: dict[str, list[int]] = field(default_factory=dict)
    wrong: list[str] = field(default_factory=list)

    def count(self, kind: str, problem: str | None) -> None:
        """Count an attempt; `problem` says what was wrong, None that all was right."""
        self.counts.setdefault(kind, [0, 0])[problem is not None] += 1
        if problem is not None:
            self.wrong.append(f"{kind}: {problem}")

    def table(self) -> str:
        """Return the counts as a Markdown table."""
        rows = [f"| {kind} | {sum(pair)} | {pair[0]} | {pair[1]} |" for kind, pair in self.counts.items()]
        total = [sum(pair[column] for pair in self.counts.values()) for column in (0, 1)]
        rows.append(f"| all | {sum(total)} | {total[0]} | {total[1]} |")
        return "\n".join(["| attack | tried | right | wrong |", "|---|---:|---:|---:|", *rows])


# 1. Damaged files


def damage(content: bytes, generator: random.Random) -> bytes:
    """Return content with one flipped bit, an overwritten or a missing stretch, a zeroed block, or without its end."""
    offset, length, kind = generator.randrange(len(content)), generator.choice([1, 16, 512]), generator.randrange(5)
    before, stretch, after = content[:offset], content[offset : offset + length], content[offset + length :]
    if kind == 0:
        return before + bytes([content[offset] ^ 1 << generator.randrange(8)]) + content[offset + 1 :]
    if kind == 1:
        return before + generator.randbytes(len(stretch)) + after
    return (before + after, before + bytes(len(stretch)) + after, before)[kind - 2]


def plain(value: Any) -> Any:
    """Return a value in which everything can be compared with ==, to the bit."""
    if isinstance(value, torch.Tensor):
        value = value.detach().numpy()
    if isinstance(value, np.ndarray):
        return value.dtype.str, value.shape, value.tobytes()
    if dataclasses.is_dataclass(value):
        value = vars(value)
    if isinstance(value, dict):
        return {key: plain(entry) for key, entry in value.items() if key not in TIMINGS}
    return [plain(entry) for entry in value] if isinstance(value, list | tuple) else repr(value)


def pictures(count: int = 24) -> TensorDataset:
    """Return small random images of three classes."""
    images = torch.randn(count, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    return TensorDataset(images, torch.arange(count) % 3)


def new_network() -> SmallVGG:
    """Return a small network, always the same."""
    torch.manual_seed(0)
    return SmallVGG(3, 1, stages=[[4], [4]])


def train(path: Path) -> Any:
    """Train the small network from the unfinished training in a file, if there is one; return its weights."""
    network = new_network()
    finetune(network, pictures(), pictures(), unfinished=path, **TRAINING)
    return plain(network.state_dict())


def score(path: Path) -> Any:
    """Score the small network from the unfinished pass in a file; return the scores."""
    folder = path.parent / "scores"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    shutil.copy(path, folder / path.name)
    scores = score_all(new_network(), pictures(), ["mean-activation"], folder=folder, batch_size=12)
    return plain(scores["mean-activation"])


def make_unfinished_scores(path: Path) -> None:
    """Write the file of a pass that was interrupted after the first batch."""

    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    try:
        score_all(new_network(), pictures(), ["mean-activation"], folder=path.parent, batch_size=12, progress=stop)
    except KeyboardInterrupt:
        assert path.exists()


def read_checkpoint(path: Path) -> Any:
    """Return the weights in a checkpoint of a series."""
    network = new_network()
    load_weights(network, path)
    return plain(network.state_dict())


Reader = Callable[[Path], Any]


def files_that_are_read(directory: Path) -> Iterator[tuple[str, Path, Reader]]:
    """Make a file of each kind that a command reads, and yield its kind, its path and what reads it."""
    run = directory / "run" / "attack-1"
    yield "result of a task", next(run.glob("cells/*.l1-filter.json")), lambda path: plain(load_result(path))
    yield "recipe of a run", run / "recipe.yaml", lambda path: plain(read_yaml(path))
    yield "labels of the test images", run / "test.json", lambda path: plain(read_record(path))
    yield "environment of a run", run / "env.json", lambda path: plain(read_record(path))
    yield "scores", run / "seed-0/feature-entropy/scores.npz", lambda path: plain(prune_fe.load_scores(path.parent))
    for name in ("manifest.json", "model.safetensors"):
        path = run / "seed-0/trained" / name
        yield f"saved network, {name}", path, lambda path: plain(prune_fe.load(path.parent).state_dict())
    ablation = next((directory / "ablate/attack-1").glob("seed-0/ablation/*/each.npz"))
    yield "curves of an ablation", ablation, lambda path: plain(read_npz(path))
    train(directory / "training")
    yield "unfinished training", directory / "training", train
    make_unfinished_scores(directory / ".unfinished-0")
    yield "unfinished scoring", directory / ".unfinished-0", score
    save_weights(new_network(), directory / "epoch-001.pth")
    yield "checkpoint of a series", directory / "epoch-001.pth", read_checkpoint


def others_files(directory: Path) -> Iterator[tuple[str, Path, Reader]]:
    """Yield the same weights as other libraries save them."""
    state = new_network().state_dict()
    torch.save(state, directory / "other.pth")
    safetensors.torch.save_file(state, directory / "other.safetensors")
    yield "torch.load", directory / "other.pth", lambda path: plain(torch.load(path, weights_only=True))
    yield "safetensors", directory / "other.safetensors", lambda path: plain(safetensors.torch.load_file(path))
    try:
        import torch_pruning
    except ImportError:
        return
    torch.save(torch_pruning.state_dict(new_network()), directory / "pruned.pth")

    def load_pruned(path: Path) -> Any:
        network = new_network()
        torch_pruning.load_state_dict(network, torch.load(path, weights_only=False))
        return plain(network.state_dict())

    yield "torch-pruning", directory / "pruned.pth", load_pruned


def corrupt(tally: Tally, kind: str, path: Path, read: Reader, count: int, any_error: bool = False) -> None:
    """Damage a file `count` times and read it.

    Args:
        tally: Where the outcomes are counted.
        kind: What the file is.
        path: The file.
        read: Reads it.
        count: How often.
        any_error: Whether every error is right, as for the files of other libraries.
    """
    generator, content, expected = random.Random(kind), path.read_bytes(), read(path)
    for number in range(count):
        path.write_bytes(damage(content, generator))
        problem = None
        try:
            if read(path) != expected:
                problem = f"damage {number}: other content, silently"
        except PruneFEError as error:
            if path.name not in str(error) and str(path.parent) not in str(error):
                problem = f"damage {number}: the error does not name the file: {error}"
        except Exception as error:  # What other libraries raise, or a reader that does not check enough.
            if not any_error:
                problem = f"damage {number}: {type(error).__name__}: {error}"
        tally.count(kind, problem)
    path.write_bytes(content)


# 2. Kills


@dataclass(frozen=True)
class Command:
    """A command that is ended and continued.

    Attributes:
        name: Its name.
        words: Its words.
        outcome: Returns what it has written, without timings.
    """

    name: str
    words: Sequence[str]
    outcome: Callable[[Path], Any]

    @property
    def is_recipe(self) -> bool:
        """Whether the command carries out a recipe, and is continued with --resume."""
        return self.words[1].endswith(".yaml")


def results_of(directory: Path) -> Any:
    """Return the results and the networks of a run or a comparison."""
    [folder] = [path for path in directory.glob("runs/attack-*") if any(path.glob("cells/[!.]*.json"))]
    cells = {path.name: strip(plain(load_result(path))) for path in sorted(folder.glob("cells/[!.]*.json"))}
    networks = {path.relative_to(folder).as_posix(): digest(path) for path in folder.rglob("model.safetensors")}
    return cells, networks


def strip(result: Any) -> Any:
    """Return a result without its speed and the durations of its epochs."""
    result["row"] = {key: value for key, value in result["row"].items() if not key.startswith("images_per_second")}
    return result


def digest(path: Path) -> str:
    """Return the SHA-256 of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def tables_of(directory: Path) -> Any:
    """Return the tables of an ablation."""
    return {path.name: path.read_text() for path in directory.glob("runs/attack-*/ablation-*.csv")}


def scores_of(directory: Path) -> Any:
    """Return the scores that `score` has written."""
    return {
        path.parent.name: plain(prune_fe.load_scores(path.parent)) for path in directory.glob("scores/*/scores.npz")
    }


def trained_of(directory: Path) -> Any:
    """Return the network that `finetune` has written, and its checkpoints."""
    checkpoints = {path.name: read_state(path) for path in (directory / "epochs").glob("epoch-*.pth")}
    return digest(directory / "finetuned/model.safetensors"), checkpoints


def read_state(path: Path) -> Any:
    """Return the weights in a checkpoint."""
    return plain(torch.load(path, weights_only=True))


NETWORK = ("--model", "vgg-small", "--data", "digits", "--size")
COMMANDS = (
    Command("run", ("run", "recipe.yaml"), results_of),
    Command("compare", ("compare", "recipe.yaml"), results_of),
    Command("ablate", ("ablate", "recipe.yaml"), tables_of),
    Command(
        "score",
        ("score", *NETWORK, "32", "--scorer", "feature-entropy", "apoz", "--samples", "40", "-b", "4"),
        scores_of,
    ),
    Command(
        "finetune",
        ("finetune", *NETWORK, "12", "--epochs", "6", "--schedule", "cosine", "--checkpoints", "epochs"),
        trained_of,
    ),
)


def start(words: Sequence[str], directory: Path) -> int:
    """Start a command in a copy of this process, in which the libraries are imported already; return its number."""
    process = os.fork()
    if process:
        return process
    os.chdir(directory)
    for descriptor, name in ((1, "stdout"), (2, "stderr")):
        os.dup2(os.open(directory / name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), descriptor)
    sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w")
    code = 1
    try:
        from prune_fe.__main__ import main

        sys.argv = ["prune-fe", *words]
        code = main()
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(code)


def call(words: Sequence[str], directory: Path) -> int:
    """Run a command to its end in a copy of this process; return its exit code, or minus the signal."""
    return os.waitstatus_to_exitcode(os.waitpid(start(words, directory), 0)[1])


def resume(command: Command, directory: Path) -> int:
    """Continue a command, or begin it again where it left nothing to continue."""
    if not command.is_recipe:
        code = call(command.words, directory)
        # It was killed when it had written its result.
        return 0 if code == REFUSED and "exists already" in said(directory) else code
    code = call([*command.words, "--resume", "auto"], directory)
    return call(command.words, directory) if code == REFUSED and "to resume" in said(directory) else code


def said(directory: Path) -> str:
    """Return what the last command printed as errors."""
    return (directory / "stderr").read_text().strip()


def kill(command: Command, directory: Path, seconds: float, number: int, expected: Any) -> str | None:
    """End a command after some seconds by a signal and continue it; return what was wrong."""
    process = start(command.words, directory)
    time.sleep(seconds)
    os.kill(process, number)
    code = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
    moment = f"{signal.Signals(number).name} after {seconds:.2f} s"
    if number != signal.SIGKILL and code not in (0, 130):
        return f"{moment}: exit {code}: {said(directory)[-300:]}"
    if code == 130 and (not said(directory).startswith("prune-fe: interrupted") or "\n" in said(directory)):
        return f"{moment}: printed {said(directory)[-300:]!r}"
    code = resume(command, directory)
    if code:
        return f"{moment}: continued, exit {code}: {said(directory)[-300:]}"
    return None if command.outcome(directory) == expected else f"{moment}: continued to other results"


def kill_all(tally: Tally, directory: Path, count: int, generator: random.Random) -> None:
    """End each command `count` times at random moments."""
    for command in COMMANDS:
        reference = new_directory(directory / f"{command.name}-whole")
        began = time.monotonic()
        if code := call(command.words, reference):
            tally.count(f"kill {command.name}", f"exit {code} without a kill: {said(reference)[-300:]}")
            continue
        duration, expected = time.monotonic() - began, command.outcome(reference)
        for attempt in range(count):
            number = (signal.SIGKILL, signal.SIGINT, signal.SIGTERM)[(attempt + len(command.name)) % 3]
            folder = new_directory(directory / f"{command.name}-{attempt}")
            problem = kill(command, folder, generator.uniform(0.02, duration), number, expected)
            tally.count(f"kill {command.name}", problem)
            shutil.rmtree(folder)


def kill_start(tally: Tally, directory: Path, count: int, generator: random.Random) -> None:
    """End real processes of the program while Python imports it."""
    for attempt in range(count):
        number = (signal.SIGINT, signal.SIGTERM)[attempt % 2]
        words = [sys.executable, "-m", "prune_fe", "run", "recipe.yaml"]
        process = subprocess.Popen(words, cwd=directory, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        time.sleep(generator.uniform(0.3, 3))  # Python itself takes some time before it runs the first line.
        process.send_signal(number)
        error = process.communicate()[1].strip()
        is_right = process.returncode == 130 and error.startswith("prune-fe: interrupted") and "\n" not in error
        tally.count("signal while starting", None if is_right else f"exit {process.returncode}: {error[-300:]}")


def new_directory(path: Path) -> Path:
    """Return a new folder with the recipe."""
    path.mkdir(parents=True)
    (path / "recipe.yaml").write_text(RECIPE)
    return path


# 3. Full disks


@contextmanager
def small_disk(path: Path, megabytes: int = 8) -> Iterator[None]:
    """Mount a small file system at a new folder, in a name space of this process only.

    Raises:
        OSError: That is not allowed here.
    """
    libc = ctypes.CDLL(None, use_errno=True)

    def check(result: int) -> None:
        if result:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))

    new_users, new_mounts, private = 0x10000000, 0x00020000, 0x44000
    user = os.getuid()
    check(libc.unshare(new_mounts if user == 0 else new_mounts | new_users))
    if user:
        Path("/proc/self/uid_map").write_text(f"0 {user} 1")
    check(libc.mount(b"none", b"/", None, private, None))
    path.mkdir()
    check(libc.mount(b"tmpfs", os.fsencode(path), b"tmpfs", 0, f"size={megabytes}m".encode()))
    try:
        yield
    finally:
        libc.umount2(os.fsencode(path), 2)


def writing_commands(disk: Path, saved: Path) -> dict[str, list[str]]:
    """Return name -> words of a command that writes to a disk."""
    scores, network = saved / "seed-0/l1-filter", str(saved / "seed-0/trained")
    model, data = ("--model", network), ("--data", "digits", "--size", "12")
    tune, out = ["finetune", *model, *data, "--epochs", "1"], ["--output", str(disk / "out")]
    recipes = {name: [name, "recipe.yaml", "--output", str(disk / "runs")] for name in ("run", "compare", "ablate")}
    return recipes | {
        "score": ["score", *model, *data, "--samples", "5", *out],
        "prune": ["prune", *model, "--scores", str(scores), *out],
        "finetune": [*tune, *out],
        "finetune --checkpoints": [*tune, "--output", "out", "--checkpoints", str(disk / "epochs")],
        "export": ["export", *model, "--format", "torch-export", "--output", str(disk / "out.pt2")],
    }


def fill(disk: Path, name: str, words: Sequence[str], free: int, directory: Path) -> str | None:
    """Run a command on a disk with `free` bytes left, and again with space; return what was wrong."""
    kept, filler = disk / "kept", disk / "filler"
    kept.write_bytes(b"kept" * 1000)
    # A file system of pages: what is left over is a whole number of them.
    filler.write_bytes(bytes(max(shutil.disk_usage(disk).free - free, 0)))
    command, where = Command(name, words, lambda path: None), f"{free >> 10} KiB free"
    code = call(words, directory)
    error = said(directory)
    if code not in (0, FULL) or (code and ("no space left" not in error or str(disk) not in error or "\n" in error)):
        return f"{where}: exit {code}: {error[-300:]}"
    if kept.read_bytes() != b"kept" * 1000:
        return f"{where}: a file that was there is lost"
    filler.unlink()
    code = resume(command, directory) if code else 0
    if code:
        return f"{where}: continued with space, exit {code}: {said(directory)[-300:]}"
    leftovers = sorted(entry.name for entry in disk.iterdir() if entry.name not in ("kept", "runs", "out", "epochs"))
    if leftovers not in ([], ["out.pt2"]):
        return f"{where}: left {', '.join(leftovers)}"
    return None


def fill_all(tally: Tally, directory: Path, saved: Path, sizes: Sequence[int]) -> None:
    """Run each writing command on a full disk, in a process of its own, because the disk is in its name space only."""
    report = directory / "disk.json"
    process = os.fork()
    if process == 0:
        disk, own = directory / "disk", Tally()
        try:
            with small_disk(disk):
                for name, words in writing_commands(disk, saved).items():
                    for size in sizes:
                        folder = new_directory(directory / f"{name}-{size}")
                        own.count(f"full disk: {name}", fill(disk, name, words, size, folder))
                        for entry in disk.iterdir():
                            shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
            report.write_text(json.dumps([own.counts, own.wrong]))
        except OSError as error:
            report.write_text(json.dumps([{}, []]))
            print(f"full disks are left out: a small file system cannot be mounted here ({error})")
        finally:
            sys.stdout.flush()
            os._exit(0)
    os.waitpid(process, 0)
    counts, wrong = json.loads(report.read_text())
    tally.counts |= counts
    tally.wrong += wrong


def main() -> int:
    """Run all attacks and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--short", action="store_true", help="a fifth of it, for CI")
    parser.add_argument("--seed", type=int, default=0, help="seed of the moments of the kills")
    arguments = parser.parse_args()
    began, generator = time.monotonic(), random.Random(arguments.seed)
    n_corruptions, n_kills, sizes = (
        (40, 1, [8 << 10]) if arguments.short else (200, 6, [0, 8 << 10, 40 << 10, 160 << 10])
    )
    tally, others = Tally(), Tally()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        directory = Path(folder)
        for name in ("run", "ablate"):
            made = new_directory(directory / f"made-{name}")
            if code := call([name, "recipe.yaml", "--output", str(directory / name)], made):
                raise SystemExit(f"{name} without any attack: exit {code}: {said(made)}")
        saved = directory / "saved"
        shutil.copytree(directory / "run/attack-1", saved)
        kill_all(tally, directory / "kills", n_kills, generator)
        kill_start(tally, new_directory(directory / "start"), n_kills, generator)
        fill_all(tally, directory, saved, sizes)
        # Last, because a process that has computed is not copied any more.
        for kind, path, read in files_that_are_read(directory):
            corrupt(tally, kind, path, read, n_corruptions)
        for kind, path, read in others_files(directory):
            corrupt(others, kind, path, read, n_corruptions, any_error=True)
    print(tally.table())
    print(f"\nOther libraries, with files of the same weights:\n\n{others.table()}")
    print(f"\n{time.monotonic() - began:.0f} s, seed {arguments.seed}")
    for text in tally.wrong[:40]:
        print(f"wrong: {text}")
    return 1 if tally.wrong else 0


if __name__ == "__main__":
    sys.exit(main())
