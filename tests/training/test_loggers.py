"""The epochs of a training in a CSV file and in TensorBoard's."""

import csv
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from prune_fe.errors import InputError
from prune_fe.training.loggers import TensorBoardLog, WandbLog, make_logger, values_of, write_epochs
from prune_fe.training.loop import finetune
from tests.training.helpers import pictures, small


def test_a_csv_file_has_a_row_for_each_epoch(tmp_path: Path) -> None:
    history = finetune(small(), pictures(24), pictures(6), epochs=2, batch_size=12, lr=0.1)
    write_epochs(tmp_path / "epochs.csv", history)
    with (tmp_path / "epochs.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["number"] for row in rows] == ["0", "1", "2"]
    assert float(rows[2]["train_loss"]) == pytest.approx(history[2].train_loss)
    assert float(rows[1]["first_learning_rate"]) == 0.1


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of TensorBoard's own imports
def test_tensorboard_shows_the_epochs(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    logger = make_logger("tensorboard", tmp_path / "finetuned", {})
    history = finetune(small(), pictures(24), pictures(6), epochs=2, batch_size=12, on_epoch=logger)
    logger.close()
    events = EventAccumulator(str(tmp_path / "finetuned.tensorboard"))
    events.Reload()
    for name in values_of(history[0]):
        assert [event.step for event in events.Scalars(name)] == [1, 2]
    losses = [event.value for event in events.Scalars("loss/train")]
    assert losses == pytest.approx([epoch.train_loss for epoch in history[1:]], rel=1e-6)


def test_wandb_gets_the_epochs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    sent: list[tuple[str, object]] = []

    def init(**settings: object) -> SimpleNamespace:
        sent.append(("init", settings))
        return SimpleNamespace(
            log=lambda values, step: sent.append(("log", (step, sorted(values)))),
            finish=lambda: sent.append(("finish", None)),
        )

    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=init))
    logger = make_logger("wandb", tmp_path / "finetuned", {"lr": 0.1})
    assert isinstance(logger, WandbLog)
    history = finetune(small(), pictures(24), pictures(6), epochs=1, on_epoch=[logger])
    logger.close()
    assert sent == [
        ("init", {"project": "prune-fe", "name": "finetuned", "config": {"lr": 0.1}, "dir": str(tmp_path)}),
        ("log", (1, sorted(values_of(history[1])))),
        ("finish", None),
    ]


def test_a_logger_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    with pytest.raises(InputError, match=r"tensorboard is not installed: pip install 'prune-fe\[tensorboard\]'"):
        TensorBoardLog("logs")
