"""The section of a report that sets the accuracy against the cost of the pruned networks."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from prune_fe.charts import accuracy_bars, trade_off
from prune_fe.experiment.results import TUNED, UNPRUNED, Result
from prune_fe.report.findings import FEATURE_ENTROPY, Findings
from prune_fe.report.numbers import format_number
from prune_fe.report.page import Block, Charts, Fold, PageTable
from prune_fe.report.wording import controls_of, describe_missing_seeds, describe_point, describe_scorer

COSTS: Mapping[str, tuple[str, Callable[[Result], float]]] = {
    "multiply-adds": ("multiply-adds of an image", lambda result: result.row.macs),
    "parameters": ("parameters", lambda result: result.row.parameters),
    "measured time": ("milliseconds an image", lambda result: 1000 / result.row.images_per_second),
}
"""Name of a cost -> (title of its axis, its value for a result)."""

MOST_NAMED = 5
"""Largest number of criteria that a trade-off shows in colours of their own."""


def trade_offs(findings: Findings, network: str) -> Iterator[Block]:
    """Yield the accuracy against the cost: lines, or bars of a single operating point."""
    main, *others = COSTS
    if len(findings.points) == 1:
        yield _bars(findings, network, findings.points[0])
    else:
        yield _trade_off(findings, network, main)
        folded = [_trade_off(findings, network, cost) for cost in others]
        yield Fold(f"Accuracy against {' and '.join(others)}", folded)


def _named(findings: Findings, network: str) -> list[str]:
    """Return the criteria that a chart shows in colour: all of a few, else feature entropy and the best ones."""
    if len(findings.scorers) <= MOST_NAMED:
        return findings.scorers
    best = [findings.best(network, point) for point in findings.points]
    chosen = [name for name in (findings.control(FEATURE_ENTROPY), *best) if name is not None]
    return list(dict.fromkeys(chosen))[:MOST_NAMED]


def _bars(findings: Findings, network: str, point: float) -> Block:
    """Return the accuracies at a single operating point."""
    rows: list[dict[str, Any]] = []
    for scorer in [UNPRUNED, *findings.tuned, *findings.scorers, *findings.scratch]:
        results = findings.select(network, scorer, None if scorer in (UNPRUNED, TUNED) else point)
        if results:
            pruned = [r.row.accuracy_pruned for r in results if r.row.accuracy_pruned is not None]
            rows.append(
                {
                    "criterion": describe_scorer(scorer),
                    **_accuracies(results),
                    "pruned": statistics.mean(pruned) if pruned else np.nan,
                    "detail": describe_missing_seeds(findings, len(results)).strip(),
                }
            )
    title = f"Accuracy at {describe_point(findings, point)}"
    shares = ("accuracy", "low", "high", "pruned")
    cells = [[row["criterion"], *(format_number(row[name], percent=True) for name in shares)] for row in rows]
    note = "A tick marks the accuracy right after pruning." if any(row["pruned"] >= 0 for row in rows) else ""
    note += _about_ends(findings)
    numbers = PageTable(title, ["criterion", "test accuracy", "lowest", "highest", "right after pruning"], cells, note)
    if not rows:
        return Charts(numbers)
    controls = [*map(describe_scorer, controls_of(findings)), UNPRUNED]
    chart = accuracy_bars(pd.DataFrame(rows), title, controls, findings.scorers, _named(findings, network))
    return Charts(numbers, {"": chart})


def _accuracies(results: Sequence[Result]) -> dict[str, float]:
    """Return the mean accuracy over the seeds, and the lowest and highest one."""
    values = [result.row.accuracy for result in results]
    return {"accuracy": statistics.mean(values), "low": min(values), "high": max(values)}


def _about_ends(findings: Findings) -> str:
    """Return what the ends of an interval are, if there is one."""
    several = len(findings.seeds) > 1
    return " Means over the seeds; the intervals reach from the lowest to the highest seed." if several else ""


def _trade_off(findings: Findings, network: str, cost: str) -> Charts:
    """Return the accuracy against a cost; each criterion's line begins at the unpruned network."""
    axis, cost_of = COSTS[cost]
    rows: list[dict[str, Any]] = []
    for scorer in [*findings.scorers, *findings.scratch, *findings.tuned]:
        points = [None, *findings.points] if scorer in findings.scorers else findings.points
        for point in [None] if scorer == TUNED else points:
            results = findings.select(network, UNPRUNED if point is None and scorer != TUNED else scorer, point)
            if results:
                detail = "unpruned" if point is None else describe_point(findings, point)
                rows.append(
                    {
                        "criterion": describe_scorer(scorer),
                        "x": statistics.mean(cost_of(result) for result in results),
                        **_accuracies(results),
                        "detail": detail + describe_missing_seeds(findings, len(results)),
                    }
                )
    title = f"Accuracy against {cost}"
    timed_with = ", ".join(dict.fromkeys(findings.frame["timed_with"]))
    disturbed = sum(result.row.is_disturbed for result in findings.results if result.network == network)
    notes = {
        "multiply-adds": _about_ends(findings),
        "measured time": f"Medians; {timed_with}. Timings vary on a machine that does other work too"
        + (f", as it did during some of them ({disturbed}), so that these are too long." if disturbed else "."),
    }
    named = _named(findings, network)
    note = notes.get(cost, "")
    if len(named) < len(findings.scorers):
        note += " Pale lines are the other criteria; their numbers are below."
    numbers = PageTable(
        title,
        ["criterion", axis, "test accuracy", "lowest", "highest", "network"],
        [
            [
                row["criterion"],
                format_number(row["x"]),
                *(format_number(row[name], percent=True) for name in ("accuracy", "low", "high")),
                row["detail"],
            ]
            for row in rows
        ],
        note.strip(),
    )
    controls = [describe_scorer(name) for name in controls_of(findings)]
    if not rows:
        return Charts(numbers)
    return Charts(numbers, {"": trade_off(pd.DataFrame(rows), axis, title, controls, findings.scorers, named)})
