"""The conclusions of a comparison in words: a criterion is called better only if the interval excludes zero."""

from __future__ import annotations

from collections.abc import Iterator

from prune_fe.experiment.results import UNPRUNED
from prune_fe.report.findings import CONTROL, Findings
from prune_fe.report.wording import (
    describe_accuracy,
    describe_missing_seeds,
    describe_point,
    describe_scorer,
    join_or_none,
)

INTERVALS = (
    "Intervals are of 95 %, from a bootstrap over the test images, which are resampled for all criteria together. They "
    "hold for all pairs of criteria at an operating point at once, so that they remain valid for the best criterion, "
    "which is chosen by the same images. They do not include the variation between seeds; the standard deviation over "
    "the seeds shows it. A criterion without results for some of the compared seeds is not compared."
)


def verdicts(findings: Findings) -> Iterator[str]:
    """Yield a paragraph for each network and operating point, and then one that explains the intervals."""
    texts = [
        _verdict(findings, network, point, best)
        for network in findings.networks
        for point in findings.points
        if (best := findings.best(network, point)) is not None
    ]
    if not texts:
        yield "No network has been pruned yet."
        return
    yield from texts
    yield INTERVALS


def _verdict(findings: Findings, network: str, point: float, best: str) -> str:
    seeds, comparable = findings.comparable(network, point)
    with_seeds = describe_missing_seeds(findings, len(seeds))
    sentences = [
        f"{network}, {describe_point(findings, point)}{with_seeds}: {_about_best(findings, network, point, best)}",
        *_about_random(findings, network, point),
    ]
    measured = [s for s in findings.scorers if findings.select(network, s, point)]
    if excluded := [scorer for scorer in measured if scorer not in comparable]:
        sentences.append(f"Not compared, because seeds are missing: {', '.join(excluded)}")
    sentences += [*_about_scratch(findings, network, point, best), *_about_tuned(findings, network)]
    return ". ".join(sentences) + "."


def _about_best(findings: Findings, network: str, point: float, best: str) -> str:
    accuracy = describe_accuracy(findings, network, best, point)
    others = {s: each for s, each in findings.differences_to_best(network, point).items() if s in findings.scorers}
    if not others:
        return f"{best} has {accuracy}, and there is no other criterion to compare it with"
    even = [scorer for scorer, each in others.items() if each.verdict == "not told apart"]
    told_apart = f"not told apart from {', '.join(even)}" if even else "told apart from all others"
    return f"{best} has the highest mean accuracy ({accuracy}), {told_apart}"


def _about_random(findings: Findings, network: str, point: float) -> Iterator[str]:
    differences = findings.differences_to_random(network, point)
    if not differences:
        yield f"There is no {CONTROL} to compare with"
        return
    verdict_of = {scorer: each.verdict for scorer, each in differences.items() if scorer in findings.scorers}
    better, worse = ([s for s, verdict in verdict_of.items() if verdict == name] for name in ("better", "worse"))
    yield f"Better than {CONTROL}: {join_or_none(better)}"
    if worse:
        yield f"Worse than {CONTROL}: {', '.join(worse)}"


def _about_tuned(findings: Findings, network: str) -> Iterator[str]:
    for label in findings.tuned:
        if findings.select(network, label):
            before, after = (describe_accuracy(findings, network, name, None) for name in (UNPRUNED, label))
            yield f"The unpruned network: {before}, and {after} with the same fine-tuning"


def _about_scratch(findings: Findings, network: str, point: float, best: str) -> Iterator[str]:
    differences = findings.differences_to_best(network, point)
    for scorer in findings.scratch:
        if findings.select(network, scorer, point):
            verdict = "not compared, because seeds are missing"
            if scorer in differences:
                verdict = differences[scorer].verdict
                verdict += f" from {best}" if verdict == "not told apart" else f" than {best}"
            accuracy = describe_accuracy(findings, network, scorer, point)
            yield f"{describe_scorer(scorer).capitalize()}: {accuracy}, {verdict}"
