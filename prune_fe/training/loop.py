"""Stochastic gradient descent: training from scratch, and what a network recovers with after a prune."""

from __future__ import annotations

import copy
import itertools
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence, Sized
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.data import DataLoader, Dataset, Sampler, Subset

from prune_fe.data.batches import Batches, Images, count_images, make_loader, validate_batches
from prune_fe.data.sampling import select_batches
from prune_fe.distributed import all_gather, all_reduce_mean, rank, world_size
from prune_fe.errors import DataError, InputError
from prune_fe.measure.evaluate import evaluate
from prune_fe.pruning.cut import refuse_unlike_weights
from prune_fe.pruning.records import Pruned
from prune_fe.tracing.feature_maps import evaluating

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
    momentum_buffers: dict[str, Tensor] | None = None,
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
    momentum_buffers: parameter name -> the decayed sum of its gradients that SGD starts with; parameters it does not
    name start with none. It gets those of the epoch whose weights are left: the next call, perhaps after prune(carry=),
    goes on from there.

    Under torch.distributed each process takes its share of every batch; gradients and, after each epoch, the statistics
    of the batch norms are their means over the processes.

    The order of the images, their shifts and dropout depend on (seed, epoch) alone. A network that diverges (a loss
    that is not finite) raises InputError. Before the first step the epoch 0 entry holds the network as it came: it is
    kept if no epoch is better. Whatever ends the training, an error or the user, leaves the best epoch until then.
    """
    rates = _rates(schedule, lr, final_lr, epochs)
    weights = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
    if not weights:
        raise InputError(f"{type(model).__name__} is frozen: no weight has requires_grad, there is nothing to train")
    images = _count(train, batch_size)
    if momentum_buffers:
        refuse_unlike_weights(momentum_buffers, model, "momentum_buffers")
        if momentum == 0:
            raise InputError("momentum_buffers were given, but momentum is 0")
    device = next(iter(weights.values())).device
    order, batch_size = _Order(images, seed), batch_size // world_size()
    all_reduce_mean(weights.values())  # they are the same everywhere, to the bit
    # batch norm cannot train on a single image
    batches = make_loader(train, batch_size, workers, sampler=order, drop_last=len(order) > 1 == len(order) % batch_size)
    optimizer = torch.optim.SGD(weights.values(), lr=lr, momentum=momentum, weight_decay=weight_decay)
    for name, buffer in (momentum_buffers or {}).items():
        if name in weights:
            optimizer.state[weights[name]]["momentum_buffer"] = torch.empty_like(weights[name]).copy_(buffer.detach())
    steps = itertools.count(1)

    def tick(epoch: Epoch | None = None, done: int | None = None) -> None:
        if progress is not None:
            progress(epoch, done or next(steps), len(rates) * len(batches))

    history = [_epoch(model, validation, workers, 0, 0.0, math.nan, 0.0)]
    best, speeds = copy.deepcopy(model.state_dict()), dict[str, Tensor]()
    try:
        for number, rate in enumerate(rates, 1):
            start = time.perf_counter()
            order.epoch = number
            with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
                torch.manual_seed(seed * 100_003 + number + 7919 * rank())
                loss = _train(model, batches, optimizer, rate, augment, amp, tick)
            all_reduce_mean(model.buffers())
            if not math.isfinite(loss):
                raise InputError(f"the loss is {loss} in epoch {number}: lower lr (it is {lr:g})")
            seconds = time.perf_counter() - start
            last_rate = optimizer.param_groups[0]["lr"]
            history.append(_epoch(model, validation, workers, number, last_rate, loss, seconds))
            if best_epoch(history) is history[-1]:
                best, speeds = copy.deepcopy(model.state_dict()), _momentum_of(optimizer, weights)
            tick(history[-1], number * len(batches))
    finally:
        model.load_state_dict(best)
        model.eval()
        if momentum_buffers is not None:
            momentum_buffers.update(speeds)
    return history


def _count(train: Dataset[Any], batch_size: int) -> int:
    """How many images there are to train on."""
    if not isinstance(train, Sized) or not hasattr(train, "__getitem__"):
        raise InputError(f"training images come as a map-style data set, not as a {type(train).__name__}")
    if len(train) == 0:
        raise DataError("no images to train on")
    if batch_size % world_size():
        raise InputError(f"batch_size={batch_size} cannot be shared evenly by {world_size()} processes")
    return len(train)


def _momentum_of(optimizer: torch.optim.Optimizer, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copies of the momentum buffers, by parameter name; a weight that had no gradient yet has none."""
    found = {name: optimizer.state.get(weight, {}).get("momentum_buffer") for name, weight in weights.items()}
    return {name: buffer.clone() for name, buffer in found.items() if buffer is not None}


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
        all_reduce_mean(weight.grad for weight in _weights_of(optimizer) if weight.grad is not None)
        optimizer.step()
        losses.append(loss.detach() * len(labels))  # no .item(): a GPU would wait for it in every step
        seen += len(labels)
        tick()
    shares = all_gather((torch.stack(losses).cpu().double().sum().item(), seen))
    return sum(share[0] for share in shares) / sum(share[1] for share in shares)


