"""Where the commands print: one console and one reporter for all of them."""

from __future__ import annotations

import json
import shlex
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from rich.console import Console

from prune_fe.io import finite_json
from prune_fe.report.console import ConsoleReporter, study_table
from prune_fe.report.tables import Table

WIDTH = 100
"""Columns of a table where the output is no terminal."""

console = Console(width=None if sys.stdout.isatty() else WIDTH)
reporter = ConsoleReporter(console)


@contextmanager
def noting_warnings(say: Callable[[str], None]) -> Iterator[None]:
    """Print the warnings in the block as notes, without the place in the code that they come from.

    Args:
        say: Prints a line.
    """
    with warnings.catch_warnings():
        warnings.showwarning = lambda message, *_, **__: say(f"note: {message}")
        yield


def say_next(*words: object) -> None:
    """Print the command that a user is likely to want next."""
    reporter.say("next: " + shlex.join(["prune-fe", *map(str, words)]))


def text_to_stderr(json: bool) -> None:
    """Print everything that is for people to standard error, for a command whose standard output is JSON alone."""
    console.stderr = console.stderr or json


def print_json(content: Mapping[str, Any]) -> None:
    """Print JSON to standard output, also where nothing else is printed; NaN becomes null."""
    print(json.dumps(finite_json(content), indent=1, ensure_ascii=False))


def print_tables(tables: Iterable[Table]) -> None:
    """Print the tables of a study, an empty line behind each."""
    for table in tables:
        console.print(study_table(table))
        console.print()
