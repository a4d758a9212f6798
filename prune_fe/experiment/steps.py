"""The steps of an experiment: check it, train, score, measure and save what was measured."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor, nn

from prune_fe.data.labels import image_labels
from prune_fe.data.sampling import choose_images
from prune_fe.distributed import all_gather, from_rank_0, rank
from prune_fe.errors import DataError
from prune_fe.experiment.device import to_device
from prune_fe.experiment.estimate import TrainingTime
from prune_fe.experiment.recipe import ScorerEntry
from prune_fe.experiment.results import BY_LAYER, TUNED, UNPRUNED, Result, Row
from prune_fe.experiment.run_folder import environment
from prune_fe.measure.cost import cost, speed
from prune_fe.measure.evaluate import evaluate
from prune_fe.pruning.records import Step
from prune_fe.scorers import resolve_scorer
from prune_fe.scorers.base import explain_faults
from prune_fe.scoring.options import ScoreOptions
from prune_fe.scoring.score import check_scorer, score_all
from prune_fe.scoring.score_folder import describe_unfinished
from prune_fe.scoring.scores import Scores
from prune_fe.scoring.snapshot import PREFIX
from prune_fe.tracing.layers import exclude_layers, find_layers_with_units
from prune_fe.training.loop import Epoch, finetune, kept_epoch
from prune_fe.training.options import TrainOptions
from prune_fe.training.part import check_part

if TYPE_CHECKING:
    from prune_fe.experiment.experiment import Experiment


@dataclass(frozen=True)
class Outcome:
    """A measured network.

    Attributes:
        model: The network.
        row: Its accuracy, cost and speed.
        correct: (images,) bool, whether each test image is classified correctly.
        steps: What was removed from each group of layers.
        epochs: The epochs of its fine-tuning.
    """

    model: nn.Module
    row: Row
    correct: Tensor
    steps: Sequence[Step] = ()
    epochs: Sequence[Epoch] = ()


def check(experiment: Experiment, network: nn.Module | None = None, *, same_layers: bool = False) -> None:
    """Check the recipe's layers, scorers, trained parts and numbers of images, without training.

    Args:
        experiment: The experiment.
        network: Its network, which need not be trained; by default a new one.
        same_layers: Whether every scorer must be able to score every layer with a map, as in a comparison, where all
            criteria have the same widths.

    Raises:
        InputError: A layer or a part to train does not exist, a scorer cannot score a layer, or a setting is wrong.
        DataError: There are fewer training images than asked for.
    """
    recipe, splits, seed = experiment.recipe, experiment.splits, experiment.seed
    if network is None:
        network = to_device(experiment.build_any(), experiment.device)
    example = experiment.example.to(next(network.parameters()).device)
    layers = find_layers_with_units(network, example, recipe.score.layers, linear=recipe.score.linear)
    layers = exclude_layers(layers, recipe.score.exclude)
    labels = image_labels(splits.train)
    n_wanted = recipe.prune.recalibrate or 0
    if n_wanted > len(labels):
        raise DataError(f"prune.recalibrate: {n_wanted} training images asked for, there are {len(labels)}")
    for options in (recipe.train, recipe.finetune):
        if options is not None:
            check_part(network, options)
    score = recipe.score
    linear_scorer = None if score.linear_scorer is None else resolve_scorer(score.linear_scorer, seed=seed)
    for entry in recipe.scorers:
        scorer = resolve_scorer(entry.name, entry.settings, seed)
        chosen: list[int] = []
        if scorer.needs_data or (linear_scorer is not None and linear_scorer.needs_data):
            chosen = choose_images(splits.train, score.classes, score.samples, seed)
        occurring, are_named = {labels[index] for index in chosen}, score.names_layers or score.strict
        if same_layers:
            with explain_faults(scorer):
                scorer.check([each for each in layers if each.has_map and each.runs == 1], len(chosen), occurring)
        check_scorer(scorer, network, layers, example, len(chosen), occurring, linear_scorer, are_named=are_named)


def fit(
    experiment: Experiment,
    model: nn.Module,
    options: TrainOptions,
    description: str,
    momentum_buffers: dict[str, Tensor] | None = None,
    teacher: nn.Module | Tensor | None = None,
    unfinished: Path | None = None,
    after_epoch: Callable[[Epoch], None] | None = None,
) -> list[Epoch]:
    """Train a network in place on the training images and keep the best epoch on the validation images, or the last.

    Args:
        experiment: The experiment whose images, seed and reporter are used.
        model: The network.
        options: How to train it.
        description: Name of the training in messages and progress bars.
        momentum_buffers: Parameter name -> momentum to start with; afterwards the momentum of the best epoch.
        teacher: What the network learns from beside the labels; see `prune_fe.training.loop.finetune`.
        unfinished: File from which an interrupted training continues; by default one of the current task, which is
            removed when the task ends.
        after_epoch: Called after each epoch, while the network has that epoch's weights.

    Returns:
        The epochs; the first describes the network before training.
    """
    splits, progress = experiment.splits, experiment.reporter.progress(description)
    estimate = TrainingTime(experiment.reporter.say, description)

    def report(epoch: Epoch | None, done: int, total: int) -> None:
        progress(done, total)
        estimate.step(done, total)
        if epoch is not None and after_epoch is not None:
            after_epoch(epoch)

    unfinished = unfinished or experiment.folder.next_unfinished("training")
    history = finetune(
        model,
        splits.train,
        splits.validation,
        options,
        workers=experiment.recipe.workers,
        seed=experiment.seed,
        momentum_buffers=momentum_buffers,
        teacher=teacher,
        unfinished=unfinished,
        progress=report,
    )
    kept = kept_epoch(history, options)
    if options.keep == "last":
        what = f"the last one is kept; accuracy {kept.train_accuracy:.2%} on the training images during it, "
        what += f"{kept.validation_accuracy:.2%} on the validation images"
    else:
        what = f"epoch {kept.number} is best on the validation images ({kept.validation_accuracy:.2%})"
    experiment.reporter.say(f"{description}: {len(history) - 1} epochs, {what}")
    return history


def score_units(
    experiment: Experiment,
    entries: Sequence[ScorerEntry],
    *,
    folder: Path | None = None,
    network: nn.Module | None = None,
    layers: Sequence[str] | None = None,
) -> dict[str, Scores]:
    """Score a network with several scorers in one pass over the training images.

    Args:
        experiment: The experiment whose images and options of scoring are used.
        entries: The scorers.
        folder: Where scores are saved, and read from if they are finished; None saves nothing.
        network: The network; by default the experiment's.
        layers: Names of the layers; by default those of the recipe.

    Returns:
        Label -> scores.
    """
    recipe, seed = experiment.recipe, experiment.seed
    options = {option.name: getattr(recipe.score, option.name) for option in dataclasses.fields(ScoreOptions)}
    for unfinished in sorted(folder.glob(f"{PREFIX}*")) if folder is not None else ():
        experiment.reporter.say(describe_unfinished(unfinished))
    return score_all(
        experiment.network if network is None else network,
        experiment.splits.train,
        {entry.label: resolve_scorer(entry.name, entry.settings, seed) for entry in entries},
        seed=seed,
        workers=recipe.workers,
        example=experiment.example,
        progress=experiment.reporter.progress("scoring"),
        folder=folder,
        **options | ({} if layers is None else {"layers": layers, "exclude": ()}),
    )


def measure(experiment: Experiment, model: nn.Module, label: str) -> Outcome:
    """Measure a network's accuracy on the test images, its cost and its speed.

    Args:
        experiment: The experiment whose test images are used.
        model: The network.
        label: Label of the scorer that chose the removed units, `UNPRUNED` or `TUNED`.

    Returns:
        The measurements. The accuracy is in `row.accuracy_before`, even if the network was pruned or fine-tuned.
    """
    result = evaluate(model, experiment.splits.test, workers=experiment.recipe.workers)
    price, pace = cost(model, experiment.example), from_rank_0(lambda: speed(model, experiment.example))
    row = Row(
        scorer=label,
        seed=experiment.seed,
        accuracy_before=result.accuracy,
        accuracy_pruned=None,
        accuracy_finetuned=None,
        balanced_accuracy=result.balanced_accuracy,
        loss=result.loss,
        parameters=price.parameters,
        macs=price.macs,
        images_per_second=pace.images_per_second,
        images_per_second_low=pace.low,
        images_per_second_high=pace.high,
        timed_with=str(pace),
        scoring_seconds=None,
        processor_share=pace.processor_share,
    )
    return Outcome(model, row, result.correct)


def save_result(experiment: Experiment, outcome: Outcome, path: Path, began: float) -> None:
    """Save the measurements of a network as a result.

    Args:
        experiment: The experiment; its recipe says how much was to be removed.
        outcome: The measurements.
        path: The file.
        began: `time.perf_counter()` when the work on the result began.
    """
    options, is_pruned = experiment.recipe.prune, outcome.row.scorer not in (UNPRUNED, TUNED)
    goal, amount = options.amount
    if isinstance(amount, dict):
        goal, amount = BY_LAYER, 0.0
    removed: dict[str, list[int]] = {}
    for step in outcome.steps:
        for layer, units in step.removed.items():
            removed[layer] = sorted([*removed.get(layer, []), *units])
    result = Result(
        network=experiment.network_name,
        row=outcome.row,
        correct=outcome.correct.numpy(),
        goal=goal if is_pruned else None,
        point=amount if is_pruned else None,
        removed=removed,
        left={", ".join(step.layers): step.left for step in outcome.steps if step.left},
        epochs=[dataclasses.asdict(epoch) for epoch in outcome.epochs],
        seconds=time.perf_counter() - began,
        environment=environment(),
    )
    if rank() == 0:
        result.save(path)
    all_gather(None)  # a barrier: no process looks for the file before it is written
