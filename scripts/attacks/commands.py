"""The commands that are attacked, started in copies of a process that has imported the libraries already."""

from __future__ import annotations

import hashlib
import importlib
import os
import signal
import sys
import traceback
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

import prune_fe
from attacks.damage import plain, read_checkpoint_file
from prune_fe.ablation import unfinished as unfinished_ablation
from prune_fe.experiment import steps
from prune_fe.experiment.results import TIMED, load_result
from prune_fe.measure.cost import speed
from prune_fe.scoring import collection
from prune_fe.topology.births import birth_times
from prune_fe.training import unfinished as unfinished_training

RECIPE = """
name: NAME
data: {source: digits, size: 8, validation: 0.8}
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
REFUSED = 2
"""The exit code of a command that refuses its arguments, such as an output that exists."""

IMPORTED = "altair fvcore.nn jinja2 pandas scipy.stats sklearn.datasets torch._dynamo torch.export vl_convert".split()
"""What the commands import when they need it. Imported once here, a command takes a third of the time."""


def prepare() -> None:
    """Import everything, and let commands write unfinished work as often as they can and time networks briefly."""
    warnings.simplefilter("ignore")  # of other libraries, when they are imported
    for name in (*IMPORTED, "prune_fe.cli.app", "prune_fe.experiment.compare", "prune_fe.studies.cumulative_ablation"):
        importlib.import_module(name)
    birth_times(np.zeros((1, 4, 4), np.float32), threads=1)  # reads the compiled code
    unfinished_ablation.SAVE_SECONDS = collection.SNAPSHOT_SECONDS = 0.0
    unfinished_training.WRITING_SHARE = float("inf")
    vars(steps)["speed"] = partial(speed, seconds=0.02)


@dataclass(frozen=True)
class Command:
    """A command that can be interrupted and continued.

    Attributes:
        name: Its name.
        words: Its words.
        outcome: Returns what it has written in the folder that it was started in, without timings.
    """

    name: str
    words: Sequence[str]
    outcome: Callable[[Path], Any]

    def resume(self, directory: Path) -> int:
        """Continue the command, or begin it again where it left nothing to continue; return the exit code."""
        if not self.words[1].endswith(".yaml"):
            code = call(self.words, directory)
            # It was killed when it had written its result.
            return 0 if code == REFUSED and "exists already" in said(directory) else code
        code = call([*self.words, "--resume", "auto"], directory)
        return call(self.words, directory) if code == REFUSED and "to resume" in said(directory) else code


def new_directory(path: Path, name: str) -> Path:
    """Return a new folder with the recipe, whose run folders are called runs/NAME-1."""
    path.mkdir(parents=True)
    (path / "recipe.yaml").write_text(RECIPE.replace("NAME", name))
    return path


def start(words: Sequence[str], directory: Path) -> int:
    """Start a command in a folder, in a copy of this process; return the number of the process.

    The copy begins without a handler of SIGTERM: the first that `await_handlers` sees is the program's own.
    """
    handler = signal.signal(signal.SIGTERM, signal.SIG_DFL)  # a library may have set one in this process
    process = os.fork()
    if process:
        signal.signal(signal.SIGTERM, handler)
        return process
    code = 1
    try:
        os.chdir(directory)
        for descriptor, name in ((1, "stdout"), (2, "stderr")):
            os.dup2(os.open(directory / name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), descriptor)
        sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w")
        from prune_fe.__main__ import main

        sys.argv = ["prune-fe", *words]
        code = main()
        sys.stdout.flush()
        sys.stderr.flush()
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def call(words: Sequence[str], directory: Path) -> int:
    """Run a command to its end; return its exit code, or minus the signal."""
    return os.waitstatus_to_exitcode(os.waitpid(start(words, directory), 0)[1])


def said(directory: Path) -> str:
    """Return the end of what the last command printed as errors."""
    return (directory / "stderr").read_text().strip()[-300:]


def results_of(directory: Path) -> Any:
    """Return the results and the networks of a run or a comparison."""
    [folder] = [path for path in directory.glob("runs/*-*") if any(path.glob("cells/[!.]*.json"))]
    results = {path.name: plain(load_result(path)) for path in sorted(folder.glob("cells/[!.]*.json"))}
    for result in results.values():
        result["row"] = {key: value for key, value in result["row"].items() if key not in TIMED}
    return results, {path.relative_to(folder).as_posix(): digest(path) for path in folder.rglob("model.safetensors")}


def digest(path: Path) -> str:
    """Return the SHA-256 of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def tables_of(directory: Path) -> Any:
    """Return the tables of an ablation."""
    return {path.name: path.read_text() for path in directory.glob("runs/*-*/ablation-*.csv")}


def scores_of(directory: Path) -> Any:
    """Return the scores that `score` has written."""
    folders = [path.parent for path in directory.glob("scores/*/scores.npz")]
    return {folder.name: plain(prune_fe.load_scores(folder)) for folder in folders}


def trained_of(directory: Path) -> Any:
    """Return the network that `finetune` has written, and its checkpoints."""
    checkpoints = {path.name: read_checkpoint_file(path) for path in (directory / "epochs").glob("epoch-*.pth")}
    return digest(directory / "finetuned/model.safetensors"), checkpoints


NETWORK = ("--model", "vgg-small", "--data", "digits", "--size")
COMMANDS = (
    Command("compare", ("compare", "recipe.yaml"), results_of),
    Command("run", ("run", "recipe.yaml"), results_of),
    Command(
        "finetune",
        ("finetune", *NETWORK, "12", "--epochs", "6", "--schedule", "cosine", "--checkpoints", "epochs"),
        trained_of,
    ),
    Command("ablate", ("ablate", "recipe.yaml"), tables_of),
    Command(
        "score",
        ("score", *NETWORK, "32", "--scorer", "feature-entropy", "apoz", "--samples", "40", "-b", "4"),
        scores_of,
    ),
)
"""The longest first."""
