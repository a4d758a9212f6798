"""The subject of a study of single units: one unit of one layer of a trained network, on the images of one class."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from prune_fe.data.datasets import Rescaled
from prune_fe.data.labels import image_labels
from prune_fe.data.splits import Splits
from prune_fe.errors import DataError, InputError
from prune_fe.experiment.device import to_device
from prune_fe.experiment.experiment import Experiment
from prune_fe.experiment.recipe import ScorerEntry
from prune_fe.io import nearest, safe_file_name
from prune_fe.report.tables import Table
from prune_fe.scorers.base import Scorer
from prune_fe.scoring.score import check_scorer, score_all
from prune_fe.scoring.scores import Array, Scores
from prune_fe.studies.indicators import ALL_INDICATORS, RATE, H
from prune_fe.studies.last_layer import choose_layer
from prune_fe.studies.options import SubjectOptions
from prune_fe.studies.output import write_study
from prune_fe.tracing.layers import Layer

TRAINED = "trained"
"""Name of the state of a subject in which nothing is changed."""


@dataclass(frozen=True)
class Subject:
    """One unit of one layer of a network, on the images of one class.

    Attributes:
        network: The network, on its device.
        splits: The images.
        layer: The layer.
        unit: Number of the unit in the layer.
        label: Number of the class.
        samples: Training images of the class; of every compared class for scorers that compare classes.
        seed: Seed with which the images are drawn.
        batch_size: Images that go through the network together.
        workers: Processes that load images.
        compared: Numbers of the classes that are compared, with `label` among them; None means all.
        folder: Where finished scores, and those of an unfinished pass, are saved and read from; None saves nothing.
    """

    network: nn.Module
    splits: Splits
    layer: Layer
    unit: int
    label: int
    samples: int
    seed: int = 0
    batch_size: int = 64
    workers: int = 0
    compared: tuple[int, ...] | None = None
    folder: Path | None = None

    @property
    def compared_labels(self) -> tuple[int, ...]:
        """Numbers of the classes that are compared."""
        return tuple(range(len(self.splits.classes))) if self.compared is None else self.compared

    @property
    def example(self) -> Tensor:
        """One image, shape (1, channels, height, width), on the network's device."""
        return self.splits.test[0][0][None].to(next(self.network.parameters()).device)

    @property
    def text(self) -> str:
        """The unit, layer, class, number of images and number of compared classes in words."""
        size = "×".join(map(str, self.layer.map_size))
        return (
            f"unit {self.unit} of {self.layer.name!r} ({self.layer.units} units, maps of {size}), "
            f"class {self.splits.classes[self.label]!r}, {self.samples} training images; "
            f"{len(self.compared_labels)} of {len(self.splits.classes)} classes are compared"
        )

    def file_name(self, study: str) -> str:
        """Return a file name without ending that differs for every subject of a run."""
        layer = safe_file_name(self.layer.name)
        subject = f"seed-{self.seed}-{layer}-unit-{self.unit}-class-{self.label}-samples-{self.samples}"
        if len(self.compared_labels) < len(self.splits.classes):
            subject += f"-compared-{len(self.compared_labels)}"
        return f"study-{study}-{subject}"

    def with_unit(self, unit: int | None) -> Subject:
        """Return the same subject with another unit.

        Args:
            unit: Number of the unit. None takes the unit with the least H/ε among those whose maps have a hole in at
                least half of the images, or among all where there are none.

        Raises:
            InputError: The layer has no such unit.
        """
        if unit is None:
            return replace(self, unit=self._most_selective_unit())
        if not 0 <= unit < self.layer.units:
            raise InputError(f"layer {self.layer.name!r}: no unit {unit}, it has {self.layer.units}")
        return replace(self, unit=unit)

    def _most_selective_unit(self) -> int:
        raw = self.score({H.key: H.build_scorer(self.label)}, TRAINED)[H.key].raw
        ratio = raw["entropy_per_rate_nats"][self.layer.name][0]
        rate = raw[RATE.quantity][self.layer.name][0]
        # Two equal births among 20 images have an entropy of 0 and make no selective unit.
        frequent = np.where(rate >= 0.5, ratio, np.inf)
        return int(np.argmin(frequent if np.isfinite(frequent).any() else ratio))

    @cached_property
    def unavailable(self) -> dict[str, str]:
        """Name of each indicator that cannot score the layer -> the reason.

        Raises:
            InputError: Feature entropy is one of them; no study does without it.
        """
        reasons = {}
        labels = set(self.compared_labels)
        for indicator in ALL_INDICATORS:
            scorer = indicator.build_scorer(self.label)
            try:
                check_scorer(scorer, self.network, [self.layer], self.example, self.samples, labels)
            except InputError as error:
                if indicator.scorer == H.scorer:
                    raise
                reasons[indicator.name] = str(error)
        return reasons

    def score(
        self,
        scorers: Mapping[str, Scorer],
        state: str,
        *,
        network: nn.Module | None = None,
        factor: float = 1.0,
        all_classes: bool = False,
    ) -> dict[str, Scores]:
        """Return the scores of the layer by each of the scorers.

        Args:
            scorers: Label -> scorer; a label names a folder.
            state: Name of what is scored, such as "random-3"; a folder for each is made in `folder`.
            network: The network to score; default the subject's.
            factor: Number that the values of all images are multiplied by.
            all_classes: Use images of all compared classes instead of the subject's class alone.
        """
        return score_all(
            network or self.network,
            Rescaled(self.splits.train, factor),
            scorers,
            layers=[self.layer.name],
            classes=self.compared_labels if all_classes else [self.label],
            samples=self.samples,
            seed=self.seed,
            batch_size=self.batch_size,
            workers=self.workers,
            folder=self.folder and self.folder / f"{state}-{'classes' if all_classes else 'class'}",
        )

    def indicator_values(
        self, state: str = TRAINED, network: nn.Module | None = None, factor: float = 1.0
    ) -> dict[str, Array]:
        """Return the value of each indicator for every unit of the layer, shape (units,).

        Indicators that cannot score the layer are left out; `unavailable` gives the reasons.

        Args:
            state: Name of what is scored; see `score`.
            network: The network to score; default the subject's.
            factor: What the values of all images are multiplied by.
        """
        available = [indicator for indicator in ALL_INDICATORS if indicator.name not in self.unavailable]
        scores: dict[str, Scores] = {}
        for all_classes in (False, True):
            scorers = {
                indicator.key: indicator.build_scorer(self.label)
                for indicator in available
                if indicator.compares_classes == all_classes
            }
            if scorers:
                scores |= self.score(scorers, state, network=network, factor=factor, all_classes=all_classes)
        return {
            indicator.name: indicator.unit_values(scores[indicator.key], self.layer.name) for indicator in available
        }


