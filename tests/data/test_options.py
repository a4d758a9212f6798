"""The recipe's section `data`."""

from typing import Any

import pytest

from prune_fe.data.options import DataOptions
from prune_fe.errors import InputError
from prune_fe.options import validate_options


def test_the_defaults() -> None:
    chosen = validate_options(DataOptions, None, source="folder", size=32)
    assert (chosen.path, chosen.validation, chosen.memory_gib) == (None, 0.1, 4.0)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"source": "digts"}, "source: unknown data source 'digts'; did you mean 'digits'"),
        ({"path": "photos"}, "source digits needs no path, but path is 'photos'; source: folder reads a path"),
        ({"size": 3}, r"size: .*greater than or equal to 4 \(got 3\)"),
        ({"size": 8.0}, r"size: .*valid integer \(got 8.0\)"),
        ({"validation": 0.0}, r"validation: .*greater than 0"),
        ({"validation": 1.0}, r"validation: .*less than 1"),
        ({"images_per_class": 1}, "images_per_class: .*greater than or equal to 2"),
        ({"memory_gib": -1.0}, "memory_gib: .*greater than or equal to 0"),
        ({"sise": 8}, "sise: unknown key; did you mean 'size'"),
    ],
)
def test_a_wrong_option_is_named(given: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        validate_options(DataOptions, {"source": "digits", "size": 8} | given)


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ({"source": "digits", "size": 100_000}, "size: input should be less than or equal to 8192"),
        ({"source": "digits", "size": 8, "classes": 2}, "classes: source digits is read whole"),
        ({"source": "folder", "path": "x", "size": 8, "classes": ()}, "classes: .*at least 1 item"),
        ({"source": "digits", "size": 8, "skip_bad": 1}, "skip_bad: source digits reads no image files"),
        ({"source": "folder", "path": "x", "size": 8, "skip_bad": -1}, "skip_bad: input should be greater than or"),
    ],
)
def test_numbers_beyond_reason_are_refused(given: dict[str, Any], text: str) -> None:
    with pytest.raises(InputError, match=text):
        validate_options(DataOptions, given)
