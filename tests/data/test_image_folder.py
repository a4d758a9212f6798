"""A folder of classes: what it gives, and what is said when a part of it is missing."""

import os
from typing import Any

import pytest
import torch
from PIL import Image

from prune_fe.data.datasets import InMemory
from prune_fe.data.image_folder import folder
from prune_fe.data.labels import image_labels, image_names
from prune_fe.data.preprocessing import IMAGENET_MEAN, IMAGENET_STD
from prune_fe.data.splits import hold_out
from prune_fe.data.transforms import read_image
from prune_fe.errors import DataError, InputError
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
    with pytest.raises(DataError, match="class 'owl' is in train, but not in val"):
        folder(tmp_path, 8)


def test_a_class_without_images_is_named(tmp_path):
    photos(tmp_path)
    (tmp_path / "train" / "owl").mkdir()
    (tmp_path / "train" / "owl" / "notes.txt").write_text("none")
    with (
        pytest.warns(UserWarning, match=r"1 files are no images: \.txt 1 \(train/owl/notes\.txt\)"),
        pytest.raises(DataError, match="train: class 'owl': 0 images, at least 1 is needed"),
    ):
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


def test_a_link_to_a_folder_above_is_refused(tmp_path):
    photos(tmp_path)
    (tmp_path / "train" / "cat" / "loop").symlink_to(".")
    with pytest.raises(DataError, match=r"cat/loop is a link to .*/train/cat, a folder above it; remove the link"):
        folder(tmp_path, 8)
    (tmp_path / "train" / "cat" / "loop").unlink()
    (tmp_path / "train" / "again").symlink_to("..")
    with pytest.raises(DataError, match=r"train/again is a link to"):
        folder(tmp_path, 8)


def test_two_links_that_lead_to_each_other_are_refused(tmp_path):
    photos(tmp_path)
    (tmp_path / "train" / "cat" / "more").symlink_to("../dog")
    (tmp_path / "train" / "dog" / "more").symlink_to("../cat")
    with pytest.raises(DataError, match=r"more/more is a link to"):
        folder(tmp_path, 8)


@pytest.mark.parametrize("kind", ["symlink_to", "hardlink_to"])
@pytest.mark.parametrize("place", ["train/cat/again.png", "train/dog/again.png", "val/cat/again.png"])
def test_a_file_that_is_there_twice_is_an_error_that_names_both(tmp_path, kind, place):
    photos(tmp_path)
    getattr(tmp_path / place, kind)(tmp_path / "train" / "cat" / "0.png")
    with pytest.raises(DataError, match=r"(?=.*again\.png)(?=.*cat/0\.png).* are the same file; keep one of them"):
        folder(tmp_path, 8)


def test_links_to_images_and_folders_elsewhere_are_followed(tmp_path):
    photos(tmp_path / "real")
    for part in ("train", "val"):
        (tmp_path / "set" / part / "dog").mkdir(parents=True)
        (tmp_path / "set" / part / "cat").symlink_to(tmp_path / "real" / part / "cat")
        for path in (tmp_path / "real" / part / "dog").iterdir():
            (tmp_path / "set" / part / "dog" / path.name).symlink_to(path)
    ours, theirs = folder(tmp_path / "set", 8), folder(tmp_path / "real", 8)
    assert torch.equal(images_of(ours.train), images_of(theirs.train))


@pytest.mark.parametrize("memory_gib", [4.0, 0.0])
def test_a_test_image_with_the_content_of_a_training_image_is_refused(tmp_path, memory_gib):
    photos(tmp_path)
    (tmp_path / "val" / "dog" / "9.png").write_bytes((tmp_path / "train" / "cat" / "1.png").read_bytes())
    with pytest.raises(
        DataError, match=r"1 test images are training images too.*train/cat/1\.png and .*val/dog/9\.png"
    ):
        folder(tmp_path, 8, memory_gib=memory_gib)


def test_equal_images_stay_on_one_side_of_the_split(tmp_path):
    photos(tmp_path, train=6)
    for number in range(6):
        content = (tmp_path / "train" / "cat" / f"{number}.png").read_bytes()
        (tmp_path / "train" / "cat" / f"again-{number}.png").write_bytes(content)
    with pytest.warns(
        UserWarning, match=r"2 validation images have the content of a training image and are trained on"
    ):
        splits: Any = folder(tmp_path, 8, validation=0.2)
    assert (len(splits.train), len(splits.validation)) == (17, 1)
    numbers = [
        {name.rpartition("-")[2] for name in image_names(part, range(len(part)))}
        for part in (splits.train, splits.validation)
    ]
    assert not numbers[0] & numbers[1]


def test_files_of_other_formats_are_named_and_counted(tmp_path):
    photos(tmp_path)
    for name in ("a.gif", "b.GIF", "c.svg", ".hidden", "d.jp2", "e.avif"):
        (tmp_path / "train" / "cat" / name).touch()
    picture().save(tmp_path / "val" / "beside.png")
    with pytest.warns(UserWarning, match="6 files are no images") as caught:
        assert len(folder(tmp_path, 8).train) == 6  # type: ignore[arg-type]
    assert str(caught[0].message) == (
        f"{tmp_path}: 6 files are no images: .gif 2 (train/cat/a.gif), .svg 1 (train/cat/c.svg), .jp2 1 "
        "(train/cat/d.jp2), .avif 1 (train/cat/e.avif), .png 1 (val/beside.png)"
    )


