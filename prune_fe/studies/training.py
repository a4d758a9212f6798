"""The study of training (figures 5B and 10): H and ε of a layer after each epoch, beside loss and accuracy."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from prune_fe.charts import training_course
from prune_fe.distributed import all_gather, rank
from prune_fe.errors import InputError
from prune_fe.experiment.experiment import Experiment, Reporter, begin
from prune_fe.experiment.recipe import TRAINED, Recipe
from prune_fe.experiment.run_folder import RunFolder
from prune_fe.experiment.steps import check, fit, score_units
from prune_fe.experiment.tasks import LocalExecutor, Task, raise_failures
from prune_fe.experiment.trained import initialise, save_trained
from prune_fe.io import safe_file_name
from prune_fe.measure.evaluate import evaluate
from prune_fe.records import read_npz, write_npz
from prune_fe.report.tables import Table
from prune_fe.scoring.scores import Scores
from prune_fe.studies.layer_choice import ENTROPY, choose_class, choose_scored_images, find_scorable_layers
from prune_fe.studies.layer_tables import ENTROPY as ENTROPY_NATS
from prune_fe.studies.layer_tables import RATE
from prune_fe.studies.options import TrainingStudyOptions
from prune_fe.studies.output import write_study
from prune_fe.studies.subject import initialise_network
from prune_fe.studies.training_tables import EpochStatus, TrainingCourse
from prune_fe.tracing.layers import Layer
from prune_fe.training.loop import Epoch


def training_study(
    recipe: Recipe, folder: RunFolder, reporter: Reporter, options: TrainingStudyOptions | None = None
) -> list[Table]:
    """Measure H and ε of a layer after each epoch, and how their course agrees with that of the training loss.

    The network is scored while it is trained, so that the weights of no epoch are kept. Files study-training-* are
    written to the run folder: tables, a line for each epoch and class, and the figure. An interrupted training goes on
    from its last epochs. The trained network is saved for other commands, unless the run folder has one.

    Args:
        recipe: Which network and images, and how it is trained. The settings of its first feature entropy are used, if
            it has one.
        folder: The run folder.
        reporter: Where messages and progress go.
        options: Which layer, on which images; the defaults where it is None.

    Returns:
        A table of the epochs, and one of the rank correlations with the loss.

    Raises:
        InputError: The recipe does not train, there is no such layer or class, or feature entropy cannot score it.
        DataError: A class has fewer training images than are asked for.
    """
    options = options or TrainingStudyOptions()
    if recipe.train is None:
        raise InputError("the recipe has no section train, and this study looks at training")
    entry = recipe.first_entry(ENTROPY)
    experiment = begin(recipe, folder, reporter, options.seed)
    class_names, samples = choose_scored_images(experiment, options.samples)
    class_name = choose_class(class_names, options.class_name)
    numbers = tuple(sorted(experiment.splits.classes.index(name) for name in class_names))
    untrained = initialise_network(experiment, experiment.seed)
    names = recipe.score.layers if options.layer is None else (options.layer,)
    layer = find_scorable_layers(experiment, untrained, names, entry)[0][-1]
    scoring = recipe.with_options("score", exclude=(), layers=(layer.name,), samples=samples, classes=numbers)
    experiment = experiment.with_recipe(scoring.with_scorers([entry]))
    check(experiment, untrained)
    del untrained
    experiment.log_environment()
    watched = WatchedTraining(experiment, layer)
    tasks = [watched.task()]
    raise_failures(tasks, LocalExecutor(folder, reporter).execute(tasks))
    course = TrainingCourse(layer, tuple(class_names), class_name, watched.load())
    name = f"study-training-seed-{experiment.seed}-{safe_file_name(layer.name)}-class-{class_name}-samples-{samples}"
    name = safe_file_name(name)
    experiment.log("study", name=name)
    tables = course.tables([f"{samples} training images of each class."])
    title = f"Training of {experiment.network_name}, layer {layer.name}"
    heading = f"training: {experiment.network_name}, seed {experiment.seed}, layer {layer.name!r}"
    write_study(experiment, name, heading, tables, course.rows(), training_course(course.chart_points(), title))
    return tables


@dataclass(frozen=True, eq=False)
class WatchedTraining:
    """A training whose network is scored after each epoch, as a task with a file for each epoch.

    Attributes:
        experiment: The images, and a recipe that scores one layer by feature entropy only.
        layer: The layer.
    """

    experiment: Experiment
    layer: Layer

    @property
    def folder(self) -> Path:
        """The folder of the files, which differs for every choice of layer and images of a run."""
        recipe = self.experiment.recipe
        content = [recipe.score.layers, recipe.score.samples, recipe.score.classes, recipe.scorers[0].model_dump()]
        choice = hashlib.sha256(json.dumps(content).encode()).hexdigest()[:8]
        return self.experiment.seed_folder / f"study-training-{choice}"

    @property
    def result(self) -> Path:
        """The file with the number of epochs, which is written last."""
        return self.folder / "course.npz"

    def task(self) -> Task:
        """Return the task that trains and scores the network."""
        return Task(f"training.seed-{self.experiment.seed}", self.result, (), self._work)

    def _work(self) -> None:
        experiment = self.experiment
        assert experiment.recipe.train is not None
        if rank() == 0:
            self.folder.mkdir(parents=True, exist_ok=True)
        network, origin = initialise(experiment)
        first = self._path(0)
        if not first.exists():
            result = evaluate(network, experiment.splits.validation, workers=experiment.recipe.workers)
            self._write(network, Epoch(0, 0.0, float("nan"), result.accuracy, result.loss, 0.0))
        # A file of its own: the one beside the trained network may be of a training that nobody watched.
        unfinished = self.folder / "training.unfinished"
        history = fit(
            experiment,
            network,
            experiment.recipe.train,
            "training",
            unfinished=unfinished,
            after_epoch=lambda epoch: self._write(network, epoch),
        )
        for epoch in history:
            experiment.log("epoch", phase="training", seed=experiment.seed, **dataclasses.asdict(epoch))
        if not (experiment.seed_folder / TRAINED).exists():
            save_trained(experiment, network, origin)
        if rank() == 0:
            write_npz(self.result, {"epochs": len(history) - 1}, {})
            unfinished.unlink(missing_ok=True)
        all_gather(None)  # a barrier: no process looks for the result before it is written

    def _path(self, epoch: int) -> Path:
        return self.folder / f"epoch-{epoch:04}.npz"

    def _write(self, network: nn.Module, epoch: Epoch) -> None:
        """Score the network and write the result of an epoch; one that was interrupted behind this is done again."""
        with torch.random.fork_rng(devices=[]):
            scores: Scores = score_units(self.experiment, self.experiment.recipe.scorers, network=network)[
                self.experiment.recipe.scorers[0].label
            ]
        if rank() == 0:
            about: dict[str, Any] = {"epoch": dataclasses.asdict(epoch), "classes": list(scores.classes)}
            arrays = {name: scores.raw[name][self.layer.name] for name in (ENTROPY_NATS, RATE)}
            write_npz(self._path(epoch.number), about, arrays)

    def load(self) -> list[EpochStatus]:
        """Return what was measured after each epoch, beginning with the network before training.

        Raises:
            CheckpointError: A file is missing or damaged.
        """
        n_epochs = read_npz(self.result)[0]["epochs"]
        statuses = []
        for number in range(n_epochs + 1):
            about, arrays = read_npz(self._path(number))
            statuses.append(EpochStatus(Epoch(**about["epoch"]), arrays[ENTROPY_NATS], arrays[RATE]))
        return statuses
