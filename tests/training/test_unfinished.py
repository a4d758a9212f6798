"""A training that was interrupted goes on to the bits of one that was not."""

import copy
import dataclasses
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from prune_fe.errors import CheckpointError, EnvironmentFault, InputError
from prune_fe.training import unfinished
from prune_fe.training.loop import Epoch, finetune
from prune_fe.training.options import TrainOptions
from prune_fe.training.unfinished import (
    TrainingState,
    UnfinishedTraining,
    identify_training,
    trained_tensors,
)
from tests.training.helpers import pictures, same, script_validation, small, state

OPTIONS: dict[str, Any] = {"lr": 0.1, "schedule": "cosine", "epochs": 4, "batch_size": 12}


@pytest.fixture(autouse=True)
def _after_each_epoch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unfinished, "WRITING_SHARE", 1e9)


def train(model: nn.Module, path: Path | None, stop_after: int | None = None, **arguments: Any) -> list[Epoch]:
    """Train, and raise KeyboardInterrupt in the epoch after `stop_after`; -1 raises it when any epoch has ended."""
    ended = [0]

    def progress(epoch: Epoch | None, done: int, total: int) -> None:
        assert done <= total
        ended[0] = epoch.number if epoch else ended[0]
        if ended[0] == stop_after if epoch is None else stop_after == -1:
            raise KeyboardInterrupt

    images = pictures(60)
    return finetune(model, images, pictures(30, seed=1), unfinished=path, progress=progress, **OPTIONS | arguments)


def without_seconds(history: list[Epoch]) -> list[str]:
    return [repr(dataclasses.replace(epoch, seconds=0.0)) for epoch in history]


def momentum_of(model: nn.Module) -> dict[str, Tensor]:
    return {name: torch.full_like(weight, 0.01) for name, weight in model.named_parameters()}


@pytest.mark.parametrize("stop_after", [0, 1, 3])
@pytest.mark.parametrize(
    "arguments",
    [{}, {"augment": True, "lr": 0.5}, {"only": ["classifier"]}, {"teacher": True, "distill": {"weight": 0.5}}],
    ids=["plain", "augmented", "a part", "taught"],
)
def test_interrupted_and_resumed_gives_the_bits_of_one_go(
    tmp_path: Path, arguments: dict[str, Any], stop_after: int
) -> None:
    if "teacher" in arguments:
        arguments = arguments | {"teacher": small(seed=1)}
    reference, resumed, path = small(), small(), tmp_path / "deep" / "file"
    momentum, other = momentum_of(reference), momentum_of(reference)
    history = train(reference, None, momentum_buffers=momentum, **arguments)
    with pytest.raises(KeyboardInterrupt):
        train(resumed, path, stop_after, momentum_buffers=momentum_of(resumed), **arguments)
    assert path.exists() == (stop_after > 0)
    resumed = small()
    assert without_seconds(train(resumed, path, momentum_buffers=other, **arguments)) == without_seconds(history)
    assert same(state(reference), state(resumed))
    assert momentum.keys() == other.keys()
    assert same(momentum, other)
    # A training that is finished is not done again.
    again = small()
    assert without_seconds(train(again, path, stop_after=-1, momentum_buffers=momentum_of(again), **arguments)) == (
        without_seconds(history)
    )
    assert same(state(reference), state(again))


def test_the_best_epoch_before_the_interruption_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script_validation(monkeypatch, [0.1, 0.9, 0.2, 0.3, 0.4])
    reference, momentum = small(), dict[str, Tensor]()
    train(reference, None, momentum_buffers=momentum)
    script_validation(monkeypatch, [0.1, 0.9, 0.2, 0.3, 0.4])
    resumed, other = small(), dict[str, Tensor]()
    with pytest.raises(KeyboardInterrupt):
        train(resumed, tmp_path / "file", 2)
    resumed = small()
    history = train(resumed, tmp_path / "file", momentum_buffers=other)
    assert [epoch.validation_accuracy for epoch in history] == [0.1, 0.9, 0.2, 0.3, 0.4]
    assert same(state(reference), state(resumed))
    assert same(momentum, other)


