"""Classes of options: what they take, how they are built, and what is said about a wrong option."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from typing import Annotated, Any

import numpy as np
import pytest
from pydantic import TypeAdapter, ValidationError

from prune_fe.errors import InputError
from prune_fe.options import (
    MAX_ERRORS,
    NUMBER_OR_WORD,
    SINGLE_OR_SEVERAL,
    Count,
    Natural,
    Number,
    Positive,
    Several,
    Share,
    Single,
    Word,
    explain_errors,
    option_names,
    options,
    validate_options,
)


@options
class Colours:
    """Options of every kind."""

    count: Count = 3
    share: Share | None = None
    rates: Annotated[Annotated[Positive, Single] | Annotated[dict[str, Positive], Several], SINGLE_OR_SEVERAL] = 1.0
    indices: tuple[Natural, ...] = ()
    rounds: Annotated[Annotated[Count, Number] | Annotated[str, Word], NUMBER_OR_WORD] = 1

    def __post_init__(self) -> None:
        if self.share is not None and self.count == 7:
            raise ValueError("Share and a count of 7 exclude each other")


@options
class MoreColours(Colours):
    """A subclass with an option of its own."""

    when: str = "after"


def test_options_are_built_from_defaults_a_mapping_an_instance_and_keywords() -> None:
    assert validate_options(Colours, None) == Colours()
    assert validate_options(Colours, {"count": 5}) == Colours(count=5)
    assert validate_options(Colours, Colours(count=5, share=0.5), count=6) == Colours(count=6, share=0.5)
    assert validate_options(Colours, {"count": 5}, share=0) == Colours(count=5, share=0.0)


def test_an_instance_of_a_subclass_gives_the_options_of_the_class() -> None:
    built = validate_options(Colours, MoreColours(count=4, when="each_round"))
    assert type(built) is Colours
    assert built == Colours(count=4)


def test_options_are_frozen_and_given_by_name() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        Colours().count = 4  # type: ignore[misc]
    with pytest.raises(TypeError, match="positional"):
        Colours(3)  # type: ignore[call-arg]


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"count": np.int64(4), "share": np.float32(0.5)}, Colours(count=4, share=0.5)),
        ({"indices": range(3)}, Colours(indices=(0, 1, 2))),
        ({"indices": {2}}, Colours(indices=(2,))),
        ({"indices": np.array([2, 0])}, Colours(indices=(2, 0))),
        ({"indices": [np.int8(1), 2]}, Colours(indices=(1, 2))),
        ({"rates": {"a": np.float64(0.5)}}, Colours(rates={"a": 0.5})),
        ({"rounds": "layers"}, Colours(rounds="layers")),
    ],
)
def test_numpys_numbers_and_any_collection_are_taken(given: dict[str, Any], expected: Colours) -> None:
    assert validate_options(Colours, given) == expected
    assert validate_options(Colours, None, **given) == expected


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ({"count": 0}, "count: input should be greater than or equal to 1 (got 0)"),
        ({"count": "3"}, "count: input should be a valid integer (got '3')"),
        ({"count": 3.0}, "count: input should be a valid integer (got 3.0)"),
        ({"count": True}, "count: input should be a valid integer (got True)"),
        ({"share": 1.0}, "share: input should be less than 1 (got 1.0)"),
        ({"share": float("nan")}, "share: input should be a finite number (got nan)"),
        ({"rates": float("inf")}, "rates: input should be a finite number (got inf)"),
        ({"rates": {"a": 0.0}}, "rates.a: input should be greater than 0 (got 0.0)"),
        ({"indices": [1, -1]}, "indices.1: input should be greater than or equal to 0 (got -1)"),
        ({"rounds": 0}, "rounds: input should be greater than or equal to 1 (got 0)"),
        ({"shares": 3}, "shares: unknown key; did you mean 'share'?"),
        ({"xyz": 3}, "xyz: unknown key; allowed are count, share, rates, indices, rounds"),
        ({"count": 7, "share": 0.5}, "options: share and a count of 7 exclude each other"),
        ({"count": 0, "share": 2.0}, "count: input should be greater than or equal to 1 (got 0); share: input should"),
    ],
)
def test_a_wrong_option_is_named_with_what_is_allowed_and_what_was_given(given: dict[str, Any], text: str) -> None:
    with pytest.raises(InputError) as error:
        validate_options(Colours, given)
    assert str(error.value).startswith(text)
    assert "\n" not in str(error.value)


def test_each_wrong_value_of_a_union_is_reported_once() -> None:
    with pytest.raises(InputError) as error:
        validate_options(Colours, {"rates": -1.0, "rounds": 0})
    assert str(error.value).count("got") == 2


def test_a_rule_of_several_options_is_named_by_what_was_validated() -> None:
    with pytest.raises(InputError, match="^prune: share and a count"):
        validate_options(Colours, {"count": 7, "share": 0.5}, where="prune")


def test_what_are_no_options_is_refused() -> None:
    with pytest.raises(InputError, match="options is a list; it must be Colours or a mapping"):
        validate_options(Colours, [3])


def test_no_more_than_ten_errors_are_named() -> None:
    with pytest.raises(ValidationError) as raised:
        TypeAdapter(tuple[Natural, ...]).validate_python([-1] * (MAX_ERRORS + 2))
    text = explain_errors(raised.value, lambda path: [], "indices")
    assert text.count("input should be") == MAX_ERRORS
    assert text.endswith("; and 2 more")


def test_the_names_of_the_options_are_those_of_the_fields_with_those_of_the_base_class_first() -> None:
    assert option_names(MoreColours) == [*option_names(Colours), "when"]


def test_no_options_module_loads_torch() -> None:
    modules = "prune_fe.options, prune_fe.training.options, prune_fe.scoring.options, prune_fe.pruning.options"
    heavy = "{'torch', 'pandas', 'altair', 'numba', 'sklearn'}"
    code = f"import sys, {modules}; assert not {heavy} & sys.modules.keys(), {heavy} & sys.modules.keys()"
    subprocess.run([sys.executable, "-c", code], check=True)
