"""Scores of a scorer and of the linear scorer, in one result."""

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from prune_fe.errors import InputError
from prune_fe.pruning.prune import prune
from prune_fe.report.console import layer_table
from prune_fe.scoring.score import score, score_all
from prune_fe.scoring.scores import load_scores
from prune_fe.tracing.layers import find_layers_with_units
from tests.scoring.sample import Counting, assert_same_bits, interrupt, scored

CONVOLUTIONS, LINEAR = ("first", "second"), ("hidden", "head")


class WithHidden(nn.Module):
    """Two convolutions, each with a norm, and a classifier with a hidden layer."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(2, 5, 3, padding=1), nn.BatchNorm2d(5)
        self.second, self.norm2 = nn.Conv2d(5, 4, 3), nn.BatchNorm2d(4)
        self.hidden, self.head = nn.Linear(4, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm2(self.second(torch.relu(self.norm(self.first(x))))))
        return self.head(torch.relu(self.hidden(x.mean((2, 3)))))


@pytest.fixture
def net() -> WithHidden:
    torch.manual_seed(3)
    return WithHidden()


@pytest.fixture
def images() -> Counting:
    return Counting()


@pytest.mark.parametrize("linear_scorer", ["taylor", "l1-filter", "apoz", "nisp", "random"])
def test_each_layer_has_the_scores_of_its_scorer_alone(net: Any, images: Counting, linear_scorer: str) -> None:
    both = scored(net, images, None, ["feature-entropy"], linear=True, linear_scorer=linear_scorer, seed=7)
    scores = both["feature-entropy"]
    alone = scored(net, images, None, ["feature-entropy", linear_scorer], layers=[*CONVOLUTIONS], seed=7)
    other = scored(net, images, None, [linear_scorer], layers=[*LINEAR], seed=7)[linear_scorer]
    assert list(scores.keep) == [*CONVOLUTIONS, *LINEAR]
    assert scores.other_scorers == dict.fromkeys(LINEAR, linear_scorer)
    assert (scores.scorer, scores.scorer_of("first"), scores.scorer_of("head")) == (
        "feature-entropy", "feature-entropy", linear_scorer
    )  # fmt: skip
    for layer in CONVOLUTIONS:
        assert np.array_equal(scores.keep[layer], alone["feature-entropy"].keep[layer])
    for layer in LINEAR if linear_scorer != "random" else ():
        assert np.allclose(scores.keep[layer], other.keep[layer], rtol=1e-6)
    about = scores.provenance["linear_scorer"]
    assert (about["scorer"], about["layers"]) == (linear_scorer, [*LINEAR])
    assert list(scores.provenance["layers"]) == [*CONVOLUTIONS, *LINEAR]
    assert "left_out" not in scores.provenance


def test_saved_scores_of_two_scorers_come_back_and_their_tables_name_both(
    net: Any, images: Counting, tmp_path: Path
) -> None:
    scores = scored(net, images, tmp_path, ["feature-entropy"], linear=True, linear_scorer="taylor")["feature-entropy"]
    loaded = load_scores(tmp_path / "feature-entropy")
    assert loaded.other_scorers == dict.fromkeys(LINEAR, "taylor")
    assert loaded.keep.keys() == scores.keep.keys()
    assert list(loaded.raw["taylor_importance"]) == [*LINEAR]
    assert {tuple(layers) for quantity, layers in loaded.raw.items() if quantity != "taylor_importance"} == {
        CONVOLUTIONS
    }
    with (tmp_path / "feature-entropy/scores.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["unit"] == "0"]
    assert [(row["layer"], row["scorer"]) for row in rows] == [
        ("first", "feature-entropy"), ("second", "feature-entropy"), ("hidden", "taylor"), ("head", "taylor")
    ]  # fmt: skip
    assert [bool(row["taylor_importance"]) for row in rows] == [False, False, True, True]
    assert [bool(row["selective_rate"]) for row in rows] == [True, True, False, False]
    with (tmp_path / "feature-entropy/layers.csv").open() as file:
        assert [row["scorer"] for row in csv.DictReader(file)] == ["feature-entropy"] * 2 + ["taylor"] * 2
    with (tmp_path / "feature-entropy/classes.csv").open() as file:
        assert {row["layer"] for row in csv.DictReader(file)} == set(CONVOLUTIONS)
    columns = layer_table("feature-entropy", loaded).columns
    assert columns["scorer"] == ["feature-entropy"] * 2 + ["taylor"] * 2
    assert columns["taylor importance"][:2] == ["", ""]


def test_an_interrupted_pass_goes_on_and_finished_scores_are_used_again(
    net: Any, images: Counting, tmp_path: Path
) -> None:
    options: dict[str, Any] = {"linear": True, "linear_scorer": "taylor"}
    names = ["feature-entropy", "hrank", "bn-scale"]
    whole = scored(net, images, None, names, **options)
    interrupt(net, images, tmp_path, names, **options)
    resumed = scored(net, images, tmp_path, names, **options)
    assert images.reads[0] == 8  # the first two batches are not read again
    for name in names:
        for layer, keep in whole[name].keep.items():
            assert np.array_equal(resumed[name].keep[layer], keep)
    images.reads.clear()
    images.broken = 0
    assert scored(net, images, tmp_path, names, **options)["hrank"].seconds == resumed["hrank"].seconds
    assert images.reads == []
    with pytest.raises(InputError, match="feature-entropy holds scores of"):
        scored(net, images, tmp_path, names, linear=True, linear_scorer="l1-filter")
    assert resumed["bn-scale"].other_scorers == dict.fromkeys(LINEAR, "taylor")


def test_without_layers_for_it_the_linear_scorer_changes_nothing(net: Any, images: Counting, tmp_path: Path) -> None:
    first = scored(net, images, tmp_path, ["apoz", "l1-filter"], linear=True)
    again = scored(net, images, tmp_path, ["apoz", "l1-filter"], linear=True, linear_scorer="taylor")
    for name, scores in again.items():
        assert_same_bits(scores, first[name])
        assert scores.seconds == first[name].seconds
        assert scores.other_scorers == {}


def test_layers_that_several_scorers_leave_out_are_measured_once(
    net: Any, images: Counting, monkeypatch: pytest.MonkeyPatch
) -> None:
    from prune_fe.scorers.taylor import Taylor

    calls = []
    measure = Taylor.measure_gradients

    def counted(self: Taylor, gradients: Tensor) -> Any:
        calls.append(gradients.shape)
        return measure(self, gradients)

    monkeypatch.setattr(Taylor, "measure_gradients", counted)
    found = scored(net, images, None, ["feature-entropy", "hrank"], linear=True, linear_scorer="taylor", batch_size=23)
    assert len(calls) == len(LINEAR)
    assert np.array_equal(found["hrank"].keep["hidden"], found["feature-entropy"].keep["hidden"])


def test_a_linear_scorer_needs_what_it_needs(net: Any, images: Counting) -> None:
    with pytest.raises(InputError, match="scorer 'taylor' needs images: pass data="):
        score(net, None, "bn-scale", example=images.images[:1], linear=True, linear_scorer="taylor")
    with pytest.warns(UserWarning, match="mine can score no layer: all scores under this label are those of taylor"):
        only = score_all(
            nn.Sequential(nn.Flatten(), nn.Linear(162, 4), nn.ReLU(), nn.Linear(4, 3)),
            images,
            {"mine": "feature-entropy"},
            linear=True,
            linear_scorer="taylor",
        )["mine"]
    assert set(only.other_scorers) == set(only.keep) == {"1", "3"}


def test_in_a_group_of_both_the_scorer_of_the_convolutions_decides(images: Counting) -> None:
    class Gated(nn.Module):
        """The gate's second layer is tied to the convolution that it multiplies."""

        def __init__(self) -> None:
            super().__init__()
            self.conv, self.down, self.up = nn.Conv2d(2, 8, 3), nn.Conv2d(8, 4, 1), nn.Conv2d(4, 8, 1)
            self.head = nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            x = torch.relu(self.conv(x))
            gate = torch.sigmoid(self.up(torch.relu(self.down(x.mean((2, 3), keepdim=True)))))
            return self.head((x * gate).mean((2, 3)))

    torch.manual_seed(0)
    net = Gated()
    example = images.images[:1]
    assert [layer.name for layer in find_layers_with_units(net, example, linear=True)] == ["conv", "down", "up", "head"]
    scores = score(net, images, "hrank", linear=True, linear_scorer="taylor")
    assert set(scores.other_scorers) == {"down", "up", "head"}
    steps = {step.layers: step for step in prune(net, scores, 0.5, example).steps}
    mixed = next(step for layers, step in steps.items() if "conv" in layers)
    assert sorted(mixed.removed["conv"]) == sorted(scores.weakest("conv", 4))
    assert any("down" in layers and step.removed["down"] for layers, step in steps.items())
