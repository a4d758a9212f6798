"""A run folder keeps what it was given: never written over, never shared, whole after a kill."""

import csv
import json
import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from prune_fe.errors import CheckpointError, EnvironmentFault, InputError
from prune_fe.experiment.run_folder import FAILED, RunFolder, environment, failed_tasks, has_results
from tests.experiment.helpers import logged

RECIPE = {"name": "mini", "train": {"lr": 1e-5}, "seeds": [0]}


@pytest.fixture
def folder(tmp_path):
    created = RunFolder.create(tmp_path / "runs", "mini", RECIPE)
    yield created
    created.close()


def closed(path):
    created = RunFolder.create(path, "mini", RECIPE)
    created.close()
    return created.path


def test_each_run_gets_the_next_number(tmp_path):
    assert [closed(tmp_path).name for _ in range(3)] == ["mini-1", "mini-2", "mini-3"]


def test_a_gap_is_not_filled_and_other_names_do_not_count(tmp_path):
    for name in ("mini-7", "mini-x", "minimal-9", "mini-8-1"):
        (tmp_path / name).mkdir()
    assert closed(tmp_path).name == "mini-8"


def test_a_folder_that_appears_at_the_same_moment_is_not_taken(tmp_path, monkeypatch):
    (tmp_path / "mini-1").mkdir()
    (tmp_path / "mini-1" / "theirs").touch()
    monkeypatch.setattr(Path, "iterdir", lambda self: iter(()))
    assert closed(tmp_path).name == "mini-2"


def test_a_parent_that_is_a_file_is_the_environment_s_fault(tmp_path):
    (tmp_path / "runs").touch()
    with pytest.raises(EnvironmentFault, match="runs: cannot be written .File exists"):
        RunFolder.create(tmp_path / "runs", "mini", RECIPE)


