"""The recipe that compresses one trained network: settings that fit the network and the number of its images."""

from __future__ import annotations

import dataclasses
import math
import re
from collections import Counter
from collections.abc import Mapping
from typing import Any

from torch import nn

from prune_fe.data.labels import image_labels
from prune_fe.data.options import DataOptions
from prune_fe.data.splits import Splits
from prune_fe.experiment.recipe import CompressOptions, ModelOptions, PruneSection
from prune_fe.pruning.options import AMOUNTS
from prune_fe.training.recalibration import has_batch_norms

DEFAULT_TARGET = 0.5
"""Share of the multiply-adds that is left where no option says how much."""

SCORED = 2000
"""About as many training images are scored on where no option says how many."""

RECALIBRATED = 500
"""At most as many training images the batch norms are recalibrated on where no option says how many."""

STEPS = 600
"""About as many steps of training a pruned network needs; the number of epochs follows from it."""

FEWEST_EPOCHS, MOST_EPOCHS = 3, 30

BATCH_SIZE, SMALLEST_BATCH = 64, 8

RATE_WITH_NORMS, RATE_WITHOUT_NORMS = 0.02, 0.002
"""Learning rates of a network with batch norms, and of one without, for a batch of `BATCH_SIZE` images."""


def fit_recipe(
    network: nn.Module,
    splits: Splits,
    data: DataOptions,
    model: ModelOptions,
    options: CompressOptions,
    prune: PruneSection,
    *,
    seed: int = 0,
    machine: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Return the content of a recipe that scores, prunes, recalibrates and fine-tunes a trained network.

    Args:
        network: The network.
        splits: The images.
        data: Which images they are.
        model: Which network it is.
        options: What is wanted; None stands for a value that fits.
        prune: How much is removed, and how; without an amount, half of the multiply-adds is left.
        seed: Seed of all draws.
        machine: More keys of the recipe, such as device and threads; those that are None are left out.
    """
    labels = image_labels(splits.train)
    scored = options.samples or min(*Counter(labels).values(), max(1, SCORED // len(splits.classes)))
    pruning = differing(prune)
    if not any(name in pruning for name in AMOUNTS):
        pruning["target_macs"] = DEFAULT_TARGET
    if prune.recalibrate is None and has_batch_norms(network) and len(labels) > 1:
        pruning["recalibrate"] = min(RECALIBRATED, len(labels))
    score: dict[str, Any] = {"samples": scored}
    if options.linear or options.linear_scorer:
        score |= {"linear": True} | ({"linear_scorer": options.linear_scorer} if options.linear_scorer else {})
    recipe: dict[str, Any] = {
        "name": re.sub(r"[^A-Za-z0-9_.-]+", "-", model.name).strip("-._") or "network",
        "data": differing(data),
        "model": differing(model),
        "score": score,
        "scorers": [options.scorer],
        "prune": pruning,
    }
    if options.epochs != 0:
        recipe["finetune"] = fit_training(network, len(labels), options)
        # With rounds and neither of the two, the rounds would do nothing.
        if prune.rounds != 1 and prune.rescore == "once":
            recipe["finetune"]["when"] = "each_round"
    recipe["seeds"] = [seed]
    return recipe | {key: value for key, value in (machine or {}).items() if value is not None}


def fit_training(network: nn.Module, images: int, options: CompressOptions) -> dict[str, Any]:
    """Return options of fine-tuning that fit the network and the number of training images.

    Args:
        network: The network.
        images: Number of training images.
        options: What is wanted; None stands for a value that fits.
    """
    batch = options.batch_size or min(BATCH_SIZE, max(SMALLEST_BATCH, images // 10))
    epochs = options.epochs or min(max(math.ceil(STEPS * batch / images), FEWEST_EPOCHS), MOST_EPOCHS)
    rate = RATE_WITH_NORMS if has_batch_norms(network) else RATE_WITHOUT_NORMS
    # The noise of a step grows as the batch shrinks (Goyal et al. 2017, section 2.1: rate proportional to the batch).
    lr = options.lr or round(rate * batch / BATCH_SIZE, 6)
    chosen = {"lr": lr, "schedule": "cosine", "epochs": epochs, "batch_size": batch, "unpruned": options.control}
    return chosen | ({"augment": True} if options.augment else {})


def differing(options: Any) -> dict[str, Any]:
    """Return the options that differ from their defaults, and those that have none, as a recipe writes them."""
    values = {}
    for entry in dataclasses.fields(options):
        default = entry.default if entry.default_factory is dataclasses.MISSING else entry.default_factory()
        value = getattr(options, entry.name)
        if value != default:
            values[entry.name] = list(value) if isinstance(value, tuple) else value
    return values
