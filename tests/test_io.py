"""Files: whole or not at all, whenever writing stops; safe names and cells; hints for misspelt words."""

import csv
import errno
import json
import math
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from prune_fe.errors import EnvironmentFault, InputError
from prune_fe.io import (
    claimed,
    csv_cell,
    explain_disk_errors,
    finite_json,
    lock_folder,
    nearest,
    new_files,
    new_folder,
    safe_file_name,
    temporary_folder,
    write_bytes,
    write_csv,
    write_folder,
    write_json,
    write_text,
)


class Disk:
    """Makes the call number `limit` of fsync and replace fail; `calls` counts them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls, self.limit = 0, 0
        for name in ("fsync", "replace"):
            monkeypatch.setattr(os, name, self._failing(getattr(os, name)))

    def _failing(self, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            self.calls += 1
            if self.calls == self.limit:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return real(*arguments, **options)

        return call

    def fail_at(self, limit: int) -> None:
        self.calls, self.limit = 0, limit


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Disk:
    return Disk(monkeypatch)


def names(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


# One file


@pytest.mark.parametrize("exists", [False, True])
def test_a_file_that_cannot_be_written_leaves_the_old_content(tmp_path: Path, disk: Disk, exists: bool) -> None:
    path = tmp_path / "file"
    if exists:
        path.write_bytes(b"old")
    for limit in (1, 2):
        disk.fail_at(limit)
        with pytest.raises(EnvironmentFault, match=r"file: no space left, \d+ MiB free, 1 MiB needed on the disk of /"):
            write_bytes(path, b"new")
        assert names(tmp_path) == (["file"] if exists else [])
        assert not exists or path.read_bytes() == b"old"
    disk.fail_at(0)
    write_bytes(path, b"new")
    assert (path.read_bytes(), names(tmp_path)) == (b"new", ["file"])


def test_a_folder_that_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(EnvironmentFault, match=r"nowhere/file: cannot be written \(No such file"):
        write_bytes(tmp_path / "nowhere" / "file", b"")


def test_threads_that_write_one_file_leave_one_whole_content(tmp_path: Path) -> None:
    contents = [bytes([number]) * 100_000 for number in range(8)]
    threads = [threading.Thread(target=write_bytes, args=(tmp_path / "file", content)) for content in contents]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (tmp_path / "file").read_bytes() in contents
    assert names(tmp_path) == ["file"]


def test_text_is_utf8_with_its_line_ends(tmp_path: Path) -> None:
    write_text(tmp_path / "file", "dög\r\ncat\n")
    assert (tmp_path / "file").read_bytes() == "dög\r\ncat\n".encode()


def test_json_has_no_numbers_that_json_cannot_express(tmp_path: Path) -> None:
    write_json(tmp_path / "file", {"a": float("nan"), "b": [1.5, float("inf")], "c": {"d": (-float("inf"), True)}})
    expected = {"a": None, "b": [1.5, None], "c": {"d": [None, True]}}
    assert json.loads((tmp_path / "file").read_text()) == expected
    assert (tmp_path / "file").read_text().endswith("}\n")
    assert finite_json("text") == "text"


def test_csv_keeps_texts_texts(tmp_path: Path) -> None:
    rows = [{"name": "=1+1", "value": 0.1}, {"name": 'a "b", c', "value": -2}]
    write_csv(tmp_path / "file.csv", iter(rows))
    with (tmp_path / "file.csv").open(newline="") as file:
        assert list(csv.reader(file)) == [["name", "value"], ["'=1+1", "0.1"], ['a "b", c', "-2"]]


@pytest.mark.parametrize("value", ["=1", "+1", "-1", "@x", "\tx", "\rx"])
def test_a_cell_that_a_spreadsheet_would_run_is_quoted(value: str) -> None:
    assert csv_cell(value) == f"'{value}"


def test_a_number_has_at_most_nine_digits() -> None:
    assert [csv_cell(value) for value in (1 / 3, 1e-20 / 3, 123456789.25, 2.0, 12345678901, True, None)] == [
        0.333333333,
        3.33333333e-21,
        123456789.0,
        2.0,
        12345678901,
        True,
        None,
    ]
    assert math.isnan(csv_cell(math.nan))
    assert csv_cell(np.float32(0.1)) == 0.100000001


@pytest.mark.parametrize("value", ["a=1", "", -1, 0.5, None])
def test_other_cells_stay(value: Any) -> None:
    assert csv_cell(value) == value


# Folders


@pytest.mark.parametrize("exists", [False, True])
def test_a_folder_is_replaced_whole_or_not_at_all(tmp_path: Path, disk: Disk, exists: bool) -> None:
    path = tmp_path / "folder"
    if exists:
        write_folder(path, {"old": b"1"})
    # Two files, the old folder aside, the new one into its place.
    for limit in range(1, 5 if exists else 4):
        disk.fail_at(limit)
        with pytest.raises(EnvironmentFault, match=r"folder: no space left, \d+ MiB free, 3 MiB needed"):
            write_folder(path, {"a": bytes(2**20), "b": bytes(2**20)})
        assert names(tmp_path) == (["folder"] if exists else [])
        assert not exists or (path / "old").read_bytes() == b"1"
    disk.fail_at(0)
    write_folder(path, {"a": b"2", "b": b"3"})
    assert (names(path), names(tmp_path)) == (["a", "b"], ["folder"])


def test_folders_above_are_made(tmp_path: Path) -> None:
    write_folder(tmp_path / "a" / "b", {"c": b"d"})
    assert (tmp_path / "a" / "b" / "c").read_bytes() == b"d"


def test_a_file_where_a_folder_is_needed_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(EnvironmentFault, match="folder: cannot be written"):
        write_folder(tmp_path / "file" / "folder", {})


def test_a_new_folder_appears_when_its_block_ends(tmp_path: Path) -> None:
    with new_folder(tmp_path / "new") as folder:
        (folder / "file").touch()
        assert not (tmp_path / "new").exists()
    assert (names(tmp_path), names(tmp_path / "new")) == (["new"], ["file"])


def test_a_block_that_fails_leaves_no_folder(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no"), new_folder(tmp_path / "new") as folder:
        (folder / "file").touch()
        raise ValueError("no")
    assert names(tmp_path) == []


def test_a_folder_that_another_process_was_faster_with_stays(tmp_path: Path) -> None:
    with new_folder(tmp_path / "new") as folder:
        (folder / "ours").touch()
        (tmp_path / "new").mkdir()
        (tmp_path / "new" / "theirs").touch()
    assert (names(tmp_path), names(tmp_path / "new")) == (["new"], ["theirs"])


def test_new_files_appear_together_the_named_one_last(tmp_path: Path, disk: Disk) -> None:
    def write() -> None:
        with new_files(tmp_path / "net") as file:
            file.write_bytes(b"1")
            file.with_name("net.data").write_bytes(b"2")

    disk.fail_at(4)  # The other file is synchronised and moved first.
    with pytest.raises(EnvironmentFault, match=r"net: no space left, \d+ MiB free on the disk of /"):
        write()
    assert names(tmp_path) == ["net.data"]
    disk.fail_at(0)
    with pytest.raises(InputError, match=r"net\.data exists already; choose another path"):
        write()
    (tmp_path / "net.data").unlink()
    write()
    assert names(tmp_path) == ["net", "net.data"]


def test_a_temporary_folder_is_removed_with_what_is_in_it(tmp_path: Path) -> None:
    with temporary_folder(tmp_path / "a" / "b") as folder:
        assert folder.parent == tmp_path / "a"
        (folder / "file").touch()
    assert names(tmp_path / "a") == []


@pytest.mark.parametrize(
    ("error", "needed", "message"),
    [
        (
            OSError(errno.ENOSPC, "full"),
            None,
            r"file: no space left, \d+ MiB free on the disk of /.*; what is finished is kept$",
        ),
        (OSError(errno.ENOSPC, "full"), 0, r"file: no space left, \d+ MiB free, 1 MiB needed on the disk of /"),
        (PermissionError(errno.EACCES, "Permission denied"), 0, r"file: cannot be written \(Permission denied\)$"),
        (OSError("odd"), None, r"file: cannot be written \(odd\)$"),
    ],
)
def test_errors_of_the_disk_are_explained(tmp_path: Path, error: OSError, needed: int | None, message: str) -> None:
    with pytest.raises(EnvironmentFault, match=message), explain_disk_errors(tmp_path / "file", needed):
        raise error


# Names


def test_a_name_of_a_file_has_letters_digits_and_dots() -> None:
    assert safe_file_name("features.0/../ä b*") == "features.0-..---b-"


@pytest.mark.parametrize(
    ("word", "hint"),
    [
        ("raio", "did you mean 'ratio'?"),
        ("target_mac", "did you mean 'target_macs'?"),
        ("xyz", "allowed are ratio, target_macs"),
    ],
)
def test_a_misspelt_word_gets_the_words_like_it(word: str, hint: str) -> None:
    assert nearest(word, ["ratio", "target_macs"]) == hint
    assert nearest(word, {"ratio": 1, "target_macs": 2}) == hint


def test_a_folder_whose_owner_has_not_written_its_number_yet_is_in_use(tmp_path: Path) -> None:
    with lock_folder(tmp_path) as lock:
        lock.truncate(0)
        with pytest.raises(EnvironmentFault, match="is in use by another run$"):
            lock_folder(tmp_path)


def test_a_claim_is_refused_to_others_and_leaves_nothing(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "out"
    refusal = rf"out is in use by another run \(process {os.getpid()}\)"
    with claimed(path), pytest.raises(EnvironmentFault, match=refusal), claimed(path):
        pass
    assert names(tmp_path) == []
    with claimed(path):
        (path.parent / "other").touch()
    assert names(path.parent) == ["other"]


def test_a_disk_without_a_single_byte_can_be_claimed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "write", full)
    refusal = "in use by another run$"
    with claimed(tmp_path / "out"), pytest.raises(EnvironmentFault, match=refusal), claimed(tmp_path / "out"):
        pass
    assert names(tmp_path) == []


def test_the_claim_of_a_process_that_was_killed_is_free(tmp_path: Path) -> None:
    path = tmp_path / "out"
    code = f"import os, pathlib, prune_fe.io as io; c = io.claimed(pathlib.Path({str(path)!r})); c.__enter__()"
    code += "; os._exit(9)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 9
    assert names(tmp_path) == [".out.lock"]
    with claimed(path):
        pass
    assert names(tmp_path) == []


def kill_while_writing(path: Path) -> None:
    """Write a file, and then a folder, in processes that are killed just before they rename it."""
    for work in ("write_bytes(path, b'x' * 99)", "write_folder(path, {'a': b'x'})"):
        code = f"""
