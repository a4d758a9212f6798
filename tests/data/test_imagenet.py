"""ImageNet: a folder that torchvision has unpacked, or what is missing from it."""

from pathlib import Path
from typing import Any

import pytest

from prune_fe.data.registry import load_data
from prune_fe.errors import DataError
from tests.data.pictures import photos


def test_the_classes_are_the_wordnet_ids(tmp_path: Path) -> None:
    splits: Any = load_data(source="imagenet", path=str(photos(tmp_path, ("n01443537", "n01440764"))), size=8)
    assert splits.classes == ("n01440764", "n01443537")
    assert len(splits.test) == 4


def test_missing_archives_are_named(tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"neither the folder train nor the archives .*; image-net.org gives ILSVRC2012_dev"
    ):
        load_data(source="imagenet", path=str(tmp_path), size=8)
