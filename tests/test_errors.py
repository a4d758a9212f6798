"""Errors: one exit code each, and they can be caught as the built-in errors that they are."""

import pytest

from prune_fe.errors import (
    CheckpointError,
    DataError,
    EnvironmentFault,
    InputError,
    PruneFEError,
    describe_error,
    first_line,
)

ERRORS = [InputError, DataError, CheckpointError, EnvironmentFault]


def test_every_error_has_an_exit_code_of_its_own() -> None:
    assert [error.exit_code for error in [PruneFEError, *ERRORS]] == [1, 2, 3, 4, 5]


@pytest.mark.parametrize("error", ERRORS)
def test_an_error_is_also_a_built_in_one(error: type[PruneFEError]) -> None:
    built_in = RuntimeError if error is EnvironmentFault else ValueError
    with pytest.raises(built_in, match="what, where, got, allowed"):
        raise error("what, where, got, allowed")
    assert issubclass(error, PruneFEError)


def test_the_first_line_of_an_error_that_says_something() -> None:
    bare, long = KeyError(), RuntimeError("\n  a shape  \nand a traceback")
    assert (first_line(bare), describe_error(bare)) == ("KeyError", "KeyError")
    assert (first_line(long), describe_error(long)) == ("a shape", "RuntimeError: a shape")
