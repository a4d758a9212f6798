"""The study of rescaling (tables 1, 6 and 9): images or filters are halved, and every criterion is measured again."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from prune_fe.data.datasets import Rescaled
from prune_fe.distributed import rank
from prune_fe.experiment.experiment import Reporter, begin
from prune_fe.experiment.recipe import Recipe
from prune_fe.experiment.run_folder import RunFolder
from prune_fe.measure.evaluate import Evaluation, evaluate
from prune_fe.records import read_record, write_record
from prune_fe.report.tables import Table
from prune_fe.scoring.fingerprint import hash_weights
from prune_fe.scoring.scores import Array
from prune_fe.studies.indicators import tables_like_the_papers
from prune_fe.studies.options import SubjectOptions
from prune_fe.studies.subject import TRAINED, Subject, choose_subject, train_subject, write_unit_study
from prune_fe.tracing.copying import copy_model
from prune_fe.tracing.feature_maps import follow, observe
from prune_fe.tracing.layers import Layer
from prune_fe.tracing.split import NotSplit, SplitNetwork, split
from prune_fe.tracing.watching import evaluating

ACCURACY = {"accuracy": ".2%", "of the class": ".2%"}
"""Columns of the accuracy on the test images, with their formats."""

STATES = (
    (TRAINED, 1.0, False),
    ("half-images", 0.5, False),
    ("half-filters", 1.0, True),
    ("half-both", 0.5, True),
)
"""Name of each state, factor of the images, and whether the filters are halved."""


def rescaling_study(
    recipe: Recipe, folder: RunFolder, reporter: Reporter, options: SubjectOptions | None = None
) -> list[Table]:
    """Measure every criterion with the images, the filters of a layer, and both halved (tables 1, 6 and 9).

    The tables are written to the run folder too, as study-rescaling-*.csv and .md. The network, the scores and the
    accuracies that are in the folder are not made again.

    Args:
        recipe: Which network and images; its `score.classes` are the compared ones.
        folder: The run folder.
        reporter: Where messages and progress go.
        options: Which unit, on which images; the defaults where it is None.

    Returns:
        The paper's tables, and one of the whole layer.
    """
    options = options or SubjectOptions()
    experiment = begin(recipe, folder, reporter, options.seed)
    subject = train_subject(experiment, choose_subject(experiment, options), options.unit)
    return write_unit_study(experiment, subject, "rescaling", rescale(subject))


def rescale(subject: Subject) -> list[Table]:
    """Return tables 1, 6 and 9, and one of the whole layer.

    The values of all images are halved, then those of the filters that make the layer's maps, then both. The last
    table has the mean of |value| over all units of the layer, as a share of the mean with nothing halved.

    Args:
        subject: The unit, layer and class.
    """
    rows: dict[str, dict[str, Sequence[float]]] = {}
    shares: dict[str, dict[str, Sequence[float]]] = {}
    originals: dict[str, Array] = {}
    accuracies, halved_part = measure_accuracies(subject), ""
    for state, factor, halve_filters in STATES:
        row = f"{'half scale' if factor < 1 else '×'}, {'half scale' if halve_filters else '×'}"
        network: nn.Module = subject.network
        halving: AbstractContextManager[Any] = nullcontext()
        if halve_filters:
            network, halving, halved_part = halve_layer(subject.network, subject.layer, subject.example)
        with halving:
            values = subject.indicator_values(state, network, factor)
        rows[row] = {column: [value] for column, value in accuracies[state].items()}
        rows[row] |= {name: [float(units[subject.unit])] for name, units in values.items()}
        originals = originals or values
        for name, units in values.items():
            original = abs(originals[name]).mean()
            # An indicator that is 0 for every unit has no share of itself.
            if original > 0:
                shares.setdefault(name, {})[row] = [float(abs(units).mean() / original)]
    note = f"images, filters (halved: {halved_part}): {subject.text}"
    title = "Rescaling: mean over all units of the layer, share of what it is with nothing halved"
    of_layer = Table(title, dict.fromkeys(rows, ".2f"), shares)
    return [*tables_like_the_papers("Rescaling", rows, ACCURACY, note), of_layer]


def measure_accuracies(subject: Subject) -> dict[str, dict[str, float]]:
    """Return the accuracy on the test images in each of STATES, from the subject's folder where it is there.

    Whether the filters are halved or not, the network in front of the layer computes the same. It runs once for both
    where the network can be split behind the layer.

    Args:
        subject: The layer, and the class whose own accuracy is measured.

    Returns:
        Name of the state -> column of ACCURACY -> share of the images.
    """
    digest = "" if subject.folder is None else hash_weights(subject.network)
    accuracies: dict[str, dict[str, float]] = {}
    for wanted_factor in dict.fromkeys(factor for _, factor, _ in STATES):
        states = {halved: state for state, factor, halved in STATES if factor == wanted_factor}
        read = {state: saved for state in states.values() if (saved := _read_accuracy(subject, state, digest))}
        if len(read) < len(states):
            for halved, evaluation in enumerate(_evaluate_whole_and_halved(subject, wanted_factor)):
                read[states[bool(halved)]] = _accuracy_of_class(evaluation, subject.label)
                _save_accuracy(subject, states[bool(halved)], read[states[bool(halved)]], digest)
        accuracies |= read
    return accuracies


def _accuracy_of_class(evaluation: Evaluation, label: int) -> dict[str, float]:
    """Return the values of the columns ACCURACY."""
    of_class = evaluation.confusion[label]
    recall = int(of_class[label]) / max(int(of_class.sum()), 1)
    return dict(zip(ACCURACY, (evaluation.accuracy, recall), strict=True))


def _read_accuracy(subject: Subject, state: str, digest: str) -> dict[str, float] | None:
    """Return what `_save_accuracy` saved for the same network, if it did."""
    path = None if subject.folder is None else subject.folder / f"{state}-accuracy.json"
    if path is None or not path.exists():
        return None
    saved = read_record(path)
    return {column: saved[column] for column in ACCURACY} if saved.get("unhalved_model_sha256") == digest else None


def _save_accuracy(subject: Subject, state: str, values: dict[str, float], digest: str) -> None:
    if subject.folder is not None and rank() == 0:
        subject.folder.mkdir(parents=True, exist_ok=True)
        write_record(subject.folder / f"{state}-accuracy.json", values | {"unhalved_model_sha256": digest})


def _evaluate_whole_and_halved(subject: Subject, factor: float) -> tuple[Evaluation, Evaluation]:
    """Evaluate the network on the test images as it is, and with half the layer's maps.

    Args:
        subject: The network and the layer.
        factor: What the values of all images are multiplied by.
    """
    images = Rescaled(subject.splits.test, factor)
    two = torch.stack([images[0][0], images[len(images) - 1][0]]).to(subject.example.device)
    parts = split(subject.network, subject.layer, two)
    if isinstance(parts, NotSplit):
        twin, halving, _ = halve_layer(subject.network, subject.layer, subject.example)
        whole = evaluate(subject.network, images, workers=subject.workers)
        with halving:
            return whole, evaluate(twin, images, workers=subject.workers)
    both = _WholeAndHalved(subject.network, parts)
    whole = evaluate(both, images, workers=subject.workers)
    # The images are read again for their labels only.
    return whole, evaluate(_Known(both.halved, subject.network), images, workers=subject.workers)


class _WholeAndHalved(nn.Module):
    """A split network that returns its logits, and keeps those with half the layer's maps in `halved`."""

    def __init__(self, network: nn.Module, parts: SplitNetwork) -> None:
        super().__init__()
        self.network, self.parts = network, parts
        self.halved: list[Tensor] = []

    def forward(self, images: Tensor) -> Tensor:
        maps, *others = self.parts.head(images)
        logits, halved = (self.parts.run_tail(maps * factor, others) for factor in (1.0, 0.5))
        self.halved.append(halved)
        return logits


