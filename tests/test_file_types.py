"""Files that are not what was expected."""

import errno
import io
import os
import tarfile
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import save as dump_safetensors

from prune_fe.file_types import describe_content, open_regular_file


def zip_of(*names: str) -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        for name in names:
            archive.writestr(name, "x")
    return content.getvalue()


def torch_file() -> bytes:
    content = io.BytesIO()
    torch.save({"a": torch.zeros(1)}, content)
    return content.getvalue()


def tar_file() -> bytes:
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w") as tar:
        tar.addfile(tarfile.TarInfo("a"))
    return content.getvalue()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "empty"),
        (b"\n <!DOCTYPE HTML><html>", "an HTML page"),
        (b"<html>", "an HTML page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:1", "a Git LFS pointer"),
        (b"\x1f\x8b\x08", "a gzip file"),
        (b"\x93NUMPY\x01", "a NumPy file"),
        (tar_file(), "a tar archive"),
        (torch_file(), "a file of torch.save; call it NAME.pth"),
        (zip_of("m/data.pkl", "m/constants.pkl", "m/code/x.py"), "a TorchScript program"),
        (zip_of("m/archive_format", "m/models/model.json"), "an exported program"),
        (zip_of("a.txt"), "a zip file; unpack"),
        (torch_file()[:300], "a damaged zip file"),
        (dump_safetensors({"a": torch.zeros(1)}), "a safetensors file; call it NAME.safetensors"),
    ],
)
def test_a_file_is_known_by_its_content(tmp_path: Path, content: bytes, words: str) -> None:
    (tmp_path / "file").write_bytes(content)
    assert str(describe_content(tmp_path / "file")).startswith(words)


def test_of_other_content_nothing_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"\xff\xd8\xff")
    assert describe_content(tmp_path / "file") is None
    assert describe_content(tmp_path) is None


def test_what_is_no_regular_file_is_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path, number in (
        (tmp_path / "pipe", errno.EINVAL),
        (Path("/dev/null"), errno.EINVAL),
        (tmp_path, errno.EISDIR),
    ):
        with pytest.raises(OSError, match=os.strerror(number) if number == errno.EISDIR else "not a regular file"):
            open_regular_file(path)
    with pytest.raises(FileNotFoundError):
        open_regular_file(tmp_path / "none")
