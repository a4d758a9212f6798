"""Identify the code of a scorer of the user's own, so that its scores are not taken for those of changed code."""

from __future__ import annotations

import functools
import hashlib
import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from types import CodeType, FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np
from torch import Tensor, nn

from prune_fe.scorers.base import Scorer, is_built_in
from prune_fe.scorers.function import FunctionScorer
from prune_fe.scoring.fingerprint import hash_tensors

_SPLIT: Mapping[Any, Callable[[Any], Iterable[Any]]] = {
    (tuple, list): lambda value: value,
    (set, frozenset): lambda value: sorted(map(repr, value)),  # The order of a set differs between processes.
    Mapping: lambda value: value.items(),
    Tensor: lambda value: [hash_tensors({"": value})],
    nn.Module: lambda value: [type(value), hash_tensors(value.state_dict())],
    CodeType: lambda value: [value.co_code, value.co_names, value.co_varnames, value.co_consts],
    functools.partial: lambda value: [value.func, value.args, value.keywords],
    MethodType: lambda value: [value.__func__, value.__self__],
    (staticmethod, classmethod): lambda value: [value.__func__],
    property: lambda value: [value.fget],
}
"""Types -> the parts that values of them consist of."""

CONSTANTS = bool | int | float | complex | str | bytes | np.generic | None


def describe_code(scorer: Scorer) -> dict[str, str]:
    """Return what `describe_function` returns for the code of a scorer; nothing for a scorer of prune_fe's own.

    Args:
        scorer: The scorer.
    """
    if is_built_in(scorer):
        return {}
    return describe_function(type(scorer).function if isinstance(scorer, FunctionScorer) else type(scorer))


def describe_function(code: Any) -> dict[str, str]:
    """Return where the code of a function or class is, and a hash of it.

    The hash is of Python's byte code, which is what runs, whatever has become of its file. It covers what the code
    refers to: values of outer functions and of its module, partial arguments, and functions and classes of the same
    package. Those of other packages count by their names. Another version of Python gives another hash.

    Args:
        code: The function or class.

    Returns:
        "name": module and name of the function or class; "sha256": the hash, in hexadecimal.
    """
    named = code
    while isinstance(named, functools.partial):
        named = named.func
    if not hasattr(named, "__qualname__"):
        named = type(named)
    digest = hashlib.sha256()
    for part in _Reader(_package(named)).parts(code):
        digest.update(part)
    return {"name": f"{named.__module__}.{named.__qualname__}", "sha256": digest.hexdigest()}


class _Reader:
    """Turns code and what it refers to into bytes.

    Args:
        package: The package whose functions and classes are read; those of others count by their names.
    """

    def __init__(self, package: str) -> None:
        self._package = package
        # The references keep the ids from being used again.
        self._seen: dict[int, Any] = {}

    def parts(self, value: Any) -> Iterator[bytes]:
        """Yield the bytes of a value and of what it refers to, each object once."""
        yield type(value).__qualname__.encode()
        if isinstance(value, CONSTANTS):
            yield repr(value).encode()
        elif id(value) not in self._seen:
            self._seen[id(value)] = value
            yield from self._object(value)

    def _object(self, value: Any) -> Iterator[bytes]:
        split = next((split for kinds, split in _SPLIT.items() if isinstance(value, kinds)), None)
        if split is not None:
            for part in split(value):
                yield from self.parts(part)
        elif isinstance(value, np.ndarray):
            yield value.tobytes()
        elif isinstance(value, FunctionType) and _package(value) == self._package:
            yield from self._function(value)
        elif isinstance(value, type) and _package(value) == self._package:
            yield from self._class(value)
        elif _package(type(value)) == self._package:
            yield from self.parts([type(value), vars(value) if hasattr(value, "__dict__") else ()])
        else:
            name = value.__name__ if isinstance(value, ModuleType) else getattr(value, "__qualname__", "")
            yield f"{getattr(value, '__module__', '')}.{name}".encode()

    def _function(self, function: FunctionType) -> Iterator[bytes]:
        yield from self.parts([function.__code__, function.__defaults__, function.__kwdefaults__])
        try:
            variables = inspect.getclosurevars(function)
        except ValueError:  # a variable of an outer function has no value yet
            return
        yield from self.parts([variables.nonlocals, variables.globals])

    def _class(self, kind: type) -> Iterator[bytes]:
        yield from self.parts(list(kind.__bases__))
        for key, value in vars(kind).items():
            # The methods that dataclasses write depend on the fields alone, which are settings.
            is_generated = isinstance(value, FunctionType) and value.__code__.co_filename == "<string>"
            is_special = key.startswith("__") and not isinstance(value, FunctionType)
            if not (is_generated or is_special or key.startswith("_abc_")):
                yield from self.parts((key, value))


def _package(value: Any) -> str:
    """Return the outermost package of the module that a function or class is in."""
    return (getattr(value, "__module__", None) or "").partition(".")[0]
