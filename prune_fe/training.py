"""Stochastic gradient descent: training from scratch and fine-tuning after a prune."""

from __future__ import annotations

import copy
import itertools
import math
import time
from collections.abc import Callable, Sized
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset, Sampler

from prune_fe.data import loader
from prune_fe.errors import DataError, InputError
from prune_fe.evaluation import evaluate

Schedule = Literal["step", "cosine"]


@dataclass(frozen=True)
class Epoch:
    """One pass over the training images, and what the validation images say after it."""

    number: int
    learning_rate: float
    train_loss: float
    validation_accuracy: float
    validation_loss: float
    seconds: float


def finetune(
    model: nn.Module,
    train: Dataset[Any],
    validation: Dataset[Any],
    *,
    lr: float = 1e-3,
    schedule: Schedule = "step",
    epochs: int | None = None,
    final_lr: float = 1e-5,
    momentum: float = 0.9,
    weight_decay: float = 5e-4,
    batch_size: int = 512,
    augment: bool = False,
    amp: bool = False,
    workers: int = 0,
    seed: int = 0,
    progress: Callable[[Epoch | None, int, int], None] | None = None,
) -> list[Epoch]:
    """Train `model` in place and leave it with the weights of its best epoch on the validation images.

    schedule "step" is the paper's: lr, divided by ten after each epoch, ended after `final_lr` (1e-3 to 1e-5: three
    epochs); with `epochs` it goes on at final_lr. "cosine" falls from lr to zero, per step, over `epochs`.
    augment: random horizontal flips and shifts by up to an eighth. amp: bfloat16 autocast, on CUDA only.

    The order of the images, their shifts and dropout depend on (seed, epoch) alone. A network that diverges (a loss
    that is not finite) raises InputError. Before the first step the epoch 0 entry holds the network as it came: it is
    kept if no epoch is better. Whatever ends the training, an error or the user, leaves the best epoch until then.
    """
    rates = _rates(schedule, lr, final_lr, epochs)
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    if not weights:
        raise InputError(f"{type(model).__name__} is frozen: no weight has requires_grad, there is nothing to train")
    if not isinstance(train, Sized) or not hasattr(train, "__getitem__"):
        raise InputError(f"training images come as a map-style data set, not as a {type(train).__name__}")
    if len(train) == 0:
        raise DataError("no images to train on")
    device = weights[0].device
    order = _Order(len(train), seed)
    # batch norm cannot train on a single image
    batches = loader(train, batch_size, workers, sampler=order, drop_last=len(order) > 1 == len(order) % batch_size)
    optimizer = torch.optim.SGD(weights, lr=lr, momentum=momentum, weight_decay=weight_decay)
    steps = itertools.count(1)

    def tick(epoch: Epoch | None = None, done: int | None = None) -> None:
        if progress is not None:
            progress(epoch, done or next(steps), len(rates) * len(batches))

    history = [_epoch(model, validation, workers, 0, 0.0, math.nan, 0.0)]
    best = copy.deepcopy(model.state_dict())
    try:
        for number, rate in enumerate(rates, 1):
            start = time.perf_counter()
            order.epoch = number
            with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
                torch.manual_seed(seed * 100_003 + number)
                loss = _train(model, batches, optimizer, rate, augment, amp, tick)
            if not math.isfinite(loss):
                raise InputError(f"the loss is {loss} in epoch {number}: lower lr (it is {lr:g})")
            seconds = time.perf_counter() - start
            last_rate = optimizer.param_groups[0]["lr"]
            history.append(_epoch(model, validation, workers, number, last_rate, loss, seconds))
            if best_epoch(history) is history[-1]:
                best = copy.deepcopy(model.state_dict())
            tick(history[-1], number * len(batches))
    finally:
        model.load_state_dict(best)
        model.eval()
    return history


