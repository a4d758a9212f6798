"""The command `prune-fe compare`: measure every scorer at every operating point, for every network and seed.

Random units, filter L1 and the pruned architectures trained from scratch are part of every comparison.
"""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from prune_fe.distributed import all_gather, rank
from prune_fe.errors import InputError, PruneFEError
from prune_fe.experiment.device import to_device
from prune_fe.experiment.estimate import Kind
from prune_fe.experiment.experiment import Experiment, Reporter, begin
from prune_fe.experiment.recipe import CONTROLS, Recipe, with_controls
from prune_fe.experiment.results import SCRATCH, TUNED, UNPRUNED, Result, load_result, save_test_labels
from prune_fe.experiment.run import compress
from prune_fe.experiment.run_folder import RunFolder
from prune_fe.experiment.steps import Outcome, check, fit, measure, save_result
from prune_fe.experiment.tasks import Executor, Grid, LocalExecutor, Task, raise_failures
from prune_fe.experiment.tuning import (
    count_tunings,
    explain_missing_control,
    has_tuned_control,
    measure_tuned,
    tune_unpruned,
)
from prune_fe.pruning.options import AMOUNTS, PruneOptions
from prune_fe.pruning.prune import prune
from prune_fe.records import write_record
from prune_fe.scoring.score import score
from prune_fe.training.options import TrainOptions
from prune_fe.training.schedule import count_epochs

SEED_OFFSET = 1_000_003
"""Added to a network's seed for the network that is trained from scratch, which has other first weights."""


def compare(recipe: Recipe, folder: RunFolder, reporter: Reporter, executor: Executor | None = None) -> None:
    """Measure everything that a recipe compares.

    Args:
        recipe: What to compare.
        folder: Where results go; results that exist there are not computed again.
        reporter: Where messages and progress go.
        executor: What runs the tasks; by default this process, one after the other.

    Raises:
        InputError: A setting is wrong, or a task failed.
        DataError: Images are missing or too few, or a task failed for that reason.
    """
    recipe = with_controls(recipe)
    if recipe.prune.ranking != "layer":
        raise InputError(
            "prune.ranking: a comparison takes the same share of every layer (ranking: layer), so that all criteria "
            "and controls have the same widths"
        )
    if recipe.prune.is_auto:
        raise InputError(
            "prune.ratio: auto gives every criterion other widths; a comparison takes the same for all criteria and "
            "controls: leave it out here, and use it with prune-fe run"
        )
    comparison = Comparison(begin(recipe, folder, reporter))
    reporter.say("checking layers and scorers (the first time, kernels are compiled for some 15 seconds)")
    comparison.check()
    explain_missing_control(recipe, comparison.experiment)
    comparison.experiment.log_environment()
    if rank() == 0:
        save_test_labels(comparison.experiment.splits, folder)
    tasks = list(comparison.tasks())
    executor = executor or LocalExecutor(folder, reporter)
    raise_failures(tasks, executor.execute(tasks, Grid(comparison_tasks, recipe)))


def comparison_tasks(recipe: Recipe, folder: RunFolder, reporter: Reporter) -> list[Task]:
    """Return the tasks of a comparison.

    Args:
        recipe: What to compare, with the controls.
        folder: Where results go.
        reporter: Where messages and progress go.
    """
    return list(Comparison(begin(recipe, folder, reporter)).tasks())


