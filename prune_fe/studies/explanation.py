"""The study of explanation: why H/ε predicts what a unit is worth, where it does, and how much of that is ε alone.

The selective rate ε says in which share of a class's images a unit's map has a hole at all; the feature entropy H, how
much the births of these holes scatter. A unit that has a hole in few images has a high H/ε whatever its H is. If units
of equal ε are compared and H/ε no longer says which of them matters more, then the birth times told nothing, and it is
enough to count holes.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn
from torch.utils.data import Dataset, Subset

from prune_fe.ablation.curves import UnitAblation
from prune_fe.ablation.tally import require_images
from prune_fe.ablation.trial import Trial
from prune_fe.charts import rank_correlation
from prune_fe.data.labels import image_labels
from prune_fe.data.sampling import choose_images
from prune_fe.errors import InputError
from prune_fe.experiment.device import to_device
from prune_fe.experiment.experiment import Experiment, Reporter, begin
from prune_fe.experiment.recipe import Recipe, ScorerEntry
from prune_fe.experiment.run_folder import RunFolder
from prune_fe.experiment.tasks import Executor, Grid, LocalExecutor, Task, network_task, raise_failures
from prune_fe.io import safe_file_name
from prune_fe.report.tables import Table
from prune_fe.scorers import resolve_scorer
from prune_fe.scoring.score import check_scorer
from prune_fe.studies.ablation_files import load_unit_ablations, save_ablations
from prune_fe.studies.ablation_scores import ClassScores
from prune_fe.studies.cumulative_ablation import find_targets, layers_name
from prune_fe.studies.explanation_tables import (
    ENTROPY,
    MEAN,
    RATE,
    RATIO,
    LayerDamage,
    class_rows,
    correlation_frame,
    explanation_tables,
)
from prune_fe.studies.options import ExplanationOptions
from prune_fe.studies.output import write_study
from prune_fe.tracing.layers import Layer

FEATURE_ENTROPY = "feature-entropy"
COMPARED = {MEAN: "mean-activation", "L1 of the filter": "l1-filter"}
"""Name in the tables -> scorer that H/ε is compared with."""


def explanation_study(
    recipe: Recipe,
    folder: RunFolder,
    reporter: Reporter,
    options: ExplanationOptions | None = None,
    executor: Executor | None = None,
) -> list[Table]:
    """Measure how much of the agreement of H/ε with the damage that units do is explained by ε alone.

    Each unit of a layer is masked alone, and the damage to a class is what its test images lose: the increase of their
    mean loss, and of their share of errors. The scores of the class are those of its own training images. For each
    class, Spearman's ρ over the units between score and damage says how well the score predicts the damage, and the
    partial correlation how well it does so among units that are equal in another score. Files study-explanation-* are
    written to the run folder: the tables, a line for each layer and class, and the figure. The network, the scores and
    each layer's damage that are in the folder are not made again.

    Args:
        recipe: Which network and images. The settings of its first feature entropy are used, if it has one.
        folder: The run folder.
        reporter: Where messages and progress go.
        options: Which layers, on which images; the defaults where it is None.
        executor: What runs the tasks; by default this process, one after the other.

    Returns:
        A table of the correlations, and one of the partial correlations.

    Raises:
        InputError: There is no such layer, feature entropy cannot score it, or a task failed.
        DataError: A class has too few test images.
    """
    options = options or ExplanationOptions()
    experiment = begin(recipe, folder, reporter, options.seed)
    _ = _choose_images(experiment, options.images_per_class)  # refuses too few before anything is trained
    untrained = to_device(experiment.build_network(), experiment.device)
    layers = find_targets(experiment, untrained, options.layers)
    recipe = recipe.with_scorers(_able_entries(experiment, untrained, layers))
    del untrained  # large networks would otherwise be in memory twice
    experiment.log_environment()
    names = tuple(layer.name for layer in layers)
    scores, ablations = _subjects(experiment, recipe, names, options.images_per_class)
    tasks = _tasks(scores, ablations)
    grid = Grid(_begin_tasks, recipe, (options.seed, names, options.images_per_class))
    raise_failures(tasks, (executor or LocalExecutor(folder, reporter)).execute(tasks, grid))
    damages = [ablation.damage(scores) for ablation in ablations]
    return _write(scores.experiment, damages, f"study-explanation-seed-{experiment.seed}-{layers_name(names)}")


def _begin_tasks(
    recipe: Recipe,
    folder: RunFolder,
    reporter: Reporter,
    seed: int | None,
    names: Sequence[str],
    images_per_class: int | None,
) -> list[Task]:
    return _tasks(*_subjects(begin(recipe, folder, reporter, seed), recipe, names, images_per_class))


def _subjects(
    experiment: Experiment, recipe: Recipe, names: Sequence[str], images_per_class: int | None
) -> tuple[ClassScores, list[LayerAblation]]:
    """Return the scores of the layers, and the ablation of each.

    Args:
        experiment: The experiment.
        recipe: The recipe, with the scorers.
        names: Names of the layers.
        images_per_class: Test images of each class; None for all.
    """
    # Only these layers are scored, by these scorers, so the check before training leaves all others out.
    experiment = experiment.with_recipe(recipe.with_options("score", exclude=(), layers=tuple(names)))
    untrained = to_device(experiment.build_network(), experiment.device)
    layers = find_targets(experiment, untrained, names)
    images = _choose_images(experiment, images_per_class)
    results = experiment.seed_folder / "study-explanation"
    classes = range(len(experiment.splits.classes))
    scores = ClassScores(experiment, layers, classes, results / f"scores-{layers_name(names)}")
    number = "all" if images_per_class is None else images_per_class
    return scores, [LayerAblation(experiment, layer, images, results / f"images-{number}") for layer in layers]


def _tasks(scores: ClassScores, ablations: Sequence[LayerAblation]) -> list[Task]:
    network = network_task(scores.experiment)
    others = [*scores.tasks(), *(ablation.task() for ablation in ablations)]
    return [network, *(dataclasses.replace(task, needs=(network.result, *task.needs)) for task in others)]


@dataclass(frozen=True, eq=False)
class LayerAblation:
    """The ablation of each unit of one layer alone, as a task.

    Attributes:
        experiment: The network.
        layer: The layer.
        images: Test images.
        folder: Where the ablation is saved; it differs for different images.
    """

    experiment: Experiment
    layer: Layer
    images: Dataset[Any]
    folder: Path

    @property
    def path(self) -> Path:
        """The file of the ablation."""
        return self.folder / f"{safe_file_name(self.layer.name)}.npz"

    def task(self) -> Task:
        """Return the task that makes the ablation."""
        return Task(f"seed-{self.experiment.seed}.single-units.{self.layer.name}", self.path, (), self._make)

    def _make(self) -> None:
        recipe, reporter = self.experiment.recipe, self.experiment.reporter
        title = f"{self.layer.name}: each unit masked alone"
        trial = Trial(
            self.experiment.network,
            self.images,
            [self.layer],
            workers=recipe.workers,
            memory_gib=recipe.ablate.memory_gib,
        )
        if trial.slow_reason:
            reporter.say(f"{title}: the whole network is run for each, which is slow: {trial.slow_reason}")
        save_ablations(self.path, [trial.run_single_units(progress=reporter.progress(title))])

    @cached_property
    def by_class(self) -> Sequence[UnitAblation]:
        """The finished ablation of each class."""
        known = load_unit_ablations(self.path)
        return [known[name] for name in self.experiment.splits.classes]

    def damage(self, scores: ClassScores) -> LayerDamage:
        """Return the damage of each unit, with its scores.

        Args:
            scores: The scores of this layer, and maybe of others, for each class.
        """
        first, name = FEATURE_ENTROPY, self.layer.name
        labels = list(scores.scorers)
        values = {
            RATIO: -scores.raw_by_class(first, "entropy_per_rate_nats", name),
            ENTROPY: -scores.raw_by_class(first, "feature_entropy_nats", name),
            RATE: scores.raw_by_class(first, "selective_rate", name),
        }
        values |= {title: scores.of_layer(label, name) for title, label in COMPARED.items() if label in labels}
        return LayerDamage(
            layer=name,
            classes=self.experiment.splits.classes,
            images=np.concatenate([ablation.images for ablation in self.by_class]),
            damage={
                "loss": np.array([ablation.loss_increase[:, 0] for ablation in self.by_class]),
                "error": np.array([(ablation.accuracy[0] - ablation.accuracy[1:])[:, 0] for ablation in self.by_class]),
            },
            scores=values,
        )


def _choose_images(experiment: Experiment, images_per_class: int | None) -> Dataset[Any]:
    """Return the test images, or so many of each class, drawn with the seed.

    Raises:
        DataError: A class has fewer, or none.
    """
    test, classes = experiment.splits.test, experiment.splits.classes
    require_images(range(len(classes)), Counter(image_labels(test)), classes)
    if images_per_class is None:
        return test
    return Subset(test, choose_images(test, None, images_per_class, experiment.seed))


def _able_entries(experiment: Experiment, network: nn.Module, layers: Sequence[Layer]) -> list[ScorerEntry]:
    """Return feature entropy and the scorers that it is compared with, without those that cannot score the layers.

    Raises:
        InputError: Feature entropy, or the mean activation, cannot.
    """
    recipe, labels = experiment.recipe, image_labels(experiment.splits.train)
    settings = recipe.first_entry(FEATURE_ENTROPY).settings
    entries = [ScorerEntry.model_validate({"name": FEATURE_ENTROPY, **settings})]
    entries += [ScorerEntry.model_validate(name) for name in COMPARED.values()]
    n_images = recipe.score.samples or min(Counter(labels).values())
    example, able = experiment.example.to(experiment.device), []
    for entry in entries:
        try:
            scorer = resolve_scorer(entry.name, entry.settings, experiment.seed)
            check_scorer(scorer, network, layers, example, n_images, set(labels))
        except InputError as error:
            if entry.name != COMPARED["L1 of the filter"]:
                raise
            experiment.reporter.say(f"{entry.label} is left out: {error}")
        else:
            able.append(entry)
    return able


def _write(experiment: Experiment, layers: Sequence[LayerDamage], name: str) -> list[Table]:
    """Write the files of the study to the run folder and return its tables."""
    images = layers[0].images
    per_class = f"{images.min()}" if images.min() == images.max() else f"{images.min()} to {images.max()}"
    about = (
        f"{experiment.recipe.model.name}, seed {experiment.seed}, {len(images)} classes with {per_class} test images "
        f"each. Means over the classes of ρ over the units, with 95 % intervals (bootstrap over classes). Loss, error: "
        "the increase of a class's mean loss, and of its share of errors, when one unit is masked. ρ is above 0 where "
        "units that are kept longer do more damage: those of low H/ε, low H and high other scores."
    )
    tables = explanation_tables(layers, about)
    experiment.log("study", name=name)
    title = f"Scores and the loss without each unit of {experiment.recipe.model.name}"
    chart = rank_correlation(correlation_frame(layers), title)
    write_study(experiment, name, f"explanation: seed {experiment.seed}", tables, class_rows(layers), chart)
    return tables
