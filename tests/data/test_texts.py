"""Many texts in one tensor."""

import pickle

import pytest

from prune_fe.data.texts import BULK, PackedTexts


@pytest.mark.parametrize("count", [0, 3, BULK + 3])
def test_the_texts_come_back_as_they_were(count: int) -> None:
    texts = [f"größe/{number}.png" if number % 3 else "" for number in range(count)]
    packed = PackedTexts(iter(texts))
    assert list(packed) == texts
    assert [packed[index] for index in range(len(packed))] == texts
    assert packed.take(range(count)[::-1]) == texts[::-1]
    assert list(packed.select(range(0, count, 2))) == texts[::2] == list(packed[::2])
    assert pickle.loads(pickle.dumps(packed)) == packed


def test_an_index_beyond_the_end_is_an_error() -> None:
    packed = PackedTexts(["a", "b"])
    assert packed[-1] == "b"
    with pytest.raises(IndexError):
        packed[2]
