"""The study of randomness (tables 2, 7 and 10): a trained unit against units of networks that were never trained."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import nn

from prune_fe.errors import InputError
from prune_fe.experiment.experiment import Reporter, begin
from prune_fe.experiment.recipe import Recipe
from prune_fe.experiment.run_folder import RunFolder
from prune_fe.report.tables import Table
from prune_fe.studies.indicators import tables_like_the_papers
from prune_fe.studies.options import SubjectOptions
from prune_fe.studies.subject import Subject, choose_subject, initialise_network, train_subject, write_unit_study
from prune_fe.tracing.layers import Layer

UNITS, NETWORKS = 100, 10
"""How many random units are measured, and from how many initialisations."""


def randomness_study(
    recipe: Recipe, folder: RunFolder, reporter: Reporter, options: SubjectOptions | None = None
) -> list[Table]:
    """Compare a trained unit with 100 units of ten untrained networks by every criterion (tables 2, 7 and 10).

    The tables are written to the run folder too, as study-randomness-*.csv and .md. The network and the scores of
    each network that are in the folder are not made again.

    Args:
        recipe: Which network and images; its `score.classes` are the compared ones.
        folder: The run folder.
        reporter: Where messages and progress go.
        options: Which unit, on which images; the defaults where it is None.

    Returns:
        The paper's tables.
    """
    options = options or SubjectOptions()
    experiment = begin(recipe, folder, reporter, options.seed)
    subject = choose_subject(experiment, options)
    units_per_network(subject.layer)  # a layer with too few units is an error before the network is trained
    subject = train_subject(experiment, subject, options.unit)
    tables = compare_with_random(subject, lambda seed: initialise_network(experiment, seed))
    return write_unit_study(experiment, subject, "randomness", tables)


def compare_with_random(
    subject: Subject, initialise: Callable[[int], nn.Module], units: int = UNITS, networks: int = NETWORKS
) -> list[Table]:
    """Return tables 2, 7 and 10: the unit, all units of its layer, and units of untrained networks.

    Args:
        subject: The unit, layer and class.
        initialise: Function from a seed to an untrained network.
        units: How many random units are measured in all.
        networks: How many networks they come from, the same number of each; which ones is drawn with its seed.

    Raises:
        InputError: The layer has fewer units than are drawn from each network.
    """
    counts = units_per_network(subject.layer, units, networks)
    values = subject.indicator_values()
    random: dict[str, list[float]] = {name: [] for name in values}
    for seed, count in enumerate(counts):
        # The units are drawn with a generator of their own, so that they do not depend on how weights are drawn.
        network = initialise(seed).to(subject.example.device)
        generator = torch.Generator().manual_seed(seed)
        drawn = torch.randperm(subject.layer.units, generator=generator)[:count].tolist()
        for name, unit_values in subject.indicator_values(f"random-{seed}", network).items():
            random[name] += unit_values[drawn].tolist()
    rows = {
        "well-trained unit": {name: [float(unit_values[subject.unit])] for name, unit_values in values.items()},
        "all trained units of the layer": {name: unit_values.tolist() for name, unit_values in values.items()},
        f"{units} random-initialised units": random,
    }
    note = f"mean (standard deviation); {subject.text}; random units: from {networks} initialisations"
    return tables_like_the_papers("Randomness", rows, {}, note)


def units_per_network(layer: Layer, units: int = UNITS, networks: int = NETWORKS) -> list[int]:
    """Return how many of `units` come from each of `networks`, as evenly as possible.

    Raises:
        InputError: The layer has fewer units than that.
    """
    counts = [len(part) for part in np.array_split(np.arange(units), networks)]
    if layer.units < max(counts):
        raise InputError(f"layer {layer.name!r} has {layer.units} units, {max(counts)} of each network are drawn")
    return counts
