"""How a pruned network came about, as it is kept in the manifest of its folder."""

from __future__ import annotations

import dataclasses
from typing import Any

from prune_fe.experiment.experiment import Experiment
from prune_fe.experiment.recipe import held_out_images, seen_elsewhere
from prune_fe.experiment.steps import Outcome
from prune_fe.io import finite_json


def origin_of(experiment: Experiment, outcome: Outcome) -> dict[str, Any]:
    """Return the settings, the epochs, and the measurements before and after, of a pruned network.

    Args:
        experiment: The experiment, whose recipe says how the network was pruned and fine-tuned.
        outcome: The network and its measurements.

    Returns:
        "prune" and "finetune": the sections of the recipe; "epochs": a list; "accuracy": on the test images, before,
        right after pruning and after fine-tuning; "cost": multiply-adds and parameters before and after; "held_out":
        which images the network has not been trained on, where that is known.
    """
    recipe, before, row = experiment.recipe, experiment.unpruned, outcome.row
    origin: dict[str, Any] = {
        "prune": dataclasses.asdict(recipe.prune),
        "finetune": None if recipe.finetune is None else dataclasses.asdict(recipe.finetune),
        "epochs": [dataclasses.asdict(epoch) for epoch in outcome.epochs],
        "accuracy": {
            "test_images": len(outcome.correct),
            "before": row.accuracy_before,
            "pruned": row.accuracy_pruned,
            "finetuned": row.accuracy_finetuned,
        },
        "cost": {
            "macs": {"before": before.macs, "after": row.macs},
            "parameters": {"before": before.parameters, "after": row.parameters},
        },
    }
    if seen_elsewhere(recipe) is None:
        origin["held_out"] = held_out_images(recipe.data, experiment.seed)
    return dict(finite_json(origin))
