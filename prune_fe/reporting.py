"""What the command line shows: progress of long steps, and the table at the end."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table

if TYPE_CHECKING:
    from prune_fe.run import Row
    from prune_fe.scores import Scores
    from prune_fe.studies import Table as StudyTable

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
    table = _plain_table(title, caption)
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


def study_table(study: StudyTable) -> Table:
    """A table as the paper prints it."""
    table = _plain_table(study.title, study.note)
    table.add_column("", overflow="fold", min_width=12)
    for column in study.forms:
        table.add_column(column, justify="right", overflow="fold")
    for row in study.rows:
        table.add_row(row, *(study.text(row, column) for column in study.forms))
    return table


def layer_table(label: str, scores: Scores) -> Table:
    """A line a layer: its units, the means of the scorer's quantities, and how far its scores lie apart."""
    cost = f"{scores.own_seconds:.2f} s for the scorer alone"
    if scores.peak_bytes is not None:
        cost += f", at most {scores.peak_bytes / 2**20:,.0f} MiB of memory on top of the network's"
    of = f" on {scores.images} images of {len(scores.classes)} classes" if scores.images else ""
    table = _plain_table(f"{label}{of}", f"means over the units; {cost}")
    table.add_column("layer", no_wrap=True)
    for heading in ("units", "map", *scores.raw, "keep, lowest", "keep, highest"):
        table.add_column(heading.replace("_", " "), justify="right", overflow="fold")
    for layer, keep in scores.keep.items():
        height, width = scores.provenance["layers"][layer]["map_size"]
        size = f"{height}×{width}" if height else ""
        means = (f"{scores.layer_mean(quantity, layer):.4g}" for quantity in scores.raw)
        table.add_row(layer, str(len(keep)), size, *means, f"{keep.min():.4g}", f"{keep.max():.4g}")
    return table


def training_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """A line a checkpoint: accuracy, loss, and the means of each quantity over the units of the last layer."""
    last = rows[-1]["layer"]
    table = _plain_table(f"layer {last} at every checkpoint", "accuracy and loss on val/; means over the units")
    rows = [row for row in rows if row["layer"] == last]
    quantities = list(dict.fromkeys((row["scorer"], row["quantity"]) for row in rows))
    table.add_column("checkpoint", no_wrap=True)
    for heading in ("accuracy", "loss", *(quantity.replace("_", " ") for _, quantity in quantities)):
        table.add_column(heading, justify="right", overflow="fold")
    for checkpoint in dict.fromkeys(row["checkpoint"] for row in rows):
        of = {(row["scorer"], row["quantity"]): row for row in rows if row["checkpoint"] == checkpoint}
        first = next(iter(of.values()))
        quality = ("", "") if first["accuracy"] is None else (f"{first['accuracy']:.2%}", f"{first['loss']:.4f}")
        table.add_row(checkpoint, *quality, *(f"{of[key]['mean']:.4g}" for key in quantities))
    return table


def _plain_table(title: str, caption: str) -> Table:
    return Table(
        title=title or None,
        caption=caption or None,
        caption_justify="left",
        box=box.SIMPLE_HEAD,
        show_edge=False,
        padding=(0, 1, 0, 0),
        title_justify="left",
    )


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
