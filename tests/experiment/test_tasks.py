"""Tasks: finished, failed and lost ones, and those that another process can make."""

import contextlib
import functools
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from prune_fe.errors import CheckpointError, DataError, InputError
from prune_fe.experiment import tasks as module
from prune_fe.experiment.estimate import Kind
from prune_fe.experiment.recipe import Recipe
from prune_fe.experiment.run_folder import RunFolder, failed_tasks
from prune_fe.experiment.tasks import Grid, LocalExecutor, Task, lost_results, raise_failures
from tests.experiment.helpers import RECIPE, logged


class Silent:
    def __init__(self) -> None:
        self.said: list[str] = []
        self.bar: list[tuple[int, int]] = []

    def say(self, text: str) -> None:
        self.said.append(text)

    def progress(self, task: str) -> Callable[[int, int], None]:
        return lambda done, total: self.bar.append((done, total))


Opener = Callable[..., RunFolder]


@pytest.fixture
def open_folder(tmp_path: Path) -> Iterator[Opener]:
    """A function that opens the run folder; all are closed after the test."""
    with contextlib.ExitStack() as folders:

        def opened() -> RunFolder:
            return folders.enter_context(contextlib.closing(RunFolder(tmp_path, {"name": "t"})))

        yield opened


class Chain:
    """Four tasks, each of which needs the one before it, and one that needs none; `order` notes what is done."""

    def __init__(self, folder: Path) -> None:
        self.order: list[str] = []
        self.errors: dict[str, Exception] = {}
        paths = [folder / str(number) for number in range(5)]
        self.tasks = [self.task(path, paths[n - 1 : n] if n < 4 else []) for n, path in enumerate(paths)]

    def task(self, path: Path, needs: list[Path]) -> Task:
        def work() -> None:
            self.order.append(path.name)
            if path.name in self.errors:
                raise self.errors[path.name]
            path.touch()

        return Task(f"task-{path.name}", path, needs, work)


def test_tasks_are_done_once_in_their_order(tmp_path: Path, open_folder: Opener) -> None:
    chain, reporter = Chain(tmp_path), Silent()
    chain.tasks[1].result.touch()
    executor = LocalExecutor(open_folder(), reporter)
    assert executor.execute(chain.tasks) == {}
    assert chain.order == ["0", "2", "3", "4"]
    assert reporter.bar[-1] == (5, 5)
    assert executor.execute(chain.tasks) == {}
    assert chain.order == ["0", "2", "3", "4"]


def test_many_short_tasks_are_looked_for_a_few_times_each(
    tmp_path: Path, open_folder: Opener, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def is_finished(task: Task) -> bool:
        asked.append(task.name)
        return task.result.exists()

    monkeypatch.setattr(Task, "is_finished", property(is_finished))
    kind = Kind("short")
    paths = [tmp_path / str(number) for number in range(30)]
    tasks = [Task(path.name, path, (), path.touch, kind=kind) for path in paths]
    assert LocalExecutor(open_folder(), Silent()).execute(tasks) == {}
    assert all(path.exists() for path in paths)
    assert len(asked) <= 2 * len(tasks)


def test_the_estimate_counts_the_tasks_that_are_left(
    tmp_path: Path, open_folder: Opener, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 0.0

    def work(path: Path) -> None:
        nonlocal now
        now += 100.0
        path.touch()

    monkeypatch.setattr(module.time, "monotonic", lambda: now)
    kind, reporter = Kind("long"), Silent()
    paths = [tmp_path / str(number) for number in range(40)]
    tasks = [
        Task(path.name, path, (), functools.partial(work, path), kind=kind if n != 39 else None)
        for n, path in enumerate(paths)
    ]
    for path in paths[5:13]:
        path.touch()
    LocalExecutor(open_folder(), reporter).execute(tasks)
    # 30 of the kind are open after the first one, and one of no kind.
    [text] = reporter.said
    assert text.startswith("about 50 minutes for 30 of the 31 tasks that are left")


@pytest.mark.parametrize("error", [InputError("no"), DataError("no")])
def test_a_failed_task_is_named_and_logged_and_stops_only_what_needs_it(
    tmp_path: Path, open_folder: Opener, error: Exception
) -> None:
    chain, reporter = Chain(tmp_path), Silent()
    chain.errors["1"] = error
    folder = open_folder()
    failures = LocalExecutor(folder, reporter).execute(chain.tasks)
    assert failures == {"task-1": error}
    assert chain.order == ["0", "1", "4"]
    assert reporter.said == ["task-1: failed (no)"]
    [event] = logged(folder, "failed")
    assert (event["task"], event["result"], event["error"]) == ("task-1", "1", "no")
    assert failed_tasks(tmp_path) == {"task-1": "no"}
    with pytest.raises(type(error), match="1 task failed, and 2 more that need them; the first is task-1: no"):
        raise_failures(chain.tasks, failures)
    chain.errors.clear()
    raise_failures(chain.tasks, LocalExecutor(folder, reporter).execute(chain.tasks))
    assert chain.order[3:] == ["1", "2", "3"]


def test_damaged_files_and_interruptions_end_everything(tmp_path: Path, open_folder: Opener) -> None:
    chain = Chain(tmp_path)
    for error in (CheckpointError("damaged"), KeyboardInterrupt()):
        chain.errors["1"] = error  # type: ignore[assignment]
        folder = open_folder()
        with pytest.raises(type(error)):
            LocalExecutor(folder, Silent()).execute(chain.tasks)
        folder.close()
    assert chain.order == ["0", "1", "1"]


def test_with_several_ranks_a_failure_ends_all(
    tmp_path: Path, open_folder: Opener, monkeypatch: pytest.MonkeyPatch
) -> None:
    chain = Chain(tmp_path)
    chain.errors["0"] = InputError("no")
    monkeypatch.setattr(module, "world_size", lambda: 2)
    with pytest.raises(InputError, match="task-0: no"):
        LocalExecutor(open_folder(), Silent()).execute(chain.tasks)
    assert chain.order == ["0"]


def test_what_failed_tasks_make_impossible_is_lost(tmp_path: Path) -> None:
    tasks = Chain(tmp_path).tasks
    assert lost_results(tasks, {"task-1": InputError("x")}) == {task.result for task in tasks[1:4]}


def test_a_grid_makes_tasks_from_a_recipe_and_its_arguments(tmp_path: Path, open_folder: Opener) -> None:
    grid = pickle.loads(pickle.dumps(Grid(make_tasks, RECIPE, (2, "x"))))
    folder, reporter = open_folder(), Silent()
    assert [task.name for task in grid.tasks(folder, reporter)] == ["t-x-0", "t-x-1"]


def make_tasks(recipe: Recipe, folder: RunFolder, reporter: Silent, count: int, suffix: str) -> list[Task]:
    names = [f"{recipe.name}-{suffix}-{number}" for number in range(count)]
    return [Task(name, folder.path / name, (), (folder.path / name).touch) for name in names]


def test_tasks_have_names_of_their_own_and_stand_behind_what_they_need(tmp_path: Path, open_folder: Opener) -> None:
    chain, executor = Chain(tmp_path), LocalExecutor(open_folder(), Silent())
    with pytest.raises(ValueError, match="two tasks are called 'task-0'"):
        executor.execute([chain.tasks[0], chain.tasks[0]])
    with pytest.raises(ValueError, match="task 'task-1' stands before a task whose result it needs"):
        executor.execute([chain.tasks[1], chain.tasks[0]])
