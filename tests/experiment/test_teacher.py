"""The teacher's logits are computed once, and used for nothing but their network and their images."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset, Subset

from prune_fe.data.digits import digits
from prune_fe.errors import CheckpointError
from prune_fe.experiment.teacher import saved_logits
from prune_fe.models.small_vgg import SmallVGG
from prune_fe.training.distillation import teacher_logits
from tests.experiment.test_tuning import make

IMAGES = Subset(digits(8).train, range(0, 60, 2))


def network(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return SmallVGG(10, 1, [[2]])


def logits(path: Path, model: nn.Module, images: Dataset[Any] = IMAGES) -> tuple[Tensor, bool]:
    """Return the logits, and whether they were computed."""
    computed: list[int] = []

    def begin_bar() -> Callable[[int, int], None]:
        computed.append(1)
        return lambda done, total: None

    return saved_logits(path, model, images, begin_bar=begin_bar), bool(computed)


def test_logits_are_read_again_for_the_same_network_and_images_only(tmp_path: Path) -> None:
    path, model = tmp_path / "seed-0/teacher.npz", network()
    values, computed = logits(path, model)
    assert computed
    assert torch.equal(values, teacher_logits(model, IMAGES))
    again, computed = logits(path, model)
    assert not computed
    assert torch.equal(again, values)
    other, computed = logits(path, network(1))
    assert computed
    assert not torch.equal(other, values)
    _, computed = logits(path, network(1), Subset(digits(8).train, range(1, 60, 2)))
    assert computed


def test_a_damaged_file_says_what_to_do(tmp_path: Path) -> None:
    path = tmp_path / "teacher.npz"
    path.write_bytes(b"PK")
    with pytest.raises(CheckpointError, match="teacher.npz: damaged .*; delete it, and the next run makes it again"):
        logits(path, network())


def test_an_experiment_has_a_teacher_where_its_recipe_asks_for_one(tmp_path: Path) -> None:
    assert make(tmp_path / "one").teacher is None
    taught = make(tmp_path / "two", finetune={"distill": {}})
    assert isinstance(taught.teacher, Tensor)
    assert taught.teacher.shape == (len(taught.splits.train), 10)  # type: ignore[arg-type]
    other = taught.with_recipe(taught.recipe.with_options("prune", ratio=0.1))
    assert other.teacher is taught.teacher
    augmented = make(tmp_path / "three", finetune={"distill": {}, "augment": True})
    assert augmented.teacher is augmented.network