def test_a_class_that_has_other_formats_only_says_so(tmp_path):
    photos(tmp_path)
    (tmp_path / "train" / "owl").mkdir()
    (tmp_path / "train" / "owl" / "0.gif").touch()
    with (
        pytest.warns(UserWarning, match="1 files are no images"),
        pytest.raises(DataError, match=r"class 'owl': 0 images, .*; files that are no images: \.gif 1 \(owl/0\.gif\)"),
    ):
        folder(tmp_path, 8)


@pytest.mark.parametrize("name", [b"\xff\xfe", b"cat/\xff.png"])
def test_a_name_that_is_not_utf_8_is_refused(tmp_path, name):
    photos(tmp_path)
    path = os.fsencode(tmp_path / "train") + b"/" + name
    os.mkdir(path) if name == b"\xff\xfe" else open(path, "wb").close()
    with pytest.raises(DataError, match=r"udcff.*: its name is not UTF-8; rename it"):
        folder(tmp_path, 8)


def test_a_pipe_among_the_images_is_refused_at_once(tmp_path):
    photos(tmp_path)
    os.mkfifo(tmp_path / "train" / "cat" / "pipe.png")
    with pytest.raises(DataError, match=r"train/cat/pipe\.png: not a regular file"):
        folder(tmp_path, 8)


def test_one_training_image_a_class_is_said_to_be_too_few(tmp_path):
    with pytest.raises(DataError, match="class 'cat': 1 training image, at least 2 are needed"):
        folder(photos(tmp_path, train=1), 8)


@pytest.mark.parametrize("memory_gib", [4.0, 0.0])
def test_unreadable_images_are_skipped_up_to_a_number_and_listed(tmp_path, memory_gib):
    photos(tmp_path)
    bad = ["train/cat/1.png", "train/dog/0.png", "val/cat/0.png"]
    for name in bad:
        (tmp_path / name).write_bytes(b"<html>")
    with pytest.warns(UserWarning, match=r"3 images cannot be read and are left out: train/cat/1\.png, "):
        splits: Any = folder(tmp_path, 8, memory_gib=memory_gib, skip_bad=3)
    assert splits.skipped == splits.about["skipped_images"] == tuple(bad)
    assert (len(splits.train) + len(splits.validation), len(images_of(splits.test))) == (6, 3)
    with pytest.raises(DataError, match="3 images cannot be read, 2 may be skipped: train/cat/1.png"):
        folder(tmp_path, 8, skip_bad=2)
    with pytest.raises(DataError, match=r"not an image that can be read; it is an HTML page"):
        folder(tmp_path, 8)


def test_a_class_whose_images_were_all_skipped_is_named(tmp_path):
    photos(tmp_path, train=2)
    for number in range(2):
        (tmp_path / "train" / "cat" / f"{number}.png").write_bytes(b"")
    with pytest.warns(UserWarning, match="2 images"), pytest.raises(DataError, match="class 'cat': 0 images"):
        folder(tmp_path, 8, skip_bad=5)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"validation": 7.0}, r"validation: input should be less than 1 \(got 7.0\)"),
        ({"validation": float("nan")}, "validation: input should be less than 1"),
        ({"size": 10**6}, "size: input should be less than or equal to 8192"),
        ({"size": 8.5}, "size: input should be a valid integer"),
        ({"seed": -1}, "seed: input should be greater than or equal to 0"),
        ({"images_per_class": "many"}, "images_per_class: input should be a valid integer"),
        ({"memory_gib": float("nan")}, "memory_gib: input should be"),
        ({"path": 5}, "path is a int; it must be a path"),
        ({"path": "a\0b"}, "a path has no null character"),
    ],
)
def test_a_wrong_argument_is_named(tmp_path, arguments, text):
    with pytest.raises(InputError, match=text):
        folder(**{"path": tmp_path, "size": 8} | arguments)


def test_some_classes_are_read_and_the_images_of_each_are_the_same(tmp_path):
    photos(tmp_path, ("ant", "bee", "cat", "dog"), train=6, val=2)
    every: Any
    some: Any
    every, some = folder(tmp_path, 8, images_per_class=4), folder(tmp_path, 8, images_per_class=4, classes=2)
    assert some.classes == ("ant", "cat")
    assert (len(some.train), len(some.validation), len(some.test)) == (6, 2, 4)
    names = {name for name in image_names(every.train, range(len(every.train))) if name.split("/")[-2] in some.classes}
    drawn = set(image_names(some.train, range(6)) + image_names(some.validation, range(2)))
    # Which images are drawn does not depend on the other classes; which of them are held out does.
    assert names <= drawn
    assert set(image_labels(some.test)) == {0, 1}
