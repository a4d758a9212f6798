"""Filter L1 and random, by hand."""

import torch
from torch import nn

from prune_fe.layers import Layer
from prune_fe.scorers.l1_filter import L1Filter
from prune_fe.scorers.random import Random
from prune_fe.scoring import score


def test_filter_l1_is_the_sum_of_absolute_weights() -> None:
    conv = nn.Conv2d(2, 3, 1, bias=False)
    conv.weight = nn.Parameter(torch.tensor([[1.0, -2.0], [0.0, 0.0], [-3.0, -4.0]]).view(3, 2, 1, 1))
    assert score(nn.Sequential(conv), scorer="l1-filter").keep["0"].tolist() == [3, 0, 7]


def test_filter_l1_of_a_grouped_convolution_is_that_of_each_filter() -> None:
    conv = nn.Conv2d(4, 4, 3, groups=4)
    expected = [sum(abs(w) for w in filter.flatten().tolist()) for filter in conv.weight.double()]
    assert torch.allclose(
        L1Filter().score_layer(Layer("", 4, (0, 0)), conv.weight.double()).keep, torch.tensor(expected).double()
    )


def test_random_is_a_permutation_that_depends_on_seed_and_layer_only() -> None:
    layers = [Layer("a", 40, (0, 0)), Layer("b", 40, (9, 9))]
    one, again, other = (Random(seed).score(nn.Identity(), layers, {}) for seed in (0, 0, 1))
    assert sorted(one["a"].keep.tolist()) == list(range(40))
    assert one["a"].keep.equal(again["a"].keep)
    assert not one["a"].keep.equal(one["b"].keep)
    assert not one["a"].keep.equal(other["a"].keep)
