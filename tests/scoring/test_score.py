"""Scores that are stored are used again; what is refused."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import TensorDataset

from prune_fe.errors import CheckpointError, InputError
from prune_fe.scorers.feature_entropy import FeatureEntropy
from prune_fe.scorers.nisp import NISP
from prune_fe.scoring.score import score_all
from tests.scoring.sample import READERS, Counting, Net, assert_same_bits, scored
from tests.tracing.keeping import Keeping, state


def test_labels_tell_two_settings_of_one_scorer_apart(net: Net, images: Counting) -> None:
    judges = {"elements": FeatureEntropy(), "edges": FeatureEntropy(rank="edges"), "zeros": "apoz"}
    found = scored(net, images, None, judges)
    assert list(found) == ["elements", "edges", "zeros"]
    assert [scores.scorer for scores in found.values()] == ["feature-entropy", "feature-entropy", "apoz"]
    assert_same_bits(found["edges"], scored(net, images, None, [FeatureEntropy(rank="edges")])["feature-entropy"])
    with pytest.raises(InputError, match="scorer 'feature-entropy' is given twice: give each a label"):
        scored(net, images, None, [FeatureEntropy(), FeatureEntropy(rank="edges")])


def test_finished_scores_are_used_again_without_reading_an_image(net: Net, images: Counting, tmp_path: Path) -> None:
    first = scored(net, images, tmp_path, [*READERS, "l1-filter"])
    images.reads.clear()
    images.broken = 0
    again = scored(net, images, tmp_path, [*READERS, "l1-filter"])
    assert images.reads == []
    for name, scores in first.items():
        assert_same_bits(again[name], scores)
        assert again[name].seconds == scores.seconds


def test_finished_scores_that_are_damaged_say_what_to_do(net: Net, images: Counting, tmp_path: Path) -> None:
    first = scored(net, images, tmp_path, ["apoz"])["apoz"]
    whole = (tmp_path / "apoz/scores.npz").read_bytes()
    (tmp_path / "apoz/scores.npz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CheckpointError, match="scores.npz.*; delete .*apoz, and the next run makes it again"):
        scored(net, images, tmp_path, ["apoz"])
    shutil.rmtree(tmp_path / "apoz")
    assert_same_bits(scored(net, images, tmp_path, ["apoz"])["apoz"], first)


def test_only_what_is_not_finished_is_measured(net: Net, images: Counting, tmp_path: Path) -> None:
    first = scored(net, images, tmp_path, ["hrank"])["hrank"]
    written = (tmp_path / "hrank" / "scores.npz").stat().st_mtime_ns
    both = scored(net, images, tmp_path, ["apoz", "hrank", "bn-scale"])
    assert list(both) == ["apoz", "hrank", "bn-scale"]
    assert both["hrank"].seconds == first.seconds
    assert (tmp_path / "hrank" / "scores.npz").stat().st_mtime_ns == written
    assert_same_bits(both["apoz"], scored(net, images, None, ["apoz"])["apoz"])


@pytest.mark.parametrize("label", ["../evil", "", "a/b", ".hidden", 1])
def test_a_label_that_is_no_name_of_a_folder_is_refused(net: Net, images: Counting, tmp_path: Path, label: Any) -> None:
    with pytest.raises(InputError, match="it becomes the name of a folder"):
        scored(net, images, tmp_path / "here", {label: "apoz"})
    assert list(tmp_path.iterdir()) == []


def test_no_scorer_is_refused(net: Net, images: Counting) -> None:
    with pytest.raises(InputError, match="must be a list of scorers"):
        scored(net, images, None, [])
    with pytest.raises(InputError, match="must be a list of scorers"):
        scored(net, images, None, {})


def test_a_scorer_that_fails_at_the_end_costs_the_others_nothing(net: Net, images: Counting, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="only exists below"):
        scored(net, images, tmp_path, [NISP(r=1e6), "apoz"])
    images.reads.clear()
    scored(net, images, tmp_path, ["apoz"])
    assert images.reads == []


def test_the_example_costs_one_image(net: Net, images: Counting) -> None:
    scored(net, images, None, ["apoz"], example=None)
    assert len(images.reads) == 24


def test_ready_batches_have_no_names_and_take_no_folder(net: Net, images: Counting, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="folder= needs a data set; ready batches have no names to know them by"):
        score_all(net, [(images.images, torch.tensor(images.targets))], ["apoz"], folder=tmp_path)


@pytest.mark.parametrize("scorer", ["l1-filter", "l1-activation", "taylor", "hrank"])
def test_what_a_network_keeps_of_its_last_run_is_left_as_it_was(scorer: str) -> None:
    model = Keeping()
    model(torch.randn(2, 3, 6, 6)).sum().backward()
    before, total = state(model), model.total.clone()
    data = TensorDataset(torch.randn(8, 3, 6, 6), torch.arange(8) % 2)
    score_all(model, data, [scorer], layers=["first"])
    after = state(model)
    assert before.keys() == after.keys()
    assert all(before[key] is after[key] for key in before)
    assert (len(model.history), model.history[0] is model.last, torch.equal(model.total, total)) == (1, True, True)
