"""Which epoch is kept, and what ends a training or is refused in its first step."""

import math

import pytest
import torch
from torch import nn

from prune_fe.errors import InputError
from prune_fe.training.custom import Epoch
from prune_fe.training.epochs import best_epoch, has_learnt, kept_epoch
from prune_fe.training.loop import finetune
from prune_fe.training.options import TrainOptions
from tests.training.helpers import pictures, small


def epoch(number: int, accuracy: float, loss: float, train_accuracy: float = math.nan) -> Epoch:
    return Epoch(number, 0.1, 1.0, accuracy, loss, 0.5, train_accuracy)


HISTORY = [epoch(0, 0.5, 1.0), epoch(1, 0.75, 0.9, 0.6), epoch(2, 0.75, 0.8, 0.9), epoch(3, 0.75, 0.8, 0.99)]


def test_the_best_epoch_has_the_highest_accuracy_then_the_lowest_loss_then_comes_first() -> None:
    assert best_epoch(HISTORY).number == 2


def test_the_options_say_which_epoch_is_kept() -> None:
    assert kept_epoch(HISTORY, TrainOptions(keep="best")).number == 2
    assert kept_epoch(HISTORY, TrainOptions(keep="last")).number == 3


def test_training_ends_at_the_accuracy_of_the_options_only() -> None:
    assert not has_learnt(HISTORY, TrainOptions())
    assert has_learnt(HISTORY, TrainOptions(until_accuracy=0.99))
    assert not has_learnt(HISTORY, TrainOptions(until_accuracy=0.995))
    assert not has_learnt(HISTORY[:1], TrainOptions(until_accuracy=0.5))


def test_a_loss_that_is_not_one_number_is_refused() -> None:
    def each(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return nn.functional.cross_entropy(logits, labels, reduction="none")

    with pytest.raises(InputError, match="must return a tensor with one number"):
        finetune(small(), pictures(8), pictures(8), lr=0.1, epochs=1, batch_size=4, loss=each)
