"""Checkpoints are scored in order; training.csv has the means, and keeps the rows of other scorers."""

import csv
from collections.abc import Mapping
from functools import partial
from pathlib import Path

import pytest
import torch

from prune_fe.errors import CheckpointError
from prune_fe.scoring.checkpoint_series import score_checkpoints
from prune_fe.scoring.score import score_all
from prune_fe.scoring.scores import Scores
from tests.scoring.sample import Net


def set_scale(net: Net, scale: float) -> None:
    torch.nn.init.constant_(net.norm1.weight, scale)


def score_series(net: Net, output: Path, scorer: str) -> list[dict[str, object]]:
    def score_into(folder: Path) -> Mapping[str, Scores]:
        return score_all(net, None, [scorer], example=torch.zeros(1, 2, 9, 9), folder=folder)

    loads = {"first": partial(set_scale, net, 2.0), "last": partial(set_scale, net, 5.0)}
    return score_checkpoints(loads, net, None, output, [scorer], score_into)


def test_every_checkpoint_is_scored_with_its_own_weights(net: Net, tmp_path: Path) -> None:
    rows = score_series(net, tmp_path, "bn-scale")
    means = {(row["checkpoint"], row["layer"]): row["mean"] for row in rows if row["quantity"] == "bn_scale"}
    assert means["first", "first"] == 2
    assert means["last", "first"] == 5
    assert all(row["accuracy"] is None and row["loss"] is None for row in rows)
    assert (tmp_path / "last/bn-scale/scores.npz").is_file()


def test_the_rows_of_another_scorer_stay_and_own_rows_are_replaced(net: Net, tmp_path: Path) -> None:
    first = score_series(net, tmp_path, "bn-scale")
    second = score_series(net, tmp_path, "fpgm")
    again = score_series(net, tmp_path, "bn-scale")
    with (tmp_path / "training.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["scorer"] for row in rows] == ["fpgm"] * len(second) + ["bn-scale"] * len(again)
    assert again == first


def test_a_checkpoint_that_does_not_fit_is_reported_before_any_is_scored(net: Net, tmp_path: Path) -> None:
    def fail() -> None:
        raise CheckpointError("does not fit")

    with pytest.raises(CheckpointError, match="does not fit"):
        score_checkpoints({"good": lambda: None, "bad": fail}, net, None, tmp_path, [], lambda folder: {})
    assert list(tmp_path.iterdir()) == []
