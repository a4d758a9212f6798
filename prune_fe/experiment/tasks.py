"""Tasks with results on the disk, and the executor that runs them.

A task is finished when its result exists. Results are written whole or not at all, so a finished result is read and
never computed again: an interrupted command loses only the task that it was working on. A task that fails is named and
logged, and stops only the tasks that need its result.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from prune_fe.distributed import from_rank_0, world_size
from prune_fe.errors import DataError, InputError
from prune_fe.experiment.claims import Claims
from prune_fe.experiment.experiment import Reporter
from prune_fe.experiment.run_folder import CLAIMS, RunFolder

POLL_SECONDS = 5.0
"""Interval at which a process without work looks whether other processes have finished theirs."""

Failures = Mapping[str, InputError | DataError]
"""The error of each failed task, by the task's name, in the order in which they failed."""


@dataclass(frozen=True)
class Task:
    """A piece of work with one result on the disk.

    Attributes:
        name: Name of the task, unique among all tasks that are executed together.
        result: File that `work` writes as its last step, whole or not at all.
        needs: Results of other tasks that must exist before the work can begin.
        work: Function that does the work.
    """

    name: str
    result: Path
    needs: Sequence[Path]
    work: Callable[[], None]

    @property
    def is_finished(self) -> bool:
        """Whether the result is on the disk."""
        return self.result.exists()

    @property
    def is_ready(self) -> bool:
        """Whether all results that the task needs are on the disk."""
        return all(path.exists() for path in self.needs)


class Executor(Protocol):
    """Runs tasks, in this process or elsewhere."""

    def execute(self, tasks: Sequence[Task]) -> Failures:
        """Finish all tasks that can be finished.

        Args:
            tasks: The tasks; each comes after those whose results it needs.

        Returns:
            The errors of the tasks that failed.
        """


class LocalExecutor:
    """Runs tasks one after the other in this process.

    Processes that share a run folder share its tasks: each claims a task before it begins. The processes of
    torch.distributed work on every task together, and rank 0 chooses it.

    Args:
        folder: The run folder with the results; failed tasks are logged there.
        reporter: Where messages and progress go.
    """

    def __init__(self, folder: RunFolder, reporter: Reporter) -> None:
        self.folder, self.reporter = folder, reporter
        self._claims = Claims(folder.path / CLAIMS) if folder.is_shared else None

    def execute(self, tasks: Sequence[Task]) -> Failures:
        """Finish all tasks that can be finished, in their order; wait for those that other processes work on.

        Args:
            tasks: The tasks; each comes after those whose results it needs.

        Returns:
            The errors of the tasks that failed in this process.
        """
        _check_order(tasks)
        failures: dict[str, InputError | DataError] = {}
        progress, is_waiting = self.reporter.progress("tasks"), False
        while True:
            with ExitStack() as claim:
                # Other ranks may see another state of the folder, and all have to work on the same task.
                number, n_open = from_rank_0(lambda: self._claim_next(tasks, failures, claim))
                progress(len(tasks) - n_open, len(tasks))
                if number is not None:
                    self._work_on(tasks[number], failures)
            if n_open == 0:
                return failures
            if number is None:
                if not is_waiting:
                    self.reporter.say(f"waiting for {n_open} tasks that other processes work on")
                time.sleep(POLL_SECONDS)
            is_waiting = number is None

    def _claim_next(self, tasks: Sequence[Task], failures: Failures, claim: ExitStack) -> tuple[int | None, int]:
        """Return the number of a task that is claimed until `claim` closes, and how many tasks are open.

        The number is None where no task can begin now. A task is open if it is not finished but still can be.
        """
        lost = lost_results(tasks, failures)
        numbers = [n for n, task in enumerate(tasks) if task.result not in lost and not task.is_finished]
        for number in numbers:
            task = tasks[number]
            if task.is_ready:
                is_claimed = claim.enter_context(self._claimed(task))
                if is_claimed and not task.is_finished:  # another process may have finished it in between
                    return number, len(numbers)
                # Keep no claim on a task that this process does not work on.
                claim.close()
        return None, len(numbers)

    def _claimed(self, task: Task) -> AbstractContextManager[bool]:
        return nullcontext(True) if self._claims is None else self._claims.claimed(task.name)

    def _work_on(self, task: Task, failures: dict[str, InputError | DataError]) -> None:
        """Do the task's work, and record an error that does not concern all tasks."""
        try:
            with self.folder.working_on(task.name):
                task.work()
        except (InputError, DataError) as error:
            # The error may be that of one rank only, and the other ranks would wait for it forever.
            if world_size() > 1:
                raise type(error)(f"{task.name}: {error}") from error
            failures[task.name] = error
            self.folder.record_failure(task.name, task.result, error)
            self.reporter.say(f"{task.name}: failed ({error})")


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
        InputError: The first failed task raised one.
        DataError: The first failed task raised one.
    """
    if failures:
        first = next(task for task in tasks if task.name in failures)
        n_waiting = len(lost_results(tasks, failures)) - len(failures)
        waiting = f", and {n_waiting} more that need them" if n_waiting else ""
        error = failures[first.name]
        count = "1 task" if len(failures) == 1 else f"{len(failures)} tasks"
        raise type(error)(f"{count} failed{waiting}; the first is {first.name}: {error}")


def _check_order(tasks: Sequence[Task]) -> None:
    """Raise ValueError where two tasks share a name, or one needs a result that only a later task makes."""
    names: set[str] = set()
    later = [task.result for task in tasks]
    for number, task in enumerate(tasks):
        if task.name in names:
            raise ValueError(f"two tasks are called {task.name!r}")
        names.add(task.name)
        if not set(task.needs).isdisjoint(later[number:]):
            raise ValueError(f"task {task.name!r} stands before a task whose result it needs")
