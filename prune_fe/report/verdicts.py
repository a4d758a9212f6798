"""The conclusions of a comparison: a criterion is called better only if the interval excludes zero."""

from __future__ import annotations

from collections.abc import Iterator

from prune_fe.experiment.results import BY_LAYER, UNPRUNED
from prune_fe.report.findings import CONTROL, Findings
from prune_fe.report.page import PageTable
from prune_fe.report.wording import (
    POINT_NAMES,
    describe_accuracy,
    describe_missing_seeds,
    describe_scorer,
    join_or_none,
)

INTERVALS = (
    "Intervals are of 95 %, from a bootstrap over the test images, which are resampled for all criteria together. They "
    "hold for all pairs of criteria at an operating point at once, so that they remain valid for the best criterion, "
    "which is chosen by the same images. They do not include the variation between seeds; the standard deviation over "
    "the seeds shows it. A criterion without results for some of the compared seeds is not compared."
)


def verdict_table(findings: Findings) -> PageTable:
    """Return what the intervals say: a row for each network and operating point with a result."""
    rows = [
        ([network] if len(findings.networks) > 1 else []) + _verdict(findings, network, point, best)
        for network in findings.networks
        for point in findings.points
        if (best := findings.best(network, point)) is not None
    ]
    columns = ["network"] if len(findings.networks) > 1 else []
    columns += [POINT_NAMES[findings.goal], "highest accuracy", "not told apart from it"]
    columns += [f"better than {CONTROL}", f"worse than {CONTROL}"]
    columns += [describe_scorer(name) for name in [*findings.scratch, *findings.tuned]]
    return PageTable("What the intervals say", columns, rows, is_prose=True).without_empty_columns()


def _verdict(findings: Findings, network: str, point: float, best: str) -> list[str]:
    """Return the cells of a row, from the operating point on."""
    seeds, comparable = findings.comparable(network, point)
    to_best, to_random = (f(network, point) for f in (findings.differences_to_best, findings.differences_to_random))
    measured = [scorer for scorer in findings.scorers if findings.select(network, scorer, point)]
    excluded = [scorer for scorer in measured if scorer not in comparable]
    where = f"{'' if findings.goal == BY_LAYER else f'{point:g}'}{describe_missing_seeds(findings, len(seeds))}".strip()
    if excluded:
        where += f" (not compared, because seeds are missing: {', '.join(excluded)})"
    others = {scorer: each for scorer, each in to_best.items() if scorer in findings.scorers}
    even = [scorer for scorer, each in others.items() if each.verdict == "not told apart"]
    verdict_of = {scorer: each.verdict for scorer, each in to_random.items() if scorer in findings.scorers}
    better, worse = ([s for s, verdict in verdict_of.items() if verdict == name] for name in ("better", "worse"))
    apart = join_or_none(even) if others else "no other criterion"
    cells = [where or "each layer's own", f"{best}, {describe_accuracy(findings, network, best, point)}", apart]
    cells += [join_or_none(better), join_or_none(worse)] if to_random else ["", ""]
    return [*cells, *_controls(findings, network, point, best)]


def _controls(findings: Findings, network: str, point: float, best: str) -> Iterator[str]:
    """Yield what became of each network from scratch, and of the unpruned network with the same fine-tuning."""
    differences = findings.differences_to_best(network, point)
    for scorer in findings.scratch:
        if not findings.select(network, scorer, point):
            yield ""
            continue
        verdict = "not compared, because seeds are missing"
        if scorer in differences:
            verdict = differences[scorer].verdict
            verdict += f" from {best}" if verdict == "not told apart" else f" than {best}"
        yield f"{describe_accuracy(findings, network, scorer, point)}, {verdict}"
    for label in findings.tuned:
        if findings.select(network, label):
            before, after = (describe_accuracy(findings, network, name, None) for name in (UNPRUNED, label))
            yield f"{before} before, {after} after"
        else:
            yield ""
