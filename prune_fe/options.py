"""Options: one frozen dataclass for a recipe section, a function's keywords and a command's flags.

A class of options is a standard dataclass whose annotations carry its ranges (pydantic's `Field`). A recipe embeds
it, `validate_options` builds it from the keywords of a Python call, and the command line flattens it into flags. An
option is therefore declared once. Nothing here loads torch.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import reprlib
import typing
from collections.abc import Collection, Mapping, Sequence
from typing import Annotated, Any, TypeVar, dataclass_transform

from pydantic import (
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    StrictFloat,
    StrictInt,
    Tag,
    TypeAdapter,
    ValidationError,
)

from prune_fe.errors import InputError
from prune_fe.io import nearest

Count = Annotated[StrictInt, Field(ge=1, lt=2**31)]
Natural = Annotated[StrictInt, Field(ge=0, lt=2**31)]
Share = Annotated[StrictFloat, Field(ge=0, lt=1)]
ShareLeft = Annotated[StrictFloat, Field(gt=0, le=1)]
NonNegative = Annotated[StrictFloat, Field(ge=0, allow_inf_nan=False)]
Positive = Annotated[StrictFloat, Field(gt=0, allow_inf_nan=False)]
Seed = Annotated[StrictInt, Field(ge=0, lt=2**31)]
Size = Annotated[StrictInt, Field(ge=1, le=2**13)]
BatchSize = Annotated[StrictInt, Field(ge=1, le=2**20)]
Workers = Annotated[StrictInt, Field(ge=0, le=2**10)]
Threads = Annotated[StrictInt, Field(ge=1, le=2**10)]
Epochs = Annotated[StrictInt, Field(ge=1, le=100_000)]
Repeats = Annotated[StrictInt, Field(ge=1, le=10_000)]
Patterns = Annotated[tuple[str, ...], BeforeValidator(lambda value: (value,) if isinstance(value, str) else value)]

# Pydantic tries every alternative of a plain union and reports each of its errors. A tagged union checks one of them.
Single, Several = Tag("[one]"), Tag("[many]")
"""Tags of the two alternatives of an option that is one value or several (or a mapping)."""

SINGLE_OR_SEVERAL = Discriminator(lambda value: "[many]" if isinstance(value, list | tuple | Mapping) else "[one]")
"""Check a list or a mapping as the alternative tagged `Several`, everything else as the one tagged `Single`."""

Number, Word = Tag("[number]"), Tag("[word]")
"""Tags of the two alternatives of an option that is a number or one of some words."""

NUMBER_OR_WORD = Discriminator(lambda value: "[word]" if isinstance(value, str) else "[number]")
"""Check a text as the alternative tagged `Word`, everything else as the one tagged `Number`."""

YAML_WORDS = {
    "Input should be a valid tuple": "Input should be a valid list",
    "Tuple should have": "List should have",
}
"""Beginnings of pydantic's messages -> what they say here: a recipe has lists, and no tuples."""

MAX_ERRORS = 10
"""At most this many errors are named in one message."""

T = TypeVar("T")


@dataclass_transform(frozen_default=True, kw_only_default=True)
def options(cls: type[T]) -> type[T]:
    """Make `cls` a frozen, keyword-only dataclass that pydantic validates strictly.

    Unknown keys, NaN and infinite numbers are errors wherever pydantic builds it: in a recipe and in
    `validate_options`. Rules that concern several options belong into `__post_init__`, as ValueError.
    """
    cls.__pydantic_config__ = ConfigDict(extra="forbid", allow_inf_nan=False)  # type: ignore[attr-defined]
    made = dataclasses.dataclass(frozen=True, kw_only=True)(cls)
    # cyclopts would look for the names in inherited annotations in the module of the subclass.
    with contextlib.suppress(NameError):  # of a class inside a function
        made.__init__.__annotations__.update(typing.get_type_hints(made, include_extras=True))
    return made


