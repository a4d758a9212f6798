"""scripts/attack.py counts what it claims to count."""

import os
import random
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import prune_fe.__main__
from attacks.commands import Command
from attacks.damage import corrupt, damage, plain
from attacks.kills import await_handlers, kill
from attacks.tally import Tally, in_parallel
from prune_fe.errors import CheckpointError
from prune_fe.records import read_record, write_record


def test_damage_is_seeded_changes_most_files_and_is_at_the_same_share_of_each() -> None:
    content = bytes(range(256)) * 8
    damaged = [damage(content, random.Random(seed)) for seed in range(50)]
    assert damaged == [damage(content, random.Random(seed)) for seed in range(50)]
    assert len(set(damaged)) > 40
    for seed in range(50):
        cut, cut_of_longer = (damage(bytes(n), random.Random(seed)) for n in (1000, 100_000))
        if cut_of_longer.count(0) < 100_000 - 512:  # the end is missing
            assert len(cut) == pytest.approx(len(cut_of_longer) / 100, abs=1)


def test_silence_and_raw_errors_are_wrong_and_errors_that_name_the_file_are_right(tmp_path: Path) -> None:
    path = tmp_path / "file.json"
    write_record(path, {"a": list(range(100))})
    before = path.read_bytes()

    def raw(path: Path) -> Any:
        try:
            return read_record(path)
        except CheckpointError:
            raise KeyError("raw") from None

    def unnamed(path: Path) -> Any:
        try:
            return read_record(path)
        except CheckpointError:
            raise CheckpointError("damaged") from None

    def silent(path: Path) -> Any:
        return path.read_bytes()

    for read, any_error, expected in (
        (read_record, False, None),
        (raw, False, "KeyError: 'raw'"),
        (raw, True, None),
        (unnamed, False, "the error does not name the file"),
        (silent, True, "other content, silently"),
    ):
        tally = Tally()
        tally.count("file", corrupt(path, read, 30, seed=0, any_error=any_error))
        assert sum(tally.counts["file"]) == 30
        assert bool(tally.wrong) == (expected is not None)
        assert all(str(expected) in text for text in tally.wrong)
        assert path.read_bytes() == before
        assert f"| file | 30 | {30 - len(tally.wrong)} | {len(tally.wrong)} |" in tally.table()


def test_values_are_compared_to_the_bit_without_timings() -> None:
    assert plain({"a": np.array([0.0]), "seconds": 1}) == plain({"a": np.array([0.0]), "seconds": 2})
    assert plain([0.0]) != plain([-0.0])
    assert plain(np.array([0.0])) != plain(np.array([-0.0]))


def test_work_in_copies_of_the_process_comes_back_in_its_order(tmp_path: Path) -> None:
    def work(number: int) -> tuple[int, int]:
        time.sleep(0.05 * (3 - number))
        return number, os.getpid()

    numbers, processes = zip(*in_parallel([partial(work, n) for n in range(4)], tmp_path, 2), strict=True)
    assert numbers == (0, 1, 2, 3)
    assert len({*processes, os.getpid()}) == 5
    with pytest.raises(RuntimeError, match=r"work \[1\] ended with an error"):
        in_parallel([partial(work, 0), partial(work, "x")], tmp_path, 2)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("code", "outcome", "expected"),
    [
        ("0", "this", None),
        ("0", "other", "continued to other results"),
        ("3 if first else 0", "this", "exit 3: "),
        ("130 if first else 0", "this", "printed ''"),
        ("0 if first else 4", "this", "continued, exit 4: "),
    ],
)
def test_a_killed_command_that_ends_or_goes_on_in_another_way_is_wrong(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: str, outcome: str, expected: str | None
) -> None:
    def main() -> int:
        time.sleep(0.05)  # longer than `kill` waits: a signal that is sent too early arrives here
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        first = not Path("begun").exists()
        Path("begun").touch()
        return int(eval(code, {"first": first}))

    monkeypatch.setattr(prune_fe.__main__, "main", main)
    command = Command("none", ("none", ""), lambda folder: outcome)
    # The process may have handlers of its own.
    before = {number: signal.signal(number, signal.default_int_handler) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        # In a process of its own, because pytest replaces stdout and stderr.
        [[problem]] = in_parallel([partial(kill, command, tmp_path / "x", (0.01, "this"), "0/1")], tmp_path, 1)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    assert problem is None if expected is None else expected in str(problem)


def test_a_process_is_awaited_until_it_handles_sigterm_or_ends() -> None:
    for code in ("import signal, time; signal.signal(15, print); print(flush=True); time.sleep(60)", ""):
        process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
        await_handlers(process.pid)
        assert process.stdout is not None
        assert process.stdout.readline() == (b"\n" if code else b"")
        process.kill()
        process.wait()
        process.stdout.close()
