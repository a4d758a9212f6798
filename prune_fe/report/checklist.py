"""The checklist of what a comparison must report, filled in from the results.

The requirements are those of Blalock et al. 2020, Liu et al. 2019 and Wang et al. 2023.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from prune_fe.experiment.recipe import Recipe, seen_elsewhere
from prune_fe.experiment.results import SCRATCH, TUNED, UNPRUNED
from prune_fe.report.findings import CONTROL, FILTER_NORM, Findings
from prune_fe.report.page import Checklist
from prune_fe.report.wording import TOLERANCE
from prune_fe.scorers.departures import DEPARTURES

FEW_POINTS, FEW_SEEDS = 5, 3
MANY_CLASSES = 100
"""Smallest number of classes for which a top-5 accuracy is expected."""

MOST_LISTED = 6
"""Texts of a list that are written out."""

Entry = tuple[str, bool | None, str]


def comparison_checklist(findings: Findings) -> Checklist:
    """Return the requirements and whether the results meet them.

    One criterion alone is compared with nothing: what makes a comparison fair is left out then.
    """
    of_comparison = [*_extent(findings), *_fairness(findings), *_controls(findings)]
    entries = [
        *_measurements(findings),
        *(of_comparison if len(findings.scorers) > 1 else _targets(findings)),
        *_origin(findings),
        *((f"Failed: {task}", False, error) for task, error in findings.failed.items()),
    ]
    return Checklist("Checklist, filled in from the data", entries)


def _measurements(findings: Findings) -> list[Entry]:
    data = findings.recipe.data
    machines = {
        (str(each.environment.get("processor")), each.environment.get("gpu"), each.row.timed_with)
        for each in findings.results
    }
    machine_names = [f"{gpu or processor}, {timed_with}" for processor, gpu, timed_with in sorted(machines, key=str)]
    top_5 = False if len(findings.classes) >= MANY_CLASSES else None
    names = ", ".join(findings.networks)
    return [
        (
            "Architecture, data set and metric",
            True,
            f"{names}; {data.source}, {data.size}×{data.size} pixels; top-1 accuracy",
        ),
        (
            "Accuracy before and after pruning",
            findings.is_complete(UNPRUNED) and _is_complete(findings),
            "in the tables, for every seed",
        ),
        ("Top-5 accuracy where there are many classes", top_5, f"{len(findings.classes)} classes"),
        (
            "Parameters, multiply-adds and measured time, on one machine",
            len(machines) == 1,
            "; ".join(_shorten(machine_names)),
        ),
    ]


def _extent(findings: Findings) -> list[Entry]:
    counts = {
        point: [len(findings.select(n, s, point)) for n in findings.networks for s in findings.scorers]
        for point in findings.points
    }
    points = [point for point, of_point in counts.items() if all(of_point)]
    seeds = min((count for of_point in counts.values() for count in of_point), default=0)
    return [
        (
            f"At least {FEW_POINTS} operating points, with every criterion",
            len(points) >= FEW_POINTS,
            ", ".join(f"{point:g}" for point in points),
        ),
        (
            "Operating points up to the collapse of the network",
            _collapses(findings),
            "at the last point, a criterion loses half of the accuracy",
        ),
        (
            f"At least {FEW_SEEDS} seeds of every result",
            seeds >= FEW_SEEDS,
            f"the result with the fewest seeds has {seeds}",
        ),
    ]


def _fairness(findings: Findings) -> list[Entry]:
    commits = _commits(findings)
    source = "" if len(commits) == 1 else f", but source code of {len(commits)} commits"
    return [
        (
            "The same cost for every criterion",
            _is_complete(findings) and findings.same_cost(),
            "parameters and multiply-adds of the pruned networks",
        ),
        *_targets(findings),
        (
            "The same data, training budget and settings for every criterion",
            len(commits) == 1,
            f"one recipe for all{source}",
        ),
    ]


def _targets(findings: Findings) -> list[Entry]:
    """Return whether every target was met, if the operating points are targets."""
    reached = {point: findings.reached(point) for point in findings.points}
    known = {point: shares for point, shares in reached.items() if shares is not None}
    missed = [
        f"asked for {point:g}, reached {low:.3g}" + (f" to {high:.3g}" if high != low else "")
        for point, (low, high) in known.items()
        if max(abs(low - point), abs(high - point)) > TOLERANCE
    ]
    return [("The cost that was asked for was reached", not missed, "; ".join(missed))] if known else []


def _controls(findings: Findings) -> list[Entry]:
    random, filter_norm = (findings.control(name) or "" for name in (CONTROL, FILTER_NORM))
    pretrained = findings.recipe.train is None
    budget = "the budget is that of fine-tuning alone: the networks were trained elsewhere" if pretrained else ""
    same_widths = findings.is_complete(random) and findings.same_cost()
    return [
        ("Random units of the same widths, at every operating point", same_widths, ""),
        ("Filter L1 norm, at every operating point", findings.is_complete(filter_norm), ""),
        ("The pruned architecture trained from scratch with the same budget", _has_scratch(findings, 1), budget),
        ("The same with twice the budget", _has_scratch(findings, 2), budget),
        (
            "The unpruned network with the same fine-tuning",
            None if findings.recipe.finetune is None else findings.is_complete(TUNED),
            "",
        ),
    ]


def _origin(findings: Findings) -> list[Entry]:
    recipe, commits = findings.recipe, _commits(findings)
    is_trained = recipe.train is not None or recipe.finetune is not None
    is_clean = all(commit != "None" and not commit.endswith("+changes") for commit in commits)
    departures = [f"{each.label}: {DEPARTURES[each.name]}" for each in recipe.scorers if each.name in DEPARTURES]
    return [
        *([("Every criterion as its paper defines it", False, "; ".join(departures))] if departures else []),
        _validation(recipe, is_trained),
        ("Hardware and versions", bool(findings.environment), "see below"),
        ("The source code of the results", is_clean, ", ".join(_shorten([_source(each) for each in commits]))),
        ("Everything that the recipe asks for", not findings.missing, "; ".join(_shorten(findings.missing))),
    ]


def _source(commit: str) -> str:
    return "no commit is known: prune_fe was installed, and not run from its repository" if commit == "None" else commit


def _validation(recipe: Recipe, is_trained: bool) -> Entry:
    """Return whether the epoch was chosen on images that no training has seen."""
    requirement = "The epoch chosen on validation data"
    if not is_trained:
        return requirement, None, ""
    if (path := recipe.data.validation_path) is not None:
        return requirement, True, f"validation images of a folder of their own, {Path(path).name}"
    share = f"{recipe.data.validation:.0%} of the"
    if recipe.data.validation_from == "test":
        return requirement, True, f"{share} images of val/ are held out, the others are the test images"
    held_out = f"{share} training images are held out"
    if (origin := seen_elsewhere(recipe)) is None:
        return requirement, True, held_out
    others = "others: data.validation_path, or data.validation_from: test"
    return requirement, False, f"{held_out}; {origin} may have been trained on them ({others})"


def _is_complete(findings: Findings) -> bool:
    """Return whether every criterion has all of its results."""
    is_pruned = bool(findings.frame["goal"].notna().any())
    return is_pruned and all(findings.is_complete(scorer) for scorer in findings.scorers)


def _has_scratch(findings: Findings, budget: int) -> bool:
    label = f"{SCRATCH}{budget}"
    return label in findings.scratch and findings.is_complete(label)


def _collapses(findings: Findings) -> bool:
    """Return whether each network loses half of its accuracy with some criterion at the last operating point."""
    if not findings.points:
        return False
    for network in findings.networks:
        before = _mean(findings.accuracies(network, UNPRUNED))
        after = [_mean(findings.accuracies(network, scorer, findings.points[-1])) for scorer in findings.scorers]
        # A comparison with NaN, the mean of nothing, is False.
        if not any(value < before / 2 for value in after):
            return False
    return True


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values)) if values else np.nan


def _commits(findings: Findings) -> list[str]:
    return sorted({str(commit) for commit in findings.frame["commit"]})


def _shorten(texts: Sequence[str]) -> list[Any]:
    """Return the first texts, and how many more there are."""
    more = [f"and {len(texts) - MOST_LISTED} more"] if len(texts) > MOST_LISTED else []
    return [*texts[:MOST_LISTED], *more]
