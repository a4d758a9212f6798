"""What the tests of several studies use: a recipe that trains in a second, run folders, and a reporter that listens."""

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from prune_fe.data.digits import digits
from prune_fe.experiment.recipe import Recipe
from prune_fe.experiment.run_folder import RunFolder
from prune_fe.models.build import build
from prune_fe.models.checkpoints import load_weights
from prune_fe.studies.subject import Subject
from prune_fe.tracing.layers import find_layers

CONTENT: dict[str, Any] = {
    "name": "t",
    "data": {"source": "digits", "size": 12},
    "model": {"name": "vgg-small", "arguments": {"stages": [[6], [8]]}},
    "train": {"lr": 0.05, "schedule": "cosine", "epochs": 1, "batch_size": 64},
    "score": {"samples": 20},
    "scorers": ["feature-entropy", "l1-filter"],
    "prune": {"ratio": 0.5},
    "finetune": {"lr": 0.02, "schedule": "cosine", "epochs": 1, "batch_size": 64},
    "seeds": [1, 4],
}


class Listener:
    """A reporter that keeps what it is told."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def say(self, text: str) -> None:
        self.said.append(text)

    def progress(self, task: str) -> Callable[[int, int], None]:
        return lambda done, total: None


@pytest.fixture(scope="session")
def listener() -> type[Listener]:
    return Listener


@pytest.fixture(scope="session")
def recipe_with() -> Callable[..., Recipe]:
    """Return the recipe of the tests, with other sections where they are given."""
    return lambda **sections: Recipe.model_validate(CONTENT | sections)


@pytest.fixture(scope="session")
def run_study() -> Callable[..., tuple[list[Any], list[str]]]:
    """Run a study in a folder; return its tables and what it said."""

    def run(
        study: Callable[..., list[Any]], folder: Path, recipe: Recipe, **options: Any
    ) -> tuple[list[Any], list[str]]:
        folder.mkdir(exist_ok=True)
        run_folder, reporter = RunFolder(folder, recipe.model_dump(mode="json")), Listener()
        try:
            return study(recipe, run_folder, reporter, **options), reporter.said
        finally:
            run_folder.close()

    return run


@pytest.fixture(scope="session")
def read_rows() -> Callable[[Path], list[dict[str, str]]]:
    """Return the lines of a CSV file."""

    def read(path: Path) -> list[dict[str, str]]:
        with path.open() as file:
            return list(csv.DictReader(file))

    return read


CLASS = 3
SIZE, STAGES = 16, [[16, 16], [32, 32]]
WEIGHTS = Path(__file__).parents[1] / "fixtures/digits-16.safetensors"
"""Weights that are right on 98 % of the test images. They were trained from seed 2 with `finetune(network, train,
validation, lr=0.05, schedule="cosine", epochs=10, batch_size=32)`. They are stored because no two versions of torch
train the same ones, and what holds for one unit holds for no other."""


class Block(nn.Module):
    """A residual block: a module with maps that has no filters of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.relu = nn.Conv2d(3, 3, 3, padding=1), nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.relu(self.conv(x) + x)


@pytest.fixture(scope="session")
def block() -> type[nn.Module]:
    return Block


@pytest.fixture(scope="session")
def initialise() -> Callable[[int], nn.Module]:
    """Return the network of `subject` with the weights of a seed."""

    def initialise_with(seed: int) -> nn.Module:
        torch.manual_seed(seed)
        return build("vgg-small", 10, in_channels=1, stages=STAGES)

    return initialise_with


@pytest.fixture(scope="session")
def subject(initialise: Callable[[int], nn.Module]) -> Subject:
    """The unit of least H/ε in the last layer of a network that is good at digits, on class 3."""
    splits, network = digits(SIZE), initialise(0)
    load_weights(network, WEIGHTS)
    layer = find_layers(network, splits.test[0][0][None])[-1]
    return Subject(network, splits, layer, 0, CLASS, samples=80).with_unit(None)
