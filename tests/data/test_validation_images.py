"""Validation images of the user's own folder: they are read as the others are, and are of the same classes."""

from pathlib import Path
from typing import Any

import pytest
import torch

from prune_fe.data.image_folder import folder
from prune_fe.data.labels import image_labels
from prune_fe.data.registry import load_data
from prune_fe.errors import DataError, InputError
from tests.data.pictures import images_of, photos, picture


def own_images(root: Path, classes: tuple[str, ...] = ("cat", "dog"), count: int = 3) -> Path:
    for number, name in enumerate(classes):
        (root / name).mkdir(parents=True)
        for i in range(count):
            picture(9000 + 100 * number + i).save(root / name / f"{i}.png")
    return root


@pytest.mark.parametrize("memory_gib", [4.0, 0.0])
def test_all_training_images_are_trained_on_and_the_validation_images_are_those_of_the_folder(
    tmp_path: Path, memory_gib: float
) -> None:
    data, own = photos(tmp_path / "data"), own_images(tmp_path / "own")
    splits: Any = folder(data, 8, validation=own, memory_gib=memory_gib)
    assert (len(splits.train), len(splits.validation), len(splits.test)) == (8, 6, 4)
    assert image_labels(splits.validation) == [0, 0, 0, 1, 1, 1]
    same: Any = load_data(source="folder", path=str(data), size=8, validation_path=str(own), memory_gib=memory_gib)
    assert torch.equal(images_of(same.validation), images_of(splits.validation))
    # They become the network's input as the test images do.
    (tmp_path / "other" / "train").mkdir(parents=True)
    (tmp_path / "other" / "train").rmdir()
    (tmp_path / "other" / "train").symlink_to(data / "train")
    (tmp_path / "other" / "val").symlink_to(own)
    assert torch.equal(images_of(splits.validation), images_of(folder(tmp_path / "other", 8).test))


def test_the_classes_must_be_those_of_the_training_images(tmp_path: Path) -> None:
    data = photos(tmp_path / "data", ("cat", "dog", "owl"))
    with pytest.raises(DataError, match=r"own: its folders are not the classes .*: owl missing; eel only there"):
        folder(data, 8, validation=own_images(tmp_path / "own", ("cat", "dog", "eel")))
    with pytest.raises(DataError, match=r"cat, dog, owl missing; train, val only there; is it .*/data/val\?"):
        folder(data, 8, validation=data)
    (tmp_path / "empty" / "owl").mkdir(parents=True)
    with pytest.raises(DataError, match="class 'owl': 0 validation images"):
        folder(data, 8, validation=own_images(tmp_path / "empty"))


def test_of_some_classes_the_others_are_left_out(tmp_path: Path) -> None:
    names = ("ant", "bee", "cat", "dog")
    data, own = photos(tmp_path / "data", names), own_images(tmp_path / "own", names)
    splits: Any = folder(data, 8, validation=own, classes=["bee", "dog"])
    assert (splits.classes, image_labels(splits.validation)) == (("bee", "dog"), [0, 0, 0, 1, 1, 1])


@pytest.mark.parametrize(("part", "name"), [("train", "training"), ("val", "test")])
def test_an_image_of_another_part_is_refused(tmp_path: Path, part: str, name: str) -> None:
    data, own = photos(tmp_path / "data"), own_images(tmp_path / "own")
    (own / "cat" / "again.png").write_bytes((data / part / "dog" / "1.png").read_bytes())
    text = rf"1 validation images are {name} images too, .*own/cat/again\.png and .*{part}/dog/1\.png"
    with pytest.raises(DataError, match=text):
        folder(data, 8, validation=own)


def test_unreadable_images_count_with_the_others(tmp_path: Path) -> None:
    data, own = photos(tmp_path / "data"), own_images(tmp_path / "own")
    for path in (data / "train" / "cat" / "1.png", own / "dog" / "0.png"):
        path.write_bytes(b"<html>")
    with pytest.warns(UserWarning, match="cannot be read and are left out"):
        splits: Any = folder(data, 8, validation=own, skip_bad=2)
    assert splits.skipped == ("train/cat/1.png", "validation/dog/0.png")
    assert len(splits.validation) == 5
    with pytest.warns(UserWarning, match="train/cat"), pytest.raises(DataError, match=r"own/dog/0\.png"):
        images_of(folder(data, 8, validation=own, skip_bad=1).validation)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"source": "digits", "path": None}, "validation_path: source digits has images in memory"),
        ({"validation_from": "test"}, "validation_path and validation_from: test both say"),
        ({"validation": 0.2}, "validation: no share is held out where validation_path"),
    ],
)
def test_options_that_contradict_it_are_refused(options: dict[str, Any], text: str) -> None:
    with pytest.raises(InputError, match=text):
        load_data({"source": "folder", "path": "x", "size": 8, "validation_path": "own"} | options)


def test_a_folder_that_is_missing_is_said_before_anything_is_read(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="data.validation_path: nowhere: no such folder"):
        load_data(source="folder", path=str(tmp_path / "missing"), size=8, validation_path="nowhere")
