"""Run the tasks of a command on Ray: many at a time, on one machine or on a cluster.

The process that starts the command makes the tasks, hands out those whose needs are met, and waits for them; it holds
the lock of the run folder. A worker gets the recipe, the run folder and the name of a task, see `ray_worker`, and
leaves the result in the run folder, which all machines share. Ray runs a task again whose worker or machine dies.
"""

from __future__ import annotations

import dataclasses
import logging
import os
import signal
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import (
    OutOfMemoryError,
    RayError,
    RayTaskError,
    RuntimeEnvSetupError,
    TaskUnschedulableError,
)
from ray.util.queue import Queue
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from prune_fe.errors import DataError, EnvironmentFault, InputError, PruneFEError, first_line
from prune_fe.experiment.experiment import Reporter
from prune_fe.experiment.options import ExecutorOptions
from prune_fe.experiment.ray_machines import (
    NODE_SECONDS,
    RETRIES,
    VISIBLE_SECONDS,
    Share,
    Site,
    becomes_visible,
    inspect_all,
    wait_for_nodes,
)
from prune_fe.experiment.ray_worker import Job, work_on
from prune_fe.experiment.recipe import Recipe
from prune_fe.experiment.run_folder import RunFolder
from prune_fe.experiment.tasks import (
    Failures,
    Grid,
    Task,
    check_order,
    lost_results,
    record_failure,
)

POLL_SECONDS = 0.5
"""Interval at which messages of the workers are shown."""

STORE_BYTES = 80 * 2**20
"""Size of Ray's store of objects where Ray is started; what is stored are recipes."""

MARK = ".ray-"
"""Prefix of the file in the run folder by which machines know the folder."""


@contextmanager
def connected_executor(
    options: ExecutorOptions, recipe: Recipe, folder: RunFolder, reporter: Reporter
) -> Iterator[RayExecutor]:
    """Start Ray or join its cluster, and check its machines; disconnect when the context ends.

    Where the caller has connected to Ray already, that connection is used, and stays.

    Args:
        options: Which cluster, and what each task gets.
        recipe: What is done; it says which threads and which device a task has.
        folder: The run folder.
        reporter: Where messages and progress go.

    Yields:
        The executor.

    Raises:
        InputError: The recipe's device does not fit.
        EnvironmentFault: Ray cannot be started or reached, no machine has what a task needs, or a machine does not see
            the run folder or the images.
    """
    own = not ray.is_initialized()
    is_local = own and _start(options.address or os.environ.get("RAY_ADDRESS") or "local", reporter)
    mark: Path | None = None
    try:
        share = _choose_resources(options, recipe)
        nodes = wait_for_nodes(share, 0.0 if is_local else NODE_SECONDS, reporter.say)
        # A mark of a command that was killed is left over: this process has the lock of the folder.
        for old in folder.path.glob(f"{MARK}*"):
            old.unlink(missing_ok=True)
        mark = folder.path.resolve() / f"{MARK}{uuid.uuid4().hex}"
        mark.touch()
        site = Site(mark.parent, mark.name, tuple(_local_paths(recipe)))
        inspect_all(nodes, site, reporter.say)
        reporter.say(f"Ray: {share.describe(nodes)}")
        yield RayExecutor(share, site, folder, reporter)
    finally:
        if mark is not None:
            mark.unlink(missing_ok=True)
        if own:
            ray.shutdown()


