"""Files with the same content are found, also large ones."""

from prune_fe.data.equal_images import BEGINNING_BYTES, find_equal, separate_equal_images
from tests.data.pictures import Labelled


def test_only_files_of_the_same_content_are_equal() -> None:
    start = bytes(BEGINNING_BYTES)
    contents = [b"a", start + b"a", b"b", b"a", start + b"b", start + b"a", b"ab", start, start, b"a"]
    read: list[tuple[int, int | None]] = []

    def read_bytes(index: int, count: int | None) -> bytes:
        read.append((index, count))
        return contents[index][:count]

    assert find_equal([len(content) for content in contents], read_bytes) == [[0, 3, 9], [1, 5], [7, 8]]
    # What is alone in its size is not read, nor anything twice that ends within the beginning.
    assert [index for index, count in read if count is None] == [1, 4, 5]
    assert 6 not in {index for index, _ in read}


def test_other_data_sets_stay_as_they_are() -> None:
    data = Labelled([0, 1, 2])
    assert separate_equal_images(data, data, [0, 2], [1]) == ([0, 2], [1])