def _train(
    model: nn.Module,
    batches: DataLoader[Any],
    optimizer: torch.optim.Optimizer,
    rate: Callable[[float], float],
    augment: bool,
    amp: bool,
    tick: Callable[[], None],
) -> float:
    """One epoch; returns the mean loss of an image. rate: share of the epoch that is done -> learning rate."""
    device = optimizer.param_groups[0]["params"][0].device
    losses, seen = [], 0
    model.train()
    for step, (images, labels) in enumerate(batches):
        for group in optimizer.param_groups:
            group["lr"] = rate(step / len(batches))
        images, labels = images.to(device, non_blocking=True), labels.to(device, non_blocking=True)  # noqa: PLW2901
        if augment:
            images = shifted(images, torch.default_generator)  # noqa: PLW2901
        with torch.autocast(device.type, torch.bfloat16, enabled=amp and device.type == "cuda"):
            logits = model(images)
            if not isinstance(logits, Tensor):
                raise InputError(
                    f"{type(model).__name__} returns a {type(logits).__name__} in training, one tensor is needed; "
                    "networks with auxiliary heads are built with aux_logits=False"
                )
            loss = F.cross_entropy(logits, labels)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        losses.append(loss.detach() * len(labels))  # no .item(): a GPU would wait for it in every step
        seen += len(labels)
        tick()
    return torch.stack(losses).cpu().double().sum().item() / seen


def best_epoch(history: list[Epoch]) -> Epoch:
    """The epoch whose weights finetune() leaves: the best accuracy on the validation images, then the lowest loss."""
    return max(history, key=_merit)


def shifted(images: Tensor, generator: torch.Generator) -> Tensor:
    """images (n, channels, height, width), each flipped left to right or not and moved by up to an eighth."""
    count, _, height, width = images.shape
    up, left = (min(max(size // 8, 1), size - 1) for size in (height, width))
    padded = F.pad(images, (left, left, up, up), mode="reflect")
    down = torch.randint(0, 2 * up + 1, (count, 1), generator=generator)
    right = torch.randint(0, 2 * left + 1, (count, 1), generator=generator)
    flip = torch.randint(0, 2, (count,), generator=generator).bool()
    columns = torch.arange(width).expand(count, width)
    columns = torch.where(flip[:, None], columns.flip(1), columns) + right
    rows = torch.arange(height).expand(count, height) + down
    picked = (torch.arange(count)[:, None, None], slice(None), rows[:, :, None], columns[:, None, :])
    return padded[tuple(p.to(images.device) if isinstance(p, Tensor) else p for p in picked)].permute(0, 3, 1, 2)


class _Order(Sampler[int]):
    """A permutation of the images that depends on (seed, epoch) alone."""

    def __init__(self, count: int, seed: int) -> None:
        self.count, self.seed, self.epoch = count, seed, 0

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Any:
        generator = torch.Generator().manual_seed(self.seed * 100_003 + self.epoch)
        return iter(torch.randperm(self.count, generator=generator).tolist())


def _rates(schedule: str, lr: float, final_lr: float, epochs: int | None) -> list[Callable[[float], float]]:
    """For each epoch the learning rate as a function of the share of the epoch that is done."""
    if schedule not in get_args(Schedule):
        raise InputError(f"schedule is {schedule!r}, allowed are {', '.join(get_args(Schedule))}")
    for name, rate in (("lr", lr), ("final_lr", final_lr)):
        if not 0 < rate < math.inf:
            raise InputError(f"{name} is {rate!r}, it must be positive")
    if epochs is not None and epochs < 1:
        raise InputError(f"epochs is {epochs!r}, it must be positive")
    if schedule == "step":
        # 3e-3 / 10 / 10 is not 3e-5 in binary, 3e-3 / 100 is
        steps = [lr]
        while lr / 10 ** len(steps) >= final_lr * (1 - 1e-9):
            steps.append(lr / 10 ** len(steps))
        if epochs is not None:
            steps = (steps + [steps[-1]] * epochs)[:epochs]
        return [lambda _, rate=rate: rate for rate in steps]  # type: ignore[misc]
    if epochs is None:
        raise InputError("the cosine schedule needs epochs, the number after which it is at zero")
    return [lambda done, i=i: lr * (1 + math.cos(math.pi * (i + done) / epochs)) / 2 for i in range(epochs)]  # type: ignore[misc]


def _epoch(
    model: nn.Module,
    validation: Dataset[Any],
    workers: int,
    number: int,
    rate: float,
    loss: float,
    seconds: float,
) -> Epoch:
    result = evaluate(model, validation, workers=workers)
    return Epoch(number, rate, loss, result.accuracy, result.loss, seconds)


def _merit(epoch: Epoch) -> tuple[float, float]:
    return epoch.validation_accuracy, -epoch.validation_loss
