"""Files that are read back: the same content, or an error that names the file."""

import json
import os
import random
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from prune_fe.errors import CheckpointError
from prune_fe.records import (
    DIGEST_KEY,
    damaged,
    read_npz,
    read_record,
    read_sealed,
    read_yaml,
    write_npz,
    write_record,
    write_sealed,
    write_yaml,
)

CONTENT = {"a": [1, 2.5, None], "größe": {"1": "x\u2028y"}, "n": 10**20}
ARRAYS = {"keep/conv": np.array([1.5, np.nan, np.inf]), "units": np.arange(6, dtype=np.int32).reshape(2, 3)}


def plain_npz(path: Path) -> Any:
    about, arrays = read_npz(path)
    return about, {name: (array.dtype.str, array.shape, array.tobytes()) for name, array in arrays.items()}


KINDS: dict[str, tuple[Callable[[Path], object], Callable[[Path], Any]]] = {
    "json": (lambda path: write_record(path, CONTENT), read_record),
    "yaml": (lambda path: write_yaml(path, "a: 1\nb: [x, 2.5]\n"), read_yaml),
    "npz": (lambda path: write_npz(path, {"layers": ["conv"], "size": 3}, ARRAYS), plain_npz),
    "sealed": (lambda path: write_sealed(path, bytes(range(256)) * 3), read_sealed),
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_corruption_is_found_or_harmless(tmp_path: Path, kind: str) -> None:
    write, read = KINDS[kind]
    path = tmp_path / "file"
    write(path)
    whole, expected, generator, found = path.read_bytes(), read(path), random.Random(0), 0
    for number in range(300):
        content = bytearray(whole)
        place, length = generator.randrange(len(whole)), generator.choice([1, 4, 100])
        if number % 3 == 0:
            content[place] ^= 1 << generator.randrange(8)
        elif number % 3 == 1:
            content[place : place + length] = generator.randbytes(len(content[place : place + length]))
        else:
            del content[place : place + length]
        path.write_bytes(content)
        try:
            assert read(path) == expected
        except CheckpointError:
            found += 1
    assert found > 150  # the others change what only says that there is a digest


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_no_file_is_refused_at_once(tmp_path: Path, kind: str) -> None:
    os.mkfifo(tmp_path / "pipe")
    assert stat.S_ISFIFO((tmp_path / "pipe").stat().st_mode)
    (tmp_path / "empty").touch()
    for name in ("pipe", "missing", "empty", "."):
        with pytest.raises(CheckpointError, match="damaged"):
            KINDS[kind][1](tmp_path / name)


def test_json_comes_back_and_earlier_files_have_no_digest(tmp_path: Path) -> None:
    content: Any = {**CONTENT, 3: (1, float("nan"))}
    write_record(tmp_path / "file", content)
    assert read_record(tmp_path / "file") == {**CONTENT, "3": [1, None]}
    assert DIGEST_KEY in json.loads((tmp_path / "file").read_text())
    (tmp_path / "file").write_text(json.dumps(CONTENT))
    assert read_record(tmp_path / "file") == CONTENT


@pytest.mark.parametrize(
    "text", ["[1]", "{", "[" * 100_000, '{"a": 1, "file_sha256": 2}', '{"file_format": 1}', "\udcff"]
)
def test_json_of_something_else_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "file").write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(CheckpointError, match="file: damaged"):
        read_record(tmp_path / "file")


def test_a_yaml_file_is_plain_yaml_and_earlier_ones_have_no_digest(tmp_path: Path) -> None:
    write_yaml(tmp_path / "file", "a: [1, 2]\n")
    assert (tmp_path / "file").read_text().splitlines()[1] == "a: [1, 2]"
    assert read_yaml(tmp_path / "file") == {"a": [1, 2]}
    (tmp_path / "file").write_text("a: [1, 2]\n")
    assert read_yaml(tmp_path / "file") == {"a": [1, 2]}


def test_npz_comes_back_to_the_bit_and_numpy_reads_it(tmp_path: Path) -> None:
    write_npz(tmp_path / "file.npz", {"layers": ["conv"], "size": 3}, ARRAYS)
    about, back = read_npz(tmp_path / "file.npz")
    assert about == {"layers": ["conv"], "size": 3}
    assert back.keys() == ARRAYS.keys()
    for name, array in ARRAYS.items():
        assert back[name].dtype == array.dtype
        assert back[name].tobytes() == array.tobytes()
    with np.load(tmp_path / "file.npz") as file:
        assert file["units"].tolist() == ARRAYS["units"].tolist()
    assert read_npz(tmp_path / "file.npz", names=())[1] == {}


def test_a_flipped_bit_in_an_earlier_npz_is_found_by_its_checksum(tmp_path: Path) -> None:
    path = tmp_path / "file.npz"
    np.savez(path, about=np.array("{}"), x=np.zeros(1000))
    whole = path.read_bytes()
    assert read_npz(path)[1]["x"].tolist() == [0] * 1000
    place = whole.index(bytes(4000)) + 2000
    path.write_bytes(whole[:place] + b"\x01" + whole[place + 1 :])
    with pytest.raises(CheckpointError, match=r"file\.npz: damaged \(the checksum of"):
        read_npz(path)


@pytest.mark.parametrize(
    "content",
    [{"x": np.zeros(2)}, {"about": np.array("no json")}, {"about": np.array([None])}, {"about": np.array("[1]")}],
)
def test_an_npz_of_something_else_is_refused_and_nothing_is_unpickled(tmp_path: Path, content: dict[str, Any]) -> None:
    np.savez(tmp_path / "file.npz", **content)
    with pytest.raises(CheckpointError, match=r"file\.npz: damaged"):
        read_npz(tmp_path / "file.npz")


def test_python_objects_are_not_written(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="array 'x' holds Python objects"):
        write_npz(tmp_path / "file.npz", {}, {"x": np.array([None])})
    assert not (tmp_path / "file.npz").exists()
    assert str(damaged(Path("f"), "why")) == "f: damaged (why)"
