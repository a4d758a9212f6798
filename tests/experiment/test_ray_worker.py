"""A worker of Ray: which GPU it takes, what it keeps from task to task, and what it says."""

from pathlib import Path
from typing import Any

import pytest

ray = pytest.importorskip("ray", reason="needs the extra ray")

from ray.exceptions import RayError  # noqa: E402

from prune_fe.errors import EnvironmentFault, InputError  # noqa: E402
from prune_fe.experiment import ray_worker  # noqa: E402
from prune_fe.experiment.ray_machines import Site  # noqa: E402
from prune_fe.experiment.ray_worker import Job, MessageReporter, find_gpu_index, work_on  # noqa: E402
from prune_fe.experiment.run_folder import RunFolder  # noqa: E402
from prune_fe.experiment.tasks import Grid, Task  # noqa: E402
from tests.experiment.helpers import RECIPE  # noqa: E402


class Messages:
    def __init__(self) -> None:
        self.sent: list[Any] = []

    def put(self, message: Any) -> None:
        self.sent.append(message)


made: list[Path] = []


def tasks(recipe: Any, folder: RunFolder, reporter: Any) -> list[Task]:
    made.append(folder.path)
    reporter.say("not sent, because no task has begun")

    def work() -> None:
        reporter.say("working")
        (folder.path / "good").touch()

    def fail() -> None:
        raise InputError("no")

    return [Task("good", folder.path / "good", (), work), Task("bad", folder.path / "bad", (), fail)]


@pytest.fixture
def job(tmp_path: Path) -> Job:
    (tmp_path / "mark").touch()
    made.clear()
    return Job(str(tmp_path), Grid(tasks, RECIPE), Site(tmp_path, "mark", (), 0.0), False, Messages())  # type: ignore[arg-type]


def test_a_worker_makes_the_tasks_once_and_works_on_those_that_are_named(job: Job, tmp_path: Path) -> None:
    again = Job(job.key, job.grid, job.site, False, Messages())  # type: ignore[arg-type]
    assert work_on(job, "good") is None
    assert work_on(again, "good") is None  # its result is there
    error = work_on(again, "bad")
    assert isinstance(error, InputError)
    assert str(error) == "no"
    assert made == [tmp_path]
    assert job.messages.sent == [("good", "working", None)]  # type: ignore[attr-defined]
    assert again.messages.sent == []  # type: ignore[attr-defined]
    [log] = tmp_path.glob("log-*.jsonl")
    assert [line.count("good") for line in log.read_text().splitlines()] == [1, 0]


def test_a_worker_that_does_not_see_the_run_folder_says_so(job: Job, tmp_path: Path) -> None:
    (tmp_path / "mark").unlink()
    error = work_on(job, "good")
    assert isinstance(error, EnvironmentFault)
    assert f"does not see {tmp_path}: mount it there" in str(error)


def test_a_need_that_does_not_appear_is_the_environment_s_fault(
    job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def needy(recipe: Any, folder: RunFolder, reporter: Any) -> list[Task]:
        return [Task("x", tmp_path / "x", (tmp_path / "needed",), lambda: pytest.fail("done"))]

    monkeypatch.setattr(ray_worker, "VISIBLE_SECONDS", 0.0)
    error = work_on(Job("needy", Grid(needy, RECIPE), job.site, False, Messages()), "x")  # type: ignore[arg-type]
    assert isinstance(error, EnvironmentFault)
    assert str(error).startswith(f"{tmp_path}/needed: machine ")


def test_progress_is_sent_from_time_to_time_and_nothing_to_a_dead_queue(monkeypatch: pytest.MonkeyPatch) -> None:
    messages, clock = Messages(), [0.0]
    monkeypatch.setattr(ray_worker.time, "monotonic", lambda: clock[0])
    reporter = MessageReporter(messages)  # type: ignore[arg-type]
    reporter.task = "t"
    update = reporter.progress("training")
    for clock[0] in (1.0, 2.5, 3.0, 5.0):
        update(int(clock[0]), 10)
    assert messages.sent == [("t", "training", (2, 10)), ("t", "training", (5, 10))]

    def dead(_: Any) -> None:
        raise RayError("the queue is dead")

    monkeypatch.setattr(messages, "put", dead)
    reporter.say("lost")


def test_the_gpu_is_found_among_the_visible_ones() -> None:
    assert find_gpu_index([2], None) == 2
    assert find_gpu_index(["5"], "3,5") == 1
    assert find_gpu_index(["GPU-b"], "GPU-a,GPU-b") == 1
