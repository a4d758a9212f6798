"""Training a part with kept features is training it with the whole network, and only where features never change."""

import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset, TensorDataset

from prune_fe.errors import EnvironmentFault
from prune_fe.training import features
from prune_fe.training.loop import Epoch, finetune
from tests.training.helpers import Recorded, pictures, same, small, state

TRAINING: dict[str, Any] = {"lr": 0.05, "schedule": "cosine", "epochs": 3, "batch_size": 16, "only": ["classifier*"]}


def backbone(classes: int = 3) -> nn.Module:
    """A fixed part with batch norms and dropout, and a classifier with dropout."""
    torch.manual_seed(0)
    model = nn.Sequential()
    model.features = nn.Sequential(nn.Conv2d(1, 6, 3), nn.BatchNorm2d(6), nn.ReLU(True), nn.Dropout(0.5), nn.Flatten())
    model.classifier = nn.Sequential(nn.Linear(216, 16), nn.ReLU(True), nn.Dropout(0.5), nn.Linear(16, classes))
    return model


def train(model: nn.Module, images: Dataset[Any] | None = None, **settings: Any) -> list[Epoch]:
    return finetune(model, images or pictures(50), pictures(30, seed=5), seed=3, **TRAINING | settings)


def weights_apart(one: nn.Module, other: nn.Module) -> float:
    states = zip(one.state_dict().values(), other.state_dict().values(), strict=True)
    return max(float((value.double() - second.double()).abs().max()) for value, second in states)


@pytest.fixture
def files(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


@pytest.mark.parametrize("cache_gib", [4.0, 1e-9])
def test_kept_features_train_as_the_whole_network_does(cache_gib: float, files: Path) -> None:
    plain, kept, first = backbone(), backbone(), backbone()
    expected, history = train(plain, cache_gib=0.0), train(kept, cache_gib=cache_gib)
    assert weights_apart(kept, plain) < 1e-5
    assert weights_apart(kept, first) > 1e-2
    for epoch, other in zip(history[1:], expected[1:], strict=True):
        assert epoch.train_loss == pytest.approx(other.train_loss, abs=1e-5)
        assert epoch.validation_loss == pytest.approx(other.validation_loss, abs=1e-5)
        assert epoch.validation_accuracy == other.validation_accuracy
    assert same(state(kept.get_submodule("features")), state(first.get_submodule("features")))
    assert list(files.iterdir()) == []


def test_features_beyond_the_memory_are_in_a_file_while_they_are_used(files: Path) -> None:
    sizes: list[int] = []

    def look(*_: Any) -> None:
        sizes.append(sum(path.stat().st_size for path in files.rglob("*") if path.is_file()))

    train(backbone(), cache_gib=1e-9, progress=look)
    assert set(sizes) == {(50 + 30) * 216 * 4}


def test_features_too_large_for_the_disk_are_computed_again(monkeypatch: pytest.MonkeyPatch) -> None:
    usage = type("Usage", (), {"free": 2**10})
    monkeypatch.setattr(features.shutil, "disk_usage", lambda _: usage)
    kept, plain = backbone(), backbone()
    with pytest.warns(UserWarning, match=r"runs again in each epoch: its features take 0.00 GiB, cache_gib is 1e-09"):
        train(kept, cache_gib=1e-9)
    train(plain, cache_gib=0.0)
    assert same(state(kept), state(plain))


def test_a_full_disk_is_an_error_that_names_it(monkeypatch: pytest.MonkeyPatch, files: Path) -> None:
    def full(*_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(features.os, "posix_fallocate", full)
    model = backbone()
    with pytest.raises(EnvironmentFault, match="no space left"):
        train(model, cache_gib=1e-9)
    assert all(weight.requires_grad for weight in model.parameters())
    assert list(files.iterdir()) == []


def test_each_image_is_read_once_for_all_epochs() -> None:
    images = Recorded(pictures(50))
    train(backbone(), images)
    looked_at = 2 * features.PROBES + 2 + 1  # whether they change, to split the network, and for the size of a row
    assert len(images.read) == looked_at + 50


def test_progress_counts_the_batches_of_features_as_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(features, "BATCH_SIZE", 20)
    seen: list[tuple[bool, int, int]] = []
    train(backbone(), epochs=1, progress=lambda epoch, done, total: seen.append((epoch is None, done, total)))
    # 3 batches of training and 2 of validation images, then an epoch of 4 steps
    assert seen == [(True, step, 9) for step in range(1, 10)] + [(False, 9, 9)]


class Changing(Dataset[Any]):
    """Images that differ each time that they are read."""

    def __len__(self) -> int:
        return 20

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return torch.rand(1, 8, 8), index % 3


@pytest.mark.parametrize(
    ("images", "settings", "text"),
    [
        (None, {"augment": True}, "augment changes the images in each epoch"),
        (Changing(), {}, "gives other values when an image is read again"),
        (None, {"only": ["features.0"]}, "no layer stands in front of the trained part"),
    ],
)
def test_features_that_would_change_are_not_kept(images: Any, settings: Any, text: str) -> None:
    model, first = backbone(), backbone()
    with pytest.warns(UserWarning, match=f"only: the fixed part of the network runs again in each epoch: .*{text}"):
        train(model, images, **settings)
    fixed = "features.1" if settings.get("only") else "features"
    assert same(state(model.get_submodule(fixed)), state(first.get_submodule(fixed)))
    if images is None:  # random images may have no epoch that is better than none
        assert weights_apart(model, first) > 1e-3


def test_batches_of_validation_images_run_through_the_whole_network() -> None:
    results = []
    for validation in (pictures(30, seed=5), [pictures(30, seed=5).tensors]):
        results.append(finetune(backbone(), pictures(50), validation, **TRAINING))
    assert results[0][-1].validation_loss == pytest.approx(results[1][-1].validation_loss, abs=1e-6)


def test_the_callers_random_numbers_and_the_weights_flags_are_left_alone() -> None:
    model = small()
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    finetune(model, pictures(), [pictures(6).tensors], epochs=1, only="classifier")
    assert torch.equal(torch.rand(3), expected)
    assert all(weight.requires_grad for weight in model.parameters())
    assert not any(module.training for module in model.modules())


def test_weight_decay_and_momentum_leave_the_fixed_part_alone() -> None:
    model, first = backbone(), backbone()
    momentum = {name: torch.ones_like(weight) for name, weight in model.named_parameters()}
    train(model, weight_decay=0.5, momentum_buffers=momentum)
    assert same(state(model.get_submodule("features")), state(first.get_submodule("features")))
    assert float(momentum["features.0.weight"].min()) == 1
    assert float(momentum["classifier.0.weight"].max()) != 1


def test_a_single_image_is_enough() -> None:
    one = TensorDataset(torch.rand(1, 1, 8, 8), torch.zeros(1, dtype=torch.long))
    finetune(backbone(), one, one, **TRAINING)
