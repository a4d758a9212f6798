"""YAML is read without tags, aliases and repeated keys, and 1e-3 is a number."""

from pathlib import Path

import pytest

from prune_fe.errors import InputError
from prune_fe.experiment.strict_yaml import MAX_BYTES, parse_yaml, read_mapping


def test_plain_values_are_read() -> None:
    assert parse_yaml("{a: [1, x], b: null}", "it") == {"a": [1, "x"], "b": None}
    assert parse_yaml("1e-3", "it") == 1e-3


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("!!python/name:os.system", r"it, line 1: tags are not allowed \(.*os\.system\)"),
        ("a: &a [1]\nb: *a", "it, line 2: aliases are not allowed"),
        ("a: 1\na: 2", "it, line 2: 'a' is given twice"),
        ("[", "it, line 1: "),
        ("2020-99-99", "it: not readable as YAML"),
        ("[" * 5000, "it: not readable as YAML"),
    ],
)
def test_what_could_do_harm_is_refused(text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        parse_yaml(text, "it")


def test_a_file_holds_a_mapping_of_bounded_size(tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_text("a: 1")
    assert read_mapping(path) == {"a": 1}
    for content, message in ((b"[1]", "this is a list"), (b"\xff", "not a text file"), (b" " * (MAX_BYTES + 1), "KiB")):
        path.write_bytes(content)
        with pytest.raises(InputError, match=message):
            read_mapping(path)
