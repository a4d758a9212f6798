"""The study of generalisation (figures 6 and 11, tables 3, 4 and 8): networks that differ in their training only."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import nn
from torch.utils.data import Subset

from prune_fe.charts import class_scatter, layer_status, save_chart
from prune_fe.data.labels import image_labels
from prune_fe.data.relabelled import corrupt_labels
from prune_fe.distributed import rank
from prune_fe.errors import InputError
from prune_fe.experiment.experiment import Experiment, Reporter, begin
from prune_fe.experiment.recipe import Recipe, ScorerEntry
from prune_fe.experiment.run_folder import RunFolder
from prune_fe.experiment.steps import check, score_units
from prune_fe.experiment.tasks import Executor, Grid, LocalExecutor, Task, raise_failures
from prune_fe.io import nearest, safe_file_name
from prune_fe.measure.evaluate import evaluate
from prune_fe.records import read_record, write_record
from prune_fe.report.tables import Table
from prune_fe.scoring.scores import load_scores
from prune_fe.studies.generalisation_tables import NetworkStatus, SetComparison
from prune_fe.studies.layer_choice import ENTROPY, choose_class, choose_scored_images, find_scorable_layers
from prune_fe.studies.options import GeneralisationStudyOptions
from prune_fe.studies.output import write_study
from prune_fe.studies.subject import initialise_network

ACTIVATION = ScorerEntry.model_validate({"name": "class-selectivity", "label": "activation"})
"""The scorer whose quantities hold the mean activation of each class, one of the controls."""


def generalisation_study(
    recipe: Recipe,
    folder: RunFolder,
    reporter: Reporter,
    options: GeneralisationStudyOptions | None = None,
    executor: Executor | None = None,
) -> list[Table]:
    """Compare H and ε of networks that differ in their training, and thereby in their test accuracy.

    The networks are those of the recipe's section `generalisation`, each for all seeds of the recipe. Files
    study-generalisation-* are written to the run folder: for each set its tables, a line for each network, layer and
    class, curves by layer and the scatter of H against ε by class. A finished network is not trained again.

    Args:
        recipe: Which networks and images. The settings of its first feature entropy are used, if it has one.
        folder: The run folder.
        reporter: Where messages and progress go.
        options: Which sets and layers, on which images; the defaults where it is None.
        executor: What runs the tasks; by default this process, one after the other.

    Returns:
        The tables of all sets.

    Raises:
        InputError: The recipe has no such set, there is no such layer or class, or a task failed.
        DataError: A class has fewer training images than are asked for.
    """
    options = options or GeneralisationStudyOptions()
    sets = _choose_sets(recipe, options.sets)
    entry = recipe.first_entry(ENTROPY)
    experiment = begin(recipe, folder, reporter)
    class_names, samples = choose_scored_images(experiment, options.samples)
    class_name = choose_class(class_names, options.class_name)
    if len(class_names) < 2:
        raise InputError("1 class is scored; intervals over the classes need at least 2")
    untrained = initialise_network(experiment, experiment.seed)
    layers, unfit = find_scorable_layers(experiment, untrained, options.layers or recipe.score.layers, entry)
    for reason in unfit:
        reporter.say(f"Left out: {reason}.")
    numbers = tuple(sorted(experiment.splits.classes.index(name) for name in class_names))
    scoring = recipe.with_options(
        "score", layers=tuple(layer.name for layer in layers), samples=samples, classes=numbers
    ).with_scorers([entry, ACTIVATION])
    experiment = experiment.with_recipe(scoring)
    networks = _make_networks(experiment, sets)
    for network in networks.values():
        check(network.experiment, untrained)  # so that no name is found wrong after hours of training
    del untrained
    experiment.log_environment()
    tasks = _tasks(networks)
    grid = Grid(_begin_tasks, scoring, (sets,))
    raise_failures(tasks, (executor or LocalExecutor(folder, reporter)).execute(tasks, grid))
    tables = []
    for name, labels in sets.items():
        statuses = [
            dataclasses.replace(networks[label, seed].load(), label=label) for label in labels for seed in recipe.seeds
        ]
        comparison = SetComparison(name, layers, statuses, class_name)
        tables += _write(experiment, comparison, [f"{samples} training images of each class, by their true labels."])
    return tables


def _begin_tasks(
    recipe: Recipe, folder: RunFolder, reporter: Reporter, sets: Mapping[str, Sequence[str]]
) -> list[Task]:
    return _tasks(_make_networks(begin(recipe, folder, reporter), sets))


def _tasks(networks: Mapping[tuple[str, int], TrainedNetwork]) -> list[Task]:
    return [network.task() for network in dict.fromkeys(networks.values())]


@dataclass(frozen=True, eq=False)
class TrainedNetwork:
    """One network of a set for one seed, as a task with its measurements on the disk.

    Attributes:
        experiment: The images, and a recipe with the network's own options of training; its `place` is the folder of
            the network.
        label: Label of the network.
    """

    experiment: Experiment
    label: str

    @property
    def choice(self) -> str:
        """Text that differs for every choice of layers, images and settings of scoring."""
        recipe = self.experiment.recipe
        score = recipe.score
        content = [score.layers, score.samples, score.classes, [entry.model_dump() for entry in recipe.scorers]]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:8]

    @property
    def scores(self) -> Path:
        """The folder of the scores."""
        return self.experiment.seed_folder / f"scores-{self.choice}"

    @property
    def result(self) -> Path:
        """The file of the measurements, which is written last."""
        return self.experiment.seed_folder / f"measured-{self.choice}.json"

    def task(self) -> Task:
        """Return the task that trains, scores and measures the network."""
        return Task(f"{self.label}.seed-{self.experiment.seed}", self.result, (), self._work)

    def _work(self) -> None:
        experiment = self.experiment
        experiment.reporter.say(f"{self.label}, seed {experiment.seed}")
        network = experiment.network
        score_units(experiment, experiment.recipe.scorers, folder=self.scores)
        content = measure_network(experiment, network)
        if rank() == 0:
            write_record(self.result, content)

    def load(self) -> NetworkStatus:
        """Return the finished measurements.

        Raises:
            CheckpointError: A file is damaged.
        """
        content = read_record(self.result)
        entropy, activation = (load_scores(self.scores / entry.label) for entry in self.experiment.recipe.scorers)
        return NetworkStatus(self.label, self.experiment.seed, content, entropy, activation)


def measure_network(experiment: Experiment, network: nn.Module) -> dict[str, object]:
    """Return a network's accuracy and loss on the training images, by the labels it was trained with, and on the rest.

    Args:
        experiment: The experiment that trained it.
        network: The network.

    Returns:
        label_noise; train_accuracy and train_loss, by the labels it was trained with; true_train_accuracy, by the true
        ones; test_accuracy; and a list for each scored class (the true one): class_train_accuracy, class_train_loss and
        class_test_accuracy.
    """
    splits, options, recipe = experiment.splits, experiment.recipe.train, experiment.recipe
    assert options is not None  # the networks of a set are trained
    assert isinstance(recipe.score.classes, tuple)  # the study has named them
    true_labels = image_labels(splits.train)
    trained_on = corrupt_labels(splits.train, options.label_noise, experiment.seed)
    losses, accuracies = dict[int, float](), dict[int, float]()
    for label in sorted(set(true_labels)):
        members = [index for index, true_label in enumerate(true_labels) if true_label == label]
        result = evaluate(network, Subset(trained_on, members), workers=recipe.workers)
        losses[label], accuracies[label] = result.loss, result.accuracy
    shares = {label: true_labels.count(label) / len(true_labels) for label in losses}
    test = evaluate(network, splits.test, workers=recipe.workers)
    recall = (test.confusion.diagonal() / test.confusion.sum(dim=1)).tolist()
    return {
        "label_noise": options.label_noise,
        "train_accuracy": sum(share * accuracies[label] for label, share in shares.items()),
        "train_loss": sum(share * losses[label] for label, share in shares.items()),
        "true_train_accuracy": evaluate(network, splits.train, workers=recipe.workers).accuracy,
        "test_accuracy": test.accuracy,
        "class_train_accuracy": [accuracies[label] for label in recipe.score.classes],
        "class_train_loss": [losses[label] for label in recipe.score.classes],
        "class_test_accuracy": [recall[label] for label in recipe.score.classes],
    }


def _choose_sets(recipe: Recipe, wanted: Sequence[str] | None) -> dict[str, list[str]]:
    """Return the labels of the networks of each chosen set.

    Raises:
        InputError: The recipe has no set, or none of a name.
    """
    sets = recipe.generalisation.sets
    if not sets:
        raise InputError("the recipe has no generalisation.sets, which name the networks that are compared")
    for name in wanted or ():
        if name not in sets:
            raise InputError(f"set {name!r}: {nearest(name, sets)}")
    return {name: list(networks) for name, networks in sets.items() if wanted is None or name in wanted}


def _make_networks(experiment: Experiment, sets: Mapping[str, Sequence[str]]) -> dict[tuple[str, int], TrainedNetwork]:
    """Return the network of each label and seed; labels with the same options of training share one.

    Raises:
        InputError: A label stands in two sets for different options.
    """
    recipe, networks = experiment.recipe, dict[tuple[str, int], TrainedNetwork]()
    first_label, options_of = dict[str, str](), dict[str, str]()
    own = {seed: experiment if seed == experiment.seed else experiment.with_seed(seed) for seed in recipe.seeds}
    for name, labels in sets.items():
        for label in labels:
            varied = recipe.with_training(recipe.generalisation.sets[name][label])
            assert varied.train is not None
            chosen = json.dumps(dataclasses.asdict(varied.train), sort_keys=True)
            if options_of.setdefault(label, chosen) != chosen:
                raise InputError(f"generalisation.sets: {label!r} stands for two trainings; rename one of them")
            first = first_label.setdefault(chosen, label)
            folder = experiment.folder.path / "generalisation" / first
            for seed in recipe.seeds:
                network = TrainedNetwork(dataclasses.replace(own[seed], recipe=varied, place=folder), label)
                networks[label, seed] = networks.get((first, seed), network)
    return networks


def _write(experiment: Experiment, comparison: SetComparison, notes: Sequence[str]) -> list[Table]:
    """Write the files of a set to the run folder and return its tables."""
    tables = comparison.tables(notes)
    name = f"study-generalisation-{safe_file_name(comparison.name)}"
    experiment.log("study", name=name)
    heading = f"generalisation: set {comparison.name}, {experiment.recipe.model.name}"
    title = f"Set {comparison.name}, {experiment.recipe.model.name}"
    chart = layer_status(comparison.layer_points(), f"{title} (bands: all seeds)", None)
    write_study(experiment, name, heading, tables, comparison.rows(), chart)
    scatter = class_scatter(comparison.scatter_points(), f"{title}: each class, {comparison.layers[-1].name}")
    save_chart(scatter, experiment.folder.path / f"{name}-classes.svg")
    return tables