import os, signal, sys
from pathlib import Path
from prune_fe.io import write_bytes, write_folder
os.replace = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
path = Path(sys.argv[1])
{work}
"""
        assert subprocess.run([sys.executable, "-c", code, path], check=False).returncode == -signal.SIGKILL


def test_what_killed_processes_left_of_an_output_is_removed_when_it_is_claimed(tmp_path: Path) -> None:
    others = [
        ".out-2.12345678.partial",
        ".out.note",
        ".out-12345678",
        "out.12345678.partial",
        ".out-2-12345678.partial",
    ]
    for name in others:
        (tmp_path / name).write_text("kept")
    kill_while_writing(tmp_path / "out")
    assert len(list(tmp_path.iterdir())) == len(others) + 2
    with claimed(tmp_path / "out"):
        assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*others, ".out.lock"])


def test_what_killed_processes_left_in_a_folder_is_removed_when_it_is_locked(tmp_path: Path) -> None:
    deep = tmp_path / "seed-0" / "scores"
    deep.mkdir(parents=True)
    for name in ("whole", ".download.zip.partial", "a.12345678.partial"):  # of other programs too
        (deep / name).write_text("kept")
    kill_while_writing(deep / "scores")
    assert len(list(deep.iterdir())) == 5
    lock_folder(tmp_path).close()
    assert sorted(path.name for path in deep.iterdir()) == [".download.zip.partial", "a.12345678.partial", "whole"]


def test_a_folder_that_cannot_be_listed_can_be_claimed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(folder: Path) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(folder))

    monkeypatch.setattr(Path, "iterdir", refuse)
    with claimed(tmp_path / "out"):
        pass


def test_claims_in_a_row_by_many_threads_are_never_held_twice(tmp_path: Path) -> None:
    held, most, failures = [0], [0], []

    def work() -> None:
        for _ in range(40):
            try:
                with claimed(tmp_path / "out"):
                    held[0] += 1
                    most[0] = max(most[0], held[0])
                    held[0] -= 1
            except EnvironmentFault:
                failures.append(1)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1]
    assert len(failures) < 160
