"""Tar files: unpacked once, whole or not at all, and never outside their folder."""

import gzip
import hashlib
import io
import os
import random
import tarfile

import pytest
import torch

from prune_fe.data import archive as archive_module
from prune_fe.data.archive import unpack
from prune_fe.data.image_folder import folder
from prune_fe.errors import DataError
from tests.data.pictures import images_of, photos


def packed(path, root, prefix=""):
    with tarfile.open(path, "w:gz" if path.suffix in {".gz", ".tgz"} else "w") as tar:
        for part in ("train", "val"):
            tar.add(root / part, arcname=f"{prefix}{part}")
    return path


def member(name, **fields):
    entry = tarfile.TarInfo(name)
    for key, value in fields.items():
        setattr(entry, key, value)
    return entry


@pytest.mark.parametrize("name", ["set.tar", "set.tar.gz", "set.tgz"])
@pytest.mark.parametrize("prefix", ["", "set-1.0/"])
def test_a_tar_file_is_unpacked_beside_itself(tmp_path, name, prefix):
    photos(tmp_path / "src")
    archive = packed(tmp_path / name, tmp_path / "src", prefix)
    splits = folder(archive, 8)
    assert torch.equal(images_of(splits.test), images_of(folder(tmp_path / "src", 8).test))
    digest = hashlib.sha256(archive.read_bytes()).hexdigest()
    assert sorted(path.name for path in tmp_path.iterdir()) == [f".{name}.sha256", f"set-{digest[:12]}", name, "src"]


def test_a_tar_file_is_unpacked_once(tmp_path):
    archive = packed(tmp_path / "set.tar", photos(tmp_path / "src"))
    (unpack(archive) / "train" / "cat" / "0.png").unlink()
    assert not (unpack(archive) / "train" / "cat" / "0.png").exists()


@pytest.mark.parametrize("name", ["set.tar", "set.tgz"])
def test_another_archive_of_the_same_name_is_unpacked_anew(tmp_path, name):
    first = packed(tmp_path / name, photos(tmp_path / "a", train=2))
    old = images_of(folder(first, 8).test)
    status = first.stat()
    packed(tmp_path / "other.tar", photos(tmp_path / "b", ("cat", "dog"), train=2, val=1))
    (tmp_path / "other.tar").replace(first)
    os.utime(first, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert len(folder(first, 8).test) == 2 != len(old)  # type: ignore[arg-type]


def test_a_folder_of_the_archives_name_is_not_taken_for_it(tmp_path):
    archive = packed(tmp_path / "set.tar", photos(tmp_path / "src", train=2))
    photos(tmp_path / "set", ("ant", "bee"))
    assert folder(archive, 8).classes == ("cat", "dog")


def test_an_archive_that_did_not_change_is_not_read_again(tmp_path, monkeypatch):
    archive = packed(tmp_path / "set.tar", photos(tmp_path / "src", train=2))
    target = unpack(archive)
    monkeypatch.setattr(hashlib, "file_digest", lambda *arguments: pytest.fail("read again"))
    assert unpack(archive) == target


def pax_bomb(key=b"path"):
    """An archive whose first member says that its pax header has 1.5 GiB; packed, it has 1.5 MB."""
    header = member("x", type=tarfile.XHDTYPE if key == b"path" else tarfile.GNUTYPE_LONGNAME, size=3 * 2**29)
    return gzip.compress(header.tobuf(tarfile.GNU_FORMAT) + bytes(2**24))


@pytest.mark.parametrize("key", [b"path", b"long name"])
def test_a_header_beyond_reason_is_refused_before_it_is_read(tmp_path, monkeypatch, key):
    monkeypatch.setattr(archive_module, "SLACK_BYTES", 2**32)
    (tmp_path / "set.tgz").write_bytes(pax_bomb(key))
    with pytest.raises(DataError, match=r"set\.tgz: a header is larger than 1024 KiB, refused"):
        unpack(tmp_path / "set.tgz")
    with tarfile.open(tmp_path / "set.tar", "w") as tar:
        tar.addfile(member("train/a"))
        tar.addfile(member("train/" + "n" * 2**21))
    with pytest.raises(DataError, match=r"set\.tar: a header is larger than 1024 KiB, refused"):
        unpack(tmp_path / "set.tar")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["set.tar", "set.tgz"]


def test_long_names_that_are_in_reason_are_read(tmp_path):
    photos(tmp_path / "src", ("c" * 200, "d" * 200))
    assert folder(packed(tmp_path / "set.tar", tmp_path / "src"), 8).classes == ("c" * 200, "d" * 200)


def test_a_member_of_negative_size_is_refused(tmp_path):
    header = bytearray(member("train/a").tobuf(tarfile.GNU_FORMAT))
    header[124:136] = tarfile.itn(-512, 12, tarfile.GNU_FORMAT)  # type: ignore[attr-defined]
    header[148:156] = b"%06o\0 " % tarfile.calc_chksums(bytes(header))[0]  # type: ignore[attr-defined]
    (tmp_path / "set.tar").write_bytes(bytes(header) + bytes(10240))
    with pytest.raises(DataError, match="'train/a' has a size of -512 bytes, refused"):
        unpack(tmp_path / "set.tar")


def test_a_pipe_is_refused_and_other_files_are_named(tmp_path):
    os.mkfifo(tmp_path / "set.tar")
    with pytest.raises(DataError, match=r"set\.tar: cannot be read \(not a regular file\)"):
        unpack(tmp_path / "set.tar")
    (tmp_path / "page.tgz").write_text("<!doctype html>")
    with pytest.raises(DataError, match="cannot be unpacked .*; it is an HTML page"):
        unpack(tmp_path / "page.tgz")


def test_folders_beside_the_top_one_do_not_hide_it(tmp_path):
    archive = packed(tmp_path / "set.tar", photos(tmp_path / "src"), "set-1.0/")
    (unpack(archive).parent / "__MACOSX").mkdir()
    assert unpack(archive).name == "set-1.0"


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (member("../escaped"), "outside the destination"),
        (member("train/../../escaped"), "outside the destination"),
        (member("train/l", type=tarfile.SYMTYPE, linkname="/etc/passwd"), "'train/l' is a link or a device, refused"),
        (member("train/l", type=tarfile.SYMTYPE, linkname="a"), "'train/l' is a link or a device, refused"),
        (member("train/l", type=tarfile.LNKTYPE, linkname="train/a"), "'train/l' is a link or a device, refused"),
        (member("train/d", type=tarfile.CHRTYPE, devmajor=1, devminor=5), "'train/d' is a link or a device, refused"),
        (member("train/f", type=tarfile.FIFOTYPE), "'train/f' is a link or a device, refused"),
    ],
)
def test_a_member_that_could_reach_outside_is_refused_and_nothing_stays(tmp_path, bad, message):
    with tarfile.open(tmp_path / "set.tar", "w") as tar:
        tar.addfile(member("train/a", size=3), io.BytesIO(b"abc"))
        tar.addfile(bad)
    with pytest.raises(DataError, match=message):
        unpack(tmp_path / "set.tar")
    assert [path.name for path in tmp_path.iterdir()] == ["set.tar"]


