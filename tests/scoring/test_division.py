"""Which scorer scores which layer."""

import pytest

from prune_fe.errors import InputError
from prune_fe.scorers.base import Scorer
from prune_fe.scorers.bn_scale import BNScale
from prune_fe.scorers.feature_entropy import FeatureEntropy
from prune_fe.scorers.hrank import HRank
from prune_fe.scorers.l1_filter import L1Filter
from prune_fe.scorers.taylor import Taylor
from prune_fe.scoring.division import Part, divide_layers
from prune_fe.tracing.layers import Layer

CONV = Layer("conv", 4, (8, 8))
TWICE = Layer("twice", 4, (8, 8), runs=2)
LINEAR = Layer("linear", 6, (1, 1), has_map=False, is_linear=True)
UNKNOWN = Layer("unknown", 6, (1, 1), has_map=False, is_linear=True, rows=0)
LAYERS = [CONV, TWICE, LINEAR]


@pytest.mark.parametrize(
    ("scorer", "own", "rest"),
    [
        (FeatureEntropy(), (CONV,), (TWICE, LINEAR)),
        (HRank(), (CONV, TWICE), (LINEAR,)),
        (L1Filter(), (CONV, TWICE, LINEAR), None),
    ],
)
def test_the_linear_scorer_has_the_layers_that_the_scorer_leaves_out(
    scorer: Scorer, own: tuple[Layer, ...], rest: tuple[Layer, ...] | None
) -> None:
    for are_named in (False, True):
        division = divide_layers(scorer, LAYERS, Taylor(), are_named=are_named)
        assert division.own == Part(scorer, own)
        assert division.rest == (None if rest is None else Part(Taylor(), rest))
        assert division.left_out == {}


def test_layers_that_neither_can_score_are_left_out_with_both_reasons() -> None:
    division = divide_layers(FeatureEntropy(), [CONV, LINEAR, UNKNOWN], Taylor())
    row = "it is not known which image a row of its output belongs to"
    assert division.left_out == {"unknown": f"its units have no feature maps, and for taylor {row}"}
    assert [part.layers for part in division.parts] == [(CONV,), (LINEAR,)]
    alone = divide_layers(FeatureEntropy(), [CONV, LINEAR])
    assert (alone.parts, alone.left_out) == (
        (Part(FeatureEntropy(), (CONV,)),),
        {"linear": "its units have no feature maps"},
    )
    with pytest.raises(InputError, match="feature-entropy: layer 'unknown': its units have no feature maps, and for"):
        divide_layers(FeatureEntropy(), [CONV, UNKNOWN], Taylor(), are_named=True)


def test_the_error_where_nothing_can_be_scored_names_the_reason_and_the_linear_scorer() -> None:
    hint = r"its units have no feature maps; linear_scorer \(--linear-scorer\), such as taylor, scores what"
    with pytest.raises(InputError, match=f"feature-entropy: layer 'linear': {hint}"):
        divide_layers(FeatureEntropy(), [LINEAR])
    with pytest.raises(InputError, match=f"feature-entropy: layer 'linear': {hint}"):
        divide_layers(FeatureEntropy(), LAYERS[::2], are_named=True)
    with pytest.raises(InputError, match="bn-scale: layers 'linear', 'unknown': no batch norm follows it"):
        divide_layers(BNScale(), [LINEAR, UNKNOWN])
    division = divide_layers(FeatureEntropy(), [LINEAR], Taylor())
    assert division.parts == (Part(Taylor(), (LINEAR,)),)


SMALL = Layer("small", 4, (2, 2))


def test_a_layer_with_maps_that_are_too_small_is_left_out_for_that_scorer_alone() -> None:
    division = divide_layers(FeatureEntropy(), [CONV, SMALL])
    assert division.own.layers == (CONV,)
    assert division.left_out == {"small": "maps are 2×2, a hole needs at least 4×4"}
    assert divide_layers(L1Filter(), [CONV, SMALL]).left_out == {}
    taken = divide_layers(FeatureEntropy(), [CONV, SMALL], Taylor())
    assert (taken.left_out, taken.rest) == ({}, Part(Taylor(), (SMALL,)))


@pytest.mark.parametrize(("layers", "are_named"), [([SMALL], False), ([CONV, SMALL], True)])
def test_where_nothing_is_left_or_all_are_asked_for_it_is_an_error(layers: list[Layer], are_named: bool) -> None:
    division = divide_layers(FeatureEntropy(), layers, are_named=are_named)
    assert division.left_out == {}
    with pytest.raises(InputError, match="layer 'small': maps are 2×2"):
        division.own.scorer.check(division.own.layers)
