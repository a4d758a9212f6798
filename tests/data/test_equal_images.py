"""Files with the same content are found, also large ones."""

from pathlib import Path

from prune_fe.data.equal_images import BEGINNING_BYTES, find_equal_files, separate_equal_images
from tests.data.pictures import Labelled


def test_only_files_of_the_same_content_are_equal(tmp_path: Path) -> None:
    start = bytes(BEGINNING_BYTES)
    contents = [b"a", start + b"a", b"b", b"a", start + b"b", start + b"a", b"ab", start, start, b"a"]
    files = []
    for number, content in enumerate(contents):
        (tmp_path / str(number)).write_bytes(content)
        files.append((str(tmp_path / str(number)), len(content)))
    assert find_equal_files(files) == [[0, 3, 9], [1, 5], [7, 8]]


def test_other_data_sets_stay_as_they_are() -> None:
    data = Labelled([0, 1, 2])
    assert separate_equal_images(data, data, [0, 2], [1]) == ([0, 2], [1])
