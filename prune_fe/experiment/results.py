"""One measured network each: what a run and a comparison are made of, and how it lies in a folder."""

from __future__ import annotations

import base64
import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from prune_fe.errors import CheckpointError
from prune_fe.io import write_json
from prune_fe.scoring.scores import Array

UNPRUNED = "(unpruned)"
"""The scorer of the rows that say what every other row starts from."""


SCRATCH = "scratch#"
"""Begins the labels of architectures that were trained from scratch; the number behind it is their budget."""

BY_LAYER = "by layer"
"""The goal of a network whose layers have ratios of their own."""


@dataclass(frozen=True)
class Row:
    """One line of the table. accuracy: on the test images; before and after are None for the unpruned network."""

    scorer: str
    seed: int
    accuracy_before: float
    accuracy_pruned: float | None
    accuracy_finetuned: float | None
    balanced_accuracy: float
    loss: float
    parameters: int
    macs: int
    images_per_second: float
    images_per_second_low: float
    images_per_second_high: float
    timed_with: str
    scoring_seconds: float | None

    @property
    def accuracy(self) -> float:
        """Of the network as it is left."""
        known = (self.accuracy_finetuned, self.accuracy_pruned, self.accuracy_before)
        return next(value for value in known if value is not None)


@dataclass(frozen=True)
class Result:
    """A row, and what a comparison needs beside it.

    network: its label. goal, point: such as "ratio", 0.5; None of an unpruned network. correct: (images,) bool, whether
    each test image is told right, in their order. removed: layer -> its removed units; left: layers -> why fewer units
    went than were asked for. epochs: of its own training. seconds: all of it took. environment: where it was measured.
    """

    network: str
    row: Row
    correct: Array
    goal: str | None = None
    point: float | None = None
    removed: Mapping[str, Sequence[int]] = field(default_factory=dict)
    left: Mapping[str, str] = field(default_factory=dict)
    epochs: Sequence[Mapping[str, Any]] = ()
    seconds: float = 0.0
    environment: Mapping[str, Any] = field(default_factory=dict)

    def save(self, path: Path) -> None:
        """One JSON file, whole or not at all."""
        content = {entry.name: getattr(self, entry.name) for entry in dataclasses.fields(self)}
        packed = base64.b64encode(np.packbits(self.correct).tobytes()).decode()
        correct = {"images": len(self.correct), "bits": packed}
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, content | {"row": dataclasses.asdict(self.row), "correct": correct})


def load_result(path: Path) -> Result:
    """What Result.save wrote; CheckpointError for anything else."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        correct = content["correct"]
        bits = np.frombuffer(base64.b64decode(correct["bits"], validate=True), dtype=np.uint8)
        told = np.unpackbits(bits, count=correct["images"]).astype(bool)
        cell = Result(**content | {"row": Row(**content["row"]), "correct": told})
        if len(bits) != -(-len(told) // 8) or not np.isclose(told.mean(), cell.row.accuracy, rtol=0, atol=1e-9):
            raise ValueError("its accuracy is not that of its images")
        return cell
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path}: damaged ({error}); delete it, and it is made again") from error