@pytest.mark.parametrize(
    "change", [{"lr": 0.2}, {"seed": 1}, {"model": small(seed=5)}, {"images": pictures(60, seed=9)}, {"epochs": 5}]
)
def test_the_file_of_another_training_is_refused(tmp_path: Path, change: dict[str, Any]) -> None:
    path = tmp_path / "file"
    train(small(), path)
    before = path.read_bytes()
    model, images = copy.deepcopy(change.pop("model", small())), change.pop("images", pictures(60))
    with pytest.raises(InputError, match="file: an unfinished training of other weights, images, options or"):
        finetune(model, images, pictures(30, seed=1), unfinished=path, **OPTIONS | change)
    assert path.read_bytes() == before


def test_a_damaged_file_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "file"
    train(small(), path)
    content = path.read_bytes()
    for place in range(0, len(content), len(content) // 40):
        path.write_bytes(content[:place] + bytes([content[place] ^ 4]) + content[place + 1 :])
        with pytest.raises(
            CheckpointError, match=r"file: damaged \(its SHA-256 .*; delete it, and the training begins"
        ):
            train(small(), path)


def test_a_full_disk_ends_training_and_keeps_the_file_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, real = tmp_path / "file", os.fsync
    with pytest.raises(KeyboardInterrupt):
        train(small(), path, 1)
    before = path.read_bytes()

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(EnvironmentFault, match=r"file: no space left, \d+ MiB free, 1 MiB needed"):
        train(small(), path)
    monkeypatch.setattr(os, "fsync", real)
    assert path.read_bytes() == before


@pytest.mark.parametrize("step", ["write_bytes", "replace"])
def test_a_kill_while_the_file_is_written_loses_one_epoch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    path, reference, n_written = tmp_path / "file", small(), [0]
    train(reference, None)

    def killed(*arguments: Any) -> None:
        n_written[0] += 1
        if n_written[0] < 3:
            (write if step == "write_bytes" else replace)(*arguments)
            return
        if step == "write_bytes":
            write(arguments[0], arguments[1][: len(arguments[1]) // 2])
        raise KeyboardInterrupt

    write, replace = Path.write_bytes, os.replace
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        target: Any = Path if step == "write_bytes" else os
        patch.setattr(target, step, killed)
        patch.setattr(Path, "unlink", lambda path, missing_ok: None)  # a kill removes nothing
        train(small(), path)
    assert len(list(tmp_path.iterdir())) == 2
    resumed, numbers = small(), list[int]()
    images = pictures(60)
    finetune(
        resumed,
        images,
        pictures(30, seed=1),
        unfinished=path,
        progress=lambda epoch, *_: numbers.append(epoch.number) if epoch else None,
        **OPTIONS,
    )
    assert numbers == [3, 4]  # the third one had not been written
    assert same(state(reference), state(resumed))
    assert [path.name for path in tmp_path.iterdir()] == ["file"]  # what the kill has left is gone


def test_a_network_that_takes_long_to_write_is_written_less_often(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(unfinished, "WRITING_SHARE", 0.05)
    file = UnfinishedTraining(tmp_path / "file", "key")
    empty = TrainingState([], {}, {}, None, {})
    assert file.read() is None
    assert file.is_due(is_last=False)
    file.write(empty)
    file._writing_seconds = 1000.0
    assert (file.is_due(is_last=False), file.is_due(is_last=True)) == (False, True)
    assert file.read() == empty
    assert not UnfinishedTraining(None, "").is_due(is_last=True)


def test_only_what_is_trained_and_buffers_are_kept() -> None:
    model = small()
    weights = {name: value for name, value in model.named_parameters() if name.startswith("classifier")}
    buffers = {name for name, _ in model.named_buffers()}
    assert trained_tensors(model, weights).keys() == {*weights, *buffers}
    options = TrainOptions(**OPTIONS)
    one = identify_training(model, pictures(60), options, 0, {}, None)
    assert one == identify_training(small(), pictures(60), options, 0, {}, None)
    assert one != identify_training(model, pictures(60), options, 0, {}, torch.zeros(60, 3))
