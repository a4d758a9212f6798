"""Parts of channels lose equally many, or go as a whole."""

import numpy as np

from prune_fe.tracing.parts import Parts, SameWidth, find_whole_parts

HEADS = np.arange(12).reshape(3, 4)
"""The channels of three heads."""

AS_HEADS, AS_CHANNELS = np.arange(12) // 4, np.arange(12)
"""The coupled sets if the channels of a head go together, and if each is one of its own."""


def test_parts_are_whole_where_each_is_one_set() -> None:
    heads = np.repeat(np.arange(3), 4).reshape(3, 4)
    assert find_whole_parts(heads) == [0]
    assert find_whole_parts(np.stack([heads, heads])) == [1]
    assert find_whole_parts(np.arange(12).reshape(3, 4)) == []
    assert find_whole_parts(np.array([[1, 1], [2, 2], [1, 1]])) == []


def test_parts_that_go_as_a_whole_have_a_number_and_no_constraint() -> None:
    both = np.stack([HEADS, HEADS])
    assert Parts("attn", HEADS).resolve(AS_HEADS) == []
    assert [block.tolist() for block in Parts("attn", HEADS).resolve(AS_CHANNELS)] == HEADS.tolist()
    assert [block.tolist() for block in Parts("attn", both).resolve(AS_HEADS)] == [[0, 1, 2, 3]] * 2
    ((module, channels),) = Parts("attn", both).whole_parts(AS_HEADS)
    assert (module, channels.tolist()) == ("attn", [0, 4, 8])
    assert Parts("attn", HEADS).whole_parts(AS_CHANNELS) == []


def test_only_heads_are_tied_to_the_inputs() -> None:
    tie = SameWidth(HEADS, np.arange(12, 24))
    assert [block.tolist() for block in tie.resolve(np.append(AS_HEADS, AS_CHANNELS + 3))] == [
        list(range(12, 24)),
        list(range(12)),
    ]
    assert tie.resolve(np.arange(24)) == []