class RayExecutor:
    """Runs tasks in the workers of Ray.

    Args:
        share: What each task gets.
        site: What every machine must see.
        folder: The run folder with the results; failed tasks are logged there.
        reporter: Where messages and progress go, those of the workers with the name of the task in front.
    """

    def __init__(self, share: Share, site: Site, folder: RunFolder, reporter: Reporter) -> None:
        self.share, self.site, self.folder, self.reporter = share, site, folder, reporter
        # A worker is kept for the next task: it has the images and the network in memory.
        self._work_on = ray.remote(max_calls=0)(work_on)
        self._bars: dict[tuple[str, str], Callable[[int, int], None]] = {}

    def execute(self, tasks: Sequence[Task], grid: Grid) -> Failures:
        """Finish all tasks that can be finished, as many at a time as the cluster has room for.

        Args:
            tasks: The tasks; each comes after those whose results it needs.
            grid: How a worker makes the same tasks.

        Returns:
            The errors of the tasks that failed.

        Raises:
            PruneFEError: An error that concerns all tasks, such as a full disk; the others are stopped.
        """
        check_order(tasks)
        grid = dataclasses.replace(grid, recipe=self._recipe_of_worker(grid.recipe))
        waiting = [task for task in tasks if not task.is_finished]
        if not waiting:
            return {}
        # The queue is on this machine, so that it does not die with another one; it only waits and takes no CPU.
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        messages = Queue(actor_options={"num_cpus": 0, "max_restarts": -1, "scheduling_strategy": here})
        job = ray.put(Job(uuid.uuid4().hex, grid, self.site, self.share.gpus > 0, messages))
        failures: dict[str, PruneFEError] = {}
        missing, running = {task.result for task in waiting}, dict[Any, Task]()
        progress = self.reporter.progress("tasks")
        try:
            while True:
                lost = lost_results(tasks, failures)
                waiting = [task for task in waiting if task.result not in lost]
                for task in [task for task in waiting if missing.isdisjoint(task.needs)]:
                    remote = self._work_on.options(name=task.name, **self.share.options)
                    running[remote.remote(job, task.name)] = task
                    waiting.remove(task)
                progress(len(tasks) - len(waiting) - len(running), len(tasks))
                if not running:
                    return failures
                done, _ = ray.wait(list(running), timeout=POLL_SECONDS)
                self._show(messages)
                for reference in done:
                    task = running.pop(reference)
                    if (error := self._outcome(reference, task)) is None:
                        missing.discard(task.result)
                    else:
                        failures[task.name] = error
                        record_failure(task, error, self.folder, self.reporter)
        finally:
            for reference in running:
                ray.cancel(reference, force=True)
            messages.shutdown(force=True)

    def _recipe_of_worker(self, recipe: Recipe) -> Recipe:
        """Return a recipe as a worker carries it out: with this device and threads, and with absolute paths."""
        changes: dict[str, Any] = {"device": self.share.device, "threads": self.share.cpus}
        compare, networks = recipe.compare, recipe.compare.networks
        paths: dict[str, Any] = {name: _absolute(getattr(recipe.data, name)) for name in ("path", "validation_path")}
        changes["data"] = dataclasses.replace(recipe.data, **paths)
        changes["model"] = dataclasses.replace(recipe.model, checkpoint=_absolute(recipe.model.checkpoint))
        networks = {
            label: dataclasses.replace(model, checkpoint=_absolute(model.checkpoint))
            for label, model in networks.items()
        }
        changes["compare"] = dataclasses.replace(compare, networks=networks)
        return recipe.model_copy(update=changes)

    def _outcome(self, reference: Any, task: Task) -> PruneFEError | None:
        """Return why a task failed, None for one that is finished; raise an error that concerns all tasks."""
        try:
            error: PruneFEError | None = ray.get(reference)
        except RayTaskError as raised:
            # The cause is what the task raised; the error of Ray has its traceback.
            raise (raised.cause if isinstance(raised.cause, Exception) else raised) from raised
        except (RuntimeEnvSetupError, TaskUnschedulableError) as raised:
            raise EnvironmentFault(f"Ray: {first_line(raised)}") from raised
        except OutOfMemoryError as raised:
            return EnvironmentFault(f"its machine had too little memory, {RETRIES + 1} times: {first_line(raised)}")
        except RayError as raised:
            return EnvironmentFault(f"its worker died {RETRIES + 1} times: {first_line(raised)}")
        if error is None:
            self._wait_until_visible(task)
        elif not isinstance(error, InputError | DataError):
            raise type(error)(f"{task.name}: {error}")
        return error

    def _wait_until_visible(self, task: Task) -> None:
        """Wait for the result of a finished task, which a network file system may show some time later."""
        end = time.monotonic() + VISIBLE_SECONDS
        while not task.is_finished:
            if time.monotonic() > end:
                raise EnvironmentFault(
                    f"{task.result}: a worker has written it, and this machine does not see it after "
                    f"{VISIBLE_SECONDS:g} s"
                )
            becomes_visible(task.result, 1.0)
            time.sleep(0.2)

    def _show(self, messages: Queue) -> None:
        """Show the messages and the progress that the workers have sent."""
        try:
            sent = messages.get_nowait_batch(messages.qsize())
        except RayError:  # the queue is being started again; results do not depend on it
            return
        for task, text, steps in sent:
            if steps is None:
                self.reporter.say(f"[{task}] {text}")
            else:
                if (task, text) not in self._bars:
                    self._bars[task, text] = self.reporter.progress(f"[{task}] {text}")
                self._bars[task, text](*steps)


