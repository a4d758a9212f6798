"""Check what scorers return, which may be of the user's own, and turn it into arrays."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, get_args

import numpy as np
import torch
from torch import Tensor

from prune_fe.errors import InputError
from prune_fe.scorers import scorer_name
from prune_fe.scorers.base import LayerScore, Scorer, Sums
from prune_fe.scoring.scores import Array
from prune_fe.tracing.layers import Layer

MEASUREMENTS = get_args(get_args(Sums)[1])
"""The types of the entries of a measurement."""


def check_settings(scorer: Scorer) -> None:
    """Check that the settings of a scorer can be saved with its scores.

    Raises:
        InputError: A setting is no number, text, list or mapping of these.
    """
    for key, value in scorer.settings.items():
        try:
            json.dumps(value)
        except (TypeError, ValueError) as error:
            raise InputError(
                f"scorer {scorer_name(scorer)!r}: setting {key!r} is a {type(value).__name__}, which cannot be saved "
                "with the scores; allowed are numbers, texts, None, and lists and dicts of these"
            ) from error


def check_sums(scorer: Scorer, layer: str, sums: Any) -> None:
    """Check that what `measure` returned can be added up.

    Args:
        scorer: The scorer.
        layer: Name of the layer, for the message.
        sums: What it returned.

    Raises:
        InputError: It is not a dict of tensors and the like.
    """
    who = f"scorer {scorer_name(scorer)!r}, layer {layer!r}"
    if not isinstance(sums, Mapping) or not sums:
        raise InputError(f"{who}: what it measured is {_describe(sums)}; it must be a dict of sums, at least one")
    for key, value in sums.items():
        if not isinstance(value, MEASUREMENTS):
            raise InputError(f"{who}: its sum {key!r} is {_describe(value)}; it must be a tensor of sums over images")


def collect_arrays(
    scorer: Scorer, layers: Sequence[Layer], results: Any, classes: int
) -> tuple[dict[str, Array], dict[str, dict[str, Array]]]:
    """Check the scores of all layers, and return them as arrays.

    Args:
        scorer: The scorer, for the message.
        layers: The layers that were scored.
        results: What `Scorer.score` returned.
        classes: Number of classes that have images.

    Returns:
        Layer name -> scores (units,), and quantity -> layer name -> values, (units,) or (classes, units).

    Raises:
        InputError: A layer is missing, or scores or a quantity have another shape or type, or are not finite.
    """
    name = scorer_name(scorer)
    if not isinstance(results, Mapping):
        raise InputError(f"scorer {name!r} returned {_describe(results)}; it must be layer name -> LayerScore")
    keep: dict[str, Array] = {}
    raw: dict[str, dict[str, Array]] = {}
    for layer in layers:
        who, result = f"scorer {name!r}, layer {layer.name!r}", results.get(layer.name)
        if not isinstance(result, LayerScore):
            raise InputError(f"{who}: its result is {_describe(result)}; it must be a LayerScore")
        keep[layer.name] = _scores(who, layer.units, result.keep)
        if result.raw.keys() != (first := results[layers[0].name].raw).keys():
            raise InputError(
                f"{who}: its raw quantities are {_list(result.raw)}, those of {layers[0].name!r} {_list(first)}"
            )
        for quantity, values in result.raw.items():
            raw.setdefault(quantity, {})[layer.name] = _quantity(who, quantity, values, (classes, layer.units))
    return keep, raw


def _scores(who: str, units: int, values: Any) -> Array:
    """Return the scores of one layer, (units,)."""
    array = _to_array(values)
    if array is None or array.dtype.kind not in "fiu" or array.shape != (units,):
        raise InputError(f"{who}: its scores are {_describe(values)}; they must be {units} numbers, one for each unit")
    array = array + 0.0  # -0 becomes 0
    bad = np.flatnonzero(~np.isfinite(array))
    if bad.size:
        raise InputError(f"{who}, unit {bad[0]}: the score is {array[bad[0]]}, it must be finite")
    return array


def _quantity(who: str, quantity: Any, values: Any, shape: tuple[int, int]) -> Array:
    """Return the values of one quantity of one layer, (units,) or (classes, units)."""
    array = _to_array(values)
    if not isinstance(quantity, str) or quantity == "keep":
        raise InputError(f"{who}: a raw quantity is called {quantity!r}; allowed is any text but 'keep'")
    if array is None or array.dtype.kind not in "fiub" or array.shape not in (shape, shape[1:]):
        raise InputError(
            f"{who}: its raw quantity {quantity!r} is {_describe(values)}; it must be one number for each of "
            f"{shape[1]} units, or for each of {shape[0]} classes and each unit"
        )
    return array


def _to_array(values: Any) -> Array | None:
    """Return a tensor or an array as an array; None for anything else."""
    if isinstance(values, Tensor):
        values = values.detach().cpu()
        return (values.float() if values.dtype == torch.bfloat16 else values).numpy()
    return values if isinstance(values, np.ndarray) else None


def _describe(value: Any) -> str:
    """Return what something is, for an error message."""
    if isinstance(value, Tensor | np.ndarray):
        return f"{str(value.dtype).removeprefix('torch.')} {tuple(value.shape)}"
    return "None" if value is None else f"a {type(value).__name__}"


def _list(names: Mapping[str, Any]) -> str:
    return ", ".join(map(str, names)) or "none"
