"""Fine-tuning: of pruned networks, and of the unpruned network as their control."""

from __future__ import annotations

import dataclasses
from typing import Any

from torch import Tensor, nn

from prune_fe.experiment.experiment import Experiment
from prune_fe.experiment.recipe import CONTROLS, Recipe
from prune_fe.experiment.results import TUNED
from prune_fe.experiment.steps import Outcome, fit, measure
from prune_fe.pruning.prune import prune
from prune_fe.scoring.score import score
from prune_fe.tracing.copying import copy_model
from prune_fe.training.loop import Epoch


def tune(experiment: Experiment, model: nn.Module, phase: str, momentum_buffers: dict[str, Tensor]) -> list[Epoch]:
    """Fine-tune a network in place as the recipe says, and log its epochs.

    Args:
        experiment: The experiment; its recipe has the section `finetune`.
        model: The network.
        phase: Name of the fine-tuning in messages and in the log.
        momentum_buffers: Parameter name -> momentum to start with; afterwards the momentum of the best epoch.

    Returns:
        The epochs; the first describes the network before fine-tuning.
    """
    assert experiment.recipe.finetune is not None
    history = fit(experiment, model, experiment.recipe.finetune, phase, momentum_buffers, experiment.teacher)
    for epoch in history:
        experiment.log("epoch", phase=phase, seed=experiment.seed, **dataclasses.asdict(epoch))
    return history


def has_tuned_control(recipe: Recipe) -> bool:
    """Return whether a recipe asks for the unpruned network with the fine-tuning of the pruned ones."""
    return recipe.finetune is not None and recipe.finetune.unpruned


def explain_missing_control(recipe: Recipe, experiment: Experiment) -> None:
    """Say why a run of an earlier version has no fine-tuned unpruned network although its recipe asks for one.

    Args:
        recipe: The recipe that the user gave.
        experiment: The experiment, with the recipe that the run was begun with.
    """
    if has_tuned_control(recipe) and not has_tuned_control(experiment.recipe):
        experiment.reporter.say(
            "note: this run was begun before the unpruned network was fine-tuned too, and goes on without it; a new "
            "run has it"
        )


def tune_unpruned(experiment: Experiment, count: int) -> Outcome:
    """Fine-tune a copy of the unpruned network as often as the pruned networks are, and measure it.

    Args:
        experiment: The experiment.
        count: How often the fine-tuning of the recipe is repeated, from `count_tunings`.

    Returns:
        The network and its measurements.
    """
    model, momentum, epochs = copy_model(experiment.network), dict[str, Tensor](), list[Epoch]()
    for number in range(1, count + 1):
        suffix = f", {number} of {count}" if count > 1 else ""
        epochs += tune(experiment, model, f"{TUNED}: fine-tuning{suffix}", momentum)
    return dataclasses.replace(measure_tuned(experiment, model, TUNED), epochs=epochs)


def measure_tuned(experiment: Experiment, model: nn.Module, label: str) -> Outcome:
    """Measure a network of a control after its training; its accuracy before is that of the unpruned network.

    Args:
        experiment: The experiment.
        model: The network.
        label: Label of the control.
    """
    outcome = measure(experiment, model, label)
    # measure() calls the accuracy of the network that it was given "before".
    row = dataclasses.replace(
        outcome.row,
        accuracy_before=experiment.unpruned.accuracy_before,
        accuracy_finetuned=outcome.row.accuracy_before,
    )
    return dataclasses.replace(outcome, row=row)


def count_tunings(experiment: Experiment) -> int:
    """Return how often a pruned network is fine-tuned: once, or after each round in which it loses units.

    With `ratio: auto` and a round for each group, scorers differ in the groups that lose units. Then it is the number
    of all groups that can lose some.
    """
    recipe = experiment.recipe
    if recipe.finetune is None or recipe.finetune.when == "after":
        return 1
    if isinstance(recipe.prune.rounds, int):
        return recipe.prune.rounds
    # A round for each group of layers: a trial with random scores tells how many groups lose units.
    rounds: list[Any] = []
    chosen: Any = {name: getattr(recipe.score, name) for name in ("layers", "exclude", "linear")}
    scores = score(experiment.network, None, CONTROLS[0], example=experiment.example, **chosen)
    # The ratio "auto" needs curves, and each scorer has its own; the same share of every group takes as many rounds as
    # there are groups, which is the most.
    ratio = None if recipe.prune.is_auto else recipe.prune.ratio
    options = dataclasses.replace(recipe.prune, rescore="once", ratio=ratio)
    prune(
        experiment.network,
        scores,
        example=experiment.example,
        options=options,
        after=lambda _, steps: rounds.append(steps),
    )
    return len(rounds)
