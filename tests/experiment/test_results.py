"""Results: what is saved is read back, and damage is seen."""

import dataclasses
import json
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from prune_fe.data.digits import digits
from prune_fe.errors import CheckpointError, InputError
from prune_fe.experiment.results import Result, Row, load_result, save_test_labels
from prune_fe.experiment.run_folder import RunFolder
from prune_fe.records import read_record, write_record

ROW = Row("apoz", 3, 0.9, 0.25, 0.75, 0.7, 0.5, 100, 1000, 5.0, 4.0, 6.0, "batch 64", 1.5)


def test_the_accuracy_is_the_last_that_was_measured() -> None:
    assert ROW.accuracy == 0.75
    assert dataclasses.replace(ROW, accuracy_finetuned=None).accuracy == 0.25
    assert dataclasses.replace(ROW, accuracy_finetuned=None, accuracy_pruned=None).accuracy == 0.9


def test_what_is_saved_is_read_back(tmp_path: Path) -> None:
    correct = np.array([True, False, True, True] * 3)
    result = Result("one", ROW, correct, "ratio", 0.5, {"a": [1, 2]}, {"b": "tied"}, [{"number": 0}], 2.0, {"cores": 2})
    path = tmp_path / "cells" / "x.json"
    result.save(path)
    read = load_result(path)
    np.testing.assert_array_equal(read.correct, correct)
    for field in dataclasses.fields(Result):
        if field.name != "correct":
            assert getattr(read, field.name) == getattr(result, field.name)


def test_an_earlier_result_says_nothing_of_the_processor(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    Result("one", dataclasses.replace(ROW, processor_share=0.5), np.array([True, True, True, False])).save(path)
    assert load_result(path).row.is_disturbed
    content = read_record(path)
    del content["row"]["processor_share"]
    write_record(path, content)
    assert load_result(path).row == ROW
    assert not ROW.is_disturbed
    assert dataclasses.replace(ROW, images_per_second_high=6.5).is_disturbed


def test_damage_is_seen(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    Result("one", ROW, np.array([True, True, True, False])).save(path)
    content = json.loads(path.read_text())
    for damaged in (
        "",
        "{}",
        json.dumps(content | {"more": 1}),
        json.dumps(content | {"correct": content["correct"] | {"images": 3}}),
        json.dumps(content | {"correct": content["correct"] | {"images": 12}}),
    ):
        path.write_text(damaged)
        with pytest.raises(CheckpointError, match="damaged .*; delete it, and the next run makes it again"):
            load_result(path)


def test_a_run_keeps_its_test_images(tmp_path: Path) -> None:
    splits = digits(12)
    with closing(RunFolder(tmp_path, {"name": "t"})) as folder:
        save_test_labels(splits, folder)
        save_test_labels(splits, folder)
        content = read_record(tmp_path / "test.json")
        assert content["classes"] == [str(number) for number in range(10)]
        changed = content | {"labels": content["labels"][::-1]}
        (tmp_path / "test.json").write_text(json.dumps({"file_format": 1} | changed))
        with pytest.raises(CheckpointError, match="test.json: damaged"):
            save_test_labels(splits, folder)
        write_record(tmp_path / "test.json", changed)
        with pytest.raises(InputError, match="was begun with other test images or classes"):
            save_test_labels(splits, folder)
