"""Scores come back from disk as they were, and say who is weakest."""

import csv
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from prune_fe.errors import CheckpointError, InputError
from prune_fe.scorers.class_selectivity import ClassSelectivity
from prune_fe.scoring.score import score
from prune_fe.scoring.scores import Scores, load_scores

SCORES = Scores(
    "feature-entropy",
    keep={"a": np.array([0.1, -2.5]), "b": np.array([1 / 3])},
    raw={
        "h_nats": {"a": np.array([[1.0, np.inf], [2.0, np.inf]]), "b": np.array([[0.5], [np.inf]])},
        "norm": {"a": np.array([3.0, 4.0]), "b": np.array([5.0])},
    },
    classes=("cat", "<dog>"),
    images=7,
    seconds=0.25,
    settings={"p": 0.1},
)


def test_saved_scores_come_back_to_the_bit(tmp_path: Path) -> None:
    SCORES.save(tmp_path / "s")
    loaded = load_scores(tmp_path / "s")
    for name in ("scorer", "classes", "images", "seconds", "settings"):
        assert getattr(loaded, name) == getattr(SCORES, name)
    for layer in ("a", "b"):
        assert np.array_equal(loaded.keep[layer], SCORES.keep[layer])
        for quantity in ("h_nats", "norm"):
            assert np.array_equal(loaded.raw[quantity][layer], SCORES.raw[quantity][layer])


def test_the_table_has_a_row_a_unit_and_the_mean_of_the_finite_classes(tmp_path: Path) -> None:
    SCORES.save(tmp_path)
    with (tmp_path / "scores.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["layer"], row["unit"], row["h_nats"], row["norm"]) for row in rows] == [
        ("a", "0", "1.5", "3.0"),
        ("a", "1", "inf", "4.0"),
        ("b", "0", "0.5", "5.0"),
    ]
    assert rows[2]["keep"] == "0.333333333"  # scores.npz has all digits


def test_a_layer_has_the_mean_of_its_finite_units_and_classes(tmp_path: Path) -> None:
    SCORES.save(tmp_path)
    with (tmp_path / "layers.csv").open() as file:
        rows = list(csv.reader(file))
    assert rows == [["layer", "units", "h_nats", "norm"], ["a", "2", "1.5", "3.5"], ["b", "1", "0.5", "5.0"]]


@pytest.mark.parametrize("content", [b"", b"not an archive", b"PK\x03\x04 cut short"])
def test_a_damaged_file_is_refused_by_name(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "scores.npz").write_bytes(content)
    with pytest.raises(CheckpointError, match="scores.npz: damaged"):
        load_scores(tmp_path)


def test_an_array_of_objects_is_not_unpickled(tmp_path: Path) -> None:
    np.savez(tmp_path / "scores.npz", about=np.array([{"scorer": "x"}], dtype=object))
    with pytest.raises(CheckpointError, match="damaged"):
        load_scores(tmp_path)


def test_the_weakest_of_a_layer_without_scores_is_refused() -> None:
    with pytest.raises(InputError, match="layer 'c' has no scores; scored are a, b"):
        SCORES.weakest("c", 1)


def test_the_table_of_classes_has_a_row_for_each_unit_and_class_and_no_cell_is_a_formula(tmp_path: Path) -> None:
    scores = replace(SCORES, classes=("=cat", "<dog>"))
    scores.save(tmp_path)
    with (tmp_path / "classes.csv").open(newline="") as file:
        assert file.read().splitlines() == [
            "layer,unit,class,h_nats",
            "a,0,'=cat,1.0", "a,0,<dog>,2.0", "a,1,'=cat,inf", "a,1,<dog>,inf", "b,0,'=cat,0.5", "b,0,<dog>,inf",
        ]  # fmt: skip


def test_scores_without_layers_are_saved_and_loaded(tmp_path: Path) -> None:
    Scores("none", {}).save(tmp_path)
    assert dict(load_scores(tmp_path).keep) == {}
    assert (tmp_path / "scores.csv").read_text() == "layer,unit,keep\n"


def test_a_folder_of_several_scores_is_refused_and_one_of_a_single_one_is_taken(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="scores.npz: no such file; Scores.save writes one"):
        load_scores(tmp_path)
    SCORES.save(tmp_path / "one")
    assert load_scores(tmp_path).scorer == "feature-entropy"
    SCORES.save(tmp_path / "two")
    with pytest.raises(CheckpointError, match="holds scores of one, two: name one folder"):
        load_scores(tmp_path)


def test_a_file_that_lacks_an_array_is_refused_by_name(tmp_path: Path) -> None:
    np.savez(tmp_path / "scores.npz", about=np.array('{"scorer": "x", "layers": ["a"], "quantities": []}'))
    with pytest.raises(CheckpointError, match="scores.npz: damaged .not a scores file: 'keep/a'"):
        load_scores(tmp_path)


def test_a_score_that_is_not_finite_is_refused_by_unit() -> None:
    with pytest.raises(InputError, match="layer 'a', unit 1: the score is nan, it must be finite"):
        Scores("x", {"a": np.array([1.0, np.nan])})


@pytest.mark.parametrize("scorer", ["feature-entropy", "class-selectivity"])
def test_the_scores_of_one_class_rank_as_those_of_its_images_alone(scorer: str) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 6, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(6 * 64, 3))
    data = [(torch.rand(30, 1, 8, 8), torch.arange(30) % 3)]
    scores = score(model, data, scorer)
    assert scores.has_classes
    for label in range(3):
        own = scores.of_class(str(label))
        alone = score(model, data, ClassSelectivity(of=label)) if scorer == "class-selectivity" else None
        if alone is None:
            chosen = [(images[labels == label], labels[labels == label]) for images, labels in data]
            alone = score(model, chosen, scorer)
        assert own.weakest("0", 6) == alone.weakest("0", 6)
        assert own.classes == (str(label),)
    assert np.array_equal(scores.of_class(1).keep["0"], scores.of_class("1").keep["0"])
    with pytest.raises(InputError, match="class 'x': no such class; allowed are 0, 1, 2"):
        scores.of_class("x")
    with pytest.raises(InputError, match="class 3: the scores are of 3 classes, numbered from 0"):
        scores.of_class(3)


def test_scores_without_classes_have_none_of_their_own() -> None:
    scores = score(nn.Sequential(nn.Conv2d(1, 4, 3)), None, "l1-filter")
    assert not scores.has_classes
    assert not SCORES.has_classes  # its quantities are not those of the scorer
    with pytest.raises(InputError, match=r"scores of feature-entropy are of all classes together; score\(…, classes="):
        SCORES.of_class("cat")


def test_a_plot_shows_the_distribution_or_a_quantity_of_each_layer() -> None:
    bins = SCORES.plot().to_dict()
    assert "var(--" not in str(bins)
    [rows] = bins["datasets"].values()
    assert sum(row["count"] for row in rows) == 3
    [rows] = SCORES.plot("norm").to_dict()["datasets"].values()
    assert [(row["layer"], row["value"]) for row in rows] == [("a", 3.5), ("b", 5.0)]
    with pytest.raises(InputError, match="quantity 'nrm': did you mean 'norm'"):
        SCORES.plot("nrm")
