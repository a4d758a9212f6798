"""What the command line shows: progress of long steps, and the table at the end."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table

if TYPE_CHECKING:
    from prune_fe.run import Row

PLAIN_SECONDS = 15.0
"""Without a terminal a long step prints a line this often."""


class ConsoleReporter:
    """Bars on a terminal, now and then a line elsewhere."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self._bars: Progress | None = None

    @contextmanager
    def showing(self) -> Iterator[None]:
        """Inside, progress is shown as bars if there is a terminal."""
        if not self.console.is_terminal:
            yield
            return
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, console=self.console, transient=True, refresh_per_second=5) as self._bars:
            yield
        self._bars = None

    def say(self, text: str) -> None:
        self.console.print(text, markup=False, highlight=False, soft_wrap=True)

    def progress(self, task: str) -> Callable[[int, int], None]:
        if self._bars is None:
            return self._lines(task)
        bars, number = self._bars, self._bars.add_task(task, total=None)

        def update(done: int, total: int) -> None:
            bars.update(TaskID(number), completed=done, total=total or None)
            if total and done >= total:
                bars.update(TaskID(number), visible=False)

        return update

    def _lines(self, task: str) -> Callable[[int, int], None]:
        last = time.monotonic()

        def update(done: int, total: int) -> None:
            nonlocal last
            if time.monotonic() - last >= PLAIN_SECONDS:
                last = time.monotonic()
                self.say(f"  {task}: {done} of {total}" if total else f"  {task}: {done}")

        return update


def results_table(rows: Sequence[Row]) -> Table:
    """Scorer by scorer; over several seeds the mean ± standard deviation, and n."""
    seeds = {row.seed for row in rows}
    title = f"accuracy: mean ± standard deviation over {len(seeds)} seeds" if len(seeds) > 1 else "accuracy, one seed"
    caption = "images/s: median; " + ", ".join(dict.fromkeys(row.timed_with for row in rows))
    table = Table(
        title=title,
        caption=caption,
        caption_justify="left",
        box=box.SIMPLE_HEAD,
        show_edge=False,
        padding=(0, 1, 0, 0),
        title_justify="left",
    )
    table.add_column("scorer", no_wrap=True)
    headings = ("before", "after\npruning", "after fine-\ntuning", "para-\nmeters", "multiply-\nadds", "images/s")
    for heading in (*headings, "seconds\nscoring"):
        table.add_column(heading, justify="right", overflow="fold")
    for scorer in dict.fromkeys(row.scorer for row in rows):
        group = [row for row in rows if row.scorer == scorer]
        table.add_row(
            scorer,
            _spread([row.accuracy_before for row in group], ".2%"),
            _spread([row.accuracy_pruned for row in group], ".2%"),
            _spread([row.accuracy_finetuned for row in group], ".2%"),
            _count(statistics.mean(row.parameters for row in group)),
            _count(statistics.mean(row.macs for row in group)),
            f"{statistics.mean(row.images_per_second for row in group):,.0f}",
            _spread([row.scoring_seconds for row in group], ".2f"),
        )
    return table


def _spread(values: Sequence[float | None], form: str) -> str:
    known = [value for value in values if value is not None]
    if not known:
        return ""
    mean = f"{statistics.mean(known):{form}}"
    return mean if len(known) == 1 else f"{mean} ±{statistics.stdev(known):{form}}".replace("% ±", " ±")


def _count(value: float) -> str:
    for size, name in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:.2f}{name}"
    return f"{value:.0f}"
