"""A small comparison and a silent reporter, for the tests of experiments."""

import contextlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from prune_fe.experiment import compare
from prune_fe.experiment.recipe import Recipe
from prune_fe.experiment.run_folder import RunFolder

CONTENT: dict[str, Any] = {
    "name": "t",
    "data": {"source": "digits", "size": 12, "validation": 0.6},  # fewer training images: faster
    "model": {"name": "vgg-small", "arguments": {"stages": [[4], [8]]}},
    "train": {"lr": 0.05, "schedule": "cosine", "epochs": 1, "batch_size": 128},
    "score": {"samples": 10},
    "scorers": ["feature-entropy", {"name": "apoz", "label": "zeros"}],
    "finetune": {"lr": 0.01, "schedule": "cosine", "epochs": 1, "batch_size": 128},
    "compare": {
        "networks": {
            "one": {"name": "vgg-small", "arguments": {"stages": [[4], [8]]}},
            "two": {"name": "vgg-small", "arguments": {"stages": [[6], [4]]}},
        },
        "ratios": [0.25, 0.75],
        "scratch": [1, 2],
    },
    "seeds": [0, 3],
    "threads": 1,
}
RECIPE = Recipe.model_validate(CONTENT)
SCORERS = ["feature-entropy", "zeros", "random", "l1-filter"]
CELLS = 2 * 2 * (2 + 2 * (len(SCORERS) + 2))  # networks, seeds; unpruned, fine-tuned or not; ratios; scorers, scratch

ONE_NETWORK: dict[str, Any] = {
    "name": "t",
    "data": {"source": "digits", "size": 12},
    "model": {"name": "vgg-small", "arguments": {"stages": [[4]]}},
    "scorers": ["random", "l1-filter"],
    "compare": {"networks": {"one": {"name": "vgg-small", "arguments": {"stages": [[6]]}}}},
    "seeds": [0, 3],
}


class Silent:
    def __init__(self) -> None:
        self.said: list[str] = []

    def say(self, text: str) -> None:
        self.said.append(text)

    def progress(self, task: str) -> Callable[[int, int], None]:
        return lambda done, total: None


def fill(folder: Path, recipe: Recipe = RECIPE) -> list[str]:
    folder.mkdir(exist_ok=True)
    silent = Silent()
    with contextlib.closing(RunFolder(folder, recipe.model_dump(mode="json"), comparison=True)) as where:
        compare.compare(recipe, where, silent)
    return silent.said


def logged(folder: RunFolder, event: str) -> list[dict[str, Any]]:
    """Return the events of one kind in a log, without a line that was cut."""
    entries = []
    # splitlines() would also split at line separators inside of texts.
    for line in (folder.path / folder.log_name).read_text(encoding="utf-8").split("\n"):
        try:
            entries.append(json.loads(line))
        except ValueError:
            continue
    return [entry for entry in entries if entry["event"] == event]
