"""WebDataset shards: what is read, and what is refused."""

import gzip
from pathlib import Path
from typing import Any

import pytest

from prune_fe.data.registry import load_data
from prune_fe.data.webdataset import read_shards
from prune_fe.errors import DataError
from tests.data.containers import write_shards, write_tar
from tests.data.pictures import photos

IMAGE = b"\x89PNG"


def load(path: Path, **settings: Any) -> Any:
    return load_data(source="webdataset", path=str(path), size=8, **settings)


def test_folders_of_shards_json_labels_and_numbers_as_names(tmp_path: Path) -> None:
    folder = photos(tmp_path / "photos")
    for part, place in (("train", "train/0.tar"), ("val", "validation/0.tar")):
        members = []
        for label, name in enumerate(("cat", "dog")):
            for file in sorted((folder / part / name).iterdir()):
                key = f"{name}{file.stem}"
                members.append((f"{key}.png", file.read_bytes()))
                members.append((f"{key}.json", b'{"label": %d, "width": 12}' % label))
        write_tar(tmp_path / "shards" / place, members)
    splits = load(tmp_path / "shards")
    assert splits.classes == ("0", "1")
    assert (len(splits.train) + len(splits.validation), len(splits.test)) == (8, 4)


@pytest.mark.parametrize(
    ("members", "text"),
    [
        ([("a.jpg", IMAGE), ("a.cls", b"0"), ("a.pyd", b"")], "'a.pyd' may hold a pickle"),
        ([("a.jpg", IMAGE), ("a.cls", b"0"), ("a.PKL", b"")], "'a.PKL' may hold a pickle"),
        ([("a.jpg", IMAGE)], "a has no label, a whole number in a.cls"),
        ([("a.cls", b"0")], "a has no image"),
        ([("a.jpg", IMAGE), ("a.png", IMAGE), ("a.cls", b"0")], "a has two images"),
        ([("a.jpg", IMAGE), ("a.cls", b"cat")], "'a.cls' holds b'cat'; a label is a whole number"),
        ([("a.jpg", IMAGE), ("a.cls", b"-1")], "holds the label -1"),
        ([("a.jpg", IMAGE), ("a.json", b"[" * 10**5)], "'a.json' holds"),
        ([("a.jpg", IMAGE), ("a.cls", b"1" * 2**21)], "too large for a label"),
        ([("a\x1b.jpg", IMAGE)], "its name cannot be printed"),
        ([("a.jpg", IMAGE), ("a.cls", b"0"), ("b.jpg", IMAGE), ("b.cls", b"0"), ("a.jpg", IMAGE), ("a.cls", b"0")],
         "a is there twice"),
    ],
)  # fmt: skip
def test_what_is_wrong_in_a_shard_is_named(tmp_path: Path, members: list, text: str) -> None:
    write_tar(tmp_path / "train.tar", members)
    with pytest.raises(DataError, match="train.tar: ") as caught:
        read_shards([tmp_path / "train.tar"])
    assert text in str(caught.value)


def test_links_pipes_packed_and_cut_shards_are_refused(tmp_path: Path) -> None:
    import tarfile

    shards = write_shards(photos(tmp_path / "photos"), tmp_path / "shards")
    first = next(shards.glob("*train*.tar"))
    whole = first.read_bytes()
    first.write_bytes(gzip.compress(whole))
    with pytest.raises(DataError, match="packed by gzip"):
        load(shards)
    first.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match="cut short|not a tar file"):
        load(shards)
    with tarfile.open(first, "w") as tar:
        link = tarfile.TarInfo("a.jpg")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
    with pytest.raises(DataError, match="'a.jpg' is a link or a device"):
        load(shards)
    with pytest.raises(DataError, match="pipe: and lists of URLs are refused"):
        load_data(source="webdataset", path="pipe:curl x", size=8)


def test_missing_parts_and_class_names_that_do_not_fit_are_named(tmp_path: Path) -> None:
    shards = write_shards(photos(tmp_path / "photos"), tmp_path / "shards")
    (shards / "classes.txt").write_text("cat\n")
    with pytest.raises(DataError, match="classes.txt: 1 names, 1 of them different; labels go up to 1"):
        load(shards)
    with pytest.raises(DataError, match="no shards of heldout"):
        load(shards, splits=("train", "heldout"))
    for shard in shards.glob("*-val-*"):
        shard.unlink()
    with pytest.raises(DataError, match="no shards of test images"):
        load(shards)
    with pytest.raises(DataError, match="no such folder; webdataset reads a folder"):
        load(tmp_path / "none")


def test_a_shard_that_was_cut_after_it_was_listed_is_an_error(tmp_path: Path) -> None:
    shards = write_shards(photos(tmp_path / "photos"), tmp_path / "shards", shards=1)
    splits = load(shards, memory_gib=0.0)
    next(shards.glob("*val*.tar")).write_bytes(b"")
    with pytest.raises(DataError, match="the shard is cut short"):
        splits.test[0]
