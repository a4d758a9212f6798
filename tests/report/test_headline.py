"""The three numbers of a pruned network."""

import dataclasses

import numpy as np
import pytest

from prune_fe.experiment.results import UNPRUNED
from prune_fe.report.findings import Findings
from prune_fe.report.headline import headline


def test_the_numbers_are_those_of_the_best_criterion(findings: Findings) -> None:
    known = headline(findings, "one")
    assert known is not None
    assert (known.scorer, known.point) == (findings.best("one", 0.75), 0.75)
    assert known.macs == (4e6, 1e6)
    assert known.parameters == (50_000, 12_500)
    assert known.speed_up == pytest.approx((1000 / 0.75) / (1000 / 1.5))
    before, after = (np.mean(findings.accuracies("one", *key)) for key in ((UNPRUNED,), (known.scorer, 0.75)))
    assert known.accuracy == pytest.approx((before, after))
    assert known.change.mean == pytest.approx(after - before)
    assert known.change.low < known.change.mean < known.change.high
    assert known.change.n == len(findings.labels)


def test_one_slow_timing_does_not_change_the_speed(findings: Findings) -> None:
    known = headline(findings, "one")
    assert known is not None
    slow = [
        dataclasses.replace(result, row=dataclasses.replace(result.row, images_per_second=1.0))
        if (result.network, result.point, result.row.scorer) == ("one", 0.75, known.scorer)
        else result
        for result in findings.results
    ]
    other = headline(dataclasses.replace(findings, results=slow), "one")
    assert other is not None
    assert other.speed_up == known.speed_up


def disturb(findings: Findings, share: float | None, *scorers: str) -> Findings:
    """Return findings in which the networks of these criteria, or all, were timed on a busy machine."""
    results = [
        dataclasses.replace(r, row=dataclasses.replace(r.row, images_per_second=1.0, processor_share=share))
        if not scorers or r.row.scorer in scorers
        else r
        for r in findings.results
    ]
    return dataclasses.replace(findings, results=results)


def test_disturbed_timings_count_only_where_there_are_no_others(findings: Findings) -> None:
    known, scorers = headline(findings, "one"), [name for name in findings.scorers if name != "random"]
    other, none = (headline(disturb(findings, 0.5, *names), "one") for names in (scorers, ()))
    assert known is not None
    assert other is not None
    assert none is not None
    assert (other.speed_up, other.is_disturbed) == (known.speed_up, False)
    assert none.is_disturbed


def test_only_seeds_with_both_networks_count(findings: Findings) -> None:
    part = [r for r in findings.results if not (r.row.scorer == UNPRUNED and r.row.seed == 3)]
    known = headline(dataclasses.replace(findings, results=part), "one")
    assert known is not None
    assert known.accuracy[0] == findings.accuracies("one", UNPRUNED)[0]


def test_there_is_none_without_a_pruned_or_an_unpruned_network(findings: Findings) -> None:
    unpruned = [result for result in findings.results if result.point is None]
    pruned = [result for result in findings.results if result.point is not None]
    for part in (unpruned, pruned):
        assert headline(dataclasses.replace(findings, results=part), "one") is None
