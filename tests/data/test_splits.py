"""Splits: stratified, disjoint, complete."""

from collections import Counter

from hypothesis import given, settings
from hypothesis import strategies as st

from prune_fe.data.splits import split_by_class


@settings(max_examples=500, deadline=None)
@given(
    targets=st.lists(st.integers(0, 4), min_size=1, max_size=60),
    share=st.floats(0.01, 0.9),
    seed=st.integers(0, 2**31 - 1),
)
def test_a_split_is_stratified_disjoint_and_complete(targets, share, seed):
    kept, held_out = split_by_class(targets, share, seed)
    assert sorted(kept + held_out) == list(range(len(targets)))
    assert (kept, held_out) == split_by_class(targets, share, seed)
    held = Counter(targets[i] for i in held_out)
    for label, count in Counter(targets).items():
        assert held[label] == min(max(round(share * count), 1), count - 1)
