"""Score a series of checkpoints of one network, such as those of a training run (figures 5B and 10 of the paper)."""

from __future__ import annotations

import csv
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

from torch import nn

from prune_fe.data.splits import Splits
from prune_fe.io import write_csv
from prune_fe.measure.evaluate import evaluate
from prune_fe.records import damaged, read_record, write_record
from prune_fe.scoring.score_folder import write_image_list
from prune_fe.scoring.scores import Scores

RECORD = "training.json"
"""The rows of training.csv as they are read back."""


def score_checkpoints(
    load_weights: Mapping[str, Callable[[], object]],
    network: nn.Module,
    splits: Splits | None,
    output: Path,
    scorers: Collection[str],
    score_into: Callable[[Path], Mapping[str, Scores]],
) -> list[dict[str, Any]]:
    """Score `network` with the weights of each checkpoint, and write training.csv and training.json after each.

    Args:
        load_weights: Name of a checkpoint -> function that loads it into `network`, in order.
        network: The network.
        splits: Images, for accuracy and loss on the test images; None without any.
        output: Each checkpoint's scores go to a folder of its name in here.
        scorers: Names of the scorers; rows of other scorers in an existing training.json are kept.
        score_into: Scores the network as it is and stores the scores in the folder it is given.

    Returns:
        A row for every checkpoint, scorer, layer and quantity: its mean over the units, with accuracy and loss.
    """
    for load in load_weights.values():
        load()  # A checkpoint that does not fit is reported before any is scored.
    rows: list[dict[str, Any]] = []
    kept_rows = _rows_of_other_scorers(output, scorers)
    for name, load in load_weights.items():
        load()
        result = evaluate(network, splits.test) if splits else None
        quality = {"accuracy": result and result.accuracy, "loss": result and result.loss}
        scores_by_label = score_into(output / name)
        write_image_list(output, scores_by_label)
        for scorer, scores in scores_by_label.items():
            for layer in scores.keep:
                for quantity in (name for name, layers in scores.raw.items() if layer in layers):
                    mean = scores.layer_mean(quantity, layer)
                    row = {"checkpoint": name, "scorer": scorer, "layer": layer, "quantity": quantity, "mean": mean}
                    rows.append(row | quality)
        write_record(output / RECORD, {"rows": [*kept_rows, *rows]})
        write_csv(output / "training.csv", [*kept_rows, *rows])
    return rows


def _rows_of_other_scorers(output: Path, scorers: Collection[str]) -> list[dict[str, Any]]:
    """Return the rows of other scorers that an earlier call has written.

    Raises:
        CheckpointError: The file is damaged.
    """
    record, table = output / RECORD, output / "training.csv"
    try:
        if record.exists():
            rows = read_record(record)["rows"]
        elif table.exists():  # of an earlier version
            rows = list(csv.DictReader(table.read_text(encoding="utf-8").splitlines()))
        else:
            rows = []
        return [row for row in rows if row["scorer"] not in scorers]
    except (KeyError, TypeError, UnicodeDecodeError, csv.Error) as error:
        raise damaged(record if record.exists() else table, error) from error