@pytest.mark.parametrize("members", [[2**20], [0] * 2000], ids=["one large file", "very many empty ones"])
def test_an_archive_that_unpacks_to_far_too_much_is_refused(tmp_path, monkeypatch, members):
    monkeypatch.setattr(archive_module, "SLACK_BYTES", 2**19)
    with tarfile.open(tmp_path / "set.tar.gz", "w:gz", compresslevel=9) as tar:
        for number, size in enumerate(members):
            tar.addfile(member(f"train/{number}", size=size), io.BytesIO(bytes(size)))
    with pytest.raises(DataError, match=r"unpacks to more than \d+ MiB, refused"):
        unpack(tmp_path / "set.tar.gz")
    assert [path.name for path in tmp_path.iterdir()] == ["set.tar.gz"]


@pytest.mark.parametrize("name", ["set.tar", "set.tar.gz"])
def test_a_truncated_archive_leaves_nothing_behind(tmp_path, name):
    archive = packed(tmp_path / name, photos(tmp_path / "src"))
    whole = archive.read_bytes()
    if name == "set.tar":
        with tarfile.open(archive) as tar:
            end = max(entry.offset_data + (entry.size + 511) // 512 * 512 for entry in tar)
        cuts = [*range(0, end, 512), *range(100, end, 1300), end, end + 100]  # between two members, too
    else:
        cuts = list(range(0, len(whole) - 1, len(whole) // 40))
    for cut in cuts:
        archive.write_bytes(whole[:cut])
        with pytest.raises(DataError, match=r"cannot be unpacked|is cut short"):
            unpack(archive)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([name, "src"])


def test_a_damaged_archive_is_refused_or_whole(tmp_path):
    archive = packed(tmp_path / "set.tar.gz", photos(tmp_path / "src"))
    whole, chance = archive.read_bytes(), random.Random(0)
    for _ in range(60):
        content = bytearray(whole)
        content[chance.randrange(10, len(whole))] ^= 1 << chance.randrange(8)
        archive.write_bytes(content)
        with pytest.raises(DataError, match=r"set\.tar\.gz: cannot be unpacked"):
            unpack(archive)


def test_a_file_that_is_no_archive_is_refused(tmp_path):
    (tmp_path / "set.zip").touch()
    with pytest.raises(DataError, match=r"set\.zip: not a folder, \.tar, \.tar\.gz or \.tgz"):
        unpack(tmp_path / "set.zip")