def choose_compared(classes: int | Sequence[int] | None, label: int, n_classes: int, seed: int) -> tuple[int, ...]:
    """Return the numbers of the classes that are compared, sorted, with `label` among them.

    Args:
        classes: How many, as in a recipe's `score.classes`; the others are drawn. Or which; `label` is added where it
            is missing. None means all.
        label: Number of the subject's class.
        n_classes: Number of all classes.
        seed: Seed of the draw.

    Raises:
        InputError: There are not so many classes.
    """
    if classes is None:
        return tuple(range(n_classes))
    if not isinstance(classes, int):
        return tuple(sorted({label, *classes}))
    if classes > n_classes:
        raise InputError(f"{classes} classes are to be compared, the data has {n_classes}")
    drawn = torch.randperm(n_classes, generator=torch.Generator().manual_seed(seed)).tolist()
    return tuple(sorted([label, *(other for other in drawn if other != label)][:classes]))


def initialise_network(experiment: Experiment, seed: int) -> nn.Module:
    """Return the experiment's network with the weights that `seed` gives it, on the experiment's device."""
    torch.manual_seed(seed)
    return to_device(experiment.build_network(), experiment.device)


def choose_subject(experiment: Experiment, options: SubjectOptions) -> Subject:
    """Return the subject that the options name, with an untrained network, and say which indicators are left out.

    A fault in the options therefore raises an error before a network is trained.

    Args:
        experiment: The experiment whose network and images are studied.
        options: Which unit, on which images.

    Raises:
        InputError: There is no such layer, unit or class, or feature entropy cannot score the layer.
        DataError: A class has fewer training images than are asked for.
    """
    recipe, splits, classes = experiment.recipe, experiment.splits, experiment.splits.classes
    if options.class_name is not None and options.class_name not in classes:
        hint = nearest(options.class_name, classes[:20])
        raise InputError(f"class {options.class_name!r}: no such class; {hint}")
    label = 0 if options.class_name is None else classes.index(options.class_name)
    compared = choose_compared(options.compared or recipe.score.classes, label, len(classes), experiment.seed)
    labels = image_labels(splits.train)
    available = min(labels.count(each) for each in compared)
    samples = options.samples or recipe.score.samples or available
    if samples > available:
        raise DataError(f"{samples} samples asked for, the smallest compared class has {available} training images")
    network = initialise_network(experiment, experiment.seed)
    layer = choose_layer(experiment, network, options.layer, [H.build_scorer(label)])
    folder = f"{safe_file_name(layer.name)}-class-{label}-samples-{samples}"
    if len(compared) < len(classes):
        folder += f"-compared-{len(compared)}"
    # The default unit depends on the trained network, which does not exist yet; 0 is a placeholder.
    subject = Subject(
        network=network,
        splits=splits,
        layer=layer,
        unit=0,
        label=label,
        samples=samples,
        seed=experiment.seed,
        batch_size=recipe.score.batch_size,
        workers=recipe.workers,
        compared=compared,
        folder=experiment.seed_folder / "study-units" / folder,
    )
    if options.unit is not None:
        subject = subject.with_unit(options.unit)
    for name, reason in subject.unavailable.items():
        experiment.reporter.say(f"{name} is left out: {reason}")
    return subject


def train_subject(experiment: Experiment, subject: Subject, unit: int | None) -> Subject:
    """Return the subject with the experiment's trained network.

    Args:
        experiment: The experiment whose network is trained, or read from the run folder.
        subject: The subject with an untrained network.
        unit: Number of the unit; None chooses it by the trained network, see `Subject.with_unit`.
    """
    experiment.log_environment()
    # The recipe's own scorers score nothing in this study, so they are not checked.
    recipe = experiment.recipe.model_copy(update={"scorers": [ScorerEntry.model_validate("random")]})
    subject = replace(subject, network=experiment.with_recipe(recipe).network).with_unit(unit)
    experiment.reporter.say(f"studying {subject.text}")
    return subject


def write_unit_study(experiment: Experiment, subject: Subject, study: str, tables: list[Table]) -> list[Table]:
    """Write the tables of a study to files of its own for each subject, and return them."""
    experiment.log("study", kind=study, seed=subject.seed, subject=subject.text)
    heading = f"{study}: seed {subject.seed}, {subject.text}"
    rows = [entry for table in tables for entry in table.entries()]
    write_study(experiment, subject.file_name(study), heading, tables, rows)
    return tables
