"""The words for operating points, criteria, accuracies and differences in every text of a report."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from prune_fe.experiment.results import BY_LAYER, SCRATCH
from prune_fe.report.findings import CONTROL, FILTER_NORM, Difference, Findings

POINT_NAMES = {
    "ratio": "share removed",
    "target_macs": "multiply-adds left",
    "target_params": "parameters left",
    BY_LAYER: "a share of its own removed from each layer",
}
"""What an operating point is -> its name."""


TOLERANCE = 0.01
"""A target counts as met if the share that is left differs from it by no more."""


def describe_point(findings: Findings, point: float) -> str:
    """Return an operating point in words, such as "share removed 0.5"."""
    name = POINT_NAMES[findings.goal]
    return name if findings.goal == BY_LAYER else f"{name} {point:g}{describe_reached(findings, point)}"


def describe_reached(findings: Findings, point: float) -> str:
    """Return the share of the cost that is really left where it is not the one that was asked for; otherwise ""."""
    reached = findings.reached(point)
    if reached is None or max(abs(share - point) for share in reached) <= TOLERANCE:
        return ""
    low, high = (f"{share:.3g}" for share in reached)
    return f" (reached: {low if low == high else f'{low} to {high}'})"


def describe_scorer(scorer: str) -> str:
    """Return the name of a criterion, or of an architecture that was trained from scratch.

    >>> describe_scorer("hrank"), describe_scorer("scratch#2")
    ('hrank', 'from scratch, 2× budget')
    """
    return f"from scratch, {scorer.removeprefix(SCRATCH)}× budget" if scorer.startswith(SCRATCH) else scorer


def describe_accuracy(findings: Findings, network: str, scorer: str, point: float | None) -> str:
    """Return the mean accuracy over the seeds with its standard deviation, in percent."""
    values = [100 * value for value in findings.accuracies(network, scorer, point)]
    if not values:
        return "missing"
    spread = f" ±{statistics.stdev(values):.2f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.2f}{spread} %{describe_missing_seeds(findings, len(values))}"


def describe_missing_seeds(findings: Findings, count: int) -> str:
    """Return how many seeds something is measured with, if these are not all."""
    return f" ({count} of {len(findings.seeds)} seeds)" if count < len(findings.seeds) else ""


def describe_difference(difference: Difference | None) -> str:
    """Return a difference in points with its interval."""
    if difference is None:
        return ""
    mean, low, high = (100 * getattr(difference.estimate, name) for name in ("mean", "low", "high"))
    return f"{mean:+.2f} [{low:+.2f}, {high:+.2f}]"


def controls_of(findings: Findings) -> list[str]:
    """Return the names of the controls: random units, filter norms, from scratch, and unpruned with fine-tuning."""
    controls = [findings.control(name) for name in (CONTROL, FILTER_NORM)]
    return [name for name in controls if name is not None] + findings.scratch + findings.tuned


def join_or_none(names: Sequence[str]) -> str:
    """Return names separated by commas, or "none"."""
    return ", ".join(names) or "none"
