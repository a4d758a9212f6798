"""The control: a permutation that anybody can draw again."""

import pytest
from torch import nn

from prune_fe.errors import InputError
from prune_fe.scorers.random import Random
from prune_fe.tracing.layers import Layer


def test_it_is_a_permutation_that_depends_on_seed_and_layer_only() -> None:
    layers = [Layer("a", 40, (0, 0)), Layer("b", 40, (9, 9))]
    one, again, other = (Random(seed).score(nn.Identity(), layers, {}) for seed in (0, 0, 1))
    assert sorted(one["a"].keep.tolist()) == list(range(40))
    assert one["a"].keep.equal(again["a"].keep)
    assert not one["a"].keep.equal(one["b"].keep)
    assert not one["a"].keep.equal(other["a"].keep)


def test_other_layers_beside_it_change_nothing() -> None:
    a, b = Layer("a", 9, (0, 0)), Layer("b", 9, (0, 0))
    together, alone = Random(3).score(nn.Identity(), [a, b], {}), Random(3).score(nn.Identity(), [b], {})
    assert together["b"].keep.equal(alone["b"].keep)


def test_it_stays_what_it_was_in_earlier_versions() -> None:
    # Printed once; a result that is kept can be drawn again.
    keep = Random(0).score(nn.Identity(), [Layer("conv", 6, (0, 0))], {})["conv"].keep
    assert keep.tolist() == [4, 2, 3, 0, 1, 5]


@pytest.mark.parametrize("seed", [1.0, True, "one", None])
def test_wrong_settings_say_what_is_allowed(seed: object) -> None:
    with pytest.raises(InputError, match=f"random: seed is {seed!r}, allowed are whole numbers"):
        Random(seed)  # type: ignore[arg-type]
