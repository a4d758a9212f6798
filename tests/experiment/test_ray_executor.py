"""Tasks on a local Ray of two workers: the results of one process, deaths, failures, and Ctrl-C."""

import contextlib
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from prune_fe.errors import EnvironmentFault, InputError
from prune_fe.experiment import compare
from prune_fe.experiment.executors import RAY_ENVIRONMENT, open_executor
from prune_fe.experiment.options import ExecutorOptions
from prune_fe.experiment.recipe import Recipe
from prune_fe.experiment.results import TIMED, load_result
from prune_fe.experiment.run_folder import RunFolder, failed_tasks
from prune_fe.experiment.tasks import Failures, Grid
from tests.experiment.helpers import CONTENT, Silent
from tests.experiment.ray_tasks import quick_comparison_tasks, scripted_tasks, wait_for

# Ray's guard of the memory would kill workers because of what else is in a machine's memory.
for variable, value in (RAY_ENVIRONMENT | {"RAY_memory_monitor_refresh_ms": "0"}).items():
    os.environ.setdefault(variable, value)
ray = pytest.importorskip("ray", reason="needs the extra ray")

from prune_fe.experiment import ray_executor, ray_machines  # noqa: E402

pytestmark = [
    pytest.mark.xdist_group("ray"),  # Ray starts once for all tests of this file
    pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"),
]
ROOT = Path(__file__).parents[2]
SMALL = {"device": "cpu", "seeds": [0], "scorers": ["apoz"], "compare": {"ratios": [0.5, 0.75], "scratch": [1]}}
RECIPE = Recipe.model_validate(CONTENT | SMALL)
RAY = ExecutorOptions(executor="ray")
Script = Sequence[tuple[str, str, Sequence[str]]]


@pytest.fixture(scope="module")
def cluster() -> Iterator[str]:
    """The address of a Ray with two CPUs, and a GPU that no task of these tests uses."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(ROOT))
        context = ray.init(
            address="local",
            num_cpus=2,
            num_gpus=1,
            include_dashboard=False,
            object_store_memory=ray_executor.STORE_BYTES,
        )
    yield context.address_info["gcs_address"]
    ray.shutdown()


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The comparison in one process."""
    folder = tmp_path_factory.mktemp("alone")
    with opened(folder) as where:
        compare.compare(RECIPE, where, Silent())
    return folder


@contextlib.contextmanager
def opened(path: Path, recipe: Recipe = RECIPE) -> Iterator[RunFolder]:
    path.mkdir(exist_ok=True)
    with contextlib.closing(RunFolder(path, recipe.model_dump(mode="json"), comparison=True)) as folder:
        yield folder


