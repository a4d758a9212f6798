"""Objects of one's own in training: an optimizer, a loss, and functions that are called as it goes on."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from prune_fe.errors import InputError
from prune_fe.tracing.nested import Logits


@dataclass(frozen=True)
class Step:
    """One update of the weights.

    Attributes:
        number: 1 for the first step of training.
        epoch: Number of its epoch, from 1.
        learning_rate: That of the optimizer's first group.
        loss: Mean loss of an image in this process's share, without gradient, on the network's device.
        model: The network, after the update.
    """

    number: int
    epoch: int
    learning_rate: float
    loss: Tensor
    model: nn.Module


@dataclass(frozen=True)
class Epoch:
    """One pass over the training images, and the quality of the network on the validation images after it.

    Attributes:
        number: 1 for the first epoch; 0 stands for the network before training.
        learning_rate: Learning rate of the last step, for weights without a factor.
        train_loss: Mean loss of a training image during the epoch, in nats: its cross-entropy, or with a teacher the
            weighted sum of `prune_fe.training.distillation.distillation_loss`.
        validation_accuracy: Share of the validation images that are classified correctly.
        validation_loss: Mean cross-entropy of a validation image, in nats.
        seconds: Duration of training, without validation.
        train_accuracy: Share of the training images that were classified correctly during the epoch, each by the
            network of its step and by the label that it was trained with; NaN for the network before training.
        first_learning_rate: Learning rate of the first step.
    """

    number: int
    learning_rate: float
    train_loss: float
    validation_accuracy: float
    validation_loss: float
    seconds: float
    train_accuracy: float = math.nan
    first_learning_rate: float = 0.0


OnStep = Callable[[Step], Any]
OnEpoch = Callable[[Epoch, nn.Module], Any]


@dataclass(frozen=True, kw_only=True)
class Custom:
    """What `finetune` takes from the user in place of its own.

    Attributes:
        optimizer: An optimizer of the network's weights, or a function from a list of weights to one, such as
            `functools.partial(torch.optim.AdamW, lr=1e-4)`. The learning rates of its groups follow the schedule of the
            options from where they are; options of the update have no effect.
        scheduler: A scheduler of this optimizer, or a function from an optimizer to one. It replaces the schedule.
        scheduler_interval: Whether the scheduler takes a step after each "epoch" or each "step". One that wants a
            metric, as ReduceLROnPlateau, gets the validation loss.
        loss: Function from the logits (images, classes) and the labels (images,), or with mixup or cutmix the labels'
            shares (images, classes), to the mean loss of an image.
        unpack: Function from a batch, or a sample of a data set, to (images, label or labels), such as
            `lambda batch: (batch["pixel_values"], batch["label"])`. Images that are a dict are the network's keywords.
        logits: Function from what the network returns to its logits, such as `lambda out: out.logits`.
        on_step: Called after each step, or a list of such functions.
        on_epoch: Called with the epoch and the network after each epoch, or a list of such functions. With a true
            result training ends.
    """

    optimizer: Optimizer | Callable[[list[nn.Parameter]], Optimizer] | None = None
    scheduler: Any = None
    scheduler_interval: Literal["epoch", "step"] = "epoch"
    loss: Callable[[Tensor, Tensor], Tensor] | None = None
    unpack: Callable[[Any], tuple[Any, Any]] | None = None
    logits: Logits | None = None
    on_step: OnStep | Sequence[OnStep] = ()
    on_epoch: OnEpoch | Sequence[OnEpoch] = ()

    def __post_init__(self) -> None:
        """Check the kinds of the objects.

        Raises:
            InputError: One is of a wrong kind.
        """
        for name in ("loss", "unpack", "logits"):
            if (value := getattr(self, name)) is not None and not callable(value):
                raise InputError(f"{name} is a {type(value).__name__}; it must be a function")
        if self.optimizer is not None and not (isinstance(self.optimizer, Optimizer) or callable(self.optimizer)):
            kind = type(self.optimizer).__name__
            raise InputError(f"optimizer is a {kind}; it must be an optimizer, or a function from weights to one")
        if isinstance(self.scheduler, LRScheduler) and not isinstance(self.optimizer, Optimizer):
            raise InputError("scheduler belongs to an optimizer: pass that one as optimizer=, or give a function")
        if self.scheduler is not None and not (isinstance(self.scheduler, LRScheduler) or callable(self.scheduler)):
            kind = type(self.scheduler).__name__
            raise InputError(f"scheduler is a {kind}; it must be a scheduler, or a function from an optimizer to one")
        if self.scheduler_interval not in ("epoch", "step"):
            raise InputError(f"scheduler_interval={self.scheduler_interval!r}; it must be 'epoch' or 'step'")
        for name in ("on_step", "on_epoch"):
            if not all(callable(function) for function in self.listeners(name)):
                raise InputError(f"{name} must be a function, or a list of functions")

    def listeners(self, name: str) -> Sequence[Any]:
        """Return the functions of `on_step` or `on_epoch` as a list."""
        given = getattr(self, name)
        return [given] if callable(given) or not isinstance(given, Sequence) else given

    def describe(self) -> list[str]:
        """Return a text for each object that changes what is trained, to tell trainings apart; () without any."""
        names = ("optimizer", "scheduler", "loss", "unpack", "logits")
        return [f"{name}: {_describe(value)}" for name in names if (value := getattr(self, name)) is not None]


NAMES = tuple(field.name for field in dataclasses.fields(Custom))
"""The names of what a user can give."""


def take_custom(settings: Mapping[str, Any]) -> tuple[Custom, dict[str, Any]]:
    """Return the objects of the user's own among keywords, and the other keywords."""
    given = {name: value for name, value in settings.items() if name in NAMES}
    return Custom(**given), {name: value for name, value in settings.items() if name not in NAMES}


def _describe(value: Any) -> str:
    """Return a text for an object of the user's that is the same in the next process, as far as that is known."""
    kind = getattr(value, "func", value)  # of a functools.partial
    name = getattr(kind, "__qualname__", type(kind).__qualname__)
    if isinstance(value, Optimizer):
        settings = [{key: each for key, each in group.items() if key != "params"} for group in value.param_groups]
        return f"{name} {settings}"
    arguments = getattr(value, "keywords", None)
    return name if not arguments else f"{name} {sorted(arguments.items(), key=str)}"
