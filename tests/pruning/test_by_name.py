"""Of several names and patterns the most specific decides, for all layers that go together."""

from collections.abc import Mapping, Sequence

import pytest

from prune_fe.errors import InputError
from prune_fe.pruning.by_name import Choice, choose_values, match_layers
from prune_fe.pruning.groups import Group
from prune_fe.tracing.dependency_graph import SetId


def tied(*layers: str) -> Group:
    return Group(layer_units=dict.fromkeys(layers, ((0,),)), block_ids=(0,), sets=(SetId(0),))


GROUPS = (tied("stem", "stage1.0.conv2"), tied("stage1.0.conv1"), tied("stage2.0.conv1"))
TOGETHER = "decides for stem, stage1.0.conv2, which go together"


def test_one_value_is_for_all() -> None:
    assert choose_values(GROUPS, 0.5, "ratio") == (Choice(0.5),) * 3
    assert choose_values(GROUPS, None, "max_ratio") == (Choice(None),) * 3


@pytest.mark.parametrize(
    ("given", "values", "notes"),
    [
        ({"*": 0.1}, [0.1, 0.1, 0.1], [None] * 3),
        ({"*": 0.1, "stage2.0.conv1": 0.2}, [0.1, 0.1, 0.2], [None] * 3),
        (
            {"stage*": 0.1, "stage1.*": 0.2},
            [0.2, 0.2, 0.1],
            [
                f"ratio: 'stage1.*' (0.2) {TOGETHER}, not 'stage*'; nothing matches stem",
                "ratio: 'stage1.*' (0.2) decides for stage1.0.conv1, not 'stage*'",
                None,
            ],
        ),
        (  # the plain characters count, not the length
            {"stage[12345678].0.*": 0.1, "stage1.0.c*": 0.2, "stem": 0.3},
            [0.3, 0.2, 0.1],
            [
                f"ratio: 'stem' (0.3) {TOGETHER}, not 'stage[12345678].0.*' and 'stage1.0.c*'",
                "ratio: 'stage1.0.c*' (0.2) decides for stage1.0.conv1, not 'stage[12345678].0.*'",
                None,
            ],
        ),
        (
            {"stem": 0.3},
            [0.3, None, None],
            [f"ratio: 'stem' (0.3) {TOGETHER}; nothing matches stage1.0.conv2"] + [None] * 2,
        ),
        ({"stem": 0.3, "stage1.0.conv2": 0.3}, [0.3, None, None], [None] * 3),
    ],
)
def test_the_most_specific_decides(
    given: Mapping[str, float], values: Sequence[float | None], notes: Sequence[str | None]
) -> None:
    chosen = choose_values(GROUPS, given, "ratio")
    assert [choice.value for choice in chosen] == values
    assert [choice.note for choice in chosen] == notes


def test_equally_specific_ones_with_different_values_are_refused() -> None:
    names = {"stem": 0.1, "stage1.0.conv2": 0.2}
    message = (
        r"max_ratio: stem, stage1.0.conv2 go together, but are asked for \[0.1, 0.2\] by 'stem' and 'stage1.0.conv2'"
    )
    with pytest.raises(InputError, match=message):
        choose_values(GROUPS, names, "max_ratio")
    with pytest.raises(InputError, match=r"ratio: x1 is asked for \[0.1, 0.2\] by 'x\*' and '\*1', which are equally"):
        choose_values((tied("x1"),), {"x*": 0.1, "*1": 0.2}, "ratio")
    assert choose_values((tied("x1"),), {"x*": 0.1, "*1": 0.1}, "ratio") == (Choice(0.1),)


def test_a_pattern_that_matches_nothing_is_refused() -> None:
    assert match_layers(["layer*", "a"], ["layer1", "layer2", "a", "b"]) == {"layer1", "layer2", "a"}
    with pytest.raises(InputError, match="protect: no layer is called 'layr1'; near it are layer1"):
        match_layers(["layr1"], ["layer1", "b"])
    with pytest.raises(InputError, match="ratio: what 'x'; there are layer1, b and others"):
        match_layers(["x"], ["layer1", "b"], "ratio: what")
    with pytest.raises(InputError, match="max_ratio: no layer that can be pruned is called 'conv9'"):
        choose_values(GROUPS, {"conv9": 0.1}, "max_ratio")
