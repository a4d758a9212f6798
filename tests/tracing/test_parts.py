"""Parts of channels lose equally many, or go as a whole."""

from dataclasses import replace

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
    assert [block.tolist() for block in Parts("attn", both).resolve(AS_HEADS)] == [list(range(12))] * 2
    ((module, channels),) = Parts("attn", both).whole_parts(AS_HEADS)
    assert (module, channels.tolist()) == ("attn", [0, 4, 8])
    assert Parts("attn", HEADS).whole_parts(AS_CHANNELS) == []


def test_queries_and_values_may_have_heads_of_their_own() -> None:
    """A layer that mixes the scores of heads stands between them."""
    sets = np.stack([AS_HEADS, AS_HEADS, AS_HEADS + 3]).reshape(3, 3, 4)
    channels = np.arange(36).reshape(3, 3, 4)
    assert find_whole_parts(sets) == [1]
    blocks = Parts("attn", channels).resolve(sets.ravel())
    assert [block.tolist() for block in blocks] == [list(range(start, start + 12)) for start in (0, 12, 24)]


def test_only_heads_are_certainly_tied_to_the_inputs() -> None:
    tie, as_heads = SameWidth(HEADS, np.arange(12, 24)), np.append(AS_HEADS, AS_CHANNELS + 3)
    assert [block.tolist() for block in tie.blocks()] == [list(range(12, 24)), list(range(12))]
    assert tie.is_certain(as_heads)
    assert not tie.is_certain(np.arange(24))
    assert not replace(tie, may_be_attribute=True).is_certain(as_heads)
