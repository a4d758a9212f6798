"""The tables of accuracies: of all operating points, and of a single one with everything that is measured there."""

from __future__ import annotations

import statistics

from prune_fe.experiment.results import TUNED, UNPRUNED
from prune_fe.report.findings import CONTROL, Findings
from prune_fe.report.numbers import DISTURBED, format_count, format_speed
from prune_fe.report.page import PageTable
from prune_fe.report.wording import (
    POINT_NAMES,
    controls_of,
    describe_accuracy,
    describe_difference,
    describe_point,
    describe_reached,
    describe_scorer,
)


def accuracy_table(findings: Findings, network: str) -> PageTable:
    """Return a table of accuracies with a row for each scorer and a column for each operating point."""
    signs = {"better": " ▲", "worse": " ▼", "not told apart": ""}
    differences = {point: findings.differences_to_random(network, point) for point in findings.points}
    names = [*findings.scorers, *findings.scratch]
    unpruned = [UNPRUNED, *findings.tuned]
    rows = [[name, *[describe_accuracy(findings, network, name, None)] * len(findings.points)] for name in unpruned]
    for scorer in names:
        signed = [
            describe_accuracy(findings, network, scorer, point)
            + (signs[differences[point][scorer].verdict] if scorer in differences[point] else "")
            for point in findings.points
        ]
        rows.append([describe_scorer(scorer), *signed])
    note = _about_accuracies(findings, any(differences.values())) + _about_tuned(findings) + _about_scratch(findings)
    columns = ["criterion", *(f"{point:g}{describe_reached(findings, point)}" for point in findings.points)]
    highlight = [number for number, name in enumerate([*unpruned, *names]) if name in controls_of(findings)]
    return PageTable(f"Accuracy by {POINT_NAMES[findings.goal]}", columns, rows, note.strip(), highlight)


def _about_accuracies(findings: Findings, has_control: bool) -> str:
    spread = ": mean ± standard deviation over the seeds" if len(findings.seeds) > 1 else ""
    signs = f" ▲ better, ▼ worse than {CONTROL} by the interval." if has_control else ""
    return f"Test accuracy{spread}.{signs} "


def _about_tuned(findings: Findings) -> str:
    if not any(findings.select(network, TUNED) for network in findings.networks):
        return ""
    return f"{TUNED}: the unpruned network, fine-tuned in the same way and for as many epochs as the pruned ones. "


def _about_scratch(findings: Findings) -> str:
    if not set(findings.scratch) & set(findings.frame["scorer"]):
        return ""
    text = (
        "From scratch: a new network with the pruned architecture, trained for as many epochs as the pruned networks "
        "in all (training and fine-tuning), or for a multiple of them."
    )
    options = findings.recipe.train or findings.recipe.finetune
    if options is not None and options.schedule == "step":
        text += (
            " Its learning rate follows a cosine, because the recipe's schedule, which has one step an epoch, is "
            "shorter than such a budget."
        )
    return text


def point_table(findings: Findings, network: str, point: float) -> PageTable:
    """Return the columns of the paper's table 12, with intervals."""
    to_best, to_random = (f(network, point) for f in (findings.differences_to_best, findings.differences_to_random))
    names = [*findings.scorers, *findings.scratch, *findings.tuned]
    rows, is_disturbed = [], False
    for scorer in names:
        where = None if scorer == TUNED else point
        results = findings.select(network, scorer, where)
        if not results:
            rows.append([describe_scorer(scorer), "missing", *[""] * (8 if len(findings.seeds) > 1 else 7)])
            continue
        accuracies = findings.accuracies(network, scorer, where)
        pruned = [each.row.accuracy_pruned for each in results if each.row.accuracy_pruned is not None]
        is_disturbed |= any(each.row.is_disturbed for each in results)
        drop, left = findings.drop(network, scorer, where), findings.shares_left(network, scorer, where)
        rows.append(
            [
                describe_scorer(scorer),
                describe_accuracy(findings, network, scorer, where),
                *([" ".join(f"{100 * value:.2f}" for value in accuracies)] if len(findings.seeds) > 1 else []),
                "" if drop is None else f"{100 * drop:+.2f}",
                f"{100 * statistics.mean(pruned):.2f}" if pruned else "",
                _count_left(results[0].row.parameters, left and left[1]),
                _count_left(results[0].row.macs, left and left[0]),
                format_speed([each.row for each in results]),
                describe_difference(to_best.get(scorer)),
                describe_difference(to_random.get(scorer)),
            ]
        )
    columns = [
        "criterion",
        "accuracy",
        *(["each seed"] if len(findings.seeds) > 1 else []),
        "drop, points",
        "right after pruning",
        "parameters",
        "multiply-adds",
        "images/s",
        "minus the best",
        f"minus {CONTROL}",
    ]
    note = "Accuracies in percent."
    if any(row[-1] or row[-2] for row in rows):
        note += (
            " The last two columns are differences in points, paired over the test images, with intervals of 95 % that "
            "hold for all pairs at once."
        )
    if is_disturbed:
        note += f" {DISTURBED}."
    if len(findings.points) == 1:
        note += f" {_about_tuned(findings)}{_about_scratch(findings)}".rstrip()
    highlight = [number for number, name in enumerate(names) if name in controls_of(findings)]
    return PageTable(f"At {describe_point(findings, point)}", columns, rows, note, highlight).without_empty_columns()


def _count_left(count: int, share: float | None) -> str:
    """Return a count and the share of the unpruned network's that it is."""
    return format_count(count) if share is None else f"{format_count(count)} ({100 * share:.1f} %)"
