"""Scores for cumulative ablation: each class has its own, from its own training images where a scorer reads any."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path

import numpy as np

from prune_fe.experiment.estimate import Kind
from prune_fe.experiment.experiment import Experiment
from prune_fe.experiment.tasks import Task
from prune_fe.scorers import resolve_scorer
from prune_fe.scorers.base import Scorer
from prune_fe.scorers.random import Random
from prune_fe.scoring.score import score_all
from prune_fe.scoring.scores import Array, Scores
from prune_fe.studies.ablation_tables import CONTROL, control_label
from prune_fe.tracing.layers import Layer

WEIGHTS, ALL_CLASSES = "weights", "all"
"""Folders of the scorers that read no images, and of those that compare a class with the others."""


@dataclass(frozen=True, eq=False)
class ClassScores:
    """The scores of some layers for each class, by every scorer of an experiment's recipe and by the control.

    Scores that come from one pass over the images lie in one folder: those of all scorers that read the images of one
    class, those of all scorers that compare classes, and those of all scorers of weights.

    Attributes:
        experiment: The network, and the recipe with the scorers.
        layers: The layers that are scored.
        classes: Numbers of the classes.
        folder: Where the scores are saved.
    """

    experiment: Experiment
    layers: Sequence[Layer]
    classes: Sequence[int]
    folder: Path
    _loaded: dict[str, Mapping[str, Scores]] = field(default_factory=dict, init=False, repr=False)

    @cached_property
    def scorers(self) -> dict[str, Scorer]:
        """The recipe's scorers by label, without those of random scores."""
        return {
            entry.label: resolve_scorer(entry.name, entry.settings, self.experiment.seed)
            for entry in self.experiment.recipe.scorers
            if entry.name != CONTROL
        }

    @property
    def labels(self) -> list[str]:
        """The labels of all scorers and of the control's random orders."""
        return [*self.scorers, *map(control_label, range(self.experiment.recipe.ablate.control_seeds))]

    @cached_property
    def passes(self) -> dict[str, dict[str, Scorer]]:
        """Folder -> label in it -> scorer."""
        passes: dict[str, dict[str, Scorer]] = {}
        for label, scorer in self.scorers.items():
            for class_number in self.classes:
                folder, key = self._locate(label, class_number)
                passes.setdefault(folder, {})[key] = scorer.for_class(class_number)
        return passes

    def _locate(self, label: str, class_number: int) -> tuple[str, str]:
        """Return the folder of a scorer's scores for a class, and their label in it."""
        scorer = self.scorers[label]
        if scorer.compares_classes:
            return ALL_CLASSES, f"{label}.{class_number}"
        return (f"class-{class_number:03}" if scorer.needs_data else WEIGHTS), label

    def tasks(self) -> Iterator[Task]:
        """Yield one task for each pass."""
        for folder in self.passes:
            name, work = f"seed-{self.experiment.seed}.scores.{folder}", partial(self._make, folder)
            kind = Kind("scores of a class") if folder.startswith("class-") else None
            yield Task(name, self._result(folder), (), work, kind=kind)

    def needs(self, label: str) -> list[Path]:
        """Return the results of the tasks that a scorer's scores come from; the control needs none."""
        if label not in self.scorers:
            return []
        return [self._result(folder) for folder in {self._locate(label, number)[0]: None for number in self.classes}]

    def _result(self, folder: str) -> Path:
        """Return the file that is saved last of a pass."""
        # The scores of a pass are saved in the order of their labels.
        return self.folder / folder / list(self.passes[folder])[-1] / "scores.npz"

    def _make(self, folder: str) -> None:
        self._load(folder)

    def _load(self, folder: str) -> Mapping[str, Scores]:
        """Return the scores of one pass: read where they are finished, otherwise computed and saved."""
        if folder not in self._loaded:
            experiment, options = self.experiment, self.experiment.recipe.score
            class_numbers = [c for c in self.classes if folder == f"class-{c:03}"]
            self._loaded[folder] = score_all(
                experiment.network,
                None if folder == WEIGHTS else experiment.splits.train,
                self.passes[folder],
                classes=class_numbers or None,
                layers=[layer.name for layer in self.layers],
                samples=options.samples,
                seed=experiment.seed,
                batch_size=options.batch_size,
                workers=experiment.recipe.workers,
                example=experiment.example,
                progress=experiment.reporter.progress(f"seed {experiment.seed}: scoring ({folder})"),
                folder=self.folder / folder,
            )
        return self._loaded[folder]

    def by_class(self, label: str) -> Array:
        """Return the scores of all layers one after the other for each class, shape (classes, units); higher = keep."""
        if label not in self.scorers:
            number = self.labels.index(label) - len(self.scorers)
            # The seeds of one network's orders are apart from those of the next, whose seed is higher by 1 or more.
            random = Random(1000 * self.experiment.seed + number).score(self.experiment.network, self.layers, {})
            values = np.concatenate([random[layer.name].keep.numpy() for layer in self.layers])
            return np.array([values] * len(self.classes))
        rows = [
            np.concatenate([scores.keep[layer.name] for layer in self.layers])
            for scores in self._scores_by_class(label)
        ]
        return np.array(rows)

    def of_layer(self, label: str, layer: str) -> Array:
        """Return the scores of one layer by one scorer for each class, shape (classes, units); higher = keep."""
        return np.array([scores.keep[layer] for scores in self._scores_by_class(label)])

    def raw_by_class(self, label: str, quantity: str, layer: str) -> Array:
        """Return a raw quantity of one layer for each class, shape (classes, units).

        Args:
            label: Label of a scorer that computes the quantity for each class.
            quantity: Name of the quantity.
            layer: Name of the layer.
        """
        return np.concatenate([scores.raw[quantity][layer] for scores in self._scores_by_class(label)])

    def _scores_by_class(self, label: str) -> Iterator[Scores]:
        for class_number in self.classes:
            folder, key = self._locate(label, class_number)
            yield self._load(folder)[key]
