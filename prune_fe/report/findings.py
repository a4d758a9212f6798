"""What the cells of a run or a comparison show: means and spreads, intervals, agreement, and what was not measured."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from prune_fe.errors import CheckpointError, InputError
from prune_fe.experiment.recipe import CONTROLS, Recipe, with_controls
from prune_fe.experiment.results import SCRATCH, UNPRUNED, Cell, load_cell
from prune_fe.experiment.run_folder import NETWORKS, events_of, is_comparison
from prune_fe.measure.statistics import Estimate, simultaneous, spearman
from prune_fe.scoring.scores import Array, Scores, load_scores

RESAMPLES = 2_000
"""Of the test images, for each difference."""

CONTROL, FILTER_NORM = CONTROLS


@dataclass(frozen=True)
class Difference:
    """The accuracy of a scorer less another one's, paired over the test images, by networks of the same seeds; the
    interval holds for all that are compared at once."""

    scorer: str
    other: str
    estimate: Estimate
    seeds: int

    @property
    def turned(self) -> Difference:
        """The other one less this one."""
        mean, low, high, n = -self.estimate.mean, -self.estimate.high, -self.estimate.low, self.estimate.n
        return Difference(self.other, self.scorer, Estimate(mean, low, high, n), self.seeds)

    @property
    def verdict(self) -> str:
        """What the interval says."""
        if self.estimate.low > 0:
            return "better"
        return "worse" if self.estimate.high < 0 else "not told apart"


@dataclass(frozen=True)
class Findings:
    """The cells of one folder, the scores beside them, and what was asked for.

    classes, labels: of the test images. scores: (network, seed, label) -> scores. is_comparison: a grid, not a run.
    failed: what of a grid could not be done, and why.
    """

    recipe: Recipe
    cells: Sequence[Cell]
    scores: Mapping[tuple[str, int, str], Scores]
    classes: Sequence[str]
    labels: Array
    environment: Mapping[str, Any]
    is_comparison: bool = False
    failed: Mapping[str, str] = field(default_factory=dict)

    @functools.cached_property
    def networks(self) -> list[str]:
        asked = self.recipe.compare.networks if self.is_comparison else {}
        return list(dict.fromkeys([*asked, *(cell.network for cell in self.cells)]))

    @property
    def seeds(self) -> list[int]:
        return self.recipe.seeds

    @functools.cached_property
    def points(self) -> list[float]:
        """The operating points, those that were asked for and those that there are, the mildest first."""
        found = {cell.point for cell in self.cells if cell.point is not None}
        asked = self.recipe.compare.points[1] if self.is_comparison else []
        return sorted(found | set(asked), reverse=self.goal.startswith("target"))

    @property
    def goal(self) -> str:
        if self.is_comparison:
            return self.recipe.compare.points[0]
        return next((cell.goal for cell in self.cells if cell.goal is not None), "ratio")

    @functools.cached_property
    def scorers(self) -> list[str]:
        """The labels of the criteria, in the recipe's order, controls included; nothing from scratch."""
        known = [entry.label for entry in self.recipe.scorers]
        found = {cell.row.scorer for cell in self.cells}
        return [label for label in known if label in found or self.is_comparison]

    @functools.cached_property
    def scratch(self) -> list[str]:
        asked = self.recipe.compare.scratch if self.is_comparison else []
        possible = self.recipe.train is not None or self.recipe.finetune is not None
        return [f"{SCRATCH}{budget}" for budget in asked] if possible else []

    @functools.cached_property
    def _by_place(self) -> dict[tuple[str, str, float | None, int], Cell]:
        return {(cell.network, cell.row.scorer, cell.point, cell.row.seed): cell for cell in self.cells}

    def at(self, network: str, scorer: str, point: float | None = None) -> list[Cell]:
        """The cells of all seeds."""
        found = (self._by_place.get((network, scorer, point, seed)) for seed in self.seeds)
        return [cell for cell in found if cell is not None]

    def control(self, name: str) -> str | None:
        """The label of a control among the scorers."""
        labels = [entry.label for entry in self.recipe.scorers if entry.name == name]
        return next((label for label in [*labels, name] if label in self.scorers), None)

    def accuracies(self, network: str, scorer: str, point: float | None = None) -> list[float]:
        return [cell.row.accuracy for cell in self.at(network, scorer, point)]

    def compared(self, network: str, point: float) -> tuple[tuple[int, ...], list[str]]:
        """(The seeds by which scorers are compared there, those that have all of them.) They are the seeds with which
        most cells are compared: a scorer that has more of them than the others does not stand alone."""
        seeds = {s: {cell.row.seed for cell in self.at(network, s, point)} for s in [*self.scorers, *self.scratch]}
        shared = max(
            seeds.values(), key=lambda some: len(some) * sum(some <= own for own in seeds.values()), default=set()
        )
        known = [scorer for scorer, own in seeds.items() if shared and own.issuperset(shared)]
        return tuple(sorted(shared)), known

    def _right(self, network: str, scorer: str, point: float, seeds: Sequence[int]) -> Array:
        """(test images,): how often each was called what it is, the mean over these seeds."""
        cells = [cell.correct for cell in self.at(network, scorer, point) if cell.row.seed in seeds]
        right: Array = np.mean(cells, axis=0)
        return right

    def best(self, network: str, point: float) -> str | None:
        """The scorer with the highest mean accuracy by the seeds that are compared."""
        seeds, known = self.compared(network, point)
        criteria = [scorer for scorer in known if scorer in self.scorers]
        return max(criteria, key=lambda s: float(self._right(network, s, point, seeds).mean()), default=None)

    def drop(self, network: str, scorer: str, point: float) -> float | None:
        """The accuracy lost, of the seeds that there are."""
        cells = self.at(network, scorer, point)
        return float(np.mean([cell.row.accuracy_before - cell.row.accuracy for cell in cells])) if cells else None

    def to_random(self, network: str, point: float) -> dict[str, Difference]:
        """Scorer -> how it differs from random units."""
        return self._to(network, point, self.control(CONTROL))

    def to_best(self, network: str, point: float) -> dict[str, Difference]:
        """Scorer -> how it differs from the best one."""
        return self._to(network, point, self.best(network, point))

    def _to(self, network: str, point: float, other: str | None) -> dict[str, Difference]:
        found = {}
        for each in self._differences(network, point):
            if each.other == other:
                found[each.scorer] = each
            elif each.scorer == other:
                found[each.other] = each.turned
        return found

    def _differences(self, network: str, point: float) -> list[Difference]:
        """Of all pairs, with intervals that hold for all at once: which is best is seen on the same images, and what is
        said of two of them does not depend on why they are looked at."""
        if (network, point) not in self._known:
            seeds, known = self.compared(network, point)
            pairs = [(i, j) for i in range(len(known)) for j in range(i)]
            right = np.array([self._right(network, scorer, point, seeds) for scorer in known]).T
            estimates = simultaneous(right, pairs, RESAMPLES) if pairs else []
            self._known[network, point] = [
                Difference(known[i], known[j], estimate, len(seeds))
                for (i, j), estimate in zip(pairs, estimates, strict=True)
            ]
        return self._known[network, point]

    @functools.cached_property
    def _known(self) -> dict[tuple[str, float], list[Difference]]:
        return {}

    def class_accuracies(self, network: str, scorer: str, point: float) -> tuple[Array, Array] | None:
        """((classes,), (classes,)): before pruning and after it, the mean over the seeds that have both; None without
        cells, NaN without test images."""
        cells = {cell.row.seed: cell for cell in self.at(network, scorer, point)}
        unpruned = {cell.row.seed: cell for cell in self.at(network, UNPRUNED)}
        both = sorted(cells.keys() & unpruned.keys())
        if not both:
            return None
        return self._by_class([unpruned[seed] for seed in both]), self._by_class([cells[seed] for seed in both])

    def _by_class(self, cells: Sequence[Cell]) -> Array:
        images = np.bincount(self.labels, minlength=len(self.classes))
        right = np.mean(
            [np.bincount(self.labels, weights=cell.correct, minlength=len(self.classes)) for cell in cells], axis=0
        )
        with np.errstate(invalid="ignore"):
            return right / images

    def ranked(self, network: str) -> dict[str, dict[int, Scores]]:
        """Label -> seed -> its scores."""
        found: dict[str, dict[int, Scores]] = {}
        for label in self.scorers:
            for seed in self.seeds:
                if (key := (network, seed, label)) in self.scores:
                    found.setdefault(label, {})[seed] = self.scores[key]
        return found

    def agreement(self, network: str, one: str, other: str, of: Any = spearman) -> dict[str, float]:
        """Layer -> how far two scorers rank its units alike: `of`, the mean over the seeds that both have."""
        ranked = self.ranked(network)
        pairs = [(ranked[one][seed], ranked[other][seed]) for seed in ranked[one] if seed in ranked[other]]
        layers = [layer for layer in pairs[0][0].keep if layer in pairs[0][1].keep] if pairs else []
        return {layer: float(np.mean([of(a.keep[layer], b.keep[layer]) for a, b in pairs])) for layer in layers}

    def overlap(self, network: str, point: float, one: str, other: str) -> dict[str, float]:
        """Layer -> the Jaccard index of the units that two scorers remove from it, the mean over the seeds."""
        seeds = {s: {cell.row.seed: cell for cell in self.at(network, s, point)} for s in (one, other)}
        found: dict[str, list[float]] = {}
        for seed in sorted(seeds[one].keys() & seeds[other].keys()):
            a, b = seeds[one][seed].removed, seeds[other][seed].removed
            for layer in (layer for layer in a if layer in b):
                if both := set(a[layer]) | set(b[layer]):
                    found.setdefault(layer, []).append(len(set(a[layer]) & set(b[layer])) / len(both))
        return {layer: float(np.mean(values)) for layer, values in found.items()}

    def matrix(self, names: Sequence[str], by_layer: Callable[[str, str], Mapping[str, float]]) -> list[list[Any]]:
        """(names, names): the means over the layers of by_layer(one, other); None where there is no layer."""
        found = [[by_layer(one, other) for other in names] for one in names]
        return [[float(np.mean(list(values.values()))) if values else None for values in row] for row in found]

    def same_cost(self) -> bool:
        """Whether all scorers had the same parameters and multiply-adds at each point of each network and seed."""
        found: dict[tuple[str, float | None, int], set[tuple[int, int]]] = {}
        for cell in self.cells:
            if cell.point is not None:
                place = (cell.network, cell.point, cell.row.seed)
                found.setdefault(place, set()).add((cell.row.parameters, cell.row.macs))
        return all(len(costs) == 1 for costs in found.values())

    def covers(self, scorer: str) -> bool:
        """Whether every cell of a scorer is there: of each network, seed and point."""
        counts = [
            len(self.at(network, scorer, point))
            for network in self.networks
            for point in ([None] if scorer == UNPRUNED else self.points)
        ]
        return bool(counts) and min(counts) == len(self.seeds)

    @functools.cached_property
    def missing(self) -> list[str]:
        """What was asked for and has no cell, in words."""
        gaps = []
        for network in self.networks:
            for scorer in [UNPRUNED, *(entry.label for entry in self.recipe.scorers), *self.scratch]:
                for point in [None] if scorer == UNPRUNED else self.points:
                    there = len(self.at(network, scorer, point))
                    if there < len(self.seeds):
                        of = "" if point is None else f" at {self.goal} {point:g}"
                        gaps.append(f"{network}: {scorer}{of}: {there} of {len(self.seeds)} seeds")
        return gaps


