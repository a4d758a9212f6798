"""Checks of what the user gave that need no torch, so that a mistake is answered before any work."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from prune_fe.data.registry import SOURCES, is_on_hub
from prune_fe.errors import DataError, EnvironmentFault, InputError
from prune_fe.io import claimed, nearest
from prune_fe.scorers import SCORERS


def parse_assignments(words: Sequence[str] | None) -> dict[str, Any]:
    """Return the keys and values of `--set KEY=VALUE ...`; values are read as in a recipe's YAML."""
    from prune_fe.experiment.recipe import parse_value

    values = {}
    for word in words or ():
        key, equals, value = word.partition("=")
        if not equals or not key:
            raise InputError(f"--set {word}: write KEY=VALUE")
        values[key] = parse_value(value)
    return values


def scorer_settings(scorers: Sequence[str], assignments: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the settings of each scorer from KEY=VALUE (a single scorer) or SCORER.KEY=VALUE (one of several)."""
    settings: dict[str, dict[str, Any]] = {name: {} for name in scorers}
    for key, value in assignments.items():
        name, dot, setting = key.rpartition(".")
        if not dot and len(settings) > 1:
            raise InputError(f"--set {key}: there are several scorers, write SCORER.{key}=VALUE")
        if dot and name not in settings:
            raise InputError(f"--set {key}: {name!r} is not among the scorers {', '.join(settings)}")
        settings[name or scorers[0]][setting] = value
    return settings


def require_scorers(names: Sequence[str]) -> None:
    """Raise InputError unless each name is a scorer's and none is given twice."""
    if not names:
        raise InputError("--scorer: name at least one")
    for name in names:
        if name not in SCORERS:
            raise InputError(f"--scorer {name}: {nearest(name, SCORERS)}")
        if list(names).count(name) > 1:
            raise InputError(f"--scorer {name}: given twice")


def require_new(output: Path) -> None:
    """Raise an error if `output` exists or cannot be created, before any work is done for it."""
    if output.exists():
        raise InputError(f"{output} exists already; choose another --output")
    parent = next(folder for folder in output.absolute().parents if folder.exists())
    if not (parent.is_dir() and os.access(parent, os.W_OK)):
        raise EnvironmentFault(f"{output}: {parent} is not a folder that can be written to; choose another --output")


@contextmanager
def new_output(output: Path) -> Iterator[None]:
    """Claim a file or folder that does not exist yet, before any work is done for it, until the block ends.

    Raises:
        InputError: It exists.
        EnvironmentFault: It cannot be created, or another process is about to write it.
    """
    require_new(output)
    with claimed(output):
        require_new(output)  # another process may have written it in between
        yield


def require_data(data: str | None) -> None:
    """Raise DataError if `data` is a path and nothing is there."""
    needs_no_path = data is None or (data in SOURCES and not SOURCES[data].needs_path) or is_on_hub(data)
    if not needs_no_path and not Path(str(data)).exists():
        raise DataError(f"{data}: no such folder or tar file")
