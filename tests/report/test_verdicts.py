"""What came out, in words."""

import dataclasses
from collections.abc import Callable

import numpy as np

from prune_fe.experiment.results import Result
from prune_fe.report.findings import Findings
from prune_fe.report.verdicts import INTERVALS, verdicts


def keep(findings: Findings, condition: Callable[[Result], bool]) -> Findings:
    return dataclasses.replace(findings, results=[each for each in findings.results if condition(each)])


def ranked(findings: Findings, scorer: str) -> Findings:
    """One scorer names every image correctly, and all others half of them."""
    results = []
    for each in findings.results:
        correct = np.arange(len(each.correct)) % 2 == 0 if each.row.scorer != scorer else np.ones_like(each.correct)
        row = dataclasses.replace(each.row, accuracy_finetuned=float(correct.mean()))
        results.append(dataclasses.replace(each, row=row, correct=correct))
    return dataclasses.replace(findings, results=results)


def test_there_is_a_paragraph_for_each_network_and_point(findings: Findings) -> None:
    texts = list(verdicts(findings))
    assert len(texts) == 2 * 2 + 1
    assert texts[0].startswith("one, share removed 0.25: ")
    assert texts[3].startswith("two, share removed 0.75: ")
    assert texts[-1] == INTERVALS
    assert all("From scratch, 2× budget: " in text and "Better than random: " in text for text in texts[:4])


def test_the_best_is_told_apart_only_by_its_interval(findings: Findings) -> None:
    text = next(verdicts(ranked(findings, "zeros")))
    assert "zeros has the highest mean accuracy (100.00 ±0.00 %), told apart from all others" in text
    assert "Better than random: zeros. " in text
    assert "From scratch, 1× budget: 50.00 ±0.00 %, worse than zeros" in text
    text = next(verdicts(ranked(findings, "nobody")))
    assert "not told apart from " in text
    assert "Better than random: none" in text
    assert "Worse than random" not in text


def test_what_is_worse_than_random_is_said(findings: Findings) -> None:
    text = next(verdicts(ranked(findings, "random")))
    assert "random has the highest mean accuracy" in text
    assert "Worse than random: feature-entropy, zeros, l1-filter" in text


def test_missing_seeds_are_said(findings: Findings) -> None:
    part = keep(findings, lambda each: each.row.scorer not in ("zeros", "scratch#1") or each.row.seed == 0)
    text = next(verdicts(part))
    assert "Not compared, because seeds are missing: zeros" in text
    assert "From scratch, 1× budget: " in text
    assert "not compared, because seeds are missing" in text
    only = next(verdicts(keep(findings, lambda each: each.row.seed == 3)))
    assert only.startswith("one, share removed 0.25 (1 of 2 seeds): ")


def test_one_criterion_is_compared_with_nothing(findings: Findings) -> None:
    text = next(verdicts(keep(findings, lambda each: each.row.scorer == "zeros")))
    assert "and there is no other criterion to compare it with" in text
    assert "There is no random to compare with" in text


def test_nothing_was_pruned(findings: Findings) -> None:
    assert list(verdicts(keep(findings, lambda each: each.point is None))) == ["No network has been pruned yet."]