def _start(address: str, reporter: Reporter) -> bool:
    """Connect to a cluster, or start one on this machine; return whether it was started.

    Raises:
        InputError: The address is that of a client of Ray.
        EnvironmentFault: That is not possible.
    """
    is_local = address == "local"
    if address.startswith("ray://"):
        raise InputError(f"address {address!r}: start the command on a machine of the cluster, or by ray job submit")
    settings: dict[str, Any] = {"address": address}
    if is_local:
        reporter.say("starting Ray on this machine")
        settings |= {"include_dashboard": False, "object_store_memory": STORE_BYTES}
        # A batch system may have given this process some of the CPUs only, of which Ray would count all.
        if hasattr(os, "sched_getaffinity") and (n_own := len(os.sched_getaffinity(0))) < (os.cpu_count() or 1):
            settings["num_cpus"] = n_own
    is_main = threading.current_thread() is threading.main_thread()
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM) if is_main}
    try:
        ray.init(logging_level=logging.WARNING, **settings)
    except Exception as error:  # Ray raises errors of many classes here, among them Exception itself
        what = "started on this machine" if is_local else f"reached at {address}"
        raise EnvironmentFault(f"Ray cannot be {what}: {first_line(error)}") from error
    finally:
        # Ray ends the process at SIGTERM without a word; prune_fe's own handler names what is kept.
        for number, handler in handlers.items():
            signal.signal(number, handler)
    return is_local


def _choose_resources(options: ExecutorOptions, recipe: Recipe) -> Share:
    """Return what each task gets, by the options and the recipe.

    Raises:
        InputError: The recipe's device is one that Ray cannot give, or does not fit the GPUs of a task.
    """
    cpus = options.cpus_per_task or recipe.threads or 1
    if recipe.device.startswith("cuda:"):
        raise InputError(f"device: {recipe.device}: Ray chooses the GPU of each task; write cuda or auto")
    if recipe.device in ("cpu", "mps"):
        if options.gpus_per_task:
            raise InputError(f"gpus_per_task: {options.gpus_per_task:g} for device: {recipe.device}; write 0, or cuda")
        return Share(cpus, 0.0, recipe.device)
    gpus = options.gpus_per_task
    if gpus is None:
        gpus = 1.0 if recipe.device == "cuda" or ray.cluster_resources().get("GPU", 0.0) >= 1 else 0.0
    if recipe.device == "cuda" and not gpus:
        raise InputError("gpus_per_task: 0 for device: cuda; write more than 0, or device: cpu")
    return Share(cpus, gpus, "cuda" if gpus else "cpu")


def _local_paths(recipe: Recipe) -> Iterator[Path]:
    """Yield the files and folders that a recipe reads, as absolute paths; not what only a library knows."""
    models = [recipe.model, *recipe.compare.networks.values()]
    for path in dict.fromkeys([recipe.data.path, recipe.data.validation_path, *(model.checkpoint for model in models)]):
        if path is not None and Path(path).exists():
            yield Path(path).resolve()


def _absolute(path: str | None) -> str | None:
    """Return the absolute path of what is on the disk; anything else, such as a name in a hub, as it is."""
    return str(Path(path).resolve()) if path is not None and Path(path).exists() else path
