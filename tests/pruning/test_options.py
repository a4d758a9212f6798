"""The options of pruning are checked once, with the same messages in a recipe and in a call."""

import subprocess
import sys
from typing import Any, Literal

import pytest

from prune_fe.errors import InputError
from prune_fe.options import options, validate_options
from prune_fe.pruning.options import PruneOptions, SensitivityOptions


@options
class Longer(PruneOptions):
    rescore: Literal["once", "each_round"] = "once"


def test_the_default_is_half_of_every_layer() -> None:
    chosen = PruneOptions()
    assert (chosen.ratio_or_default, chosen.target, chosen.removes_something) == (0.5, None, True)
    assert chosen.has_ratio_per_layer
    assert not PruneOptions(ranking="global").has_ratio_per_layer


def test_only_a_ranking_over_all_layers_has_a_limit_by_itself() -> None:
    assert PruneOptions().default_max_ratio is PruneOptions(target_macs=0.5).default_max_ratio is None
    assert PruneOptions(ranking="global").default_max_ratio == 0.9
    assert PruneOptions(ranking="global", normalise="none").default_max_ratio is None


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"normalise": "none"}, "normalise: none is for ranking: global; ranking: layer compares no layers"),
        (
            {"rounding": "floor_removed", "target_macs": 0.5},
            "rounding: floor_removed is for a ratio of each layer; a target has none",
        ),
        (
            {"rounding": "floor_removed", "ranking": "global"},
            "rounding: floor_removed is for a ratio of each layer; ranking: global has none",
        ),
        ({"normalise": "layer"}, "normalise: input should be 'group' or 'none' (got 'layer')"),
        ({"rounding": "up"}, "rounding: input should be 'floor_kept' or 'floor_removed' (got 'up')"),
    ],
)
def test_options_without_an_effect_are_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError) as caught:
        validate_options(PruneOptions, None, "", **given)
    assert str(caught.value).removeprefix("options: ") == message


