"""Mixup and CutMix: images and labels are mixed in the same shares."""

from typing import Any

import pytest
import torch

from prune_fe.errors import InputError
from prune_fe.training.loop import finetune
from prune_fe.training.mixing import make_mixing
from prune_fe.training.options import TrainOptions
from tests.training.helpers import pictures, same, small, state


@pytest.mark.parametrize("options", [{"mixup": 1.0}, {"cutmix": 1.0}, {"mixup": 1.0, "cutmix": 1.0}])
def test_an_image_has_the_shares_of_its_labels(options: dict[str, Any]) -> None:
    labels = torch.arange(3)
    images = torch.eye(3)[labels].view(3, 3, 1, 1).expand(3, 3, 32, 32).contiguous()  # a channel for each class
    mixing = make_mixing(TrainOptions(**options), 3)
    assert mixing is not None
    torch.manual_seed(0)
    for _ in range(4):
        mixed, shares = mixing(images, labels)
        torch.testing.assert_close(mixed.mean(dim=(2, 3)), shares, atol=1e-5, rtol=0)
        torch.testing.assert_close(shares.sum(dim=1), torch.ones(3))


def test_without_options_nothing_is_mixed() -> None:
    assert make_mixing(TrainOptions(), 3) is None


def test_training_mixes_and_needs_images() -> None:
    settings: dict[str, Any] = {"lr": 0.05, "epochs": 2, "batch_size": 12, "schedule": "constant"}
    results = []
    for options in ({}, {"mixup": 0.5}, {"mixup": 0.5}, {"cutmix": 1.0, "accumulate": 2}):
        model = small()
        finetune(model, pictures(30), pictures(12, seed=1), **settings | options)
        results.append(state(model))
    assert same(results[1], results[2])
    assert not same(results[0], results[1])
    assert not same(results[0], results[3])
    with pytest.raises(InputError, match="mixup and cutmix changes images that are one tensor"):
        finetune(
            small(), pictures(30), pictures(12), mixup=0.5, logits=lambda out: out, epochs=1,
            unpack=lambda pair: ({"images": pair[0]}, pair[1]),
        )  # fmt: skip
