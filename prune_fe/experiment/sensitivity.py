"""Measure and load the sensitivity of an experiment's network, by which `ratio: auto` spreads a target."""

from __future__ import annotations

from pathlib import Path

from prune_fe.distributed import rank
from prune_fe.experiment.experiment import Experiment
from prune_fe.io import write_csv
from prune_fe.pruning.loss_curves import FILE_NAME, Sensitivity, load_sensitivity
from prune_fe.pruning.sensitivity import sensitivity
from prune_fe.training.recalibration import RAW_CURVES, has_batch_norms, recalibrating


def sensitivity_path(experiment: Experiment, label: str) -> Path:
    """Return the file of the curves of the network by the scores of a scorer.

    Args:
        experiment: The experiment.
        label: Label of the scorer.
    """
    return experiment.seed_folder / label / "sensitivity" / FILE_NAME


def measure_sensitivity(experiment: Experiment, label: str) -> Sensitivity:
    """Measure each group of the network alone on the validation images, or read what is measured.

    With `prune.recalibrate`, each network is recalibrated before it is measured, as the pruned ones are. An interrupted
    measurement goes on after its last finished group.

    Args:
        experiment: The network, its scores and its images.
        label: Label of the scorer.
    """
    folder, recipe, train = sensitivity_path(experiment, label).parent, experiment.recipe, experiment.splits.train
    recovery = None
    if (samples := recipe.prune.recalibrate) is not None:
        recovery = recalibrating(train, samples, experiment.seed, recipe.workers)
    elif has_batch_norms(experiment.network):
        experiment.reporter.say(f"{RAW_CURVES}; prune.recalibrate sets the number of images to recalibrate on")
    curves = sensitivity(
        experiment.network,
        experiment.scores[label],
        experiment.splits.validation,
        experiment.example,
        reduction=recipe.prune.reduction,
        folder=folder,
        workers=recipe.workers,
        recovery=recovery,
        progress=experiment.reporter.progress(f"{label}: sensitivity"),
    )
    if rank() == 0:
        write_csv(folder / "sensitivity.csv", curves.rows())
    return curves


def saved_sensitivity(experiment: Experiment, label: str) -> Sensitivity | None:
    """Load the curves that a recipe with `ratio: auto` needs; None for another recipe.

    Args:
        experiment: The experiment.
        label: Label of the scorer.

    Raises:
        CheckpointError: The curves are missing or damaged.
    """
    return load_sensitivity(sensitivity_path(experiment, label).parent) if experiment.recipe.prune.is_auto else None
