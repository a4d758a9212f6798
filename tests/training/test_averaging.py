"""The moving average of weights: what torch computes, validated and kept."""

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from prune_fe.measure.evaluate import evaluate
from prune_fe.training.averaging import MovingAverage
from prune_fe.training.custom import Step
from prune_fe.training.loop import best_epoch, finetune
from tests.training.helpers import pictures, same, small, state


def test_the_average_is_the_one_of_torch() -> None:
    model, twin = small(), small()
    theirs = AveragedModel(twin, multi_avg_fn=get_ema_multi_avg_fn(0.7), use_buffers=True)
    theirs.update_parameters(twin)  # Its first update takes the weights as they are.
    ours = MovingAverage(model, model.state_dict(), 0.7)
    for seed in range(3):
        for network in (model, twin):
            torch.manual_seed(seed)
            network.train()(torch.rand(4, 1, 8, 8))  # changes the statistics of batch norms
            for weight in network.parameters():
                weight.data += torch.randn_like(weight)
        ours.update()
        theirs.update_parameters(twin)
    before = state(model)
    with ours.applied():
        for name, value in theirs.module.state_dict().items():
            if value.is_floating_point():
                torch.testing.assert_close(model.state_dict()[name], value)
        assert not same(state(model), before)
    assert same(state(model), before)


def test_the_averaged_network_is_validated_and_kept() -> None:
    model, weights = small(), list[torch.Tensor]()
    validation = pictures(30, seed=1)

    def record(step: Step) -> None:
        weights.append(step.model.get_parameter("classifier.bias").detach().clone())

    first = model.get_parameter("classifier.bias").detach().clone()
    history = finetune(
        model, pictures(30), validation, lr=0.1, schedule="constant", epochs=1, batch_size=15, ema=0.5, on_step=record
    )
    assert best_epoch(history).number == 1
    expected = 0.5 * (0.5 * first + 0.5 * weights[0]) + 0.5 * weights[1]
    torch.testing.assert_close(model.get_parameter("classifier.bias").detach(), expected)
    assert evaluate(model, validation).loss == pytest.approx(history[1].validation_loss, abs=1e-6)


def test_counts_are_copied() -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2))
    average = MovingAverage(model, model.state_dict(), 0.9)
    model(torch.rand(2, 1, 4, 4))
    average.update()
    assert average.values["1.num_batches_tracked"] == 1