def validate_options(cls: type[T], given: T | Mapping[str, Any] | None, where: str = "", **keywords: Any) -> T:
    """Build and validate an instance of the options class `cls`.

    Args:
        cls: A class made by `options`.
        given: An instance of it or of a subclass, or a mapping of option names to values; None stands for the defaults.
        where: What to name in front of an error, such as the section of a recipe.
        keywords: Options that replace those of `given`.

    Returns:
        A new instance.

    Raises:
        InputError: An option is unknown, of a wrong type or out of range.
    """
    if given is None:
        values: dict[str, Any] = {}
    elif isinstance(given, cls):
        values = {name: getattr(given, name) for name in option_names(cls)}
    elif isinstance(given, Mapping):
        values = _plain(given)
    else:
        raise InputError(f"options is a {type(given).__name__}; it must be {cls.__name__} or a mapping")
    try:
        built: T = _adapter(cls).validate_python(values | _plain(keywords))  # type: ignore[arg-type]
    except ValidationError as error:
        raise InputError(explain_errors(error, lambda path: _names_at(cls, path), where)) from None
    return built


def validate_value(kind: Any, value: Any, name: str) -> Any:
    """Validate one argument of a function.

    Args:
        kind: Its type with its range, such as `Count`.
        value: What the caller gave; numbers of NumPy are accepted.
        name: Name of the argument, for the error.

    Returns:
        The value.

    Raises:
        InputError: The value is of a wrong type or out of range.

    >>> validate_value(Count, 3, "epochs")
    3
    """
    try:
        return TypeAdapter(kind).validate_python(_plain(value))
    except ValidationError as error:
        text = explain_errors(error, lambda _: (), name)
        # pydantic's place is inside the value: an index or a key.
        raise InputError(text if text.startswith(f"{name}:") else f"{name}.{text}") from None


def _plain(value: Any) -> Any:
    """Return ranges, sets, and the arrays and numbers of NumPy as lists and numbers, which strict types take."""
    if hasattr(value, "tolist"):
        return value.tolist()
    if isinstance(value, Mapping):
        return {key: _plain(entry) for key, entry in value.items()}
    if isinstance(value, Collection) and not isinstance(value, str | bytes):
        return [_plain(entry) for entry in value]
    return value


def option_names(cls: type[Any]) -> list[str]:
    """Return the names of the options of an options class or a pydantic model."""
    return list(getattr(cls, "model_fields", None) or [field.name for field in dataclasses.fields(cls)])


def _names_at(cls: Any, path: Sequence[str | int]) -> list[str]:
    """Return the names of the options of `cls`, or of the options class that one of them holds.

    Args:
        cls: A class made by `options`.
        path: Names of options that lead to the inner class.
    """
    for name in path:
        annotation = typing.get_type_hints(cls)[str(name)]
        cls = next(kind for kind in (annotation, *typing.get_args(annotation)) if dataclasses.is_dataclass(kind))
    return option_names(cls)


def explain_errors(error: ValidationError, names_at: Any, where: str = "") -> str:
    """Return pydantic's errors as one line: for each the option's path, what is wrong and the value.

    Args:
        error: What pydantic raised.
        names_at: Function from the path of a section (a tuple) to the keys that the section has.
        where: Name of what was validated; it stands for the path where an error concerns the whole.
    """
    errors = error.errors(include_url=False)
    places = [fault["loc"] for fault in errors]
    # A tuple whose items are wrong is also reported as too short, since wrong items do not count.
    errors = [
        fault
        for fault in errors
        if fault["type"] != "too_short"
        or not any(place != fault["loc"] and place[: len(fault["loc"])] == fault["loc"] for place in places)
    ]
    faults = [_explain(fault, names_at, where) for fault in errors]
    more = [f"and {len(faults) - MAX_ERRORS} more"] if len(faults) > MAX_ERRORS else []
    return "; ".join(faults[:MAX_ERRORS] + more)


def _explain(fault: Any, names_at: Any, where: str) -> str:
    # pydantic puts the tags of a tagged union, such as "[one]", into the path; they are no keys.
    path = tuple(part for part in fault["loc"] if not (isinstance(part, str) and part.startswith("[")))
    name = ".".join(map(str, path)) or where or "options"
    if fault["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
        return f"{name}: unknown key; {nearest(str(path[-1]), names_at(path[:-1]))}"
    message = fault["msg"].removeprefix("Value error, ")
    for words, plain in YAML_WORDS.items():
        message = message.replace(words, plain)
    given = fault.get("input")
    shown = isinstance(given, str | int | float) and fault["type"] != "value_error"
    return f"{name}: {message[0].lower()}{message[1:]}" + (f" (got {reprlib.repr(given)})" if shown else "")


@functools.cache
def _adapter(cls: Any) -> TypeAdapter[Any]:
    return TypeAdapter(cls)