class _Known(nn.Module):
    """Returns logits that are known, batch by batch."""

    def __init__(self, logits: Iterable[Tensor], network: nn.Module) -> None:
        super().__init__()
        self.network, self.logits = network, iter(logits)

    def forward(self, images: Tensor) -> Tensor:
        return next(self.logits)


def halve_layer(
    network: nn.Module, layer: Layer, example: Tensor
) -> tuple[nn.Module, AbstractContextManager[Any], str]:
    """Return a copy of a network in which the maps of one layer have half their values.

    The filters of a convolution are halved, together with the constants between them and the map (the bias, and the
    mean and shift of a batch norm), so that the map is halved and nothing else changes. Where that does not halve the
    map (a group norm removes the scale, a sigmoid is not proportional), and for modules that are no convolution, such
    as residual blocks, the map itself is halved.

    Args:
        network: The network, which stays as it is.
        layer: The layer.
        example: One image, with which the result is checked.

    Returns:
        The copy, a context in which it must be used, and a text that says what was halved.
    """
    twin = copy_model(network)
    module = twin.get_submodule(layer.name)
    if isinstance(module, nn.Conv2d):
        norm = twin.get_submodule(layer.norm) if layer.norm else None
        constants = [module.bias] if norm is None else [module.bias, norm.running_mean, norm.bias]
        with torch.no_grad():
            for value in (module.weight, *constants):
                if isinstance(value, Tensor):
                    value.mul_(0.5)
        # Whatever stands between the filters and the map decides whether it is halved, so the map is measured.
        whole, half = _layer_map(network, layer, example), _layer_map(twin, layer, example)
        if torch.allclose(half, whole / 2, rtol=1e-3, atol=1e-3 * float(whole.abs().max())):
            return twin, nullcontext(), "the filters"
    twin = copy_model(network)
    return twin, follow(twin, [layer], lambda layer, maps, in_place: maps * 0.5), "the maps, not the filters"


def _layer_map(network: nn.Module, layer: Layer, example: Tensor) -> Tensor:
    seen: list[Tensor] = []
    with evaluating(network), torch.no_grad(), observe(network, [layer], lambda _, maps: seen.append(maps.clone())):
        network(example)
    return seen[0]