def test_the_folder_is_refused_while_another_process_holds_it(tmp_path):
    path = closed(tmp_path)
    code = (
        "import sys; from pathlib import Path; from prune_fe.experiment.run_folder import RunFolder\n"
        f"held = RunFolder.resume(Path({str(path)!r}), {RECIPE!r}); print('held', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "held\n"
        with pytest.raises(EnvironmentFault, match=rf"mini-1 is in use by another run \(process {child.pid}\)"):
            RunFolder.resume(path, RECIPE)
        child.communicate()
    RunFolder.resume(path, RECIPE).close()


def test_another_recipe_cannot_resume_and_the_difference_is_named(tmp_path):
    path = closed(tmp_path)
    with pytest.raises(InputError, match=r"begun with another recipe \(different: train, threads\)"):
        RunFolder.resume(path, RECIPE | {"train": {"lr": 0.1}, "threads": 2})
    RunFolder.resume(path, RECIPE).close()


def test_a_recipe_that_is_damaged_is_said(tmp_path):
    path = closed(tmp_path)
    text = (path / "recipe.yaml").read_text()
    for damage in ("{", "[]", text.replace("mini", "nini", 1)):
        (path / "recipe.yaml").write_text(damage)
        with pytest.raises(CheckpointError, match=r"recipe\.yaml: damaged"):
            RunFolder.resume(path, RECIPE)
    (path / "recipe.yaml").write_text("\n".join(text.splitlines()[1:-1]))  # as versions without a digest wrote it
    RunFolder.resume(path, RECIPE).close()


def test_there_must_be_a_run_to_resume(tmp_path):
    with pytest.raises(InputError, match="there is no run to resume"):
        RunFolder.resume(tmp_path, RECIPE)
    assert list(tmp_path.iterdir()) == []


def test_the_log_comes_back_after_the_folder_was_closed(folder):
    folder.log("row", row={"a": 1, "text": "größer\u2028<script>"})
    folder.log("epoch", number=1)
    folder.close()
    again = RunFolder.resume(folder.path, RECIPE)
    assert [event["row"] for event in logged(again, "row")] == [{"a": 1, "text": "größer\u2028<script>"}]
    again.close()


def test_every_line_of_the_log_is_strict_json(folder):
    folder.log("epoch", loss=float("nan"), row={"best": float("inf"), "n": 1})

    def refuse(name):
        raise AssertionError(name)

    line = json.loads((folder.path / "log.jsonl").read_text(), parse_constant=refuse)
    assert line | {"time": ""} == {"event": "epoch", "time": "", "loss": None, "row": {"best": None, "n": 1}}


def test_a_run_cut_at_any_byte_of_its_last_line_keeps_the_others_and_goes_on(folder):
    folder.log("row", row=1)
    first = (folder.path / "log.jsonl").read_bytes()
    folder.log("row", row=2)
    second = (folder.path / "log.jsonl").read_bytes()
    folder.close()
    for cut in range(len(first), len(second)):
        (folder.path / "log.jsonl").write_bytes(second[:cut])
        again = RunFolder.resume(folder.path, RECIPE)
        assert [event["row"] for event in logged(again, "row")][:1] == [1]
        again.log("row", row=3)
        whole = cut == len(second) - 1  # only the line's end is missing
        assert [event["row"] for event in logged(again, "row")] == ([1, 2, 3] if whole else [1, 3])
        again.close()


def test_a_log_that_cannot_be_written_is_the_environment_s_fault(folder):
    (folder.path / "log.jsonl").mkdir()
    with pytest.raises(EnvironmentFault, match=r"log\.jsonl: cannot be written \(Is a directory\)"):
        folder.log("row")


def test_a_table_holds_the_rows_and_no_formula(folder):
    folder.write_table("t.csv", [{"class": "=cmd|' /C calc'!A0", "n": -1.5}, {"class": "<script>, a", "n": None}])
    rows = list(csv.reader((folder.path / "t.csv").read_text().splitlines(keepends=True)))
    assert rows == [["class", "n"], ["'=cmd|' /C calc'!A0", "-1.5"], ["<script>, a", ""]]


def test_a_table_is_replaced_as_a_whole(folder, monkeypatch):
    folder.write_table("t.csv", [{"a": 1}])

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(EnvironmentFault, match=r"t\.csv: no space left, \d+ MiB free, 1 MiB needed"):
        folder.write_table("t.csv", [{"a": 2}] * 100)
    assert (folder.path / "t.csv").read_text() == "a\n1\n"
    assert not list(folder.path.glob(".t.csv.*"))  # nothing that fills the disk the more


def test_only_a_folder_in_which_nothing_was_done_is_discarded(tmp_path):
    used, unused = (RunFolder.create(tmp_path, "mini", RECIPE) for _ in range(2))
    (used.path / "seed-0").mkdir()
    (used.path / "seed-0" / "scores").touch()
    (unused.path / FAILED).mkdir()
    (unused.path / FAILED / "task.json").touch()
    assert (has_results(used.path), has_results(unused.path)) == (True, False)
    used.discard()
    unused.discard()
    assert (used.path.exists(), unused.path.exists()) == (True, False)


def test_the_environment_holds_versions_but_no_host_name_and_no_path():
    found = environment()
    assert found["packages"]["torch"]
    assert {"python", "system", "processor", "cores", "threads", "gpu", "commit"} <= found.keys()
    text = json.dumps(found)
    assert platform.node() not in text
    assert str(Path.home()) not in text
    assert str(Path(__file__).parents[2]) not in text


def test_a_full_disk_leaves_no_folder_without_a_recipe(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(EnvironmentFault, match=r"recipe\.yaml: no space left"):
        RunFolder.create(tmp_path, "mini", RECIPE)
    assert list(tmp_path.iterdir()) == []


def test_failures_are_read_from_files_with_a_digest(folder):
    folder.record_failure("a.(b)", folder.path / "cells" / "b.json", InputError("why"))
    folder.record_failure("c", folder.path / "log.jsonl", InputError("there is a result"))
    assert failed_tasks(folder.path) == {"a.(b)": "why"}
    [path, _] = sorted((folder.path / FAILED).iterdir())
    path.write_text(path.read_text().replace("why", "who"))
    with pytest.raises(CheckpointError, match="damaged"):
        failed_tasks(folder.path)


def test_a_task_finds_the_files_of_its_unfinished_work_again_until_it_has_ended(folder):
    assert folder.next_unfinished("training") is None
    with pytest.raises(KeyError), folder.working_on("cells.a (b)"):
        first, second = folder.next_unfinished("training"), folder.next_unfinished("ablation")
        assert (first.name, second.name) == ("training-1", "ablation-2")
        assert first.parent == second.parent
        first.parent.mkdir(parents=True)
        first.touch()
        raise KeyError
    assert has_results(folder.path)
    with folder.working_on("cells.a (b)"):
        assert folder.next_unfinished("training") == first
        assert first.exists()
    assert not has_results(folder.path)
    assert folder.next_unfinished("training") is None
