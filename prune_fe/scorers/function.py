"""Scorers that are made of a function, so that a criterion of one's own needs no class."""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from prune_fe.errors import InputError
from prune_fe.scorers.base import LayerScore, Scorer, WeightScorer
from prune_fe.tracing.layers import Layer

Criterion = Callable[..., Any]
"""function(layer, weight) -> (units,) scores, higher = keep. Further parameters with defaults are its settings."""

CALL = "it is called with (layer, weight), and further parameters need defaults"


class FunctionScorer(WeightScorer):
    """Base class of the scorers that `make_scorer_class` makes; their fields are the settings of the function.

    Attributes:
        function: The function.
    """

    function: ClassVar[Criterion]

    def score_layer(self, layer: Layer, weight: Tensor) -> LayerScore:
        """Return what the function returns for a layer.

        Raises:
            InputError: That is not an array of numbers.
        """
        # A copy: a function that works in place must not change the network.
        values = type(self).function(layer, weight.clone(), **self.settings)
        if isinstance(values, LayerScore):
            return values
        if not isinstance(values, Tensor):
            try:
                values = torch.from_numpy(np.asarray(values, np.float64))
            except (TypeError, ValueError) as error:
                kind = type(values).__name__
                raise InputError(
                    f"it returned a {kind}, allowed are {layer.units} numbers, one for each unit"
                ) from error
        return LayerScore(values)


def make_scorer_class(criterion: Any, name: str | None = None) -> type[Scorer]:
    """Return a class of scorers from a criterion of the user's own.

    Args:
        criterion: A function of (layer, weight), or a class that derives from Scorer, which is returned as it is.
        name: Name of the class; by default that of the function.

    Raises:
        InputError: It is neither, or cannot be called like that.
    """
    if isinstance(criterion, type) and issubclass(criterion, Scorer):
        if missing := sorted(getattr(criterion, "__abstractmethods__", ())):
            raise InputError(f"scorer {criterion.__name__!r} has no method {' and no '.join(map(repr, missing))}")
        return criterion
    if isinstance(criterion, type) or not callable(criterion):
        what = f"the class {criterion.__name__}" if isinstance(criterion, type) else f"a {type(criterion).__name__}"
        raise InputError(
            f"scorer {name or criterion!r} is {what}; allowed are a class that derives from "
            "prune_fe.scorers.base.Scorer and a function of (layer, weight)"
        )
    name = name or _name_of(criterion)
    fields = [(key, Any, _field(value)) for key, value in _settings_of(criterion, name).items()]
    namespace = {"function": staticmethod(criterion), "__doc__": inspect.getdoc(criterion)}
    scorer_class = dataclasses.make_dataclass(name, fields, bases=(FunctionScorer,), namespace=namespace, frozen=True)
    scorer_class.__module__ = getattr(criterion, "__module__", None) or type(criterion).__module__
    return scorer_class


def _name_of(criterion: Criterion) -> str:
    """Return the name of a function, of a partial's function, or of the class of an object that can be called."""
    while isinstance(criterion, functools.partial):
        criterion = criterion.func
    return str(getattr(criterion, "__name__", type(criterion).__name__)).strip("<>")


def _settings_of(criterion: Criterion, name: str) -> dict[str, Any]:
    """Return the parameters behind (layer, weight), and their defaults.

    Raises:
        InputError: The function cannot be called with (layer, weight), or a parameter's name is taken.
    """
    try:
        signature = inspect.signature(criterion)
    except (TypeError, ValueError):  # some functions that are written in C have none
        return {}
    try:
        called = signature.bind(None, None)
    except TypeError as error:
        raise InputError(f"scorer {name!r} is a function of {signature}: {error}; {CALL}") from error
    settings = {}
    for key, parameter in signature.parameters.items():
        if key in called.arguments or parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            continue
        if parameter.kind is parameter.POSITIONAL_ONLY:
            continue  # It cannot be named, so it keeps its default.
        if hasattr(FunctionScorer, key):
            raise InputError(f"scorer {name!r}: its parameter {key!r} has the name of a method of Scorer; rename it")
        settings[key] = parameter.default
    return settings


def _field(default: Any) -> Any:
    """Return a field with a default that may be a list, of which each scorer gets the same."""
    return dataclasses.field(default_factory=lambda: default)
