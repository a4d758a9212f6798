"""What a machine of Ray's cluster has room for, and what it says of itself."""

import threading
from pathlib import Path

import pytest

pytest.importorskip("ray", reason="needs the extra ray")

from prune_fe.experiment.ray_machines import (
    Inspection,
    Share,
    Site,
    becomes_visible,
    describe_unseen,
    hash_code,
    inspect_machine,
    package_versions,
)


def node(cpus: float, gpus: float) -> dict[str, dict[str, float]]:
    return {"Resources": {"CPU": cpus, "GPU": gpus} if gpus else {"CPU": cpus}}


def test_the_number_of_tasks_is_that_of_the_scarcest_resource() -> None:
    assert [Share(2, 0.0, "cpu").fits(node(cpus, 0)) for cpus in (1, 2, 5)] == [0, 1, 2]
    share = Share(1, 0.4, "cuda")  # two on a GPU, and none over two GPUs
    assert [share.fits(node(16, gpus)) for gpus in (0, 1, 3)] == [0, 2, 6]
    assert share.fits(node(3, 8)) == 3
    assert Share(4, 0.5, "cuda").describe([node(16, 8), node(64, 8)]) == (
        "2 machines, 20 tasks at a time, each with 4 CPUs and 0.5 GPU"
    )


def test_libraries_get_as_many_threads_as_the_task_has_cpus() -> None:
    options = Share(3, 0.5, "cuda").options
    assert (options["num_cpus"], options["num_gpus"], options["max_retries"]) == (3, 0.5, 3)
    assert options["runtime_env"]["env_vars"]["OMP_NUM_THREADS"] == "3"


def test_a_machine_says_what_it_does_not_see(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mark").touch()
    found = inspect_machine(Site(tmp_path, "mark", (tmp_path,), 0.0))
    assert (list(found.unseen), found.code, found.packages) == ([], hash_code(), package_versions())
    found = inspect_machine(Site(tmp_path, "other", (tmp_path / "photos",), 0.0))
    assert list(found.unseen) == [str(tmp_path), str(tmp_path / "photos")]
    assert describe_unseen(Inspection("10.0.0.3", ["/a", "/b"], "", {})) == (
        "machine 10.0.0.3 does not see /a, /b: mount it there under the same path"
    )


def test_a_file_that_appears_late_is_waited_for(tmp_path: Path) -> None:
    path = tmp_path / "late"
    timer = threading.Timer(0.3, path.touch)
    timer.start()
    assert becomes_visible(path, 30.0)
    timer.join()
    assert not becomes_visible(tmp_path / "no" / "never", 0.0)
