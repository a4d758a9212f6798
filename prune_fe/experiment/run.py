"""The command `prune-fe run`, from the images to the table: the whole method on one page.

For every seed, train a network and score its units. For every scorer, remove the units with the lowest scores from a
copy of that network, fine-tune the smaller network, and measure it. Each network is a task with a result in the run
folder; a run that was interrupted continues with the first task that has no result.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import time
from collections.abc import Callable, Iterable, Iterator, Sequence

from torch import Tensor, nn

from prune_fe.experiment.device import to_device
from prune_fe.experiment.estimate import Kind
from prune_fe.experiment.experiment import Experiment, Reporter, begin
from prune_fe.experiment.origin import origin_of
from prune_fe.experiment.recipe import Recipe, ScorerEntry
from prune_fe.experiment.results import TUNED, UNPRUNED, Row, load_result, save_test_labels
from prune_fe.experiment.run_folder import RunFolder
from prune_fe.experiment.sensitivity import measure_sensitivity, saved_sensitivity, sensitivity_path
from prune_fe.experiment.steps import Outcome, check, measure, save_result, score_units
from prune_fe.experiment.tasks import Executor, Grid, LocalExecutor, Task, raise_failures
from prune_fe.experiment.tuning import (
    count_tunings,
    explain_missing_control,
    has_tuned_control,
    tune,
    tune_unpruned,
)
from prune_fe.measure.evaluate import evaluate
from prune_fe.measure.proportion import describe_share, wilson_interval
from prune_fe.models.saved import save
from prune_fe.pruning.loss_curves import Sensitivity
from prune_fe.pruning.prune import prune
from prune_fe.pruning.records import Step
from prune_fe.scoring.scores import FILE_NAME as SCORES
from prune_fe.scoring.scores import Scores
from prune_fe.training.loop import Epoch
from prune_fe.training.recalibration import recalibrate

MEASURED = "cells."
"""Prefix of the name of a task whose result is a measured network."""

TRAINING, SCORING, PRUNING = Kind("train"), Kind("score"), Kind("prune", "fewer scorers or seeds")
"""Tasks that take about the same time."""

WithSeed = Callable[[int], Experiment]
"""Function from a seed to the experiment of that seed."""


def run(recipe: Recipe, folder: RunFolder, reporter: Reporter, executor: Executor | None = None) -> list[Row]:
    """Train, score, prune, fine-tune and measure as a recipe says, for each of its seeds and scorers.

    Args:
        recipe: What to do.
        folder: Where results go; results that exist there are not computed again.
        reporter: Where messages and progress go.
        executor: What runs the tasks; by default this process, one after the other.

    Returns:
        The rows of the table: for each seed the unpruned network, the same with fine-tuning, and one pruned network for
        each scorer.

    Raises:
        InputError: A setting is wrong, or a task failed.
        DataError: Images are missing or too few.
    """
    experiment = begin(recipe, folder, reporter)
    explain_missing_control(recipe, experiment)
    return run_experiment(experiment, executor)


def run_experiment(
    experiment: Experiment,
    executor: Executor | None = None,
    further: Callable[[WithSeed], Iterable[Task]] | None = None,
) -> list[Row]:
    """Do all tasks of an experiment's recipe that have no result yet.

    Args:
        experiment: The experiment of any seed.
        executor: What runs the tasks; by default this process, one after the other.
        further: Function that yields more tasks, which come after all others and are in no table. It is given the
            function from a seed to its experiment. They run in this process only.

    Returns:
        The rows of the table; see `run`.

    Raises:
        InputError: A setting is wrong, or a task failed.
        DataError: There are too few images.
    """
    recipe, folder, reporter = experiment.recipe, experiment.folder, experiment.reporter
    reporter.say("checking layers and scorers (the first time, kernels are compiled for some 15 seconds)")
    check(experiment)
    experiment.log_environment()
    save_test_labels(experiment.splits, folder)
    with_seed = functools.lru_cache(maxsize=1)(experiment.with_seed)
    tasks = [*run_tasks(experiment), *(further(with_seed) if further is not None else ())]
    failures = (executor or LocalExecutor(folder, reporter)).execute(tasks, Grid(_begin_tasks, recipe))
    measured = [task.result for task in tasks if task.is_finished and task.name.startswith(MEASURED)]
    rows = [load_result(path).row for path in measured]
    if rows:
        table = list(map(dataclasses.asdict, rows))
        if all(row.processor_share is None for row in rows):  # as in the tables of earlier versions
            for line in table:
                del line["processor_share"]
        folder.write_table("summary.csv", table)
    raise_failures(tasks, failures)
    return rows


def _begin_tasks(recipe: Recipe, folder: RunFolder, reporter: Reporter) -> list[Task]:
    return list(run_tasks(begin(recipe, folder, reporter)))


def run_tasks(experiment: Experiment) -> Iterator[Task]:
    """Yield the tasks of a run: for each seed a network to train and to score, and copies to fine-tune and to prune.

    Args:
        experiment: The experiment of any seed.
    """
    # The cache holds one experiment, so that only the last seed's network and scores stay in memory.
    with_seed = functools.lru_cache(maxsize=1)(experiment.with_seed)
    for seed in experiment.recipe.seeds:
        of_seed = dataclasses.replace(experiment, seed=seed)
        unpruned = of_seed.result_path(UNPRUNED)
        work = functools.partial(_train, with_seed, seed)
        yield Task(f"{MEASURED}{unpruned.stem}", unpruned, (), work, kind=TRAINING)
        if has_tuned_control(experiment.recipe):
            path = of_seed.result_path(TUNED)
            yield Task(f"{MEASURED}{path.stem}", path, (unpruned,), functools.partial(_tune_unpruned, with_seed, seed))
        # The scores of a pass are saved in the order of their labels.
        scores = of_seed.seed_folder / experiment.recipe.scorers[-1].label / SCORES
        work = functools.partial(_score, with_seed, seed)
        yield Task(f"seed-{seed}.scores", scores, (unpruned,), work, kind=SCORING)
        for entry in experiment.recipe.scorers:
            path, needs = of_seed.result_path(entry.label), [unpruned, scores]
            if experiment.recipe.prune.is_auto:
                curves = sensitivity_path(of_seed, entry.label)
                work = functools.partial(_measure_sensitivity, with_seed, seed, entry.label)
                yield Task(f"seed-{seed}.{entry.label}.sensitivity", curves, needs, work)
                needs = [*needs, curves]
            work = functools.partial(_prune, with_seed, seed, entry)
            yield Task(f"{MEASURED}{path.stem}", path, needs, work, kind=PRUNING)


def _train(with_seed: WithSeed, seed: int) -> None:
    """Train the network that every scorer starts from, and measure it."""
    began, experiment = time.perf_counter(), with_seed(seed)
    outcome = measure(experiment, experiment.network, UNPRUNED)
    n, right = len(outcome.correct), int(outcome.correct.sum())
    text = f"seed {seed}: the unpruned network is right on {describe_share(right, n, 'test images')}"
    if wilson_interval(right, n)[0] <= 1 / len(experiment.splits.classes):
        text += "; that is no better than chance: are the weights, the size of the images and the classes its own?"
    experiment.reporter.say(text)
    _ = experiment.teacher  # saved here, so that no two later tasks compute it
    _finish(experiment, outcome, began)


def _tune_unpruned(with_seed: WithSeed, seed: int) -> None:
    """Fine-tune a copy of the trained network without pruning it, and measure it."""
    began, experiment = time.perf_counter(), with_seed(seed)
    _finish(experiment, tune_unpruned(experiment, count_tunings(experiment)), began)


def _score(with_seed: WithSeed, seed: int) -> None:
    """Score the trained network with all scorers, in one pass over the images."""
    _ = with_seed(seed).scores  # saved


def _measure_sensitivity(with_seed: WithSeed, seed: int, label: str) -> None:
    """Measure each group of layers of the trained network alone, with the units in the order of one scorer."""
    experiment = with_seed(seed)
    experiment.reporter.say(f"{label}, seed {seed}: measuring each group of layers alone on the validation images")
    curves = measure_sensitivity(experiment, label)
    experiment.log("sensitivity", scorer=label, seed=seed, loss=curves.loss, images=curves.images, about=curves.about)


def _prune(with_seed: WithSeed, seed: int, entry: ScorerEntry) -> None:
    """Prune a copy of the trained network by one scorer, fine-tune, measure and save it."""
    began, experiment = time.perf_counter(), with_seed(seed)
    scores = experiment.scores[entry.label]
    outcome = compress(experiment, entry, scores, saved_sensitivity(experiment, entry.label))
    about = {"recipe": experiment.recipe.name, "seed": seed, "scores": scores.about} | experiment.splits.about
    about |= origin_of(experiment, outcome)
    save(outcome.model, experiment.pruned_folder(entry.label), about, overwrite=True)
    _finish(experiment, outcome, began)


def _finish(experiment: Experiment, outcome: Outcome, began: float) -> None:
    save_result(experiment, outcome, experiment.result_path(outcome.row.scorer), began)
    experiment.log("row", row=dataclasses.asdict(outcome.row))


def compress(
    experiment: Experiment, entry: ScorerEntry, scores: Scores, sensitivity: Sensitivity | None = None
) -> Outcome:
    """Prune a copy of an experiment's network by a scorer's scores, fine-tune it and measure it.

    Args:
        experiment: The network, and the recipe that says how it is pruned and fine-tuned.
        entry: The scorer.
        scores: Its scores of the network.
        sensitivity: The curves of the network by these scores, which `ratio: auto` needs.

    Returns:
        The pruned network and its measurements.
    """
    recipe, reporter, seed = experiment.recipe, experiment.reporter, experiment.seed
    epochs: list[Epoch] = []
    momentum: dict[str, Tensor] = {}
    rounds, seconds = itertools.count(1), [scores.seconds]

    def score_again(model: nn.Module, layers: Sequence[str]) -> Scores:
        new = score_units(experiment, [entry], network=model, layers=layers)[entry.label]
        seconds.append(new.seconds)
        return new

    def recover(model: nn.Module, steps: Sequence[Step]) -> None:
        is_by_layer = recipe.prune.rounds == "layers"
        round_name = steps[0].layers[0] if is_by_layer else f"round {next(rounds)} of {recipe.prune.rounds}"
        if (samples := recipe.prune.recalibrate) is not None:
            norms = recalibrate(model, experiment.splits.train, samples=samples, seed=seed, workers=recipe.workers)
            experiment.log("recalibrate", scorer=entry.label, seed=seed, norms=norms, images=samples)
            reporter.say(f"{entry.label}: {norms} batch norms recalibrated on {samples} images after {round_name}")
        if recipe.finetune is not None and recipe.finetune.when == "each_round":
            epochs.extend(tune(experiment, model, f"{entry.label}: fine-tuning after {round_name}", momentum))

    pruned = prune(
        experiment.network,
        scores,
        example=experiment.example,
        options=recipe.prune,
        rescore=score_again if recipe.prune.rescore == "each_round" else None,
        after=recover,
        carry=momentum,
        sensitivity=sensitivity,
    )
    for step in pruned.steps:
        experiment.log("prune", scorer=entry.label, seed=seed, **dataclasses.asdict(step))
        if step.left:
            reporter.say(f"{entry.label}: {', '.join(step.layers)} keeps {step.units - step.count} units: {step.left}")
    for note in pruned.notes:
        reporter.say(f"{entry.label}: {note}")
    reporter.say(f"{entry.label}: {recipe.prune.describe_reached(pruned.macs, pruned.parameters)}")
    model = to_device(pruned.model, experiment.device)
    # With fine-tuning after each round, the network is never measured right after pruning.
    accuracy_pruned = None
    if recipe.finetune is None or recipe.finetune.when == "after":
        accuracy_pruned = evaluate(model, experiment.splits.test, workers=recipe.workers).accuracy
        if recipe.finetune is not None:
            epochs.extend(tune(experiment, model, f"{entry.label}: fine-tuning", momentum))
    outcome = measure(experiment, model, entry.label)
    # measure() calls the accuracy of the network that it was given "before".
    row = dataclasses.replace(
        outcome.row,
        accuracy_before=experiment.unpruned.accuracy_before,
        accuracy_pruned=accuracy_pruned,
        accuracy_finetuned=outcome.row.accuracy_before if recipe.finetune is not None else None,
        scoring_seconds=sum(seconds),
    )
    return dataclasses.replace(outcome, row=row, steps=pruned.steps, epochs=epochs)
