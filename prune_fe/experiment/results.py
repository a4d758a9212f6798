"""Results: the measurements of one network, and the files in which they are saved."""

from __future__ import annotations

import base64
import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from prune_fe.data.labels import hash_images, image_labels
from prune_fe.data.splits import Splits
from prune_fe.errors import CheckpointError, InputError
from prune_fe.experiment.result_schema import ResultFile, check_content
from prune_fe.experiment.run_folder import RunFolder
from prune_fe.measure.meter import is_disturbed
from prune_fe.records import damaged, read_record, write_record
from prune_fe.scoring.scores import Array

UNPRUNED = "(unpruned)"
"""The scorer in the rows of networks that have not been pruned."""

TUNED = "(unpruned, fine-tuned)"
"""The scorer in the rows of unpruned networks that had the same fine-tuning as the pruned ones: a control."""

SCRATCH = "scratch#"
"""Prefix of the label of an architecture that was trained from scratch; a number follows, its budget of epochs as a
multiple of that of the pruned networks."""

ADVICE = "delete it, and the next run makes it again"
"""What to do about a result that is damaged."""

TIMED = ("images_per_second", "images_per_second_low", "images_per_second_high", "processor_share", "scoring_seconds")
"""The fields of `Row` that differ between two runs of one recipe, because they are measured in time."""

BY_LAYER = "by layer"
"""The goal of a network that was pruned with a ratio for each layer."""


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
        scorer: Label of the scorer, `UNPRUNED` or `TUNED`.
        seed: Seed of the network.
        accuracy_before: Accuracy of the unpruned network on the test images.
        accuracy_pruned: Accuracy right after pruning; None if it was not measured.
        accuracy_finetuned: Accuracy after fine-tuning; None without fine-tuning.
        balanced_accuracy: Mean accuracy of the classes, of the final network.
        loss: Mean cross-entropy on the test images, of the final network.
        parameters: Number of parameters.
        macs: Multiply-adds for one image.
        images_per_second: Median speed of forward passes.
        images_per_second_low: First quartile of the speed.
        images_per_second_high: Third quartile of the speed.
        timed_with: Batch size, type, device and threads of the timing.
        scoring_seconds: Time that scoring took; None for an unpruned network.
        processor_share: Share of the timing in which the network had a processor, less than 0.9 on a machine that is
            busy with other work; None on a GPU and in earlier results.
    """

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
    processor_share: float | None = None

    @property
    def is_disturbed(self) -> bool:
        """Whether other work on the machine disturbed the timing, so that `images_per_second` is too low."""
        return is_disturbed(self.images_per_second_low, self.images_per_second_high, self.processor_share)

    @property
    def accuracy(self) -> float:
        """The accuracy of the final network."""
        known = (self.accuracy_finetuned, self.accuracy_pruned, self.accuracy_before)
        return next(value for value in known if value is not None)


@dataclass(frozen=True)
class Result:
    """One measured network.

    Attributes:
        network: Label or name of the network.
        row: Its line of the table.
        correct: (images,) bool, whether each test image is classified correctly.
        goal: The option that said how much to remove, such as "ratio"; None for an unpruned network.
        point: The value of that option, such as 0.5; None for an unpruned network.
        removed: Layer -> the units that were removed.
        left: Names of the layers of a group -> why fewer of its units were removed than asked for.
        epochs: The epochs of its fine-tuning, or of its training from scratch.
        seconds: Time that the task took: pruning, training and measuring.
        environment: Versions and hardware with which it was measured.
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
        """Write the result to a JSON file, whole or not at all; its folder is made."""
        content = {entry.name: getattr(self, entry.name) for entry in dataclasses.fields(self)}
        packed = base64.b64encode(np.packbits(self.correct).tobytes()).decode()
        correct = {"images": len(self.correct), "bits": packed}
        path.parent.mkdir(parents=True, exist_ok=True)
        write_record(path, content | {"row": dataclasses.asdict(self.row), "correct": correct})


def load_result(path: Path) -> Result:
    """Return the result that was saved to a file.

    Raises:
        CheckpointError: The file is missing or damaged.
    """
    try:
        content = read_record(path)
        check_content(ResultFile, content)
        correct = content["correct"]
        bits = np.frombuffer(base64.b64decode(correct["bits"], validate=True), dtype=np.uint8)
        if len(bits) != -(-correct["images"] // 8):
            raise ValueError(f"it has {len(bits)} bytes for {correct['images']} images")
        is_correct = np.unpackbits(bits, count=correct["images"]).astype(bool)
        result = Result(**content | {"row": Row(**content["row"]), "correct": is_correct})
        # The row and the images are saved separately; where they disagree, the file was changed or is damaged.
        if not np.isclose(is_correct.mean(), result.row.accuracy, rtol=0, atol=1e-9):
            raise ValueError("its accuracy is not that of its images")
        return result
    except CheckpointError as error:
        raise CheckpointError(f"{error}; {ADVICE}") from error
    except (ValueError, KeyError, TypeError, AttributeError, StopIteration) as error:
        raise CheckpointError(f"{damaged(path, error)}; {ADVICE}") from error


def save_test_labels(splits: Splits, folder: RunFolder) -> None:
    """Write test.json, the classes and labels of the test images, to the run folder.

    Raises:
        InputError: The run was begun with other test images.
        CheckpointError: The file is damaged.
    """
    labels, path = image_labels(splits.test), folder.path / "test.json"
    content = {"classes": list(splits.classes), "labels": labels, "sha256": hash_images(splits.test)}
    if not path.exists():
        write_record(path, content)
    elif read_record(path) != content:
        raise InputError(f"{folder.path} was begun with other test images or classes; start a new run")
