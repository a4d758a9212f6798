"""Which executor a command gets, and what is refused before any work."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from prune_fe.errors import EnvironmentFault, InputError
from prune_fe.experiment import executors
from prune_fe.experiment.executors import open_executor
from prune_fe.experiment.options import ExecutorOptions
from prune_fe.experiment.run_folder import RunFolder
from prune_fe.experiment.tasks import LocalExecutor
from tests.experiment.helpers import RECIPE, Silent

RAY = ExecutorOptions(executor="ray")


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[RunFolder]:
    with contextlib.closing(RunFolder(tmp_path, {"name": "t"})) as opened:
        yield opened


def test_without_the_option_tasks_run_in_this_process(folder: RunFolder) -> None:
    with open_executor(ExecutorOptions(), RECIPE, folder, Silent()) as executor:
        assert isinstance(executor, LocalExecutor)
        assert executor.folder is folder


def test_torchrun_and_ray_exclude_each_other(folder: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "4")
    with (
        pytest.raises(InputError, match="torchrun has started 4 processes; start the command without torchrun"),
        open_executor(RAY, RECIPE, folder, Silent()),
    ):
        pass


def test_a_missing_ray_names_the_extra(folder: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    monkeypatch.setattr(executors.importlib.util, "find_spec", lambda _: None)
    with (
        pytest.raises(EnvironmentFault, match=r"ray is not installed; pip install 'prune-fe\[ray\]'"),
        open_executor(RAY, RECIPE, folder, Silent()),
    ):
        pass
