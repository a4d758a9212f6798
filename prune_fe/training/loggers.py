"""Where the epochs of a training are written: a CSV file, TensorBoard, Weights & Biases.

A logger is a function that `finetune` takes as `on_epoch`.

>>> from prune_fe.training.loggers import TensorBoardLog
>>> prune_fe.finetune(model, train, validation, on_epoch=TensorBoardLog("logs"))  # doctest: +SKIP
"""

from __future__ import annotations

import dataclasses
import importlib
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from prune_fe.errors import InputError
from prune_fe.io import write_csv
from prune_fe.training.custom import Epoch


def write_epochs(path: Path, history: Sequence[Epoch]) -> None:
    """Write a CSV file with a row for each epoch, whose columns are the attributes of `Epoch`."""
    write_csv(path, [dataclasses.asdict(epoch) for epoch in history])


def values_of(epoch: Epoch) -> dict[str, float]:
    """Return what loggers show of an epoch, by name."""
    return {
        "loss/train": epoch.train_loss,
        "loss/validation": epoch.validation_loss,
        "accuracy/train": epoch.train_accuracy,
        "accuracy/validation": epoch.validation_accuracy,
        "learning_rate": epoch.first_learning_rate,
        "seconds": epoch.seconds,
    }


class EpochLog(ABC):
    """Base class of what is called with each epoch."""

    def __call__(self, epoch: Epoch, model: nn.Module) -> None:
        """Write an epoch."""
        self.write(values_of(epoch), epoch.number)

    @abstractmethod
    def write(self, values: Mapping[str, float], number: int) -> None:
        """Write the values of an epoch by name."""

    @abstractmethod
    def close(self) -> None:
        """Finish writing."""


class TensorBoardLog(EpochLog):
    """Writes the epochs for TensorBoard, which shows them with `tensorboard --logdir FOLDER`.

    Args:
        folder: Where its files are written; a training that goes on adds to them.
    """

    def __init__(self, folder: str | Path) -> None:
        _require("tensorboard", "tensorboard")
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(folder))

    def write(self, values: Mapping[str, float], number: int) -> None:
        """Write the values of an epoch, which are on the disk when this returns."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, number)
        self._writer.flush()

    def close(self) -> None:
        """Close the file."""
        self._writer.close()


class WandbLog(EpochLog):
    """Sends the epochs to Weights & Biases, or with WANDB_MODE=offline to a folder.

    Args:
        name: Name of the run.
        settings: What is shown as its configuration.
        project: Name of the project.
        folder: Where the folder wandb is made.
    """

    def __init__(
        self, name: str, settings: Mapping[str, Any], project: str = "prune-fe", folder: str | Path = "."
    ) -> None:
        wandb = _require("wandb", "wandb")
        self._run = wandb.init(project=project, name=name, config=dict(settings), dir=str(folder))

    def write(self, values: Mapping[str, float], number: int) -> None:
        """Send the values of an epoch."""
        self._run.log(dict(values), step=number)

    def close(self) -> None:
        """Send what is left."""
        self._run.finish()


LOGGERS = ("tensorboard", "wandb")
"""The loggers that the command line knows."""


def make_logger(kind: str, output: Path, settings: Mapping[str, Any]) -> EpochLog:
    """Return a logger by its name.

    Args:
        kind: One of `LOGGERS`.
        output: The folder of the trained network; TensorBoard's is beside it, OUTPUT.tensorboard.
        settings: The options of training.
    """
    if kind == "tensorboard":
        return TensorBoardLog(output.with_name(f"{output.name}.tensorboard"))
    return WandbLog(output.name, settings, folder=output.parent)


def _require(module: str, extra: str) -> Any:
    """Import an optional package.

    Raises:
        InputError: It is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise InputError(f"{module} is not installed: pip install 'prune-fe[{extra}]'") from error
