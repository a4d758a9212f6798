"""What the cells of a run or a comparison show: means and spreads, intervals, agreement, and what was not measured."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from prune_fe.cells import UNPRUNED, Cell, load_cell
from prune_fe.errors import CheckpointError, InputError
from prune_fe.recipe import CONTROLS, Recipe, with_controls
from prune_fe.scores import Array, Scores, load_scores
from prune_fe.stats import Estimate, bootstrap, spearman

RESAMPLES = 2_000
"""Of the test images, for each difference."""

SCRATCH = "scratch#"
"""Begins the labels of architectures that were trained from scratch; the number behind it is their budget."""

CONTROL, FILTER_NORM = CONTROLS


@dataclass(frozen=True)
class Difference:
    """The accuracy of a scorer less another one's, paired over the test images, by networks of the same seeds."""

    scorer: str
    other: str
    estimate: Estimate
    seeds: int

    @property
    def verdict(self) -> str:
        """What the interval says."""
        if self.estimate.low > 0:
            return "better"
        return "worse" if self.estimate.high < 0 else "not told apart"


@dataclass(frozen=True)
class Findings:
    """The cells of one folder, the scores beside them, and what was asked for.

    classes, labels: of the test images. scores: (network, seed, label) -> scores.
    """

    recipe: Recipe
    cells: Sequence[Cell]
    scores: Mapping[tuple[str, int, str], Scores]
    classes: Sequence[str]
    labels: Array
    environment: Mapping[str, Any]

    @functools.cached_property
    def networks(self) -> list[str]:
        return list(dict.fromkeys(cell.network for cell in self.cells))

    @functools.cached_property
    def seeds(self) -> list[int]:
        return sorted({cell.row.seed for cell in self.cells})

    @functools.cached_property
    def points(self) -> list[float]:
        """The operating points, from those that cost the least accuracy on."""
        goal, found = self.goal, {cell.point for cell in self.cells if cell.point is not None}
        return sorted(found, reverse=goal != "ratio")

    @property
    def goal(self) -> str:
        return next((cell.goal for cell in self.cells if cell.goal is not None), "ratio")

    @functools.cached_property
    def scorers(self) -> list[str]:
        """The labels of the criteria, in the recipe's order, controls included; nothing from scratch."""
        known = [entry.label for entry in self.recipe.scorers]
        found = dict.fromkeys(cell.row.scorer for cell in self.cells)
        rest = [label for label in found if label not in (*known, UNPRUNED) and not label.startswith(SCRATCH)]
        return [label for label in (*known, *rest) if label in found]

    @functools.cached_property
    def scratch(self) -> list[str]:
        found = dict.fromkeys(cell.row.scorer for cell in self.cells)
        return sorted(label for label in found if label.startswith(SCRATCH))

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

    def best(self, network: str, point: float) -> str | None:
        """The scorer with the highest mean accuracy there."""
        means = {s: float(np.mean(values)) for s in self.scorers if (values := self.accuracies(network, s, point))}
        return max(means, key=means.__getitem__) if means else None

    def difference(self, network: str, point: float, scorer: str, other: str | None) -> Difference | None:
        """None where they have no seed in common, or are the same."""
        if other is None or scorer == other:
            return None
        asked = (network, point, scorer, other)
        if asked not in self._differences:
            self._differences[asked] = self._compared(*asked)
        return self._differences[asked]

    @functools.cached_property
    def _differences(self) -> dict[tuple[str, float, str, str], Difference | None]:
        return {}

    def _compared(self, network: str, point: float, scorer: str, other: str) -> Difference | None:
        cells = {each: {cell.row.seed: cell for cell in self.at(network, each, point)} for each in (scorer, other)}
        seeds = sorted(cells[scorer].keys() & cells[other].keys())
        if not seeds:
            return None
        right = [cells[scorer][seed].correct.astype(float) - cells[other][seed].correct for seed in seeds]
        return Difference(scorer, other, bootstrap(np.mean(right, axis=0), RESAMPLES), len(seeds))

    def class_accuracy(self, network: str, scorer: str, point: float | None = None) -> Array | None:
        """(classes,): the mean over the seeds; None without cells, NaN without test images."""
        cells = self.at(network, scorer, point)
        if not cells:
            return None
        images = np.bincount(self.labels, minlength=len(self.classes))
        right = np.mean(
            [np.bincount(self.labels, weights=cell.correct, minlength=len(self.classes)) for cell in cells], axis=0
        )
        with np.errstate(invalid="ignore"):
            return right / images

    def ranked(self, network: str) -> dict[str, list[Scores]]:
        """Label -> its scores of each seed."""
        found: dict[str, list[Scores]] = {}
        for label in self.scorers:
            each = [self.scores[key] for seed in self.seeds if (key := (network, seed, label)) in self.scores]
            if each:
                found[label] = each
        return found

    def agreement(self, network: str, one: str, other: str, of: Any = spearman) -> dict[str, float]:
        """Layer -> how far two scorers rank its units alike: `of`, the mean over the seeds."""
        ranked = self.ranked(network)
        pairs = list(zip(ranked[one], ranked[other], strict=False))
        layers = [layer for layer in pairs[0][0].keep if layer in pairs[0][1].keep]
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

    @functools.cached_property
    def missing(self) -> list[str]:
        """What was asked for and has no cell, in words."""
        asked = set(self.recipe.compare.networks) or set(self.networks)
        gaps = []
        for network in sorted(asked):
            for scorer in [UNPRUNED, *self.scorers, *self.scratch]:
                for point in [None] if scorer == UNPRUNED else self.points:
                    there = len(self.at(network, scorer, point))
                    if there < len(self.recipe.seeds):
                        of = "" if point is None else f" at {self.goal} {point:g}"
                        gaps.append(f"{network}: {scorer}{of}: {there} of {len(self.recipe.seeds)} seeds")
        return gaps


def load_findings(folder: Path) -> Findings:
    """What lies in the folder of a run or a comparison, finished or not."""
    try:
        content = yaml.safe_load((folder / "recipe.yaml").read_text(encoding="utf-8"))
        recipe = Recipe.model_validate(content)
        test = json.loads((folder / "test.json").read_text(encoding="utf-8"))
        environment = json.loads((folder / "env.json").read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise InputError(
            f"{folder}: nothing of `prune-fe run` or `prune-fe compare` to report ({error.filename} is missing)"
        ) from error
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise CheckpointError(f"{folder}: damaged ({error})") from error
    if (folder / "networks").exists():  # a comparison
        recipe = with_controls(recipe)
    # A name with a dot is of a file that was being written when its process ended.
    cells = [load_cell(path) for path in sorted((folder / "cells").glob("[!.]*.json"))]
    if not cells:
        raise InputError(f"{folder}: no network has been measured yet")
    scores = {}
    for path in sorted(folder.glob("**/scores.npz")):
        place = path.relative_to(
            folder
        ).parts  # networks/N/seed-S/scores/LABEL/… of a comparison, seed-S/LABEL/… of a run
        network = place[1] if place[0] == "networks" else recipe.model.name
        seed = next(part for part in place if part.startswith("seed-"))
        scores[network, int(seed.removeprefix("seed-")), place[-2]] = load_scores(path.parent)
    return Findings(recipe, cells, scores, test["classes"], np.array(test["labels"]), environment)
