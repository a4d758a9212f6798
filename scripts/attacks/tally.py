"""Counts of right and wrong outcomes, and work on several cores."""

from __future__ import annotations

import os
import pickle
import traceback
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

Outcome = str | None
"""What was wrong, or None for a right outcome."""

Value = TypeVar("Value")


@dataclass
class Tally:
    """What was tried, by kind of attack.

    Attributes:
        counts: Kind -> [right, wrong].
        wrong: A text for each wrong outcome.
    """

    counts: dict[str, list[int]] = field(default_factory=dict)
    wrong: list[str] = field(default_factory=list)

    def count(self, kind: str, outcomes: Iterable[Outcome]) -> None:
        """Count the outcomes of a kind of attack."""
        pair = self.counts.setdefault(kind, [0, 0])
        for problem in outcomes:
            pair[problem is not None] += 1
            if problem is not None:
                self.wrong.append(f"{kind}: {problem}")

    def table(self, title: str = "attack") -> str:
        """Return the counts as a Markdown table."""
        rows = [f"| {kind} | {sum(pair)} | {pair[0]} | {pair[1]} |" for kind, pair in self.counts.items()]
        total = [sum(pair[column] for pair in self.counts.values()) for column in (0, 1)]
        rows.append(f"| all | {sum(total)} | {total[0]} | {total[1]} |")
        return "\n".join([f"| {title} | tried | right | wrong |", "|---|---:|---:|---:|", *rows])


def in_parallel(works: Sequence[Callable[[], Value]], directory: Path, cores: int) -> list[Value]:
    """Return what each function returns; each runs in a copy of this process, which has imported everything already.

    Args:
        works: The functions, the longest first.
        directory: Where the processes write what they return.
        cores: How many run at a time.

    Raises:
        RuntimeError: A function raised an error, whose traceback is printed.
    """
    waiting, running, failed = list(enumerate(works)), dict[int, int](), list[int]()
    while waiting or running:
        if waiting and len(running) < cores:
            number, work = waiting.pop(0)
            process = os.fork()
            if process == 0:
                _work(work, directory / f"returned-{number}")
            running[process] = number
            continue
        process, status = os.wait()
        number = running.pop(process)
        if status:
            failed.append(number)
            waiting.clear()
    if failed:
        raise RuntimeError(f"work {failed} ended with an error")
    return [pickle.loads((directory / f"returned-{number}").read_bytes()) for number in range(len(works))]


def _work(work: Callable[[], object], path: Path) -> None:
    """Write what a function returns to a file, and end the process."""
    try:
        path.write_bytes(pickle.dumps(work()))
        os._exit(0)
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(1)
