"""Files of ablations: read to the bit, also those of earlier versions; classes are added; damage is named."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from prune_fe.ablation.ablate import masks_without_first
from prune_fe.ablation.curves import Ablation, MaskedPredictions, UnitAblation, join
from prune_fe.ablation.trial import Trial
from prune_fe.errors import CheckpointError
from prune_fe.records import read_npz, write_npz
from prune_fe.studies.ablation_files import finished_classes, load_ablations, load_unit_ablations, save_ablations
from prune_fe.tracing.layers import find_layers

UNITS = 6


@pytest.fixture(scope="module")
def trial() -> Trial:
    """A small network with images of three classes, of which the halves are unlike in size."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(1, UNITS, 3), nn.ReLU(), nn.Flatten(), nn.Linear(UNITS * 36, 3)).eval()
    images, labels = torch.randn(31, 1, 8, 8), torch.arange(31) % 3
    return Trial(network, [(images, labels)], find_layers(network, images[:1], ["0"]))


def run(trial: Trial, order: list[int], classes: list[int]) -> Ablation:
    return trial.run([masks_without_first(order, list(range(UNITS + 1)))], units=order, classes=classes)


@pytest.fixture(scope="module")
def parts(trial: Trial) -> list[Ablation]:
    """The ablations of two classes with orders of their own."""
    order = list(range(UNITS))
    return [run(trial, order, [0]), run(trial, order[::-1], [2])]


def assert_same(one: MaskedPredictions, other: MaskedPredictions) -> None:
    assert type(one) is type(other)
    for name in ("layers", "classes", "all_images", "outputs", "how"):
        assert getattr(one, name) == getattr(other, name)
    if isinstance(one, Ablation):
        assert one.units == other.units  # type: ignore[attr-defined]
    for name in ("removed", "images", "hits", "called", "loss"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name))
    for half, other_half in zip(one.halves, other.halves, strict=True):
        assert_same(half, other_half)


def test_what_is_saved_is_read_to_the_bit(tmp_path: Path, parts: list[Ablation]) -> None:
    path = tmp_path / "folder/curve.npz"
    assert load_ablations(path, UNITS) == {}
    assert finished_classes(path) == set()
    save_ablations(path, parts)
    assert finished_classes(path) == {"0", "2"}
    known = load_ablations(path, UNITS)
    for part in parts:
        assert_same(known[part.classes[0]], part)
    save_ablations(path, list(known.values())[:1])
    assert finished_classes(path) == {"0"}


def test_an_ablation_of_several_classes_is_read_class_by_class(tmp_path: Path, trial: Trial) -> None:
    path, order = tmp_path / "curve.npz", list(range(UNITS))
    several = run(trial, order, [0, 2])
    save_ablations(path, [several, run(trial, order[::-1], [1])])
    known = load_ablations(path, UNITS)
    assert [part.units for part in known.values()] == [tuple(order), tuple(order), tuple(order[::-1])]
    assert_same(join([known["0"], known["2"]]), several)


def test_single_units_are_read_as_such(tmp_path: Path, trial: Trial) -> None:
    path = tmp_path / "each.npz"
    assert load_unit_ablations(path) == {}
    ablation = trial.run_single_units(classes=[2, 1])
    save_ablations(path, [ablation])
    known = load_unit_ablations(path)
    assert all(isinstance(part, UnitAblation) for part in known.values())
    assert_same(join([known["2"], known["1"]]), ablation)


def test_a_file_of_an_earlier_version_has_no_loss_of_the_whole(tmp_path: Path, parts: list[Ablation]) -> None:
    path = tmp_path / "curve.npz"
    save_ablations(path, parts)
    about, arrays = read_npz(path)
    del arrays["loss"]
    write_npz(path, about, arrays)
    for part in parts:
        known = load_ablations(path, UNITS)[part.classes[0]]
        np.testing.assert_allclose(known.loss, part.loss, rtol=1e-12)
        np.testing.assert_array_equal(known.hits, part.hits)


def test_damage_is_named(tmp_path: Path, parts: list[Ablation]) -> None:
    path = tmp_path / "curve.npz"
    save_ablations(path, parts)
    content = path.read_bytes()
    for damaged in (content[: len(content) // 2], b"", b"{}"):
        path.write_bytes(damaged)
        with pytest.raises(CheckpointError, match=r"curve.npz: damaged .*; delete it, and the next run makes it again"):
            load_ablations(path, UNITS)
        with pytest.raises(CheckpointError, match=r"curve.npz: damaged .*; delete it, and the next run makes it again"):
            finished_classes(path)
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="damaged"):
        load_ablations(path, UNITS + 1)
