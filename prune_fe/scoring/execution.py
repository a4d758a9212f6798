"""Compute the scores of several scorers in one pass over the images, and store them in a folder."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from prune_fe.distributed import all_gather, rank, world_size
from prune_fe.errors import CheckpointError, InputError, PruneFEError
from prune_fe.measure.meter import Meter
from prune_fe.scorers import scorer_name
from prune_fe.scorers.base import Scorer, Sums, explain_faults
from prune_fe.scoring.collection import Collection, Progress
from prune_fe.scoring.division import Division, Part
from prune_fe.scoring.inputs import ScoringInputs
from prune_fe.scoring.layer_scores import collect_arrays
from prune_fe.scoring.scores import Array, Scores, load_scores
from prune_fe.scoring.snapshot import Snapshot
from prune_fe.tracing.layers import Layer

LABEL = r"[A-Za-z0-9][A-Za-z0-9_.-]*"
"""Pattern of the labels that name a folder."""


def score_into(
    folder: Path,
    inputs: ScoringInputs,
    scorers: Mapping[str, Scorer],
    classes: tuple[str, ...],
    batch_size: int,
    progress: Progress | None,
) -> dict[str, Scores]:
    """Return the scores that a folder holds already, and score with the other scorers.

    Args:
        folder: The folder; the scores of a label are in folder/<label>.
        inputs: What is scored.
        scorers: Label -> scorer.
        classes: Names of the classes; empty where the data has none.
        batch_size: Images that go through the network together.
        progress: Called with (measured images, all images or 0 when unknown).

    Raises:
        InputError: A label cannot name a folder, a scorer cannot score a layer, or the folder holds other scores.
        CheckpointError: Scores in the folder are damaged.
    """
    for label in scorers:
        if not (isinstance(label, str) and re.fullmatch(LABEL, label)):
            raise InputError(
                f"label {label!r}: it becomes the name of a folder; allowed are letters, digits, '_', '.' and '-'"
            )
    finished = _load_finished(folder, {label: inputs.provenance(scorer)["key"] for label, scorer in scorers.items()})
    pending = {label: scorer for label, scorer in scorers.items() if label not in finished}
    scores = finished | score_pending(inputs, pending, classes, batch_size, folder, progress)
    return {label: scores[label] for label in scorers}


def score_pending(
    inputs: ScoringInputs,
    scorers: Mapping[str, Scorer],
    classes: tuple[str, ...],
    batch_size: int,
    folder: Path | None,
    progress: Progress | None,
) -> dict[str, Scores]:
    """Score with all scorers in one pass, and store finished scores in `folder` before any error is raised.

    Args:
        inputs: As in `score_into`.
        scorers: As in `score_into`.
        classes: As in `score_into`.
        batch_size: As in `score_into`.
        folder: As in `score_into`; None stores nothing.
        progress: As in `score_into`.

    Returns:
        Label -> scores.

    Raises:
        InputError: A scorer cannot score a layer.
    """
    divisions = {label: inputs.divide(scorer) for label, scorer in scorers.items()}
    parts, names_of = _name_parts(divisions)
    readers = {name: part for name, part in parts.items() if part.scorer.needs_data}
    names = (classes or inputs.output_names()) if readers else ()
    observed = {name: inputs.observed_layers(part) for name, part in readers.items()}
    measured = {name: part.scorer for name, part in readers.items()}
    collection = Collection(measured, observed, names, inputs.device, inputs.logits)
    snapshot = None
    if folder is not None:
        keys = {label: inputs.provenance(scorers[label])["key"] for label in scorers if divisions[label].needs_data}
        # The sums of floating-point numbers depend on the batches and on the share of this process.
        snapshot = Snapshot(folder, json.dumps([batch_size, world_size(), names, keys]))
    if inputs.read is not None and readers:
        collection.run(inputs.model, inputs.read, progress, snapshot)
    sums, counts = collection.gather_sums()
    network_seconds = collection.network_seconds  # before the meters go on to measure score() as well
    images = {name: count for name, count in zip(names, counts.tolist(), strict=True) if count}
    scored: dict[str, _PartScores] = {}
    errors: dict[str, InputError] = {}
    scores: dict[str, Scores] = {}
    for label, scorer in scorers.items():
        for name in names_of[label]:
            if name in scored or name in errors:
                continue
            meter = collection.meters.get(name) or Meter(inputs.device)
            try:
                scored[name] = _score_part(inputs, parts[name], sums.get(name, {}), len(images), meter)
            except InputError as error:
                errors[name] = error
        if errors.keys().isdisjoint(names_of[label]):
            own = [scored[name] for name in names_of[label]]
            scores[label] = _join(inputs, scorer, own, images, network_seconds)
            if folder is not None and rank() == 0:
                scores[label].save(folder / label)
    if errors:
        raise next(iter(errors.values()))
    if snapshot is not None:
        snapshot.remove()
    return scores


def _name_parts(divisions: Mapping[str, Division]) -> tuple[dict[str, Part], dict[str, list[str]]]:
    """Return the parts by name, and the names of the parts that make up the scores of each label.

    A scorer's own part has its label as its name. Of the linear scorer, several labels share the part with the same
    layers, so that these are measured once.
    """
    parts: dict[str, Part] = {label: division.own for label, division in divisions.items() if division.own.layers}
    names_of = {label: [label] if label in parts else [] for label in divisions}
    shared: dict[tuple[Layer, ...], str] = {}
    for label, division in divisions.items():
        if division.rest is not None:
            name = f"{label}/{scorer_name(division.rest.scorer)}"
            while name in divisions:  # a label that was given
                name += "'"
            name = shared.setdefault(division.rest.layers, name)
            parts[name] = division.rest
            names_of[label].append(name)
    return parts, names_of


class _PartScores(NamedTuple):
    """The scores and the raw quantities of a part, and the time and memory that they took."""

    keep: dict[str, Array]
    raw: dict[str, dict[str, Array]]
    meter: Meter


def _score_part(inputs: ScoringInputs, part: Part, sums: Mapping[str, Sums], classes: int, meter: Meter) -> _PartScores:
    """Return the scores of a part from the sums of its layers.

    Raises:
        InputError: The scorer cannot compute scores from the sums.
    """
    with meter.measuring("scores"), explain_faults(part.scorer):
        results = part.scorer.score(inputs.model, part.layers, sums, inputs.example)
    keep, raw = collect_arrays(part.scorer, part.layers, results, classes if part.scorer.needs_data else 0)
    return _PartScores(keep, raw, meter)


def _join(
    inputs: ScoringInputs, scorer: Scorer, parts: Sequence[_PartScores], images: Mapping[str, int], seconds: float
) -> Scores:
    """Return the scores of one label from those of its parts, with the layers in the order in which they run.

    Args:
        inputs: What was scored.
        scorer: The scorer of the label.
        parts: The scores of its parts.
        images: Class -> number of its images, of classes that have some.
        seconds: Time that the network took for the images.
    """
    division = inputs.divide(scorer)
    images = images if division.needs_data else {}
    keep = {layer: values for part in parts for layer, values in part.keep.items()}
    raw: dict[str, dict[str, Array]] = {}
    for part in parts:
        for quantity, by_layer in part.raw.items():
            raw[quantity] = raw.get(quantity, {}) | by_layer
    own_seconds = sum(part.meter.seconds for part in parts)
    peaks = [part.meter.peak_bytes for part in parts if part.meter.peak_bytes is not None]
    rest = division.rest
    return Scores(
        scorer=scorer_name(scorer),
        keep={layer.name: keep[layer.name] for layer in inputs.layers if layer.name in keep},
        raw=raw,
        classes=tuple(images),
        images=sum(images.values()),
        seconds=own_seconds + (seconds if division.needs_data else 0.0),
        settings=scorer.settings,
        own_seconds=own_seconds,
        peak_bytes=max(peaks, default=None),
        provenance=inputs.provenance(scorer),
        other_scorers={} if rest is None else {layer.name: scorer_name(rest.scorer) for layer in rest.layers},
    )


def _load_finished(folder: Path, keys: Mapping[str, str]) -> dict[str, Scores]:
    """Load the scores that `folder` holds on rank 0, and broadcast them.

    Args:
        folder: Folder that holds one folder for each label.
        keys: Label -> the key that the provenance of its scores must have.

    Raises:
        InputError: Scores of a label have another key.
        CheckpointError: Scores of a label are damaged.
    """
    scores: dict[str, Scores] = {}
    error: PruneFEError | None = None
    for label, key in keys.items() if rank() == 0 else ():
        path = folder / label
        if not (path / "scores.npz").exists():
            continue
        try:
            scores[label] = load_scores(path)
            if scores[label].provenance.get("key") != key:
                raise InputError(
                    f"{path} holds scores of another model, other images or other settings; choose another folder"
                )
        except CheckpointError as damage:
            error = error or CheckpointError(f"{damage}; delete {path}, and the next run makes it again")
        except PruneFEError as mismatch:
            error = error or mismatch
    # An error is broadcast too: the other processes would wait for rank 0.
    scores, error = all_gather((scores, error))[0]
    if error is not None:
        raise error
    return scores
