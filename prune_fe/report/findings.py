"""The results of a run or a comparison as data frames: accuracies, differences with intervals, agreement."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from prune_fe.experiment.recipe import CONTROLS, Recipe
from prune_fe.experiment.results import SCRATCH, TUNED, UNPRUNED, Result, Row
from prune_fe.experiment.tuning import has_tuned_control
from prune_fe.measure.statistics import Estimate, simultaneous, spearman
from prune_fe.scoring.scores import Array, Scores

RESAMPLES = 2_000
"""Bootstrap samples of the test images for each difference."""

CONTROL, FILTER_NORM = CONTROLS
FEATURE_ENTROPY = "feature-entropy"

COLUMNS = ["network", "goal", "point", *(entry.name for entry in dataclasses.fields(Row)), "seconds", "commit"]
"""Columns of cells.csv."""

TARGETS = ("target_macs", "target_params")
"""The operating points that are shares of a cost: of the multiply-adds, and of the parameters."""

TEXTS = ("network", "goal", "scorer", "timed_with", "commit")
COUNTS = ("seed", "parameters", "macs")


@dataclass(frozen=True)
class Difference:
    """The accuracy of a scorer minus that of another, paired over the test images.

    Attributes:
        scorer: Label of the first scorer.
        other: Label of the scorer that it is compared with.
        estimate: Mean difference (a share) and its interval, which holds for all pairs of the operating point at once.
        seeds: Number of seeds; both scorers' networks have the same ones.
    """

    scorer: str
    other: str
    estimate: Estimate
    seeds: int

    @property
    def reversed(self) -> Difference:
        """The accuracy of the other scorer minus that of the first."""
        mean, low, high, n = -self.estimate.mean, -self.estimate.high, -self.estimate.low, self.estimate.n
        return Difference(self.other, self.scorer, Estimate(mean, low, high, n), self.seeds)

    @property
    def verdict(self) -> str:
        """The conclusion about the first scorer from the interval: "better", "worse" or "not told apart"."""
        if self.estimate.low > 0:
            return "better"
        return "worse" if self.estimate.high < 0 else "not told apart"


@dataclass(frozen=True)
class Findings:
    """The results in a folder, the scores beside them, and what the recipe asks for.

    A network's results are selected by its label, the scorer's label and the operating point, which is None for the
    unpruned network, with and without fine-tuning.

    Attributes:
        recipe: The recipe, with the controls that a comparison adds.
        results: One for each measured network.
        scores: (network, seed, scorer) -> scores.
        classes: Names of the classes.
        labels: Class of each test image, (images,).
        environment: Versions and hardware.
        is_comparison: Whether the folder holds a comparison rather than a run.
        failed: Task of a comparison that failed -> its error.
        latency: Times of the unpruned and the pruned network in turn, in the first setting, as `prune-fe compress`
            writes them; None where they were not measured.
    """

    recipe: Recipe
    results: Sequence[Result]
    scores: Mapping[tuple[str, int, str], Scores]
    classes: Sequence[str]
    labels: Array
    environment: Mapping[str, Any]
    is_comparison: bool = False
    failed: Mapping[str, str] = field(default_factory=dict)
    latency: Mapping[str, Any] | None = None

    @functools.cached_property
    def frame(self) -> pd.DataFrame:
        """One row a result, in the order of `results`: the columns of cells.csv, and accuracy.

        What was not measured is NaN or None.
        """
        rows = [
            {"network": result.network, "goal": result.goal, "point": result.point}
            | dataclasses.asdict(result.row)
            | {"seconds": result.seconds, "commit": result.environment.get("commit"), "accuracy": result.row.accuracy}
            for result in self.results
        ]
        frame = pd.DataFrame(rows, columns=[*COLUMNS, "accuracy"], dtype="object")
        types = {name: float for name in frame.columns if name not in (*TEXTS, *COUNTS)}
        return frame.astype(types | dict.fromkeys(COUNTS, "int64") | dict.fromkeys(TEXTS, "object"))

    @functools.cached_property
    def networks(self) -> list[str]:
        """Labels of the networks, those of the recipe first."""
        requested = self.recipe.compare.networks if self.is_comparison else {}
        return list(dict.fromkeys([*requested, *self.frame["network"]]))

    @property
    def seeds(self) -> list[int]:
        """Seeds of the recipe."""
        return self.recipe.seeds

    @functools.cached_property
    def points(self) -> list[float]:
        """The operating points, requested or measured, the mildest first."""
        measured = set(self.frame["point"].dropna().tolist())
        requested = self.recipe.compare.points[1] if self.is_comparison else []
        return sorted(measured | set(requested), reverse=self.goal.startswith("target"))

    @property
    def goal(self) -> str:
        """What the operating points are: "ratio", "target_macs", "target_params" or "by layer"."""
        if self.is_comparison:
            return self.recipe.compare.points[0]
        return next((goal for goal in self.frame["goal"] if goal is not None), "ratio")

    @functools.cached_property
    def scorers(self) -> list[str]:
        """Labels of the criteria in the recipe's order, controls included, without those trained from scratch."""
        measured = set(self.frame["scorer"])
        labels = [entry.label for entry in self.recipe.scorers]
        return [label for label in labels if label in measured or self.is_comparison]

    @functools.cached_property
    def scratch(self) -> list[str]:
        """Labels of the architectures that are trained from scratch, one a budget."""
        requested = self.recipe.compare.scratch if self.is_comparison else []
        possible = self.recipe.train is not None or self.recipe.finetune is not None
        return [f"{SCRATCH}{budget}" for budget in requested] if possible else []

    @functools.cached_property
    def tuned(self) -> list[str]:
        """The label of the unpruned networks that are fine-tuned as the pruned ones are, if there are any."""
        is_measured = bool((self.frame["scorer"] == TUNED).any())
        return [TUNED] if is_measured or has_tuned_control(self.recipe) else []

    @functools.cached_property
    def _by_key(self) -> dict[tuple[str, str, float | None, int], Result]:
        return {(result.network, result.row.scorer, result.point, result.row.seed): result for result in self.results}

    def select(self, network: str, scorer: str, point: float | None = None) -> list[Result]:
        """Return the results of the recipe's seeds, in their order, without those that are missing."""
        results = (self._by_key.get((network, scorer, point, seed)) for seed in self.seeds)
        return [result for result in results if result is not None]

    def control(self, name: str) -> str | None:
        """Return the label of a scorer, such as a control, if it is among those of the recipe.

        Args:
            name: Name of the scorer, which the recipe may have given another label.
        """
        labels = [entry.label for entry in self.recipe.scorers if entry.name == name]
        return next((label for label in [*labels, name] if label in self.scorers), None)

    def accuracies(self, network: str, scorer: str, point: float | None = None) -> list[float]:
        """Return the accuracy (a share) of each seed."""
        return [result.row.accuracy for result in self.select(network, scorer, point)]

    def comparable(self, network: str, point: float) -> tuple[tuple[int, ...], list[str]]:
        """Return the seeds by which scorers are compared at an operating point, and the scorers that have all of them.

        The seeds are those with which most results can be compared, so that a scorer with more seeds than the others
        is not left without any other to compare it with.
        """
        seeds = {s: {each.row.seed for each in self.select(network, s, point)} for s in [*self.scorers, *self.scratch]}
        shared = max(
            seeds.values(), key=lambda some: len(some) * sum(some <= own for own in seeds.values()), default=set()
        )
        return tuple(sorted(shared)), [scorer for scorer, own in seeds.items() if shared and own.issuperset(shared)]

    def _correct(self, network: str, scorer: str, point: float, seeds: Sequence[int]) -> Array:
        """Return the share of these seeds whose network classifies each test image correctly, (images,)."""
        correct = [each.correct for each in self.select(network, scorer, point) if each.row.seed in seeds]
        mean: Array = np.mean(correct, axis=0)
        return mean

    def best(self, network: str, point: float) -> str | None:
        """Return the scorer with the highest mean accuracy over the seeds that are compared."""
        seeds, comparable = self.comparable(network, point)
        criteria = [scorer for scorer in comparable if scorer in self.scorers]
        return max(criteria, key=lambda s: float(self._correct(network, s, point, seeds).mean()), default=None)

    def drop(self, network: str, scorer: str, point: float | None) -> float | None:
        """Return the lost accuracy (a share), averaged over the seeds with a result; None without any."""
        lost = [each.row.accuracy_before - each.row.accuracy for each in self.select(network, scorer, point)]
        return float(np.mean(lost)) if lost else None

    def shares_left(self, network: str, scorer: str, point: float | None) -> tuple[float, float] | None:
        """Return the shares of the multiply-adds and of the parameters that are left, the means over the seeds.

        None without a result, or without that of the unpruned network.
        """
        unpruned = {each.row.seed: each.row for each in self.select(network, UNPRUNED)}
        rows = [each.row for each in self.select(network, scorer, point) if each.row.seed in unpruned]
        if not rows:
            return None
        macs, parameters = (
            float(np.mean([getattr(row, name) / getattr(unpruned[row.seed], name) for row in rows]))
            for name in ("macs", "parameters")
        )
        return macs, parameters

    def reached(self, point: float) -> tuple[float, float] | None:
        """Return the least and the largest share that is left at a target, over all networks and scorers.

        None where the operating points are no targets, or nothing has been measured.
        """
        if self.goal not in TARGETS:
            return None
        shares = [self.shares_left(network, scorer, point) for network in self.networks for scorer in self.scorers]
        values = [share[TARGETS.index(self.goal)] for share in shares if share is not None]
        return (min(values), max(values)) if values else None

    def differences_to_random(self, network: str, point: float) -> dict[str, Difference]:
        """Return scorer -> its difference to random units."""
        return self._differences_to(network, point, self.control(CONTROL))

    def differences_to_best(self, network: str, point: float) -> dict[str, Difference]:
        """Return scorer -> its difference to the best scorer."""
        return self._differences_to(network, point, self.best(network, point))

    def _differences_to(self, network: str, point: float, reference: str | None) -> dict[str, Difference]:
        differences = {}
        for each in self._differences(network, point):
            if each.other == reference:
                differences[each.scorer] = each
            elif each.scorer == reference:
                differences[each.other] = each.reversed
        return differences

    def _differences(self, network: str, point: float) -> list[Difference]:
        """Return the differences of all pairs.

        Their intervals hold for all pairs at once: the best scorer is chosen by the same images, and what is said of
        two scorers does not depend on why they are compared.
        """
        if (network, point) not in self._known_differences:
            seeds, names = self.comparable(network, point)
            pairs = [(i, j) for i in range(len(names)) for j in range(i)]
            correct = np.array([self._correct(network, scorer, point, seeds) for scorer in names]).T
            estimates = simultaneous(correct, pairs, RESAMPLES) if pairs else []
            self._known_differences[network, point] = [
                Difference(names[i], names[j], estimate, len(seeds))
                for (i, j), estimate in zip(pairs, estimates, strict=True)
            ]
        return self._known_differences[network, point]

    @functools.cached_property
    def _known_differences(self) -> dict[tuple[str, float], list[Difference]]:
        return {}

    def class_accuracies(self, network: str, scorer: str, point: float) -> pd.DataFrame | None:
        """Return the accuracy of each class before and after pruning, the mean over the seeds that have both.

        Returns:
            Columns class, before and after (shares; NaN for a class without test images); None without a result.
        """
        results = {each.row.seed: each for each in self.select(network, scorer, point)}
        unpruned = {each.row.seed: each for each in self.select(network, UNPRUNED)}
        seeds = sorted(results.keys() & unpruned.keys())
        if not seeds:
            return None
        before, after = (self._mean_by_class([of_seed[seed] for seed in seeds]) for of_seed in (unpruned, results))
        return pd.DataFrame({"class": self.classes, "before": before, "after": after})

    def _mean_by_class(self, results: Sequence[Result]) -> Array:
        images = np.bincount(self.labels, minlength=len(self.classes))
        correct = np.mean(
            [np.bincount(self.labels, weights=each.correct, minlength=len(self.classes)) for each in results], axis=0
        )
        with np.errstate(invalid="ignore"):
            return correct / images

    def scores_of(self, network: str) -> dict[str, dict[int, Scores]]:
        """Return scorer -> seed -> scores, for the scores that the folder holds."""
        scores: dict[str, dict[int, Scores]] = {}
        for label in self.scorers:
            for seed in self.seeds:
                if (key := (network, seed, label)) in self.scores:
                    scores.setdefault(label, {})[seed] = self.scores[key]
        return scores

    def agreement(
        self, network: str, one: str, other: str, correlation: Callable[[Any, Any], float] = spearman
    ) -> dict[str, float]:
        """Return layer -> rank correlation of two scorers' scores, the mean over the seeds that both have."""
        scores = self.scores_of(network)
        pairs = [(scores[one][seed], scores[other][seed]) for seed in scores[one] if seed in scores[other]]
        layers = [layer for layer in pairs[0][0].keep if layer in pairs[0][1].keep] if pairs else []
        return {
            layer: float(np.mean([correlation(a.keep[layer], b.keep[layer]) for a, b in pairs])) for layer in layers
        }

    def overlap(self, network: str, point: float, one: str, other: str) -> dict[str, float]:
        """Return layer -> Jaccard index of the units that two scorers remove from it, the mean over the seeds."""
        by_seed = {s: {each.row.seed: each for each in self.select(network, s, point)} for s in (one, other)}
        indices: dict[str, list[float]] = {}
        for seed in sorted(by_seed[one].keys() & by_seed[other].keys()):
            a, b = by_seed[one][seed].removed, by_seed[other][seed].removed
            for layer in (layer for layer in a if layer in b):
                if union := set(a[layer]) | set(b[layer]):
                    indices.setdefault(layer, []).append(len(set(a[layer]) & set(b[layer])) / len(union))
        return {layer: float(np.mean(values)) for layer, values in indices.items()}

    def matrix(self, names: Sequence[str], by_layer: Callable[[str, str], Mapping[str, float]]) -> pd.DataFrame:
        """Return the mean over the layers of by_layer(row, column); NaN where no layer has a value."""
        values = [[list(by_layer(one, other).values()) for other in names] for one in names]
        means = [[float(np.mean(entry)) if entry else np.nan for entry in row] for row in values]
        return pd.DataFrame(means, index=list(names), columns=list(names))

    def same_cost(self) -> bool:
        """Return whether all scorers have the same parameters and multiply-adds at each point, network and seed."""
        pruned = self.frame.dropna(subset="point")
        costs = pruned.groupby(["network", "point", "seed"])[["parameters", "macs"]].nunique()
        return bool((costs == 1).all(axis=None))

    def is_complete(self, scorer: str) -> bool:
        """Return whether a scorer has a result for each network, seed and operating point."""
        counts = [
            len(self.select(network, scorer, point))
            for network in self.networks
            for point in ([None] if scorer in (UNPRUNED, TUNED) else self.points)
        ]
        return bool(counts) and min(counts) == len(self.seeds)

    @functools.cached_property
    def missing(self) -> list[str]:
        """The tasks of the recipe that have no result, in words."""
        gaps = []
        for network in self.networks:
            labels = [UNPRUNED, *self.tuned, *(entry.label for entry in self.recipe.scorers), *self.scratch]
            for scorer in labels:
                for point in [None] if scorer in (UNPRUNED, TUNED) else self.points:
                    count = len(self.select(network, scorer, point))
                    if count < len(self.seeds):
                        where = "" if point is None else f" at {self.goal} {point:g}"
                        gaps.append(f"{network}: {scorer}{where}: {count} of {len(self.seeds)} seeds")
        return gaps
