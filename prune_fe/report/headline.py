"""The three numbers of a pruned network that a reader asks for first: its cost, its measured time and its accuracy."""

from __future__ import annotations

import statistics
from dataclasses import dataclass

import numpy as np

from prune_fe.experiment.results import UNPRUNED, Row
from prune_fe.measure.statistics import Estimate, bootstrap
from prune_fe.report.findings import Findings


@dataclass(frozen=True)
class Headline:
    """What a criterion leaves of a network at one operating point; means over the seeds that have both networks.

    Attributes:
        network: Label of the network.
        scorer: Label of the criterion.
        point: The operating point.
        macs: Multiply-adds of an image, before and after pruning.
        parameters: Parameters, before and after pruning.
        images_per_second: Measured images a second, before and after pruning: medians over the networks of the same
            cost, without those that were timed while the machine did other work unless there are no others.
        is_disturbed: Whether all networks of one of the two costs were timed while the machine did other work.
        accuracy: Test accuracy (a share), before pruning and of the final network.
        change: Change of the accuracy (a share) with its interval, paired over the test images.
    """

    network: str
    scorer: str
    point: float
    macs: tuple[float, float]
    parameters: tuple[float, float]
    images_per_second: tuple[float, float]
    is_disturbed: bool
    accuracy: tuple[float, float]
    change: Estimate

    @property
    def speed_up(self) -> float:
        """Images a second of the pruned network, divided by those of the unpruned one."""
        before, after = self.images_per_second
        return after / before


def headline(findings: Findings, network: str) -> Headline | None:
    """Return the headline of a network: the best criterion at the middle operating point.

    Returns:
        None where nothing has been pruned at that point, or no seed has the unpruned network too.
    """
    if not findings.points:
        return None
    point = findings.points[len(findings.points) // 2]
    scorer = findings.best(network, point)
    if scorer is None:
        return None
    after = {result.row.seed: result for result in findings.select(network, scorer, point)}
    before = {result.row.seed: result for result in findings.select(network, UNPRUNED) if result.row.seed in after}
    if not before:
        return None
    pairs = [(before[seed], after[seed]) for seed in before]

    def means(name: str) -> tuple[float, float]:
        unpruned, pruned = (statistics.mean(getattr(pair[end].row, name) for pair in pairs) for end in (0, 1))
        return unpruned, pruned

    def timings(row: Row, where: float | None) -> tuple[list[float], bool]:
        """Return the images a second of the networks of a row's cost, and whether all of them are disturbed.

        Disturbed ones are left out unless all are.
        """
        rows = [each.row for each in findings.results if each.network == network and each.point == where]
        alike = [other for other in rows if (other.macs, other.parameters) == (row.macs, row.parameters)]
        sound = [other for other in alike if not other.is_disturbed]
        return [other.images_per_second for other in sound or alike], not sound

    timed = [timings(pairs[0][0].row, None), timings(pairs[0][1].row, point)]
    change = np.mean([np.subtract(b.correct, a.correct, dtype=float) for a, b in pairs], axis=0)
    return Headline(
        network,
        scorer,
        point,
        macs=means("macs"),
        parameters=means("parameters"),
        images_per_second=(statistics.median(timed[0][0]), statistics.median(timed[1][0])),
        is_disturbed=timed[0][1] or timed[1][1],
        accuracy=means("accuracy"),
        change=bootstrap(change),  # as `prune-fe compress` prints it
    )
