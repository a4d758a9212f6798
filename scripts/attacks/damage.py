"""Files that are read back are damaged at random: right is the same content, or an error that names the file."""

from __future__ import annotations

import dataclasses
import random
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import TensorDataset

import prune_fe
from attacks.tally import Outcome
from prune_fe.ablation.trial import Trial
from prune_fe.errors import PruneFEError
from prune_fe.experiment.results import load_result
from prune_fe.models.checkpoints import load_weights, save_weights
from prune_fe.models.small_vgg import SmallVGG
from prune_fe.records import read_npz, read_record, read_yaml
from prune_fe.scoring.score import score_all
from prune_fe.tracing.layers import find_layers
from prune_fe.training.loop import finetune

TRAINING: dict[str, Any] = {"lr": 0.1, "schedule": "cosine", "epochs": 2, "batch_size": 12}
TIMINGS = {
    "seconds",
    "own_seconds",
    "scoring_seconds",
    "processor_share",
    "peak_bytes",
    "environment",
    "time",
    "timed_with",
}

Reader = Callable[[Path], Any]
"""Function that reads a file and returns its content, in which == compares to the bit; see `plain`."""


def damage(content: bytes, generator: random.Random) -> bytes:
    """Return content with one flipped bit, an overwritten or a missing stretch, a zeroed block, or without its end.

    For the same state of the generator the place is the same share of every content.
    """
    offset, length = int(generator.random() * len(content)), generator.choice([1, 16, 512])
    kind, bit, noise = generator.randrange(5), generator.randrange(8), generator.randbytes(length)
    before, stretch, after = content[:offset], content[offset : offset + length], content[offset + length :]
    if kind == 0:
        return before + bytes([content[offset] ^ 1 << bit]) + content[offset + 1 :]
    return before + (noise[: len(stretch)] + after, after, bytes(len(stretch)) + after, b"")[kind - 1]


def corrupt(path: Path, read: Reader, count: int, seed: int, any_error: bool = False) -> list[Outcome]:
    """Damage a file `count` times, each time anew, and read it.

    Args:
        path: The file.
        read: Reads it.
        count: How often.
        seed: Seed of the damages, which are the same for every file.
        any_error: Whether every error is right, as for the files of other libraries.
    """
    content, expected, outcomes = path.read_bytes(), read(path), list[Outcome]()
    for number in range(count):
        path.write_bytes(damage(content, random.Random(f"{seed}/{number}")))
        problem = None
        try:
            if read(path) != expected:
                problem = "other content, silently"
        except PruneFEError as error:
            if path.name not in str(error) and str(path.parent) not in str(error):
                problem = f"the error does not name the file: {error}"
        except Exception as error:  # What other libraries raise, or a reader that does not check enough.
            if not any_error:
                problem = f"{type(error).__name__}: {error}"
        outcomes.append(problem and f"damage {number}: {problem}")
    path.write_bytes(content)
    return outcomes


def plain(value: Any) -> Any:
    """Return a value in which everything but durations can be compared with ==, to the bit."""
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


def new_network(width: int = 4) -> SmallVGG:
    """Return a small network, always the same."""
    torch.manual_seed(0)
    return SmallVGG(3, 1, stages=[[width], [width]])


def train(path: Path) -> Any:
    """Train the small network from the unfinished training in a file, if there is one; return its weights."""
    network = new_network()
    finetune(network, pictures(), pictures(), unfinished=path, **TRAINING)
    return plain(network.state_dict())


def ablate(path: Path) -> Any:
    """Mask the units of the small network from the unfinished work in a file, if there is any; return the counts."""
    network = new_network()
    trial = Trial(network, pictures(), find_layers(network, pictures()[:1][0], ["features.0"]), batch_size=12)
    return plain(trial.run_single_units(unfinished=path))


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


def read_checkpoint_file(path: Path) -> Any:
    """Return the weights in a checkpoint, as torch reads them."""
    return plain(torch.load(path, weights_only=True))


def read_network(folder: Path) -> Any:
    """Return the weights of a saved network."""
    return plain(prune_fe.load(folder).state_dict())


@dataclass(frozen=True)
class Kind:
    """A kind of file that a command reads.

    Attributes:
        pattern: Where it is in the folder of the finished commands.
        read: Reads it.
        make: Makes it, if the commands have not.
    """

    pattern: str
    read: Reader
    make: Callable[[Path], Any] = lambda path: None

    def attack(self, made: Path, directory: Path, count: int, seed: int) -> list[Outcome]:
        """Damage a file of this kind `count` times; see `corrupt`.

        Args:
            made: The folder of the finished commands, of which a copy is damaged.
            directory: Where the copy is made.
            count: How often.
            seed: Seed of the damages.
        """
        with tempfile.TemporaryDirectory(dir=directory) as folder:
            shutil.copytree(made, folder, dirs_exist_ok=True)
            if not any(Path(folder).glob(self.pattern)):
                self.make(Path(folder) / self.pattern)
            [path] = Path(folder).glob(self.pattern)
            return corrupt(path, self.read, count, seed)


def read_plain(read: Reader) -> Reader:
    """Return a reader whose content can be compared."""
    return lambda path: plain(read(path))


KINDS = {
    "unfinished training": Kind("training", train, train),
    "unfinished ablation": Kind("ablation", ablate, ablate),
    "unfinished scoring": Kind(".unfinished-0", score, make_unfinished_scores),
    "result of a task": Kind("runs/run-1/cells/*.l1-filter.json", read_plain(load_result)),
    "recipe of a run": Kind("runs/run-1/recipe.yaml", read_plain(read_yaml)),
    "labels of the test images": Kind("runs/run-1/test.json", read_plain(read_record)),
    "environment of a run": Kind("runs/run-1/env.json", read_plain(read_record)),
    "scores": Kind(
        "runs/run-1/seed-0/feature-entropy/scores.npz", read_plain(lambda path: prune_fe.load_scores(path.parent))
    ),
    "saved network, manifest.json": Kind(
        "runs/run-1/seed-0/trained/manifest.json", lambda path: read_network(path.parent)
    ),
    "saved network, model.safetensors": Kind(
        "runs/run-1/seed-0/trained/model.safetensors", lambda path: read_network(path.parent)
    ),
    "curves of an ablation": Kind("runs/ablate-1/seed-0/ablation/*/each.npz", read_plain(read_npz)),
    "checkpoint of a series": Kind("epoch-001.pth", read_checkpoint, lambda path: save_weights(new_network(), path)),
}