def compare_on_ray(path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.setattr(compare, "comparison_tasks", quick_comparison_tasks)
    reporter = Silent()
    with opened(path) as folder, open_executor(RAY, RECIPE, folder, reporter) as executor:
        compare.compare(RECIPE, folder, reporter, executor)
    return reporter.said


def execute(path: Path, script: Script, cpus: int = 1) -> tuple[Failures, list[str]]:
    """Run scripted tasks, and return the failures and what was said."""
    reporter, options = Silent(), ExecutorOptions(executor="ray", cpus_per_task=cpus)
    with opened(path) as folder, open_executor(options, RECIPE, folder, reporter) as executor:
        tasks = scripted_tasks(RECIPE, folder, reporter, script)
        return executor.execute(tasks, Grid(scripted_tasks, RECIPE, (script,))), reporter.said


def results(path: Path) -> set[str]:
    return {entry.name for entry in (path / "results").iterdir() if entry.suffix != ".tries"}


def tries(path: Path, name: str) -> list[int]:
    file = path / "results" / f"{name}.tries"
    return [int(line) for line in file.read_text().splitlines()] if file.exists() else []


def assert_same(one: Path, other: Path) -> None:
    """The results, networks and scores of two comparisons are the same to the bit, and nothing is left beside them."""
    names = [sorted(path.name for path in (folder / "cells").iterdir()) for folder in (one, other)]
    assert names[0] == names[1]
    assert len(names[0]) == 2 + 2 * 4
    for name in names[0]:
        first, second = (load_result(folder / "cells" / name) for folder in (one, other))
        rows = [{k: v for k, v in vars(result.row).items() if k not in TIMED} for result in (first, second)]
        assert rows[0] == rows[1]
        np.testing.assert_array_equal(first.correct, second.correct)
        assert first.removed == second.removed
        untimed = [
            [{k: v for k, v in epoch.items() if "second" not in k} for epoch in result.epochs]
            for result in (first, second)
        ]
        assert untimed[0] == untimed[1]
    weights = [folder / "networks/vgg-small/seed-0/trained/model.safetensors" for folder in (one, other)]
    assert weights[0].read_bytes() == weights[1].read_bytes()
    scores = [np.load(folder / "networks/vgg-small/seed-0/scores/apoz/scores.npz") for folder in (one, other)]
    assert scores[0].files == scores[1].files
    for key in scores[0].files:
        if key.startswith("keep"):
            np.testing.assert_array_equal(scores[0][key], scores[1][key])
    assert not list(other.glob(".ray-*"))


def test_the_results_are_those_of_one_process(
    cluster: str, alone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = compare_on_ray(tmp_path / "c", monkeypatch)
    assert_same(alone, tmp_path / "c")
    assert "Ray: 1 machine, 2 tasks at a time, each with 1 CPU" in said
    assert any(text.startswith("[cells.vgg-small.seed-0.apoz.ratio-0.5] ") for text in said)
    monkeypatch.setattr(ray_executor.ray, "put", lambda _: pytest.fail("done again"))
    compare_on_ray(tmp_path / "c", monkeypatch)


def test_a_worker_that_is_killed_in_the_middle_of_a_task_is_replaced(cluster: str, tmp_path: Path) -> None:
    script: Script = [("a", "wait", ()), ("b", "plain", ("a",)), ("c", "plain", ())]

    def kill() -> None:
        wait_for(lambda: tries(tmp_path, "a") and "c" in results(tmp_path))
        os.kill(tries(tmp_path, "a")[0], signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    failures, said = execute(tmp_path, script)
    killer.join()
    assert failures == {}
    assert results(tmp_path) == {"a", "b", "c"}
    first, second = tries(tmp_path, "a")
    assert first != second
    assert len(tries(tmp_path, "b")) == len(tries(tmp_path, "c")) == 1
    assert "[a] a says wait" in said


def test_a_task_that_fails_or_kills_its_workers_stops_only_what_needs_it(
    cluster: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (ray_executor, ray_machines):
        monkeypatch.setattr(module, "RETRIES", 1)
    script: Script = [
        ("bad", "fail", ()),
        ("after", "plain", ("bad",)),
        ("deadly", "die", ()),
        ("good", "plain", ()),
        ("better", "plain", ("good",)),
    ]
    failures, said = execute(tmp_path, script, cpus=2)
    assert results(tmp_path) == {"good", "better"}
    assert {name: type(error) for name, error in failures.items()} == {"bad": InputError, "deadly": EnvironmentFault}
    assert str(failures["bad"]) == "bad cannot"
    assert str(failures["deadly"]).startswith("its worker died 2 times: ")
    assert len(tries(tmp_path, "deadly")) == 2
    assert tries(tmp_path, "after") == []
    assert "bad: failed (bad cannot)" in said
    assert failed_tasks(tmp_path)["bad"] == "bad cannot"
    assert set(failed_tasks(tmp_path)) == {"bad", "deadly"}
    assert '"threads": 2, "omp": "2"' in (tmp_path / "results/good").read_text()


def test_an_error_that_is_a_bug_ends_all_as_in_one_process(cluster: str, tmp_path: Path) -> None:
    with pytest.raises(KeyError, match="a bug"):
        execute(tmp_path, [("a", "break", ()), ("b", "wait", ())])
    processes = tries(tmp_path, "b")
    wait_for(lambda: not any(Path(f"/proc/{process}").exists() for process in processes))
    assert results(tmp_path) == set()


def test_a_driver_that_is_killed_is_resumed(
    cluster: str, alone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "c"
    code = f"""
from pathlib import Path
from tests.experiment import test_ray_executor as tests
tests.RAY = tests.ExecutorOptions(executor="ray", address="{cluster}")
tests.compare_on_ray(Path({str(folder)!r}), tests.pytest.MonkeyPatch())
"""
    with subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}) as driver:
        wait_for((folder / "cells/vgg-small.seed-0.unpruned.json").exists)
        with pytest.raises(EnvironmentFault, match=rf"is in use by another run .process {driver.pid}."):
            compare_on_ray(folder, monkeypatch)
        driver.kill()
    kept = {path.name: path.stat().st_mtime_ns for path in (folder / "cells").iterdir()}
    assert 0 < len(kept) < 10
    compare_on_ray(folder, monkeypatch)
    assert_same(alone, folder)
    now = {path.name: path.stat().st_mtime_ns for path in (folder / "cells").iterdir()}
    assert kept.items() <= now.items()


def test_a_machine_that_does_not_see_the_folder_is_named_before_any_work(cluster: str, tmp_path: Path) -> None:
    [node] = nodes = ray.nodes()
    begin = f"machine {node['NodeManagerAddress']} does not see {tmp_path}"
    for site, text in (
        (ray_machines.Site(tmp_path, "no-mark", (), 0.0), f"{begin}: mount it there under the same path"),
        (ray_machines.Site(ROOT, "tests", (tmp_path / "x",), 0.0), f"{begin}/x: mount it there under the same path"),
    ):
        with pytest.raises(EnvironmentFault, match=text):
            ray_machines.inspect_all(nodes, site, lambda _: None)


def test_a_task_that_no_machine_can_run_is_refused(
    cluster: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray_executor, "NODE_SECONDS", 0.0)
    with pytest.raises(EnvironmentFault, match=r"no machine has 64 CPUs and 0 GPU for a task: [\d.]+ has 2 CPUs"):
        execute(tmp_path, [("a", "plain", ())], cpus=64)


def test_a_share_of_a_gpu_is_assigned_by_its_index(cluster: str) -> None:
    options = ray_machines.Share(1, 0.5, "cuda").options
    code = "lambda: (ray.get_gpu_ids(), os.environ.get('CUDA_VISIBLE_DEVICES'))"
    ask = ray.remote(eval(code, {"ray": ray, "os": os}))
    assert ray.get([ask.options(**options).remote() for _ in range(2)]) == [([0], None)] * 2


@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="finds processes by their variables in /proc")
def test_ctrl_c_ends_every_process(tmp_path: Path) -> None:
    import yaml

    long = {"train": CONTENT["train"] | {"epochs": 2000}}  # it must not end before it is interrupted
    (tmp_path / "r.yaml").write_text(yaml.safe_dump(CONTENT | SMALL | long))
    words = [sys.executable, "-m", "prune_fe", "compare", "r.yaml", "--executor", "ray", "--address", "local"]
    marked = os.environ | {"PYTHONPATH": str(ROOT), "PRUNE_FE_TEST": str(tmp_path)}
    # Where the tests run in a shell's background, Ctrl-C is ignored, and processes inherit that.
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        driver = subprocess.Popen(
            words, cwd=tmp_path, env=marked, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, process_group=0
        )
    finally:
        signal.signal(signal.SIGINT, handler)
    wait_for(lambda: any('"began"' in log.read_text() for log in tmp_path.glob("runs/t-1/log-*.jsonl")))
    assert len(processes_with(str(tmp_path))) > 4
    os.killpg(driver.pid, signal.SIGINT)  # as a terminal does
    _, err = driver.communicate(timeout=120)
    assert driver.returncode == 130, err
    assert "prune-fe: interrupted; `prune-fe compare ... --resume auto` continues" in err
    wait_for(lambda: not processes_with(str(tmp_path)))


def processes_with(mark: str) -> list[str]:
    """The processes that were started with a variable PRUNE_FE_TEST of this value."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if f"PRUNE_FE_TEST={mark}".encode() in (process / "environ").read_bytes().split(b"\0"):
                found.append((process / "cmdline").read_text())
    return found


def test_what_each_task_gets_follows_the_recipe(monkeypatch: pytest.MonkeyPatch) -> None:
    def share(device: str, threads: int | None = None, **given: Any) -> tuple[int, float, str]:
        recipe = RECIPE.model_copy(update={"device": device, "threads": threads})
        chosen = ray_executor._choose_resources(ExecutorOptions(executor="ray", **given), recipe)
        return chosen.cpus, chosen.gpus, chosen.device

    monkeypatch.setattr(ray_executor.ray, "cluster_resources", lambda: {"CPU": 8.0, "GPU": 2.0})
    assert share("auto") == (1, 1.0, "cuda")
    assert share("auto", gpus_per_task=0) == (1, 0.0, "cpu")
    assert share("cuda", 3, gpus_per_task=0.25) == (3, 0.25, "cuda")
    assert share("cpu", 3, cpus_per_task=2) == (2, 0.0, "cpu")
    monkeypatch.setattr(ray_executor.ray, "cluster_resources", lambda: {"CPU": 8.0})
    assert share("auto") == (1, 0.0, "cpu")
    assert share("cuda") == (1, 1.0, "cuda")
    for device, given, text in (
        ("cuda:1", {}, "device: cuda:1: Ray chooses the GPU of each task; write cuda or auto"),
        ("cpu", {"gpus_per_task": 0.5}, "gpus_per_task: 0.5 for device: cpu; write 0, or cuda"),
        ("cuda", {"gpus_per_task": 0}, "gpus_per_task: 0 for device: cuda; write more than 0"),
    ):
        with pytest.raises(InputError, match=text):
            share(device, **given)


def test_ray_that_cannot_be_reached_is_the_environment_s_fault() -> None:
    with pytest.raises(InputError, match="address 'ray://x:1': start the command on a machine of the cluster"):
        ray_executor._start("ray://x:1", Silent())
