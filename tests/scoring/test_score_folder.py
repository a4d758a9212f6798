"""A folder of scores is continued by the same request, refused to another one and removed when it stays empty."""

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from prune_fe.errors import CheckpointError, EnvironmentFault, InputError
from prune_fe.io import lock_folder
from prune_fe.records import write_sealed
from prune_fe.scorers.apoz import APoZ
from prune_fe.scoring.score_folder import open_score_folder, write_image_list
from prune_fe.scoring.scores import Scores

SCORES = Scores(
    "apoz", {"a": np.array([1.0])}, images=2, provenance={"images": [["x/1.png", "cat"], ["=2.png", "dog"]]}
)


def open_folder(folder: Path, said: list[str] | None = None, **request: Any) -> Any:
    say = (said if said is not None else []).append
    return open_score_folder(folder, {"model": "vgg", **request}, {"apoz": APoZ()}, lambda: {"torch": "2"}, say)


def test_the_file_says_what_was_asked_for_and_after_the_scores_also_how(tmp_path: Path) -> None:
    with open_folder(tmp_path / "s", data=Path("images")):
        content = json.loads((tmp_path / "s/score.json").read_text())
        assert (content["asked"], content["scorers"]) == ({"model": "vgg", "data": "images"}, {})
    content = json.loads((tmp_path / "s/score.json").read_text())
    assert content["scorers"] == {"apoz": APoZ().settings}
    assert content["environment"] == {"torch": "2"}


def test_a_folder_with_scores_is_continued_and_refused_to_another_request(tmp_path: Path) -> None:
    with open_folder(tmp_path, seed=1):
        SCORES.save(tmp_path / "apoz")
    with open_folder(tmp_path, seed=1):
        pass
    with (
        pytest.raises(InputError, match="was begun with another choice of seed 1, now 2; choose another --output"),
        open_folder(tmp_path, seed=2),
    ):
        pass


def test_a_folder_without_scores_takes_another_request(tmp_path: Path) -> None:
    with open_folder(tmp_path, seed=1):
        pass
    with open_folder(tmp_path, seed=2):
        pass
    assert json.loads((tmp_path / "score.json").read_text())["asked"]["seed"] == 2


def test_an_error_removes_a_new_folder_without_scores_only(tmp_path: Path) -> None:
    for name, saves in (("empty", False), ("filled", True)):
        with pytest.raises(InputError, match="no"), open_folder(tmp_path / name):
            if saves:
                SCORES.save(tmp_path / name / "apoz")
            raise InputError("no")
    assert [path.name for path in tmp_path.iterdir()] == ["filled"]


def test_an_unfinished_pass_is_announced(tmp_path: Path) -> None:
    said: list[str] = []
    write_sealed(tmp_path / ".unfinished-0", b"")
    with open_folder(tmp_path, said):
        pass
    assert said.pop() == f"{tmp_path} holds an unfinished pass; it is continued if nothing has changed"
    (tmp_path / ".unfinished-0").write_bytes(b"x")
    with open_folder(tmp_path, said):
        pass
    assert said[0].endswith(".unfinished-0: damaged (its SHA-256 is another one); this pass begins again")


def test_a_damaged_request_is_refused(tmp_path: Path) -> None:
    SCORES.save(tmp_path / "apoz")
    (tmp_path / "score.json").write_text("[]")
    with pytest.raises(CheckpointError, match="score.json: damaged"), open_folder(tmp_path):
        pass


def test_a_flipped_bit_in_the_request_is_refused(tmp_path: Path) -> None:
    with open_folder(tmp_path, seed=1):
        SCORES.save(tmp_path / "apoz")
    path = tmp_path / "score.json"
    path.write_text(path.read_text().replace('"seed": 1', '"seed": 3'))
    with pytest.raises(CheckpointError, match="score.json: damaged .its SHA-256"), open_folder(tmp_path, seed=3):
        pass


def test_a_full_disk_leaves_no_new_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(EnvironmentFault, match="score.json: no space left"), open_folder(tmp_path / "s"):
        pass
    assert list(tmp_path.iterdir()) == []


def test_a_folder_in_use_is_refused(tmp_path: Path) -> None:
    with (
        lock_folder(tmp_path),
        pytest.raises(EnvironmentFault, match="is in use by another run"),
        open_folder(tmp_path),
    ):
        pass


def test_the_list_of_the_images_has_their_names_and_classes(tmp_path: Path) -> None:
    write_image_list(tmp_path, {"l1-filter": Scores("l1-filter", {"a": np.array([1.0])}), "apoz": SCORES})
    with (tmp_path / "images.csv").open(newline="") as file:
        assert list(csv.reader(file)) == [["image", "class"], ["x/1.png", "cat"], ["'=2.png", "dog"]]


def test_scores_of_weights_have_no_list_of_images(tmp_path: Path) -> None:
    write_image_list(tmp_path, {"l1-filter": Scores("l1-filter", {"a": np.array([1.0])})})
    assert list(tmp_path.iterdir()) == []
