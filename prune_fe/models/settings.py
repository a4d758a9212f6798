"""The settings of a network's modules: every attribute that is not a tensor, as JSON.

In a pruned network some of them (channel counts, sizes of splits and views) differ from those that its constructor
sets. Settings are compared to find out whether a constructor builds the same network, and set on a new one by `load`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import nn

from prune_fe.errors import CheckpointError

CHANNEL_COUNTS = frozenset(
    {
        "in_channels",
        "out_channels",
        "groups",
        "num_features",
        "in_features",
        "out_features",
        "num_channels",
        "num_groups",
        "normalized_shape",
        "num_parameters",
    }
)
"""The settings of torch's own modules that pruning changes."""

_NO_SETTINGS = vars(nn.Module()).keys() | {"pretrained_cfg", "default_cfg"}
"""Attributes of every module, and timm's notes on where weights come from."""


Settings = Mapping[str, Mapping[str, Any]]
"""Module -> attribute -> JSON value."""


def module_settings(model: nn.Module) -> dict[str, dict[str, Any]]:
    """Return module -> attribute -> JSON value, for every attribute but tensors that a forward pass may read."""
    return {name: dict(_settings_of(module)) for name, module in model.named_modules()}


def _settings_of(module: nn.Module) -> Iterator[tuple[str, Any]]:
    """Yield the class and the settings of one module."""
    yield "class", _to_json(type(module))
    for key, value in vars(module).items():
        if key not in _NO_SETTINGS:
            yield key, _to_json(value)


def _to_json(value: Any) -> Any:
    """Return None, bool, int, float, str and lists of them as they are, and {"is": name} for anything else."""
    if value is None or type(value) in (bool, int, float, str):
        return value
    if type(value) in (list, tuple, torch.Size):
        entries = [_to_json(entry) for entry in value]
        return {"is": json.dumps(entries)} if "{" in json.dumps(entries) else entries
    # A generator has a qualified name, but no module.
    named = value if hasattr(value, "__qualname__") and hasattr(value, "__module__") else type(value)
    return {"is": f"{named.__module__}.{named.__qualname__}"}


def whole_number_settings(model: nn.Module) -> dict[str, dict[str, Any]]:
    """Return the settings that are whole numbers or lists of them, such as channel counts and sizes of splits."""
    settings = {
        name: {key: value for key, value in own.items() if _is_whole(value)}
        for name, own in module_settings(model).items()
    }
    return {name: values for name, values in settings.items() if values}


def _is_whole(value: Any) -> bool:
    return bool(value) and all(map(_is_whole, value)) if isinstance(value, list) else type(value) is int


def split_settings(settings: Settings, known: Settings) -> tuple[Settings, Settings]:
    """Split the settings of a network into those that its constructor makes, and those that were added later.

    Args:
        settings: The settings of the network.
        known: The settings of a network that comes from the constructor.

    Returns:
        The settings without the additions, and the additions that JSON can express.
    """
    added = {
        name: {
            key: value for key, value in own.items() if name in known and key not in known[name] and _is_plain(value)
        }
        for name, own in settings.items()
    }
    made = {
        name: {key: value for key, value in own.items() if key not in added.get(name, ())}
        for name, own in settings.items()
    }
    return made, {name: own for name, own in added.items() if own}


def _is_plain(value: Any) -> bool:
    return all(map(_is_plain, value)) if isinstance(value, list) else not isinstance(value, dict)


def add_settings(model: nn.Module, added: Settings, where: object) -> None:
    """Set attributes that a network's modules may not have, such as a note of the user's on a layer.

    Args:
        model: The network.
        added: module -> attribute -> value, as `split_settings` returns them. Lists become tuples.
        where: What to name in an error.

    Raises:
        CheckpointError: A module does not exist, or the attribute is one that its class needs.
    """
    modules = dict(model.named_modules())
    for name, values in added.items():
        for key, value in values.items():
            if name not in modules or not _can_be_added(modules[name], key, value):
                raise CheckpointError(
                    f"{where}: module {name!r} cannot have {key} = {str(value)[:60]!r} in {type(model).__name__}"
                )
            setattr(modules[name], key, _to_tuples(value))


def _can_be_added(module: nn.Module, key: str, value: Any) -> bool:
    """Return whether an attribute that a constructor did not set may be set: it must not hide a method or a tensor."""
    if not key.isidentifier() or key.startswith("__") or key in _NO_SETTINGS or not _is_plain(value):
        return False
    of_class = [vars(base)[key] for base in type(module).__mro__ if key in vars(base)]
    if of_class:  # an attribute of the class, such as the number `expansion`
        return _kind(_to_json(of_class[0])) == _kind(value)
    return key in vars(module) or not hasattr(module, key)


def _to_tuples(value: Any) -> Any:
    return tuple(map(_to_tuples, value)) if isinstance(value, list) else value


def apply_settings(model: nn.Module, settings: Settings, where: object, *, may_add: bool = False) -> None:
    """Set attributes of a network's modules: only those that exist, and only to values of the same kind.

    Args:
        model: The network.
        settings: module -> attribute -> value, as `module_settings` returns them.
        where: What to name in an error.
        may_add: Whether attributes may be set that do not exist, are None or are an empty list: a user's network may
            write sizes into such attributes when it runs.

    Raises:
        CheckpointError: A module or attribute does not exist, or a value is of another kind.
    """
    modules = dict(model.named_modules())
    for name, values in settings.items():
        if name not in modules:
            raise CheckpointError(f"{where}: module {name!r} is not in {type(model).__name__}; another architecture")
        known = dict(_settings_of(modules[name]))
        for key, value in values.items():
            is_open = key not in known or known[key] is None or known[key] == []
            if may_add and is_open and _can_be_added(modules[name], key, value):
                old = vars(modules[name]).get(key)
                setattr(modules[name], key, list(value) if isinstance(old, list) else _to_tuples(value))
                continue
            if key not in known or _kind(value) != _kind(known[key]):
                raise CheckpointError(
                    f"{where}: module {name!r} cannot have {key} = {str(value)[:60]!r} in {type(model).__name__}; "
                    "another architecture, or another version of its library"
                )
            if value != known[key]:
                setattr(modules[name], key, _from_json(value, vars(modules[name])[key]))


def _kind(value: Any) -> Any:
    """Return what must be equal for one value to replace another: numbers, lists of one length, names as they are."""
    if isinstance(value, dict):
        return json.dumps(value)
    if isinstance(value, list):
        return tuple(_kind(entry) for entry in value)
    return "number" if type(value) in (int, float) else type(value)


def _from_json(value: Any, old: Any) -> Any:
    """Return a JSON value with its lists as lists, tuples or sizes, as the old value has them."""
    return type(old)(tuple(map(_from_json, value, old))) if isinstance(value, list) else value
