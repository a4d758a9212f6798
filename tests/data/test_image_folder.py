"""A folder of classes: what it gives, and what is said when a part of it is missing."""

from typing import Any

import pytest
import torch
from PIL import Image

from prune_fe.data.datasets import InMemory
from prune_fe.data.image_folder import folder
from prune_fe.data.labels import image_labels
from prune_fe.data.splits import hold_out
from prune_fe.data.transforms import IMAGENET_MEAN, IMAGENET_STD, read_image
from prune_fe.errors import DataError
from tests.data.pictures import images_of, photos, picture


def test_a_folder_of_classes_gives_its_classes_and_three_splits(tmp_path):
    splits: Any = folder(photos(tmp_path, ("dog", "<cat>"), train=10, val=3), 8, validation=0.2)
    assert splits.classes == ("<cat>", "dog")
    assert (len(splits.train), len(splits.validation), len(splits.test)) == (16, 4, 6)
    assert (splits.test[0][0].shape, splits.channels, splits.size) == ((3, 8, 8), 3, 8)


def test_decoding_once_and_each_time_give_the_same_bits(tmp_path):
    photos(tmp_path)
    once, each_time = folder(tmp_path, 7), folder(tmp_path, 7, memory_gib=0)
    assert isinstance(once.test, InMemory)
    assert not isinstance(each_time.test, InMemory)
    for ours, theirs in ((once.train, each_time.train), (once.test, each_time.test)):
        assert torch.equal(images_of(ours), images_of(theirs))
        assert image_labels(ours) == image_labels(theirs)


def test_images_are_normalised_as_torchvision_does(tmp_path):
    from torchvision.transforms import v2

    photos(tmp_path)
    steps = [v2.ToImage(), v2.Resize((7, 7), antialias=True), v2.ToDtype(torch.float32, scale=True)]
    theirs = v2.Compose([*steps, v2.Normalize(IMAGENET_MEAN, IMAGENET_STD)])
    expected = theirs(Image.open(tmp_path / "val" / "cat" / "0.png").resize((7, 7), Image.Resampling.BILINEAR))
    torch.testing.assert_close(folder(tmp_path, 7).test[0][0], expected, rtol=0, atol=2e-6)


def test_progress_counts_every_image_once(tmp_path):
    seen = []
    folder(photos(tmp_path), 8, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(done, 12) for done in range(1, 13)]


def test_only_the_drawn_images_are_decoded_and_another_seed_decodes_its_own(tmp_path, monkeypatch):
    photos(tmp_path, train=6)
    read = []

    def recorded(path):
        read.append(path)
        return read_image(path)

    monkeypatch.setattr("prune_fe.data.image_folder.read_image", recorded)
    seen = []
    splits: Any = folder(tmp_path, 8, progress=lambda *counts: seen.append(counts), images_per_class=3)
    assert seen == [(done, 10) for done in range(1, 11)]
    first = images_of(splits.train)
    assert len(read) == len(set(read)) == 10
    other: Any = hold_out(splits, 0.1, 5, 3)
    assert len(read) == len(set(read)) > 10
    each_time: Any = folder(tmp_path, 8, seed=5, memory_gib=0, images_per_class=3)
    assert other.train.indices == each_time.train.indices
    assert torch.equal(images_of(other.train), images_of(each_time.train))
    assert torch.equal(images_of(splits.train), first)
    assert image_labels(other.train) == image_labels(each_time.train)


def test_memory_is_counted_for_the_drawn_images_only(tmp_path):
    photos(tmp_path, train=6)
    needed = (2 * 2 + 4) * 3 * 8 * 8 / 2**30
    assert isinstance(folder(tmp_path, 8, memory_gib=needed, images_per_class=2).test, InMemory)
    assert not isinstance(folder(tmp_path, 8, memory_gib=needed, images_per_class=3).test, InMemory)


def test_a_class_that_is_only_in_train_or_only_in_val_is_named(tmp_path):
    photos(tmp_path)
    (tmp_path / "train" / "owl").mkdir()
    picture().save(tmp_path / "train" / "owl" / "0.png")
    with pytest.raises(DataError, match="class 'owl' is in train or in val, but not in both"):
        folder(tmp_path, 8)


def test_a_class_without_images_is_named(tmp_path):
    photos(tmp_path)
    (tmp_path / "train" / "owl").mkdir()
    (tmp_path / "train" / "owl" / "notes.txt").write_text("none")
    with pytest.raises(DataError, match="train: class 'owl': 0 images, at least 1 is needed"):
        folder(tmp_path, 8)


def test_what_is_missing_from_the_layout_is_said(tmp_path):
    with pytest.raises(DataError, match="none: no such folder or tar file"):
        folder(tmp_path / "none", 8)
    with pytest.raises(DataError, match=r"train: no such folder; expected .*/train/<class>/\* and .*/val/<class>/\*"):
        folder(tmp_path, 8)
    (tmp_path / "train").mkdir()
    with pytest.raises(DataError, match="Couldn't find any class folder"):
        folder(tmp_path, 8)


@pytest.mark.parametrize("memory_gib", [4.0, 0.0])
@pytest.mark.parametrize("content", [b"", b"no image", None], ids=["empty", "text", "truncated"])
def test_a_damaged_image_stops_with_its_path(tmp_path, content, memory_gib):
    photos(tmp_path)
    bad = tmp_path / "train" / "dog" / "2.png"
    bad.write_bytes(bad.read_bytes()[:-40] if content is None else content)
    with pytest.raises(DataError, match=r"train/dog/2\.png: not an image that can be read"):
        splits: Any = folder(tmp_path, 8, memory_gib=memory_gib)
        images_of(splits.train.dataset)
