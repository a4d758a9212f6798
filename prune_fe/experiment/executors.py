"""Choose the executor that runs the tasks of a command."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator
from contextlib import contextmanager

from prune_fe.errors import EnvironmentFault, InputError
from prune_fe.experiment.experiment import Reporter
from prune_fe.experiment.options import ExecutorOptions
from prune_fe.experiment.recipe import Recipe
from prune_fe.experiment.run_folder import RunFolder
from prune_fe.experiment.tasks import Executor, LocalExecutor

RAY_ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",  # no statistics are sent
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # as future versions of Ray do; without it, they warn
    "RAY_task_oom_retries": "3",  # by default a task for which the memory does not suffice is tried for ever
}
"""Variables that Ray reads when it is imported and started; those that the user has set stay."""


@contextmanager
def open_executor(
    options: ExecutorOptions, recipe: Recipe, folder: RunFolder, reporter: Reporter
) -> Iterator[Executor]:
    """Start what runs the tasks of a command, and end it with the context.

    Args:
        options: Where the tasks run.
        recipe: What is done; it says which threads and which device a task has.
        folder: The run folder.
        reporter: Where messages and progress go.

    Yields:
        The executor, for tasks whose results are in the run folder.

    Raises:
        InputError: The options do not fit the recipe, or torchrun has started the process.
        EnvironmentFault: Ray is not installed, cannot be reached, or one of its machines cannot do the work.
    """
    if options.executor == "local":
        yield LocalExecutor(folder, reporter)
        return
    if (count := os.environ.get("WORLD_SIZE", "1")) != "1":
        raise InputError(
            f"executor: ray shares tasks out by itself, and torchrun has started {count} processes; start the command "
            "without torchrun, or leave the executor out so that all processes work on each task together"
        )
    if importlib.util.find_spec("ray") is None:
        raise EnvironmentFault("executor: ray is not installed; pip install 'prune-fe[ray]'")
    for name, value in RAY_ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    from prune_fe.experiment.ray_executor import connected_executor

    with connected_executor(options, recipe, folder, reporter) as executor:
        yield executor
