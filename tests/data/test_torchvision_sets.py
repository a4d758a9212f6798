"""Data sets of torchvision that keep their images in files."""

from pathlib import Path
from typing import Any

import pytest
from torchvision import datasets

from prune_fe.data.registry import SOURCES, load_data
from prune_fe.data.torchvision_sets import SETS
from prune_fe.errors import DataError
from tests.data.containers import write_food, write_textures


def test_every_one_is_a_source_and_a_class_of_torchvision() -> None:
    assert {name for name, source in SOURCES.items() if source.module.endswith("torchvision_sets")} == set(SETS)
    assert all(hasattr(datasets, chosen.kind) for chosen in SETS.values())


def test_classes_images_and_order_are_torchvisions(tmp_path: Path) -> None:
    splits: Any = load_data(source="food101", path=str(write_food(tmp_path)), size=8)
    theirs = datasets.Food101(tmp_path, "test")
    assert list(splits.classes) == theirs.classes
    assert [tmp_path / name for name in splits.test.names] == sorted(theirs._image_files)
    assert splits.test.targets == sorted(theirs._labels)


def test_validation_images_are_training_images_of_which_others_are_held_out(tmp_path: Path) -> None:
    splits: Any = load_data(source="dtd", path=str(write_textures(tmp_path)), size=8, validation=0.2)
    assert (len(splits.train), len(splits.validation), len(splits.test)) == (16, 4, 4)


def test_what_can_be_neither_read_nor_downloaded_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Any) -> None:
        raise OSError("no network")

    monkeypatch.setattr(datasets.Food101, "_download", refuse)
    with pytest.raises(DataError, match="Food101 can be neither read nor downloaded .*no network"):
        load_data(source="food101", path=str(tmp_path), size=8)
