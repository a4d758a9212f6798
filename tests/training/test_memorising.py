"""Training labels that are replaced, rates of dropout, the epoch that is kept, and when training stops."""

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from prune_fe.data.relabelled import corrupt_labels
from prune_fe.errors import InputError
from prune_fe.measure.evaluate import evaluate
from prune_fe.training import unfinished
from prune_fe.training.loop import finetune, kept_epoch
from prune_fe.training.options import PaperTrainOptions, TrainOptions
from prune_fe.training.unfinished import identify_training
from tests.training.helpers import pictures, same, script_validation, small, state

ONE_EPOCH = {"lr": 0.1, "schedule": "cosine", "epochs": 1, "batch_size": 12, "keep": "last"}


def test_label_noise_trains_on_the_corrupted_labels_and_validates_on_the_true_ones() -> None:
    models, images = [small(), small()], pictures(60)
    noisy = finetune(models[0], images, images, ONE_EPOCH, label_noise=0.5, seed=3)
    by_hand = finetune(models[1], corrupt_labels(images, 0.5, seed=3), images, ONE_EPOCH, seed=3)
    assert same(state(models[0]), state(models[1]))
    assert noisy[1].train_loss == by_hand[1].train_loss
    assert noisy[1].validation_accuracy == evaluate(models[0], images).accuracy
    clean = small()
    finetune(clean, images, images, ONE_EPOCH, seed=3)
    assert not same(state(models[0]), state(clean))


def test_the_training_accuracy_counts_the_labels_that_are_trained_on() -> None:
    model, images = nn.Sequential(nn.Flatten(), nn.Linear(64, 3)), pictures(60)
    noisy = corrupt_labels(images, 0.5, seed=0)
    expected = evaluate(model, noisy).accuracy
    history = finetune(model, images, images, lr=1e-12, schedule="constant", epochs=1, batch_size=8, label_noise=0.5)
    assert history[1].train_accuracy == pytest.approx(expected)
    assert history[0].train_accuracy != history[0].train_accuracy  # NaN: nothing was trained yet


def test_dropout_rates_hold_while_the_network_is_trained() -> None:
    states = []
    for own, rates in ((0.5, {"1": 0.0}), (0.0, {}), (0.5, {})):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Flatten(), nn.Dropout(own), nn.Linear(64, 3))
        finetune(model, pictures(), pictures(6), ONE_EPOCH, dropout=rates)
        assert model[1].p == own
        states.append(state(model))
    assert same(states[0], states[1])
    assert not same(states[0], states[2])
    with pytest.raises(InputError, match="dropout: no dropout layer is called 'x'"):
        finetune(model, pictures(), pictures(6), ONE_EPOCH, dropout={"x": 0.1})


def test_the_last_epoch_is_kept_if_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    states, falling = [], [0.9, 0.8, 0.7, 0.6]
    for keep, accuracies in (("last", falling), ("best", falling[::-1]), ("best", falling)):
        model = small()
        script_validation(monkeypatch, accuracies)
        options = TrainOptions(lr=0.1, schedule="cosine", epochs=3, batch_size=12, keep=keep)  # type: ignore[arg-type]
        history = finetune(model, pictures(), pictures(6), options)
        assert kept_epoch(history, options).number == (3 if accuracies[-1] > 0.6 or keep == "last" else 0)
        states.append(state(model))
    assert same(states[0], states[1])
    assert not same(states[0], states[2])


def test_training_stops_at_an_accuracy_and_stays_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unfinished, "WRITING_SHARE", 1e9)
    histories, states = [], []
    for _ in range(2):  # the second call finds the file of the first
        model = small()
        histories.append(
            finetune(
                model, pictures(60), pictures(30, seed=1), lr=0.1, schedule="cosine", epochs=30, batch_size=12,
                until_accuracy=0.8, unfinished=tmp_path / "unfinished",
            )
        )  # fmt: skip
        states.append(state(model))
    accuracies = [epoch.train_accuracy for epoch in histories[0][1:]]
    assert 1 < len(accuracies) < 30
    assert accuracies[-1] >= 0.8 > max(accuracies[:-1])
    assert len(histories[0]) == len(histories[1])
    assert same(*states)


def test_an_unfinished_training_of_a_version_without_these_options_is_still_the_same() -> None:
    key = json.loads(identify_training(small(), pictures(), PaperTrainOptions(), 0, {}, None))
    assert set(key[0]) == set(unfinished.FIRST_OPTIONS)
    other = json.loads(identify_training(small(), pictures(), PaperTrainOptions(label_noise=0.5), 0, {}, None))
    assert set(other[0]) - set(key[0]) == {"label_noise"}
