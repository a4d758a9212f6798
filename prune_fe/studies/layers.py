"""The study of layers (figures 5A and 9): H and ε of each layer of a trained network and of random-initialised ones."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from prune_fe.charts import layer_status
from prune_fe.errors import CheckpointError, InputError
from prune_fe.experiment.experiment import Experiment, Reporter, begin
from prune_fe.experiment.recipe import Recipe, ScorerEntry
from prune_fe.experiment.run_folder import RunFolder
from prune_fe.experiment.steps import score_units
from prune_fe.experiment.tasks import Executor, Grid, LocalExecutor, Task, raise_failures
from prune_fe.io import safe_file_name
from prune_fe.report.tables import Table
from prune_fe.scoring.scores import FILE_NAME, Scores, load_scores
from prune_fe.studies.cumulative_ablation import layers_name
from prune_fe.studies.layer_choice import (
    ENTROPY,
    choose_class,
    choose_scored_images,
    describe_maps,
    find_scorable_layers,
    layers_of_blocks,
)
from prune_fe.studies.layer_tables import RANDOM, LayerComparison
from prune_fe.studies.options import LayersOptions
from prune_fe.studies.output import write_study
from prune_fe.studies.subject import initialise_network


def layers_study(
    recipe: Recipe,
    folder: RunFolder,
    reporter: Reporter,
    options: LayersOptions | None = None,
    executor: Executor | None = None,
) -> list[Table]:
    """Compare H and ε of each layer between the trained network and random-initialised ones (figures 5A and 9).

    Every network is scored on the same images, in one pass for all layers and classes. Files study-layers-* are
    written to the run folder: tables, a line for each network, layer and class, and the figure. A network that is in
    the folder is not trained again, and finished scores are not computed again.

    Args:
        recipe: Which network and images. The settings of its first feature entropy are used, if it has one.
        folder: The run folder.
        reporter: Where messages and progress go.
        options: Which layers and networks, on which images; the defaults where it is None.
        executor: What runs the tasks; by default this process, one after the other.

    Returns:
        A table of one class, and one of the mean of all classes.

    Raises:
        InputError: There is no such layer or class, feature entropy can score none of the layers, or a task failed.
        DataError: A class has fewer training images than are asked for.
    """
    options = options or LayersOptions()
    entry = recipe.first_entry(ENTROPY)
    experiment = begin(recipe, folder, reporter, options.seed)
    class_names, samples = choose_scored_images(experiment, options.samples)
    class_name = choose_class(class_names, options.class_name)
    random_classes = _choose_random_classes(class_names, class_name, options.random_classes)
    untrained = initialise_network(experiment, experiment.seed)
    named: Sequence[str] | None = options.layers or recipe.score.layers
    if options.blocks is not None:
        named = layers_of_blocks(untrained, options.blocks)
    layers, unfit = find_scorable_layers(experiment, untrained, named, entry)
    readings = {layer.name: describe_maps(untrained, layer) for layer in layers}
    notes = _describe_choice(experiment, samples, unfit, set_zero_scales_to_one(untrained))
    for note in notes:
        reporter.say(note)
    del untrained  # large networks would otherwise be in memory twice
    experiment.log_environment()
    # Only these layers are scored, by this scorer, so the check before training leaves all others out.
    names = [layer.name for layer in layers]
    scoring = recipe.with_options("score", exclude=(), layers=tuple(names), samples=samples).with_scorers([entry])
    classes = [class_names, *[random_classes] * options.random_seeds]
    experiment = experiment.with_recipe(scoring)
    networks = _scored_networks(experiment, classes)
    tasks = [network.task() for network in networks]
    grid = Grid(_begin_tasks, scoring, (experiment.seed, classes))
    raise_failures(tasks, (executor or LocalExecutor(folder, reporter)).execute(tasks, grid))
    trained, *random = (network.load() for network in networks)
    comparison = LayerComparison(layers, readings, trained, random, class_name)
    return _write(experiment, comparison, notes, f"{layers_name(names)}-class-{class_name}-samples-{samples}")


def _begin_tasks(
    recipe: Recipe, folder: RunFolder, reporter: Reporter, seed: int, classes: Sequence[Sequence[str]]
) -> list[Task]:
    return [network.task() for network in _scored_networks(begin(recipe, folder, reporter, seed), classes)]


def _scored_networks(experiment: Experiment, classes: Sequence[Sequence[str]]) -> list[ScoredNetwork]:
    """Return the experiment's own network and random-initialised ones.

    Args:
        experiment: The experiment.
        classes: For each network the names of the classes that it is scored on; the first is the experiment's own.
    """
    seeds: list[int | None] = [None, *range(len(classes) - 1)]
    return [ScoredNetwork(experiment, seed, names) for seed, names in zip(seeds, classes, strict=True)]


@dataclass(frozen=True, eq=False)
class ScoredNetwork:
    """One network whose layers are scored by feature entropy, as a task with its scores on the disk.

    Attributes:
        experiment: The images, and a recipe that scores by feature entropy only.
        seed: Seed of a random-initialised network; None for the experiment's own network.
        classes: Names of the classes that it is scored on.
    """

    experiment: Experiment
    seed: int | None
    classes: Sequence[str]

    @property
    def name(self) -> str:
        """Name of the task: "trained", or "random" with the seed."""
        return "trained" if self.seed is None else f"random-{self.seed}"

    @property
    def entry(self) -> ScorerEntry:
        """The scorer."""
        return self.experiment.recipe.scorers[0]

    @property
    def folder(self) -> Path:
        """The folder of the scores, which differs for every choice of layers and images of a run."""
        options = self.experiment.recipe.score
        content = json.dumps([options.layers, options.samples, sorted(self.classes)])
        choice = hashlib.sha256(content.encode()).hexdigest()[:8]
        return self.experiment.seed_folder / "study-layers" / f"{self.name}-{choice}"

    def task(self) -> Task:
        """Return the task that scores the network."""
        # scores.npz is the last file that is written.
        return Task(f"layers.{self.name}", self.folder / self.entry.label / FILE_NAME, (), self._score)

    def _score(self) -> None:
        """Score the network and save the scores; an interrupted pass over the images is continued."""
        experiment, names = self.experiment, self.experiment.splits.classes
        numbers = tuple(sorted(names.index(name) for name in self.classes))
        network = experiment.network if self.seed is None else initialise_alive(experiment, self.seed)
        experiment.reporter.say(f"scoring: {self.name}, {len(numbers)} classes")
        of_classes = experiment.with_recipe(experiment.recipe.with_options("score", classes=numbers))
        score_units(of_classes, [self.entry], folder=self.folder, network=network)

    def load(self) -> Scores:
        """Return the finished scores.

        Raises:
            CheckpointError: They are damaged.
        """
        path = self.folder / self.entry.label
        try:
            return load_scores(path)
        except CheckpointError as error:
            raise CheckpointError(f"{error}; delete {path}, and the next run makes it again") from error


def initialise_alive(experiment: Experiment, seed: int) -> nn.Module:
    """Return the experiment's network with the weights that `seed` gives it, without norms that give zeros only."""
    network = initialise_network(experiment, seed)
    set_zero_scales_to_one(network)
    return network