class Comparison:
    """The tasks of a comparison.

    Args:
        experiment: The recipe with its controls, and the images; of any network and seed.
    """

    def __init__(self, experiment: Experiment) -> None:
        self.experiment, self.recipe = experiment, experiment.recipe
        # Only the last network and its scores stay in memory.
        self.select = functools.lru_cache(maxsize=1)(self._select)

    def check(self) -> None:
        """Check every network, every scorer and the options of pruning, before any network is trained.

        Raises:
            PruneFEError: What is wrong, with the network's label.
        """
        for label in self.recipe.compare.networks:
            try:
                experiment = self.experiment.with_network(label)
                network, example = to_device(experiment.build_network(), experiment.device), experiment.example
                check(experiment, network, same_layers=True)
                chosen: Any = {name: getattr(self.recipe.score, name) for name in ("layers", "exclude", "linear")}
                scores = score(network, None, CONTROLS[0], example=example, **chosen)
                prune(network, scores, example=example, options=self._architecture(self.recipe.compare.points[1][0]))
            except PruneFEError as error:
                raise type(error)(f"network {label!r}: {error}") from error

    def tasks(self) -> Iterator[Task]:
        """Yield the tasks in the order in which a single process runs them; training from scratch comes last."""
        scratch = [f"{SCRATCH}{budget}" for budget in self.recipe.compare.scratch]
        if scratch and self.recipe.train is None and self.recipe.finetune is None:
            self.experiment.reporter.say(
                "no training from scratch: the recipe has neither train nor finetune, which would be its budget"
            )
            scratch = []
        amounts, labels = self.recipe.compare.points[1], [entry.label for entry in self.recipe.scorers]
        late = []
        for seed in self.recipe.seeds:
            for network in self.recipe.compare.networks:
                experiment = dataclasses.replace(self.experiment.with_network(network), seed=seed)
                unpruned, scores = experiment.result_path(UNPRUNED), experiment.seed_folder / "scores.json"
                train, scoring, pruning = (Kind(f"{network}: {name}") for name in ("train", "score", "prune"))
                pruning = dataclasses.replace(pruning, shorter="fewer operating points, criteria or seeds")
                yield self._task(unpruned, (), self._train, network, seed, kind=train)
                yield self._task(scores, (unpruned,), self._score, network, seed, kind=scoring)
                for amount in amounts:
                    for label in labels:
                        path = experiment.result_path(label, amount)
                        yield self._task(path, (scores,), self._prune, network, seed, label, amount, kind=pruning)
                    control = experiment.result_path(self._control_label, amount)
                    for label in scratch:
                        path = experiment.result_path(label, amount)
                        kind = Kind(f"{network}: {label}", "smaller budgets of compare.scratch")
                        arguments = (self._from_scratch, network, seed, label, amount)
                        late.append(self._task(path, (control,), *arguments, kind=kind))
                if has_tuned_control(self.recipe):
                    yield self._task(experiment.result_path(TUNED), (unpruned,), self._tune_unpruned, network, seed)
        yield from late

    def _task(
        self, result: Path, needs: tuple[Path, ...], work: Any, *arguments: Any, kind: Kind | None = None
    ) -> Task:
        name = ".".join(result.relative_to(self.experiment.folder.path).with_suffix("").parts)
        return Task(name, result, needs, functools.partial(work, *arguments, result), kind=kind)

    def _select(self, network: str, seed: int) -> Experiment:
        """Return the experiment of a network and seed."""
        return self.experiment.with_network(network).with_seed(seed)

    @property
    def _control_label(self) -> str:
        """The label of the scorer that scores at random."""
        return next(entry.label for entry in self.recipe.scorers if entry.name == CONTROLS[0])

    def _at(self, experiment: Experiment, amount: float) -> Experiment:
        """Return the experiment at one operating point."""
        return experiment.with_recipe(experiment.recipe.with_options("prune", **self._amount(amount)))

    def _amount(self, amount: float) -> dict[str, Any]:
        # The options exclude each other, so the others are reset to None.
        return dict.fromkeys(AMOUNTS) | {self.recipe.compare.points[0]: amount}

    def _architecture(self, amount: float) -> PruneOptions:
        """Return options that prune to the widths of an operating point in one round."""
        return dataclasses.replace(self.recipe.prune, rounds=1, rescore="once", **self._amount(amount))

    def _train(self, network: str, seed: int, path: Path) -> None:
        """Train a network and measure it."""
        began, experiment = time.perf_counter(), self.select(network, seed)
        outcome = measure(experiment, experiment.network, UNPRUNED)
        _ = experiment.teacher  # saved here, so that no two later tasks compute it
        self._finish(experiment, outcome, path, began)

    def _tune_unpruned(self, network: str, seed: int, path: Path) -> None:
        """Fine-tune a network without pruning it, and measure it."""
        began, experiment = time.perf_counter(), self.select(network, seed)
        _ = experiment.network  # so that the operating points share it
        # With a round for each group of layers, a mild operating point may leave some groups whole.
        count = max(count_tunings(self._at(experiment, amount)) for amount in self.recipe.compare.points[1])
        self._finish(experiment, tune_unpruned(experiment, count), path, began)

    def _score(self, network: str, seed: int, path: Path) -> None:
        """Score a network with all scorers, and save the time and memory that each took."""
        experiment = self.select(network, seed)
        experiment.reporter.say(f"{network}, seed {seed}: scoring")
        saved = ("scorer", "settings", "images", "seconds", "own_seconds", "peak_bytes")
        costs = {label: {name: getattr(scores, name) for name in saved} for label, scores in experiment.scores.items()}
        if rank() == 0:
            write_record(path, costs)
        all_gather(None)  # a barrier: no process looks for the file before it is written

    def _prune(self, network: str, seed: int, label: str, amount: float, path: Path) -> None:
        """Prune a network by one scorer at one operating point, fine-tune and measure it."""
        began, experiment = time.perf_counter(), self._scored(network, seed)
        entry = next(entry for entry in self.recipe.scorers if entry.label == label)
        at_point = self._at(experiment, amount)
        self._finish(at_point, compress(at_point, entry, experiment.scores[label]), path, began)

    def _from_scratch(self, network: str, seed: int, label: str, amount: float, path: Path) -> None:
        """Train a new network from scratch in the architecture of an operating point, which the random control has."""
        began, experiment = time.perf_counter(), self._at(self._scored(network, seed), amount)
        recipe = experiment.recipe
        torch.manual_seed(seed + SEED_OFFSET)
        new = to_device(experiment.build_network(), experiment.device)
        scores = experiment.scores[self._control_label]
        pruned = prune(new, scores, example=experiment.example, options=self._architecture(amount))
        model = to_device(pruned.model, experiment.device)
        base = recipe.train or recipe.finetune
        assert base is not None  # tasks() yields no such task otherwise
        control = load_result(experiment.result_path(self._control_label, amount))
        epochs = int(label.removeprefix(SCRATCH)) * budget_of(recipe, control)
        # The step schedule divides the rate by ten each epoch, so that a budget of many epochs would train with none.
        inherited = {field.name: getattr(base, field.name) for field in dataclasses.fields(TrainOptions)}
        # A fixed part, rates by layer and a teacher are for a network that is trained already.
        from_scratch: dict[str, Any] = {"only": (), "lr_by_layer": {}, "distill": None}
        options = TrainOptions(**inherited | {"epochs": epochs, "schedule": "cosine"} | from_scratch)
        description = f"{network} from scratch, {recipe.compare.points[0]} {amount:g}, {epochs} epochs"
        history = fit(experiment, model, options, description)
        outcome = measure_tuned(experiment, model, label)
        outcome = dataclasses.replace(outcome, steps=pruned.steps, epochs=history)
        self._finish(experiment, outcome, path, began)

    def _scored(self, network: str, seed: int) -> Experiment:
        """Return the experiment of a network and seed with its network, measurement and scores in memory."""
        experiment = self.select(network, seed)
        # with_recipe() shares only cached properties that exist, so compute them before the first operating point.
        _ = experiment.network, experiment.unpruned, experiment.scores, experiment.teacher
        return experiment

    def _finish(self, experiment: Experiment, outcome: Outcome, path: Path, began: float) -> None:
        """Save a result and tell the user."""
        save_result(experiment, outcome, path, began)
        row = outcome.row
        suffix = "" if row.accuracy_pruned is None else f", {row.accuracy_pruned:.2%} right after pruning"
        experiment.reporter.say(f"{path.stem}: {row.accuracy:.2%} of the test images{suffix}")


def budget_of(recipe: Recipe, control: Result) -> int:
    """Return the number of epochs that the control's network was trained for, before and after pruning together.

    The epochs of a pretrained network's own training are not known and not counted.

    Args:
        recipe: The recipe with the options of training.
        control: The result of the random control at the operating point.
    """
    # Epoch 0 describes a network before its first epoch.
    n_tuned = sum(1 for epoch in control.epochs if epoch["number"] > 0)
    if (train := recipe.train) is None:
        return max(n_tuned, 1)
    return count_epochs(train) + n_tuned
