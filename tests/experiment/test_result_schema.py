"""An edited file of a run folder is refused before the report uses it."""

import copy
import json
import random
import shutil
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from prune_fe.errors import CheckpointError, InputError
from prune_fe.experiment.result_schema import LabelsFile, ResultFile, RowFile, check_content
from prune_fe.experiment.results import Result, Row
from prune_fe.report.report import write_report

RUN = Path(__file__).parents[1] / "fixtures/v0.1.0/comparison"
FILES = (
    "test.json",
    "env.json",
    "cells/vgg-small.seed-0.random.ratio-0.5.json",
    "cells/vgg-small.seed-0.unpruned.json",
)
DEEP: Any = []
for _ in range(500):
    DEEP = [DEEP]


def places(node: Any, here: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the keys that lead to each value; of a list, to its first two."""
    if here:
        yield here
    entries = (
        list(node.items()) if isinstance(node, dict) else list(enumerate(node))[:2] if isinstance(node, list) else []
    )
    for key, value in entries:
        yield from places(value, (*here, key))


def test_the_files_have_the_fields_of_the_classes() -> None:
    assert list(ResultFile.model_fields) == list(Result.__dataclass_fields__)
    assert list(RowFile.model_fields) == list(Row.__dataclass_fields__)


@pytest.mark.parametrize("name", FILES)
def test_any_value_of_another_type_is_an_error_of_its_file(tmp_path: Path, name: str) -> None:
    shutil.copytree(RUN, tmp_path / "run")
    whole, chance, refused = json.loads((RUN / name).read_text()), random.Random(0), 0
    values: tuple[Any, ...] = (None, "x", -1, 1.5, 10**30, [], {}, [[1]], True, DEEP, 10**12)
    cases = [(place, value) for place in places(whole) for value in values]
    for place, value in chance.sample(cases, 60):
        content = copy.deepcopy(whole)
        node = content
        for key in place[:-1]:
            node = node[key]
        node[place[-1]] = value
        (tmp_path / "run" / name).write_text(json.dumps(content))
        with warnings.catch_warnings(action="ignore"):
            try:
                write_report(tmp_path / "run")
            except (CheckpointError, InputError):
                refused += 1
    assert refused >= 20


@pytest.mark.parametrize(
    "key", ["accuracy_before", "images_per_second", "images_per_second_low", "images_per_second_high"]
)
def test_what_every_result_has_is_a_number(key: str) -> None:
    content = json.loads((RUN / FILES[-1]).read_text())
    content["row"][key] = None
    with pytest.raises(InputError, match=f"row.{key}: input should be a valid number"):
        check_content(ResultFile, content)


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ({"classes": ["a", 1], "labels": [0]}, "classes.1: input should be a valid string"),
        ({"classes": ["a"], "labels": [1]}, "label 1: there are 1 classes"),
        ({"classes": ["a"], "labels": [10**9]}, "label 1000000000: there are 1 classes"),
        ({"classes": ["a"], "labels": [-1]}, "labels.0: input should be greater than or equal to 0"),
        ({"classes": ["a"], "labels": 1.5}, "labels: input should be a valid list"),
        ({"classes": [], "labels": [0]}, "classes: .*at least 1"),
    ],
)
def test_labels_are_those_of_the_classes(content: dict[str, Any], text: str) -> None:
    with pytest.raises(InputError, match=text):
        check_content(LabelsFile, content)