def set_zero_scales_to_one(network: nn.Module) -> list[str]:
    """Set the scale of every norm that begins with zeros only to 1, the usual first value, and return their names.

    Some libraries let the last norm of a residual block begin with scale 0, which makes the block an identity (Goyal et
    al. 2017). Its units are constant until they are trained, so that they say nothing about random filters.

    Args:
        network: A network that is not trained; it is changed.
    """
    names = []
    for name, module in network.named_modules():
        scale = getattr(module, "weight", None)
        # Only a norm has one weight a unit, except for PReLU, whose weights are not zero.
        if isinstance(scale, nn.Parameter) and scale.ndim == 1 and not scale.any():
            with torch.no_grad():
                scale.fill_(1)
            names.append(name)
    return names


def _choose_random_classes(names: Sequence[str], class_name: str, count: int | None) -> list[str]:
    """Return the classes that random-initialised networks are scored on: the one class and the first of the others.

    Raises:
        InputError: There are fewer.
    """
    if count is not None and count > len(names):
        raise InputError(f"random_classes={count}: allowed are numbers from 1 to {len(names)}, the scored classes")
    return [class_name, *(name for name in names if name != class_name)][: count or len(names)]


def _describe_choice(
    experiment: Experiment, samples: int, unfit: Sequence[str], dead_norms: Sequence[str]
) -> list[str]:
    """Return what a reader of the tables must know about images, networks and layers."""
    recipe, notes = experiment.recipe, [f"{samples} training images of each class."]
    if recipe.train is None and recipe.model.checkpoint is None and not recipe.model.pretrained:
        notes.append("The network that is called trained has random weights: the recipe neither trains nor loads it.")
    if dead_norms:
        listed = ", ".join(dead_norms[:3]) + (", …" if len(dead_norms) > 3 else "")
        notes.append(
            f"Norms that begin with scale 0 have scale 1 in the {RANDOM} networks, since their units would be "
            f"constant: {len(dead_norms)} norms ({listed})."
        )
    return notes + [f"Left out: {reason}." for reason in unfit]


def _write(experiment: Experiment, comparison: LayerComparison, notes: Sequence[str], subject: str) -> list[Table]:
    """Write the files of the study to the run folder and return its tables."""
    tables = comparison.tables(notes)
    n_random = len(comparison.random[0].classes)
    some = "" if n_random == len(comparison.trained.classes) else f"-random-classes-{n_random}"
    name = f"study-layers-seed-{experiment.seed}-{safe_file_name(subject)}{some}"
    experiment.log("study", name=name)
    heading = f"layers: {experiment.network_name}, seed {experiment.seed}"
    bands = "bands: 95 % of the classes, and all random-initialised networks"
    title = f"Layers of {experiment.network_name} ({bands})"
    chart = layer_status(comparison.chart_points(), title, RANDOM)
    write_study(experiment, name, heading, tables, comparison.rows(), chart)
    return tables