def load_findings(folder: Path) -> Findings:
    """What lies in the folder of a run or a comparison, finished or not."""
    try:
        content = yaml.safe_load((folder / "recipe.yaml").read_text(encoding="utf-8"))
        recipe = Recipe.model_validate(content)
        test = json.loads((folder / "test.json").read_text(encoding="utf-8"))
        environment = json.loads((folder / "env.json").read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError) as error:
        raise InputError(
            f"{folder}: nothing of `prune-fe run` or `prune-fe compare` to report ({error.filename} is missing)"
        ) from error
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise CheckpointError(f"{folder}: damaged ({error})") from error
    comparison = is_comparison(folder)
    if comparison:
        recipe = with_controls(recipe)
    # A name with a dot is of a file that was being written when its process ended.
    paths = sorted((folder / "cells").glob("[!.]*.json"))
    cells = [load_cell(path) for path in paths]
    if not cells:
        raise InputError(f"{folder}: no network has been measured yet")
    for path, cell in zip(paths, cells, strict=True):
        if len(cell.correct) != len(test["labels"]):
            raise CheckpointError(f"{path}: of {len(cell.correct)} test images, there are {len(test['labels'])}")
    scores = {}
    for network in recipe.compare.networks if comparison else [recipe.model.name]:
        for seed in recipe.seeds:
            of_seed = f"{NETWORKS}/{network}/seed-{seed}/scores" if comparison else f"seed-{seed}"
            for entry in recipe.scorers:
                if (folder / of_seed / entry.label / "scores.npz").exists():
                    scores[network, seed, entry.label] = load_scores(folder / of_seed / entry.label)
    labels, failed = np.array(test["labels"]), _failed(folder)
    return Findings(recipe, cells, scores, test["classes"], labels, environment, comparison, failed)


def _failed(folder: Path) -> dict[str, str]:
    """What the logs of a comparison say of tasks that have no result until now."""
    found = {}
    for log in sorted(folder.glob("log-*.jsonl"), key=lambda path: path.stat().st_mtime):
        for event in events_of(log, "failed"):
            if not (folder / event["result"]).exists():
                found[event["task"]] = event["error"]
    return found
