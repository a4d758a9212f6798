"""Tasks that the workers of Ray make in the tests: they kill themselves, fail, or wait, as a file says."""

import functools
import json
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from prune_fe.errors import InputError
from prune_fe.experiment import compare, steps
from prune_fe.experiment.experiment import Reporter
from prune_fe.experiment.recipe import Recipe
from prune_fe.experiment.run_folder import RunFolder
from prune_fe.experiment.tasks import Task
from prune_fe.measure.cost import speed

comparison_tasks = compare.comparison_tasks


def quick_comparison_tasks(recipe: Recipe, folder: RunFolder, reporter: Reporter) -> list[Task]:
    """The tasks of a comparison, which time networks for a moment only."""
    steps.speed = functools.partial(speed, seconds=0.01)
    return comparison_tasks(recipe, folder, reporter)


def scripted_tasks(
    recipe: Recipe, folder: RunFolder, reporter: Reporter, script: Sequence[tuple[str, str, Sequence[str]]]
) -> list[Task]:
    """One task for each (name, what it does, names of the tasks that it needs)."""
    place = folder.path / "results"
    place.mkdir(exist_ok=True)
    return [
        Task(
            name,
            place / name,
            [place / need for need in needs],
            functools.partial(_act, place / name, action, reporter),
        )
        for name, action, needs in script
    ]


def _act(result: Path, action: str, reporter: Reporter) -> None:
    about = {"process": os.getpid(), "threads": torch.get_num_threads(), "omp": os.environ["OMP_NUM_THREADS"]}
    tries = result.with_name(f"{result.name}.tries")
    with tries.open("a") as file:
        file.write(f"{os.getpid()}\n")
    reporter.say(f"{result.name} says {action}")
    n_tries = len(tries.read_text().splitlines())
    if action == "fail":
        raise InputError(f"{result.name} cannot")
    if action == "break":
        raise KeyError("a bug")
    if action == "wait" and n_tries == 1:  # until the test kills this process
        time.sleep(60)
    if action == "die":
        os.kill(os.getpid(), 9)
    result.write_text(json.dumps(about))


def wait_for(condition: Any, seconds: float = 120.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.05)
