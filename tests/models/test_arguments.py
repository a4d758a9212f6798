"""The arguments of constructors that a file may give."""

from typing import Any

import pytest

from prune_fe.errors import InputError
from prune_fe.models.arguments import ALLOWED, check_arguments


def test_numbers_words_and_lists_of_them_pass() -> None:
    check_arguments({"stages": [[8], [16, 16]], "drop_rate": 0.1, "act_layer": "relu", "aux_logits": False, "dims": []})


@pytest.mark.parametrize(
    "name",
    ["checkpoint_path", "pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "cache_dir", "weights", "self"],
)
def test_what_names_a_file_or_trained_weights_is_refused(name: str) -> None:
    assert name not in ALLOWED
    for value in ("evil", 0, {"file": "evil.pth"}):
        with pytest.raises(InputError, match=f"'{name}' is not an argument that a file may give"):
            check_arguments({name: value})


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("a/b", "act_layer is 'a/b'; a text has letters, digits and underscores only"),
        ("evil.pth", "a text has letters"),
        ("a\n", "a text has letters"),
        ([[["deep"]], [[[["deeper"]]]]], "act_layer holds a list"),
        ({"file": "x"}, "act_layer holds a dict; allowed are numbers, words and lists of them"),
        (print, "holds a builtin_function_or_method"),
        (10**7, "act_layer is 10000000; allowed are numbers up to 1000000"),
        (float("nan"), "act_layer is nan"),
        ([[1] * 600, [1] * 600], "the arguments hold 1200 values; allowed are 1000"),
    ],
)
def test_a_value_of_another_kind_is_refused(value: Any, text: str) -> None:
    with pytest.raises(InputError, match=text):
        check_arguments({"act_layer": value})


def test_a_misspelt_name_gets_a_hint() -> None:
    with pytest.raises(InputError, match=r"'stage'.*did you mean 'stages'"):
        check_arguments({"stage": [[1]]})