@pytest.mark.parametrize(
    ("given", "target", "removes_something"),
    [
        ({"target_macs": 0.4}, ("macs", 0.4), True),
        ({"target_params": 1.0}, ("parameters", 1.0), False),
        ({"ratio": 0.0}, None, False),
        ({"ratio": {"a": 0.0, "b": 0.1}}, None, True),
        ({"ratio": {"a": 0.0}}, None, False),
    ],
)
def test_what_is_asked_for(given: dict[str, Any], target: object, removes_something: bool) -> None:
    chosen = PruneOptions(**given)
    assert (chosen.target, chosen.removes_something) == (target, removes_something)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"ratio": -0.1}, "ratio: input should be greater than or equal to 0 (got -0.1)"),
        ({"ratio": 1}, "ratio: input should be less than 1 (got 1)"),
        ({"ratio": float("nan")}, "ratio: input should be a finite number (got nan)"),
        ({"ratio": True}, "ratio: input should be a valid number (got True)"),
        ({"ratio": "0.5"}, "ratio: input should be a valid number (got '0.5')"),
        ({"ratio": {"features.0": 2}}, "ratio.features.0: input should be less than 1 (got 2)"),
        ({"ratio": {0: 0.5}}, "ratio.0: input should be a valid string (got 0)"),
        ({"max_ratio": 1}, "max_ratio: input should be less than 1 (got 1)"),
        ({"max_ratio": {"a": -1}}, "max_ratio.a: input should be greater than or equal to 0 (got -1)"),
        ({"target_params": 0}, "target_params: input should be greater than 0 (got 0)"),
        ({"scope": "max"}, "scope: input should be 'all' or 'inner' (got 'max')"),
        ({"reduction": "sum"}, "reduction: input should be 'mean', 'max' or 'min' (got 'sum')"),
        ({"ranking": "all"}, "ranking: input should be 'layer' or 'global' (got 'all')"),
        ({"round_to": 0}, "round_to: input should be greater than or equal to 1 (got 0)"),
        ({"protect": [0]}, "protect.0: input should be a valid string (got 0)"),
        ({"rounds": "all"}, "rounds: input should be 'layers' (got 'all')"),
        ({"rounds": 0}, "rounds: input should be greater than or equal to 1 (got 0)"),
        ({"rounds": True}, "rounds: input should be a valid integer (got True)"),
        ({"ratios": 0.5}, "ratios: unknown key; did you mean 'ratio' or 'max_ratio'?"),
        (
            {"ratio": 0.5, "target_macs": 0.5},
            "prune(): ratio and target_macs were given; a network is pruned by one of them",
        ),
        (
            {"ratio": {"a": 0.5}, "ranking": "global"},
            "prune(): ranking: global takes one ratio for all layers, not one for each",
        ),
    ],
)
def test_a_wrong_option_is_refused_with_one_message(given: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError) as caught:
        validate_options(PruneOptions, None, "prune()", **given)
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            {"ratio": "auto"},
            "prune(): ratio: auto needs a target to spread over the layers: target_macs or target_params",
        ),
        (
            {"ratio": "auto", "target_macs": 0.5, "ranking": "global"},
            "prune(): ratio: auto says how much each layer loses, and so does ranking: global; choose one",
        ),
        (
            {"ratio": "auto", "target_macs": 0.5, "target_params": 0.5},
            "prune(): target_macs and target_params were given; a network is pruned by one of them",
        ),
        (
            {"ratio": "auto", "target_macs": 0.5, "engine": "torch-pruning"},
            "prune(): ratio: auto is measured with the groups of engine: trace; another engine may find others",
        ),
        ({"ratio": "all"}, "ratio: input should be a valid number (got 'all')"),
        ({"ratio": {"a": "auto"}}, "ratio.a: input should be a valid number (got 'auto')"),
        ({"max_ratio": "auto"}, "max_ratio: input should be a valid number (got 'auto')"),
    ],
)
def test_what_cannot_stand_beside_the_ratio_auto(given: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError) as caught:
        validate_options(PruneOptions, None, "prune()", **given)
    assert str(caught.value) == message


def test_the_ratio_auto_stands_beside_a_target() -> None:
    chosen = validate_options(PruneOptions, {"ratio": "auto", "target_params": 0.3})
    assert (chosen.is_auto, chosen.target, chosen.amount) == (True, ("parameters", 0.3), ("target_params", 0.3))
    assert (chosen.default_max_ratio, chosen.has_ratio_per_layer, chosen.removes_something) == (0.9, False, True)
    assert not PruneOptions(target_macs=0.5).is_auto
    assert PruneOptions(target_macs=0.5).amount == ("target_macs", 0.5)
    assert PruneOptions().amount == ("ratio", 0.5)
    assert PruneOptions(ratio={"a": 0.25}).amount == ("ratio", {"a": 0.25})


def test_the_ratios_of_a_sensitivity_rise() -> None:
    assert validate_options(SensitivityOptions, {"ratios": [0.5]}).ratios == (0.5,)
    assert SensitivityOptions().ratios == (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)


def test_one_pattern_may_be_given_without_a_list() -> None:
    assert validate_options(PruneOptions, {"protect": "layer1.*"}).protect == ("layer1.*",)
    assert validate_options(PruneOptions, {"protect": ["a", "b"]}).protect == ("a", "b")


def test_keywords_replace_options_and_a_subclass_may_be_given() -> None:
    given = validate_options(Longer, {"ratio": 0.3, "rescore": "each_round"})
    assert validate_options(PruneOptions, given, round_to=8) == PruneOptions(ratio=0.3, round_to=8)
    with pytest.raises(InputError, match="global takes one ratio"):
        validate_options(Longer, {"ratio": {"a": 0.5}, "ranking": "global"})


def test_the_options_do_not_load_torch() -> None:
    code = "import sys, prune_fe.pruning.options; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
