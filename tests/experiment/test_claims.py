"""Tasks claimed by several processes: one owner each, and a dead owner's claim runs out."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from prune_fe.experiment import claims
from prune_fe.experiment.claims import Claims


def test_a_task_has_one_owner_at_a_time(tmp_path: Path) -> None:
    ours, theirs = Claims(tmp_path), Claims(tmp_path)
    with ours.claimed("a") as mine, theirs.claimed("a") as also, theirs.claimed("a.b") as other:
        assert (mine, also, other) == (True, False, True)
    assert not list(tmp_path.iterdir())
    with theirs.claimed("a") as mine:
        assert mine


def test_an_error_gives_the_task_back(tmp_path: Path) -> None:
    ours = Claims(tmp_path)
    with pytest.raises(KeyboardInterrupt), ours.claimed("a"):
        raise KeyboardInterrupt
    with Claims(tmp_path).claimed("a") as mine:
        assert mine


def abandoned(folder: Path, machine: str, process: int, age: float) -> Path:
    path = folder / "a.claim-0"
    path.write_text(json.dumps({"owner": "x", "machine": machine, "process": process}))
    os.utime(path, (time.time() - age, time.time() - age))
    return path


@pytest.mark.parametrize(("age", "expected"), [(1000.0, True), (10.0, False)])
def test_the_claim_of_another_machine_runs_out(tmp_path: Path, age: float, expected: bool) -> None:
    old = abandoned(tmp_path, "another", 1, age)
    with Claims(tmp_path, expiry=100).claimed("a") as mine:
        assert mine == expected
        assert old.exists()  # nobody takes it away under the hand of its owner
        assert (tmp_path / "a.claim-1").exists() == expected
    with Claims(tmp_path, expiry=100).claimed("a") as again:
        assert again == expected


def test_a_process_that_is_gone_from_this_machine_loses_its_claim_at_once(tmp_path: Path) -> None:
    code = f"""
import os, sys
from pathlib import Path
from prune_fe.experiment.claims import Claims
with Claims(Path({str(tmp_path)!r})).claimed("a") as mine:
    print(mine, flush=True)
    os.kill(os.getpid(), 9)
"""
    killed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert killed.stdout.strip() == "True"
    assert killed.returncode == -9
    with Claims(tmp_path).claimed("a") as mine:
        assert mine


def test_a_claim_is_renewed_while_its_owner_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(claims, "_machine", lambda: "here")
    ours = Claims(tmp_path, expiry=0.6)
    with ours.claimed("a") as mine:
        assert mine
        monkeypatch.setattr(claims, "_machine", lambda: "there")
        end = time.monotonic() + 1.5
        while time.monotonic() < end:
            with Claims(tmp_path, expiry=0.6).claimed("a") as also:
                assert not also
            time.sleep(0.05)


def test_many_processes_share_many_tasks_and_none_is_done_twice(tmp_path: Path) -> None:
    code = f"""
import time
from pathlib import Path
from prune_fe.experiment.claims import Claims
folder, claims = Path({str(tmp_path)!r}), Claims(Path({str(tmp_path)!r}) / "claims")
for task in map(str, range(30)):
    done = folder / task
    if not done.exists():
        with claims.claimed(task) as mine:
            if mine and not done.exists():
                time.sleep(0.005)
                with (folder / "log").open("a") as log:
                    log.write(task + "\\n")
                done.touch()
"""
    workers = [subprocess.Popen([sys.executable, "-c", code]) for _ in range(4)]
    assert [worker.wait(60) for worker in workers] == [0] * 4
    assert sorted((tmp_path / "log").read_text().split(), key=int) == [str(task) for task in range(30)]


def test_a_claim_that_was_cut_short_is_judged_by_its_age(tmp_path: Path) -> None:
    path = tmp_path / "a.claim-0"
    path.write_text('{"owner": ')
    with Claims(tmp_path, expiry=100).claimed("a") as mine:
        assert not mine
    os.utime(path, (0, 0))
    with Claims(tmp_path, expiry=100).claimed("a") as mine:
        assert mine
