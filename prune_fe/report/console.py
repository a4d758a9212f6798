"""The output of the command line: the progress of long steps, and tables."""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from rich import box
from rich.console import Console, ConsoleOptions, RenderResult
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from prune_fe.experiment.estimate import TASKS, WORTH_SAYING, describe_seconds
from prune_fe.io import shorten
from prune_fe.report.numbers import DISTURBED, format_count, format_speed, format_spread

if TYPE_CHECKING:
    import pandas as pd

    from prune_fe.experiment.results import Row
    from prune_fe.measure.latency import Comparison, Latency
    from prune_fe.pruning.loss_curves import Sensitivity
    from prune_fe.report.tables import Table as StudyTable
    from prune_fe.scoring.scores import Scores

FIRST_WIDTH = 32
"""Largest number of characters for the name of a row; a longer name is folded."""

GAP = 2
"""Characters between two columns of a table."""

MOST_NAMES = 12
"""At most this many names of layers are listed in a line."""

PLAIN_SECONDS = 15.0
"""Without a terminal, a long step prints a line at most this often."""


class ConsoleReporter:
    """Progress on the console: bars on a terminal, elsewhere a line from time to time."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self._bars: Progress | None = None

    @contextmanager
    def showing(self) -> Iterator[None]:
        """Show progress as bars inside the block, if the console is a terminal."""
        if not self.console.is_terminal:
            yield
            return
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        try:
            with Progress(*columns, console=self.console, transient=True, refresh_per_second=5) as self._bars:
                yield
        finally:
            # Also after an exception: a closed display would swallow the progress of the next step.
            self._bars = None

    def say(self, text: str) -> None:
        """Print a line as it is."""
        self.console.print(text, markup=False, highlight=False, soft_wrap=True)

    def progress(self, task: str) -> Callable[[int, int], None]:
        """Begin to show the progress of a long step, and return the function that it calls: (finished, all parts).

        Args:
            task: Description of the step.

        Returns:
            A function of (completed, total); a total of 0 means that it is not known.
        """
        if self._bars is None:
            return self._line_progress(task)
        bars, bar = self._bars, self._bars.add_task(task, total=None)

        def update(completed: int, total: int) -> None:
            bars.update(bar, completed=completed, total=total or None, visible=not total or completed < total)

        return update

    def _line_progress(self, task: str) -> Callable[[int, int], None]:
        last, first = time.monotonic(), (0, time.monotonic())

        def update(completed: int, total: int) -> None:
            nonlocal last, first
            now = time.monotonic()
            if completed < first[0] or first[0] == 0:  # what was finished before tells nothing about the pace
                first = completed, now
            if now - last < PLAIN_SECONDS:
                return
            last, text = now, f"  {task}: {completed} of {total}" if total else f"  {task}: {completed}"
            if (n := completed - first[0]) > 0 and total and task != TASKS:
                left = (now - first[1]) / n * (total - completed)
                text += f", about {describe_seconds(left)} left" if left >= WORTH_SAYING else ""
            self.say(text)

        return update


def results_table(rows: Sequence[Row]) -> Table:
    """Return the table of a run: one row for each scorer, with mean ± standard deviation over several seeds."""
    seeds = {row.seed for row in rows}
    title = f"accuracy: mean ± standard deviation over {len(seeds)} seeds" if len(seeds) > 1 else "accuracy, one seed"
    caption = "images/s: median; " + ", ".join(dict.fromkeys(row.timed_with for row in rows))
    caption += f"; {DISTURBED}" if any(row.is_disturbed for row in rows) else ""
    table = _plain_table(title, caption)
    table.add_column("scorer", no_wrap=True)
    headings = ("before", "after\npruning", "after fine-\ntuning", "para-\nmeters", "multiply-\nadds", "images/s")
    for heading in (*headings, "seconds\nscoring"):
        table.add_column(heading, justify="right", overflow="fold")
    for scorer in dict.fromkeys(row.scorer for row in rows):
        group = [row for row in rows if row.scorer == scorer]
        table.add_row(
            scorer,
            format_spread([row.accuracy_before for row in group], ".2%"),
            format_spread([row.accuracy_pruned for row in group], ".2%"),
            format_spread([row.accuracy_finetuned for row in group], ".2%"),
            format_count(statistics.mean(row.parameters for row in group)),
            format_count(statistics.mean(row.macs for row in group)),
            format_speed(group),
            format_spread([row.scoring_seconds for row in group], ".2f"),
        )
    return table


class WideTable:
    """A table that is printed in as many parts, one below the other, as its width requires: no text is ever cut.

    Args:
        title: Title above the table.
        caption: A remark below it.
        rows: Names of the rows.
        columns: Heading -> texts, one a row. A heading may be broken between its words, a text may not.
        what: Heading of the names.
    """

    def __init__(
        self, title: str, caption: str, rows: Sequence[str], columns: Mapping[str, Sequence[str]], what: str = ""
    ) -> None:
        self.title, self.caption, self.rows, self.columns, self.what = title, caption, rows, columns, what

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        words = max((len(word) for word in self.what.split()), default=0)
        first = min(max(words, *map(len, self.rows)), FIRST_WIDTH, options.max_width // 3)
        widths = {
            heading: max(len(text) for text in (*heading.split(), *cells)) for heading, cells in self.columns.items()
        }
        parts: list[list[str]] = [[]]
        spare = [options.max_width - first - GAP]
        for heading, width in widths.items():
            if parts[-1] and spare[-1] < width + GAP:
                parts.append([])
                spare.append(options.max_width - first - GAP)
            parts[-1].append(heading)
            spare[-1] -= width + GAP
        for number, part in enumerate(parts):
            table = _plain_table(self.title if number == 0 else "", "")
            table.add_column(self.what, overflow="fold", width=first)
            for heading in part:
                # Longer headings share the remaining width, which saves them a line.
                width = max(widths[heading], min(len(heading), widths[heading] + max(spare[number], 0) // len(part)))
                table.add_column(heading, justify="right", width=width)
            for index, row in enumerate(self.rows):
                table.add_row(row, *(self.columns[heading][index] for heading in part))
            yield table
        if self.caption:
            yield Text(self.caption, style="table.caption")


def study_table(study: StudyTable) -> WideTable:
    """Return a table of a study."""
    columns = {column: [study.text(row, column) for row in study.rows] for column in study.forms}
    return WideTable(study.title, study.note, list(study.rows), columns)


def layer_table(label: str, scores: Scores) -> WideTable:
    """Return one row a layer: its units, the means of the scorer's quantities, and its lowest and highest score.

    Args:
        label: Label of the scorer.
        scores: Its scores.
    """
    cost = f"{scores.own_seconds:.2f} s for the scorer alone"
    if scores.peak_bytes is not None:
        cost += f", at most {scores.peak_bytes / 2**20:,.0f} MiB of memory on top of the network's"
    of = f" on {scores.images} images of {len(scores.classes)} classes" if scores.images else ""
    sizes = [scores.provenance["layers"][layer]["map_size"] for layer in scores.keep]
    columns = {
        "units": [str(len(keep)) for keep in scores.keep.values()],
        "map": [f"{height}×{width}" if height else "" for height, width in sizes],
    }
    if scores.other_scorers:
        columns["scorer"] = [scores.scorer_of(layer) for layer in scores.keep]
    for quantity, layers in scores.raw.items():
        heading = quantity.replace("_", " ")
        columns[heading] = [
            f"{scores.layer_mean(quantity, layer):.4g}" if layer in layers else "" for layer in scores.keep
        ]
    columns["lowest score"] = [f"{keep.min():.4g}" for keep in scores.keep.values()]
    columns["highest score"] = [f"{keep.max():.4g}" for keep in scores.keep.values()]
    means = "means over the units with finite values; " if scores.raw else ""
    return WideTable(f"{label}{of}", means + cost, list(scores.keep), columns)


def sensitivity_table(sensitivity: Sensitivity) -> WideTable:
    """Return one row for each group: the accuracy of the network when the group alone loses units, at each ratio."""
    curves = [curve for curve in sensitivity.curves if curve.points]
    ratios = list(dict.fromkeys(point.ratio for curve in curves for point in curve.points))
    rows = [
        f"{curve.layers[0]} + {len(curve.layers) - 1}" if len(curve.layers) > 1 else curve.layers[0] for curve in curves
    ]
    columns = {"units": [str(curve.units) for curve in curves]}
    for ratio in sorted(ratios):
        accuracies = [{point.ratio: f"{point.accuracy:.1%}" for point in curve.points} for curve in curves]
        columns[f"{ratio:.0%}"] = [known.get(ratio, "–") for known in accuracies]
    caption = f"accuracy on {sensitivity.images} held-out images; {sensitivity.accuracy:.1%} of the whole network"
    reasons = [f"{', '.join(curve.layers)}: {curve.reason}" for curve in sensitivity.curves if curve.reason]
    if reasons:
        caption += f"; not measured, or not to the end: {'; '.join(reasons)}"
    return WideTable("accuracy when one group of layers alone loses units", caption, rows, columns)


def inspection_table(layers: pd.DataFrame) -> WideTable:
    """Return one row for each layer with units: its maps, its groups, what can be removed of it, and its cost.

    Args:
        layers: What prune_fe.inspect returned.
    """
    with_units = layers[layers.units.notna()]
    totals = {name: int(layers[name].sum()) for name in ("parameters", "macs")}
    rest = {name: total - int(with_units[name].sum()) for name, total in totals.items()}
    columns = {
        "units": [str(units) for units in with_units.units],
        "map": [
            "" if pair.isna().any() else f"{pair.iloc[0]}×{pair.iloc[1]}"
            for _, pair in with_units[["map_height", "map_width"]].iterrows()
        ],
        "group": list(with_units.groups),
        "can be removed": [
            f"{count} by {step}" if count and step > 1 else str(count)
            for count, step in zip(with_units.removable, with_units.step, strict=True)
        ],
    }
    for name, heading in (("parameters", "parameters"), ("macs", "multiply-adds")):
        columns[heading] = [f"{format_count(value)} {value / max(totals[name], 1):6.1%}" for value in with_units[name]]
    caption = f"parameters {totals['parameters']:,}, multiply-adds {totals['macs']:,} an image"
    if any(rest.values()):
        caption += f"; of these {rest['parameters']:,} and {rest['macs']:,} in norms and other modules"
    return WideTable("", caption, list(with_units.layer), columns, "layer")


def list_reasons(layers: pd.DataFrame) -> Iterator[str]:
    """Yield a line for each group of tied layers, and for each reason why units have to stay.

    Args:
        layers: What prune_fe.inspect returned.
    """
    members: dict[str, list[str]] = {}
    stay: dict[str, list[str]] = {}
    for row in layers.itertuples():
        for group in str(row.groups).split(", ") if row.tied_to else ():
            members.setdefault(group, []).append(str(row.layer))
        if row.reason:
            stay.setdefault(str(row.reason), []).append(str(row.layer))
    for group, names in sorted(members.items(), key=lambda item: int(item[0])):
        if len(names) > 1:
            yield f"group {group}, tied: {shorten(names, MOST_NAMES)}"
    for reason, names in stay.items():
        yield f"cannot be removed ({reason}): {shorten(names, MOST_NAMES)}"


def training_table(rows: Sequence[Mapping[str, Any]]) -> WideTable:
    """Return one row a checkpoint: accuracy, loss, and the means of each quantity over the units of the last layer.

    Args:
        rows: One for each checkpoint, layer and quantity, with the keys checkpoint, layer, quantity, mean, accuracy
            and loss; accuracy and loss are None without validation images.
    """
    layer = rows[-1]["layer"]
    rows = [row for row in rows if row["layer"] == layer]
    checkpoints = list(dict.fromkeys(row["checkpoint"] for row in rows))
    first = {row["checkpoint"]: row for row in reversed(rows)}
    columns = {}
    if rows[0]["accuracy"] is not None:
        columns["accuracy"] = [f"{first[name]['accuracy']:.2%}" for name in checkpoints]
        columns["loss"] = [f"{first[name]['loss']:.4f}" for name in checkpoints]
    for row in rows:
        columns.setdefault(row["quantity"].replace("_", " "), []).append(f"{row['mean']:.4g}")
    caption = "means over the units with finite values" + ("; accuracy and loss on val/" if "loss" in columns else "")
    return WideTable(f"layer {layer} at every checkpoint", caption, checkpoints, columns)


def latency_table(comparisons: Sequence[Comparison]) -> WideTable:
    """Return one row a setting, named by what differs between them; what they have in common is in the caption."""
    settings = [dataclasses.asdict(each.setting) for each in comparisons]
    varied = [key for key in settings[0] if len({setting[key] for setting in settings}) > 1] or ["batch_size"]
    common = ", ".join(f"{key.replace('_', ' ')} {settings[0][key]}" for key in settings[0] if key not in varied)
    columns = {
        "original, ms": [_milliseconds(each.original) for each in comparisons],
        "pruned, ms": [_milliseconds(each.pruned) for each in comparisons],
        "original / pruned": [f"{each.ratio:.2f} [{each.ratio_low:.2f}–{each.ratio_high:.2f}]" for each in comparisons],
        "peak MiB": [f"{each.original.peak_mib:,.1f} → {each.pruned.peak_mib:,.1f}" for each in comparisons],
    }
    rows = [", ".join(str(setting[key]) for key in varied) for setting in settings]
    what = ", ".join(key.replace("_", " ") for key in varied)
    return WideTable(
        "time of a forward pass: median and quartiles",
        f"{common}; original / pruned: the median and quartiles of the ratios of blocks that were timed one after the "
        "other, which other work on the machine slows alike; peak: parameters, batch and maps",
        rows,
        columns,
        what,
    )


def _milliseconds(latency: Latency) -> str:
    digits = 2 if latency.median_ms < 100 else 0
    low, high = f"{latency.low_ms:,.{digits}f}", f"{latency.high_ms:,.{digits}f}"
    return f"{latency.median_ms:,.{digits}f} [{low}–{high}]"


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
