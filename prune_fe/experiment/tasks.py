"""Tasks with results on the disk, and the executor that runs them.

A task is finished when its result exists. Results are written whole or not at all, so a finished result is read and
never computed again: an interrupted command loses only the task that it was working on. A task that fails is named and
logged, and stops only the tasks that need its result.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from prune_fe.distributed import from_rank_0, world_size
from prune_fe.errors import DataError, InputError, PruneFEError
from prune_fe.experiment.estimate import TASKS, Kind, TaskTimes
from prune_fe.experiment.experiment import Experiment, Reporter
from prune_fe.experiment.recipe import TRAINED, Recipe
from prune_fe.experiment.run_folder import RunFolder

Failures = Mapping[str, PruneFEError]
"""The error of each failed task, by the task's name, in the order in which they failed."""


@dataclass(frozen=True)
class Task:
    """A piece of work with one result on the disk.

    Attributes:
        name: Name of the task, unique among all tasks that are executed together.
        result: File that `work` writes as its last step, whole or not at all.
        needs: Results of other tasks that must exist before the work can begin.
        work: Function that does the work.
        kind: Tasks that take about the same time, from which it is estimated how long a run takes; None where no other
            task does.
    """

    name: str
    result: Path
    needs: Sequence[Path]
    work: Callable[[], None]
    kind: Kind | None = field(default=None, kw_only=True)

    @property
    def is_finished(self) -> bool:
        """Whether the result is on the disk."""
        return self.result.exists()


@dataclass(frozen=True)
class Grid:
    """Tasks that any process can make again: the function that makes them with its arguments, all of which are small.

    A task itself holds images and networks, which no process sends to another one.

    Attributes:
        make: Function of a module, called with the recipe, the run folder, a reporter and `arguments`.
        recipe: The recipe.
        arguments: Further arguments of the function; they can be pickled.
    """

    make: Callable[..., Sequence[Task]]
    recipe: Recipe
    arguments: tuple[Any, ...] = ()

    def tasks(self, folder: RunFolder, reporter: Reporter) -> Sequence[Task]:
        """Make the tasks."""
        return self.make(self.recipe, folder, reporter, *self.arguments)


class Executor(Protocol):
    """Runs tasks, in this process or elsewhere."""

    def execute(self, tasks: Sequence[Task], grid: Grid) -> Failures:
        """Finish all tasks that can be finished.

        Args:
            tasks: The tasks; each comes after those whose results it needs.
            grid: How another process makes the same tasks.

        Returns:
            The errors of the tasks that failed.
        """


class LocalExecutor:
    """Runs tasks one after the other in this process.

    The processes of torch.distributed work on every task together, and rank 0 chooses it.

    Args:
        folder: The run folder with the results; failed tasks are logged there.
        reporter: Where messages and progress go.
    """

    def __init__(self, folder: RunFolder, reporter: Reporter) -> None:
        self.folder, self.reporter = folder, reporter

    def execute(self, tasks: Sequence[Task], grid: Grid | None = None) -> Failures:
        """Finish all tasks that can be finished, in their order.

        Args:
            tasks: The tasks; each comes after those whose results it needs.
            grid: Not used: this process has the tasks.

        Returns:
            The errors of the tasks that failed.
        """
        check_order(tasks)
        failures: dict[str, PruneFEError] = {}
        lost: set[Path] = set()
        progress, times = self.reporter.progress(TASKS), TaskTimes(self.reporter.say)
        # All results are looked for once, not again after every task: on a network file system each takes milliseconds.
        open_kinds = {task.name: task.kind for task in tasks if not task.is_finished}
        left = Counter(open_kinds.values())  # kind -> how many of its open tasks come later
        for number, task in enumerate(tasks):
            progress(number, len(tasks))
            if task.name in open_kinds:
                left[task.kind] -= 1
            if self._is_open(task, lost):
                began = time.monotonic()
                self._work_on(task, failures)
                if task.name in failures:
                    lost = lost_results(tasks, failures)
                else:
                    times.add(task.kind, time.monotonic() - began, left)
        progress(len(tasks), len(tasks))
        return failures

    def _is_open(self, task: Task, lost: set[Path]) -> bool:
        """Return whether a task is not finished but can be, as rank 0 sees it: all ranks work on the same task."""
        return from_rank_0(lambda: task.result not in lost and not task.is_finished)

    def _work_on(self, task: Task, failures: dict[str, PruneFEError]) -> None:
        """Do the task's work, and record an error that does not concern all tasks."""
        try:
            with self.folder.working_on(task.name):
                task.work()
        except (InputError, DataError) as error:
            # The error may be that of one rank only, and the other ranks would wait for it forever.
            if world_size() > 1:
                raise type(error)(f"{task.name}: {error}") from error
            record_failure(task, error, self.folder, self.reporter)
            failures[task.name] = error


def record_failure(task: Task, error: PruneFEError, folder: RunFolder, reporter: Reporter) -> None:
    """Write down that a task failed, and say so.

    Args:
        task: The task.
        error: Why it failed.
        folder: The run folder.
        reporter: Where the message goes.
    """
    folder.record_failure(task.name, task.result, error)
    reporter.say(f"{task.name}: failed ({error})")


def network_task(experiment: Experiment, teacher: bool = False) -> Task:
    """Return the task that trains the network of an experiment, for tasks that all need it.

    Args:
        experiment: The experiment; the network stays in its memory.
        teacher: Whether the tasks need the teacher of its fine-tuning too.
    """
    result = experiment.seed_folder / TRAINED

    def train() -> None:
        _ = experiment.network, experiment.teacher if teacher else None  # trained and saved

    return Task(f"seed-{experiment.seed}.network", result, (), train)


def lost_results(tasks: Sequence[Task], failures: Failures) -> set[Path]:
    """Return the results that will not be made: those of failed tasks and of all tasks that need them.

    Args:
        tasks: All tasks; each comes after those whose results it needs.
        failures: The failed tasks.
    """
    lost = {task.result for task in tasks if task.name in failures}
    # One pass is enough, because each task comes after those that it needs.
    for task in tasks:
        if not lost.isdisjoint(task.needs):
            lost.add(task.result)
    return lost


def raise_failures(tasks: Sequence[Task], failures: Failures) -> None:
    """Raise an error that counts the failed tasks and names the first of them, if there are any.

    Args:
        tasks: All tasks.
        failures: The errors of those that failed.

    Raises:
        PruneFEError: The error of the first failed task, of its class.
    """
    if failures:
        first = next(task for task in tasks if task.name in failures)
        n_waiting = len(lost_results(tasks, failures)) - len(failures)
        waiting = f", and {n_waiting} more that need them" if n_waiting else ""
        error = failures[first.name]
        count = "1 task" if len(failures) == 1 else f"{len(failures)} tasks"
        raise type(error)(f"{count} failed{waiting}; the first is {first.name}: {error}")


def check_order(tasks: Sequence[Task]) -> None:
    """Check that no two tasks share a name, and that each comes after those whose results it needs.

    Raises:
        ValueError: It is not so.
    """
    names: set[str] = set()
    last_maker = {task.result: number for number, task in enumerate(tasks)}
    for number, task in enumerate(tasks):
        if task.name in names:
            raise ValueError(f"two tasks are called {task.name!r}")
        names.add(task.name)
        if any(last_maker.get(path, -1) >= number for path in task.needs):
            raise ValueError(f"task {task.name!r} stands before a task whose result it needs")
