"""scripts/attack.py counts what it claims to count."""

import importlib.util
import random
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from prune_fe.errors import CheckpointError
from prune_fe.records import read_record, write_record

PATH = Path(__file__).parents[1] / "scripts" / "attack.py"


@pytest.fixture(scope="module")
def attack() -> Any:
    specification = importlib.util.spec_from_file_location("attack", PATH)
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    sys.modules["attack"] = module  # dataclasses look their module up
    specification.loader.exec_module(module)
    return module


def test_damage_is_seeded_and_changes_most_files(attack: Any) -> None:
    content = bytes(range(256)) * 8
    damaged = [attack.damage(content, random.Random(seed)) for seed in range(50)]
    assert damaged == [attack.damage(content, random.Random(seed)) for seed in range(50)]
    assert len({bytes(each) for each in damaged}) > 40


def test_silence_and_raw_errors_are_wrong_and_errors_that_name_the_file_are_right(attack: Any, tmp_path: Path) -> None:
    path = tmp_path / "file.json"
    write_record(path, {"a": list(range(100))})
    before = path.read_bytes()

    def raw(path: Path) -> Any:
        try:
            return read_record(path)
        except CheckpointError:
            raise KeyError("raw") from None

    def silent(path: Path) -> Any:
        return path.read_bytes()

    for read, wrong in ((read_record, False), (raw, True), (silent, True)):
        tally = attack.Tally()
        attack.corrupt(tally, "file", path, read, 30)
        right, n_wrong = tally.counts["file"]
        assert right + n_wrong == 30
        assert (n_wrong > 0) == wrong
        assert path.read_bytes() == before
    assert "| file | 30 | " in tally.table()
    assert tally.wrong[0].endswith("other content, silently")


def test_values_are_compared_to_the_bit_without_timings(attack: Any) -> None:
    assert attack.plain({"a": np.array([0.0]), "seconds": 1}) == attack.plain({"a": np.array([0.0]), "seconds": 2})
    assert attack.plain([0.0]) != attack.plain([-0.0])
    assert attack.plain(np.array([0.0])) != attack.plain(np.array([-0.0]))
