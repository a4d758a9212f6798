"""What runs in the workers of Ray: the tasks of a run.

A worker makes the tasks of a run itself, from the recipe and the run folder, and keeps them with their images and
networks until it is given those of another run.
"""

from __future__ import annotations

import contextlib
import functools
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import ray
import torch
from ray.exceptions import RayError
from ray.util.queue import Queue

from prune_fe.errors import EnvironmentFault, PruneFEError
from prune_fe.experiment.ray_machines import VISIBLE_SECONDS, Site, becomes_visible, require_site
from prune_fe.experiment.run_folder import RunFolder
from prune_fe.experiment.tasks import Grid, Task

REPORT_SECONDS = 2.0
"""A worker reports the progress of a step at most this often."""


@dataclass(frozen=True, eq=False)
class Job:
    """The tasks of one call of the executor, as a worker is given them.

    Attributes:
        key: What tells the job from all others.
        grid: How the tasks are made.
        site: Where they are done.
        uses_gpu: Whether a task has a GPU.
        messages: Where messages and progress go.
    """

    key: str
    grid: Grid
    site: Site
    uses_gpu: bool
    messages: Queue

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Job) and other.key == self.key

    def __hash__(self) -> int:
        return hash(self.key)


class MessageReporter:
    """Sends messages and progress to the process that has started the tasks.

    Attributes:
        task: Name of the task that is worked on; messages are not sent while it is empty.
    """

    def __init__(self, messages: Queue) -> None:
        self._messages = messages
        self.task = ""

    def say(self, text: str) -> None:
        """Send one message."""
        self._send((self.task, text, None))

    def progress(self, task: str) -> Callable[[int, int], None]:
        """Return a function that sends the progress of a step from time to time."""
        last = time.monotonic()

        def update(done: int, total: int) -> None:
            nonlocal last
            if time.monotonic() - last >= REPORT_SECONDS:
                last = time.monotonic()
                self._send((self.task, task, (done, total)))

        return update

    def _send(self, message: tuple[str, str, tuple[int, int] | None]) -> None:
        if self.task:
            with contextlib.suppress(RayError):  # the process that reads the messages is ending
                self._messages.put(message)


@dataclass(frozen=True)
class LoadedTasks:
    """The tasks of a job in a worker.

    Attributes:
        tasks: The tasks by name.
        folder: The run folder.
        reporter: What the tasks report to.
    """

    tasks: Mapping[str, Task]
    folder: RunFolder
    reporter: MessageReporter


def work_on(job: Job, name: str) -> PruneFEError | None:
    """Do one task of a job, unless its result is on the disk already.

    Args:
        job: The job.
        name: Name of the task.

    Returns:
        The error with which it failed, if it is one of prune_fe's own.
    """
    try:
        loaded = _load(job, _choose_gpu() if job.uses_gpu else None)
        task, folder = loaded.tasks[name], loaded.folder
        with _reporting(loaded.reporter, name):
            for path in task.needs:
                if not becomes_visible(path, VISIBLE_SECONDS):
                    raise EnvironmentFault(
                        f"{path}: machine {ray.util.get_node_ip_address()} does not see it {VISIBLE_SECONDS:g} s after "
                        "it was written"
                    )
            # This may be another try of a task whose worker died when the result was written.
            if not task.is_finished:
                folder.log("began", task=name, process=os.getpid())
                with folder.working_on(name):
                    task.work()
    except PruneFEError as error:
        return error
    return None


@contextlib.contextmanager
def _reporting(reporter: MessageReporter, task: str) -> Iterator[None]:
    reporter.task = task
    try:
        yield
    finally:
        reporter.task = ""


@functools.lru_cache(maxsize=1)  # the images and networks of one job stay in memory
def _load(job: Job, gpu: int | None) -> LoadedTasks:
    """Make the tasks of a job, for one GPU."""
    require_site(job.site)
    reporter, folder = MessageReporter(job.messages), RunFolder.join(job.site.folder)
    return LoadedTasks({task.name: task for task in job.grid.tasks(folder, reporter)}, folder, reporter)


def _choose_gpu() -> int:
    """Let torch use the GPU that Ray has assigned to the task, and return its index.

    A worker keeps its process from task to task, and CUDA reads CUDA_VISIBLE_DEVICES only once in a process. So Ray
    is told to leave that variable alone, and torch gets the index.
    """
    index = find_gpu_index(ray.get_gpu_ids(), os.environ.get("CUDA_VISIBLE_DEVICES"))
    torch.cuda.set_device(index)
    return index


def find_gpu_index(assigned: Sequence[Any], visible: str | None) -> int:
    """Return torch's index of an assigned GPU.

    Args:
        assigned: What `ray.get_gpu_ids` returns: numbers, or, where CUDA_VISIBLE_DEVICES is set, entries of it.
        visible: The variable CUDA_VISIBLE_DEVICES; None where it is not set.

    >>> find_gpu_index([3], None), find_gpu_index(["7"], "4,7"), find_gpu_index(["GPU-8e"], "GPU-1f,GPU-8e")
    (3, 1, 1)
    """
    [gpu] = assigned
    return int(gpu) if not visible else visible.split(",").index(str(gpu))