def _weights_of(optimizer: torch.optim.Optimizer) -> Iterator[Tensor]:
    for group in optimizer.param_groups:
        yield from group["params"]


def best_epoch(history: list[Epoch]) -> Epoch:
    """The epoch whose weights finetune() leaves: the best accuracy on the validation images, then the lowest loss."""
    return max(history, key=_merit)


def recalibrate(
    model: nn.Module,
    data: Images,
    *,
    samples: int | None = None,
    seed: int = 0,
    batch_size: int = 128,
    workers: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> int:
    """Replace the running means and variances of the batch norms of `model` by those on training images.

    Returns how many batch norms that were; those that track nothing, or that no image reaches, stay as they are.
    Each batch is normalised by its own statistics, as in training, and their mean over the batches is kept
    (torch.optim.swa_utils.update_bn), here weighted by the number of images. The variances are the unbiased ones
    within a batch: what the means of the batches differ by is not in them. A batch of one image is left out.

    Of a data set `samples` images, or all, are drawn with `seed`, none twice and in random order; ready batches are
    used as they are. Nothing else changes, not even the mode, and dropout is off. A mean or variance that is not finite
    raises InputError; after any error the old statistics are back.
    """
    if batch_size < 2:
        raise InputError(f"batch_size={batch_size}: a batch norm needs at least 2 images at once")
    norms = [(name, norm) for name, norm in model.named_modules() if isinstance(norm, _BatchNorm)]
    counts = [_Recount(*n) for n in norms if all(getattr(n[1], buffer) is not None for buffer in _Recount.BUFFERS)]
    if not counts:
        return 0
    batches, done, used = _drawn(data, samples, seed, batch_size, workers), 0, 0
    with evaluating(model), _collecting(counts), torch.no_grad():
        for images, _ in validate_batches(batches):
            if len(images) > 1:
                for count in counts:
                    count.norm.reset_running_stats()
                model(images.to(counts[0].device, non_blocking=True))
                for count in counts:
                    count.add(len(images))
                used += len(images)
            done += len(images)
            if progress is not None:
                progress(done, count_images(batches))
        if used == 0:
            raise DataError(f"{done} images, none in a batch of at least 2: too few to recalibrate on")
        return sum(count.finish() for count in counts)


def _drawn(data: Images, samples: int | None, seed: int, batch_size: int, workers: int) -> Batches:
    """Batches of images in random order: sorted by class, no batch would be like those of training."""
    if not isinstance(data, Dataset):
        return select_batches(data, samples=samples)
    if not isinstance(data, Sized):
        raise InputError(f"{type(data).__name__} has no length: pass a map-style data set")
    if samples is not None and samples < 2:
        raise InputError(f"samples={samples}: a batch norm needs at least 2 images")
    if samples is not None and samples > len(data):
        raise DataError(f"{len(data)} images, {samples} asked for")
    generator = torch.Generator().manual_seed(seed)
    numbers = torch.randperm(len(data), generator=generator)[:samples].tolist()
    return make_loader(Subset(data, numbers), batch_size, workers, generator=generator)


class _Recount:
    """The statistics of one batch norm: the old ones, and the mean over the batches that went through it since."""

    BUFFERS = ("running_mean", "running_var", "num_batches_tracked")

    def __init__(self, name: str, norm: _BatchNorm) -> None:
        self.name, self.norm, self.momentum = name, norm, norm.momentum
        self._now = [norm.get_buffer(buffer) for buffer in self.BUFFERS]
        self._old = [value.clone() for value in self._now]
        mean, var, batches = self._now
        exact = torch.promote_types(mean.dtype, torch.float32)
        self._mean, self._var = torch.zeros_like(mean, dtype=exact), torch.zeros_like(var, dtype=exact)
        self._images, self._batches = torch.zeros_like(batches), torch.zeros_like(batches)

    @property
    def device(self) -> torch.device:
        return self._mean.device

    def add(self, images: int) -> None:
        """A batch went through: the norm holds its statistics, or their mean if it ran several times."""
        mean, var, runs = self._now
        ran = runs.sign()  # a tensor: a GPU would wait for a number after every batch
        self._images += ran * images
        self._batches += ran
        share = (ran * images).to(self._mean.dtype) / self._images.clamp(min=1)
        self._mean.lerp_(mean.to(share.dtype), share)
        self._var.lerp_(var.to(share.dtype), share)

    def finish(self) -> bool:
        """The norm has the mean, if it ran at all."""
        if not self._batches:
            self.restore()
            return False
        if not (self._mean.isfinite().all() and self._var.isfinite().all()):
            raise InputError(f"layer {self.name!r}: its mean or variance on these images is NaN or infinite")
        for now, new in zip(self._now, (self._mean, self._var, self._batches), strict=True):
            now.copy_(new)
        return True

    def restore(self) -> None:
        for now, old in zip(self._now, self._old, strict=True):
            now.copy_(old)


@contextmanager
def _collecting(counts: Sequence[_Recount]) -> Iterator[None]:
    """Inside, the batch norms keep the mean over the batches; after an error they have their old statistics."""
    try:
        for count in counts:
            count.norm.momentum = None
            count.norm.training = True  # not train(): timm's norms have dropout and an activation inside
        yield
    except BaseException:
        for count in counts:
            count.restore()
        raise
    finally:
        for count in counts:
            count.norm.momentum = count.momentum


def carry_over(optimizer: torch.optim.Optimizer, model: nn.Module, pruned: Pruned) -> torch.optim.Optimizer:
    """An optimizer for `pruned.model` that knows what `optimizer`, that of `model`, knew about the surviving weights.

    model: the network that was pruned. Same class, parameter groups, settings and learning rates; what the state has
    for each number of a weight (momentum, Adam's moments) is cut as the weight was, the rest is copied. A learning
    rate schedule holds on to the old optimizer and has to be made anew. Raises InputError, by name, for a parameter
    that only one side has, for a `model` of other widths, and for a state that no weight's shape explains.
    """
    old, new = dict(model.named_parameters()), dict(pruned.model.named_parameters())
    if odd := sorted(old.keys() ^ new.keys()):
        raise InputError(f"parameter {odd[0]!r}: only the {'pruned' if odd[0] in new else 'original'} model has it")
    _refuse_other_widths(model, pruned)
    names = {id(weight): name for name, weight in old.items()}
    twins: dict[int, Tensor] = {}  # what copy.deepcopy puts in the place of an object
    for weight in (weight for group in optimizer.param_groups for weight in group["params"]):
        name, shape = names.get(id(weight)), tuple(weight.shape)
        if name is None:
            raise InputError(f"optimizer: a parameter of shape {shape} is none of this {type(model).__name__}'s")
        twin = twins[id(weight)] = new[name]
        left = pruned.surviving({name: weight.detach()})[name].shape
        if left != twin.shape:
            wanted = f"{tuple(left)} is left of {shape}"
            raise InputError(f"parameter {name!r}: {wanted}, the pruned model has {tuple(twin.shape)}")
        for what, value in optimizer.state.get(weight, {}).items():
            if isinstance(value, Tensor) and value.shape == weight.shape:
                twins[id(value)] = pruned.surviving({name: value})[name].to(twin.device, copy=True)
            elif isinstance(value, Tensor) and value.numel() > 1 and left != weight.shape:
                found = f"shape {tuple(value.shape)}, the parameter {shape}"
                raise InputError(f"optimizer: {what!r} of parameter {name!r} has {found}; it cannot be cut")
    return copy.deepcopy(optimizer, twins)


def _refuse_other_widths(model: nn.Module, pruned: Pruned) -> None:
    for (layer, side), axis in pruned.cutter.axes.items():
        units = getattr(model.get_submodule(layer), "out_channels", None)
        if side in ("out", "both") and units not in (None, len(axis.channels)):
            raise InputError(f"layer {layer!r}: {units} units, the model that was pruned had {len(axis.channels)}")


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
    """A permutation of the images that depends on (seed, epoch) alone; of several processes each has an equal share
    of it, and some images come twice so that all have equally many."""

    def __init__(self, count: int, seed: int) -> None:
        self.count, self.seed, self.epoch = count, seed, 0

    def __len__(self) -> int:
        return math.ceil(self.count / world_size())

    def __iter__(self) -> Any:
        generator = torch.Generator().manual_seed(self.seed * 100_003 + self.epoch)
        numbers = torch.randperm(self.count, generator=generator).tolist()
        return iter((numbers * world_size())[rank() : len(self) * world_size() : world_size()])


def epochs_of(schedule: str, lr: float, final_lr: float, epochs: int | None) -> int:
    """How many epochs finetune() trains with these settings."""
    return len(_rates(schedule, lr, final_lr, epochs))


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
