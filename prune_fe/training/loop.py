"""Stochastic gradient descent, for training from scratch and for fine-tuning after pruning."""

from __future__ import annotations

import copy
import dataclasses
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence, Sized
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import Dataset, Sampler

from prune_fe.data.batches import Loader, check_labels, is_whole, make_loader
from prune_fe.data.random_crops import crop_at_random
from prune_fe.data.relabelled import corrupt_labels
from prune_fe.distributed import all_gather, all_reduce_mean, rank, world_size
from prune_fe.errors import DataError, InputError
from prune_fe.measure.evaluate import evaluate
from prune_fe.options import Seed, Workers, validate_options, validate_value
from prune_fe.pruning.cut import refuse_unlike_weights
from prune_fe.tracing.quantised import require_float
from prune_fe.tracing.watching import explain_run
from prune_fe.tracing.weights import find_layout_fault, require_sound_weights, require_trainable
from prune_fe.training.augmentation import flip_and_shift
from prune_fe.training.distillation import Teaching, make_teaching, teacher_logits
from prune_fe.training.dropout import dropout_rates
from prune_fe.training.features import TrainingInput, is_constant, prepare_input
from prune_fe.training.options import DistillOptions, TrainOptions
from prune_fe.training.part import TrainedPart, rate_factors, select_part
from prune_fe.training.precision import autocast, warn_without_bfloat16
from prune_fe.training.schedule import Rate, epoch_rates
from prune_fe.training.unfinished import TrainingState, UnfinishedTraining, identify_training, trained_tensors

SEED_STRIDE = 100_003
"""Distance between the random seeds of the epochs of two neighbouring seeds: more than there are epochs."""

RANK_STRIDE = 7919
"""Distance between the random seeds of two processes."""


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
    """

    number: int
    learning_rate: float
    train_loss: float
    validation_accuracy: float
    validation_loss: float
    seconds: float
    train_accuracy: float = math.nan


def finetune(
    model: nn.Module,
    train: Dataset[Any],
    validation: Dataset[Any],
    options: TrainOptions | Mapping[str, Any] | None = None,
    *,
    momentum_buffers: dict[str, Tensor] | None = None,
    workers: int = 0,
    seed: int = 0,
    progress: Callable[[Epoch | None, int, int], None] | None = None,
    teacher: nn.Module | Tensor | None = None,
    unfinished: str | Path | None = None,
    **settings: Any,
) -> list[Epoch]:
    """Train `model` in place, and set it to the weights of its best epoch on the validation images (see `keep`).

    The network before training counts as epoch 0: it stays unchanged if no epoch is better. After an error or an
    interruption it has the weights of the best epoch so far, and its mode and gradients are as before. The order of the
    images, their augmentation and dropout depend only on the seed and the epoch.

    Under torch.distributed each process trains on its share of every batch. Gradients and, after each epoch, the
    statistics of batch norms are averaged over the processes.

    Args:
        model: Network that returns logits (images, classes).
        train: Map-style data set of (image, label).
        validation: Data set of (image, label) that selects the best epoch.
        options: Learning rate schedule, update and batches. The defaults are those with which the paper fine-tunes.
        momentum_buffers: Name of a parameter -> the momentum that SGD starts with; parameters that it does not name
            start with none. It is updated to the momentum of the best epoch, so that the next call continues with it,
            also after `prune(carry=momentum_buffers)`.
        workers: Processes that read images.
        seed: Seed of everything that is random.
        progress: Called with (None, finished steps, all steps) after each step, and with (epoch, finished steps, all
            steps) after each epoch. A batch of images whose features (`only`) or teacher's logits are computed before
            training counts as a step.
        teacher: A network with the same outputs that `model` learns from beside the labels, as the option `distill`
            says; it is not changed. Or its logits of the training images in their order, (images, classes), where the
            images are not augmented; see `prune_fe.training.distillation.teacher_logits`.
        unfinished: File that is written after each epoch, or less often where that takes long. If the call is
            interrupted, the same call goes on from it, on one thread to the same bits. The caller removes it when the
            trained network is saved.
        settings: Single options in place of those of `options`, such as `lr=0.1`; see `TrainOptions`.

    Returns:
        The epochs, beginning with epoch 0.

    Raises:
        InputError: An option is out of range, `only` or `lr_by_layer` names nothing, no weight is trainable, the
            teacher is missing or does not fit, the loss is not finite, or `unfinished` is of another training.
        DataError: There are no training images.
        CheckpointError: `unfinished` is damaged.
        EnvironmentFault: `unfinished` cannot be written.
    """
    chosen = validate_options(TrainOptions, options, **settings)
    seed, workers = validate_value(Seed, seed, "seed"), validate_value(Workers, workers, "workers")
    require_float(model, prepared=False)  # A layer without gradients would leave the others as they are.
    require_sound_weights(model)
    require_trainable(model)
    if chosen.distill is not None and teacher is None:
        raise InputError("distill needs a teacher: finetune(..., teacher=network)")
    if (crops := crop_at_random(train, seed, augment=chosen.augment)) is not None:
        train, chosen = crops, dataclasses.replace(chosen, augment=False)
    order = _EpochOrder(_count_images(train, chosen.batch_size), seed)
    if chosen.label_noise:
        train = corrupt_labels(train, chosen.label_noise, seed)
    n_steps = len(epoch_rates(chosen)) * len(_make_batches(train, order, chosen.batch_size))
    steps = _StepCounter(progress, n_steps)
    with ExitStack() as stack:
        stack.enter_context(_restoring_after_error(model))
        stack.enter_context(dropout_rates(model, chosen.dropout))
        part = stack.enter_context(select_part(model, chosen.only))
        if chosen.amp:
            warn_without_bfloat16(next(iter(part.weights.values())).device)
        optimizer = _make_optimizer(part, chosen, momentum_buffers or {})
        all_reduce_mean(part.weights.values())  # All processes start with the same weights, to the bit.
        file = UnfinishedTraining(None, "")
        if unfinished is not None:
            key = identify_training(model, train, chosen, seed, momentum_buffers or {}, teacher)
            file = UnfinishedTraining(Path(unfinished), key)
        state = file.read()
        teaching = None
        if teacher is not None:
            teaching = make_teaching(
                model,
                teacher,
                train,
                chosen.distill or DistillOptions(),
                changes=chosen.augment or not is_constant(train),
                compute=lambda network: teacher_logits(network, train, workers=workers, progress=steps.count_other),
            )
        source = stack.enter_context(prepare_input(part, train, validation, chosen, workers, steps.expect))
        best_momentum = dict[str, Tensor]()
        stack.callback(lambda: momentum_buffers is not None and momentum_buffers.update(best_momentum))
        return _Training(part, source, teaching, optimizer, order, chosen, best_momentum, steps, file).run(state)


@contextmanager
def _restoring_after_error(model: nn.Module) -> Iterator[None]:
    """Give a network the modes and gradients that it had before the block, if an error or a signal ends it."""
    modes = [(module, module.training) for module in model.modules()]
    gradients = [(weight, weight.grad) for weight in model.parameters()]
    try:
        yield
    except BaseException:
        for module, training in modes:
            module.training = training
        for weight, gradient in gradients:
            weight.grad = gradient
        raise


class _StepCounter:
    """Counts the finished steps, and tells the caller's `progress`.

    Args:
        progress: What `finetune` was given.
        total: Number of steps of training.
    """

    def __init__(self, progress: Callable[[Epoch | None, int, int], None] | None, total: int) -> None:
        self.progress, self.total, self.n_done = progress, total, 0

    def expect(self, count: int) -> Callable[[], None]:
        """Add steps that come before training, and return `count_step`."""
        self.total += count
        return self.count_step

    def count_step(self) -> None:
        """Count one step."""
        self.n_done += 1
        self.report(None)

    def count_other(self, done: int, total: int) -> None:
        """Count one of `total` steps that come before training; `done` of them are finished."""
        if done == 1:
            self.expect(total)
        self.count_step()

    def report(self, epoch: Epoch | None) -> None:
        """Call `progress`, with an epoch that has ended or None."""
        if self.progress is not None:
            self.progress(epoch, self.n_done, self.total)


@dataclass(frozen=True)
class _Training:
    """One call of `finetune`.

    Attributes:
        part: The weights that are trained.
        source: The images or features.
        teaching: What is learnt from beside the labels; None for nothing.
        optimizer: The optimizer of the trained weights.
        order: The order of the images.
        options: How the network is trained.
        best_momentum: Is filled with the momentum of the best epoch.
        steps: Counts the steps.
        file: Where the state is kept while training is unfinished.
    """

    part: TrainedPart
    source: TrainingInput
    teaching: Teaching | None
    optimizer: torch.optim.SGD
    order: _EpochOrder
    options: TrainOptions
    best_momentum: dict[str, Tensor]
    steps: _StepCounter
    file: UnfinishedTraining

    def run(self, state: TrainingState | None) -> list[Epoch]:
        """Train all epochs, or those behind a state; leave the weights of the best one, and return the epochs."""
        model, source = self.part.model, self.source
        images = source.train if self.teaching is None else self.teaching.wrap(source.train)
        batches = _make_batches(images, self.order, self.options.batch_size, source.workers)
        rates = list(enumerate(epoch_rates(self.options), 1))
        if state is None:
            result = evaluate(source.evaluated, source.validation, workers=source.workers)
            history = [Epoch(0, 0.0, math.nan, result.accuracy, result.loss, 0.0)]
            best_state = copy.deepcopy(model.state_dict())
        else:
            history = [Epoch(int(number), *rest) for number, *rest in state.epochs]
            best_state = self._restore(state)
            self.steps.n_done += (len(history) - 1) * len(batches)
        try:
            for number, rate in rates[len(history) - 1 :]:
                if has_learnt(history, self.options):
                    break
                start = time.perf_counter()
                loss, train_accuracy = self._train_epoch(number, batches, rate)
                seconds = time.perf_counter() - start
                result = evaluate(source.evaluated, source.validation, workers=source.workers)
                last_rate = rate((len(batches) - 1) / len(batches))
                history.append(Epoch(number, last_rate, loss, result.accuracy, result.loss, seconds, train_accuracy))
                if kept_epoch(history, self.options) is history[-1]:
                    best_state = copy.deepcopy(model.state_dict())
                    self.best_momentum.update(_copy_momentum(self.optimizer, self.part.weights))
                self.steps.report(history[-1])
                is_last = number == len(rates) or has_learnt(history, self.options)
                if self.file.is_due(is_last=is_last):
                    self._keep(history, best_state)
        finally:
            model.load_state_dict(best_state)
            model.eval()
        return history

    def _keep(self, history: Sequence[Epoch], best_state: Mapping[str, Tensor]) -> None:
        """Write the state after an epoch to the file."""
        weights = trained_tensors(self.part.model, self.part.weights)
        best = (
            None if kept_epoch(history, self.options) is history[-1] else {name: best_state[name] for name in weights}
        )
        momentum = _copy_momentum(self.optimizer, self.part.weights)
        epochs = [list(dataclasses.astuple(epoch)) for epoch in history]
        self.file.write(TrainingState(epochs, weights, momentum, best, self.best_momentum))

    def _restore(self, state: TrainingState) -> dict[str, Tensor]:
        """Put network and optimizer into a state, and return the state dict of the best epoch."""
        model = self.part.model
        best = model.state_dict() | (state.weights if state.best_weights is None else state.best_weights)
        # The copy is made before the network is changed, whose tensors the state dict shares.
        best = copy.deepcopy(best)
        model.load_state_dict(model.state_dict() | state.weights)
        _set_momentum(self.optimizer, self.part.weights, state.momentum)
        self.best_momentum.update({name: value.to(self._device) for name, value in state.best_momentum.items()})
        return best

    def _train_epoch(self, number: int, batches: Loader, rate: Rate) -> tuple[float, float]:
        """Train for one epoch, and return the mean loss of an image and the accuracy over all processes."""
        self.order.epoch = number
        self.part.begin_training()
        # The epoch has its own seed, and the random numbers of the caller are not changed.
        with torch.random.fork_rng(devices=[self._device] if self._device.type == "cuda" else []):
            torch.manual_seed(self.order.seed * SEED_STRIDE + number + RANK_STRIDE * rank())
            loss_sum, n_correct, n_images = self._run_batches(batches, rate)
        # Each process has computed the statistics of batch norms from its own share of the images.
        all_reduce_mean(self.part.model.buffers())
        shares = all_gather((loss_sum, n_correct, n_images))
        loss_sum, n_correct, n_images = (sum(share) for share in zip(*shares, strict=True))
        loss = loss_sum / n_images
        if not math.isfinite(loss):
            raise InputError(f"the loss is {loss} in epoch {number}: lower lr (it is {self.options.lr:g})")
        return loss, n_correct / n_images

    def _run_batches(self, batches: Loader, rate: Rate) -> tuple[float, int, int]:
        """Take a step for each batch; return the sum of the images' losses, how many were right, and their number."""
        losses, right, n_images = list[Tensor](), list[Tensor](), 0
        for step, batch in enumerate(batches.on(self._device)):
            for group in self.optimizer.param_groups:
                group["lr"] = rate(step / len(batches)) * group["lr_factor"]
            loss, n_right = self._loss(*_require_batch(batch))
            self.optimizer.zero_grad(set_to_none=True)
            loss.backward()
            # Equal shares of the batch: the mean of the processes' mean gradients is that of the whole batch.
            all_reduce_mean(weight.grad for weight in self.part.weights.values() if weight.grad is not None)
            self.optimizer.step()
            losses.append(loss.detach() * len(batch[1]))  # Not .item(), which would wait for the GPU in every step.
            right.append(n_right)
            n_images += len(batch[1])
            self.steps.count_step()
        return torch.stack(losses).cpu().double().sum().item(), int(torch.stack(right).sum()), n_images

    def _loss(self, images: Tensor, labels: Tensor, kept: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return the mean loss of a batch and how many of its images are classified correctly.

        Args:
            images: The images.
            labels: Their labels.
            kept: The teacher's logits of the images.
        """
        inputs, targets = (value.to(self._device, non_blocking=True) for value in (images, labels.long()))
        if self.options.augment:
            inputs = flip_and_shift(inputs, torch.default_generator)
        with autocast(self._device, self.options.amp):
            with explain_run(self.source.network, inputs):
                outputs = self.source.network(inputs)
            logits = _require_tensor(self.source.network, outputs)
            check_labels(labels, logits.shape[1])
            n_right = (logits.detach().argmax(dim=1) == targets).sum()
            if self.teaching is None:
                return F.cross_entropy(logits, targets), n_right
            return self.teaching.loss(logits, targets, inputs, kept), n_right

    @property
    def _device(self) -> torch.device:
        return next(iter(self.part.weights.values())).device


def best_epoch(history: Sequence[Epoch]) -> Epoch:
    """Return the epoch with the highest validation accuracy; among equal ones the lowest loss decides, then order."""
    return max(history, key=lambda epoch: (epoch.validation_accuracy, -epoch.validation_loss))


def kept_epoch(history: Sequence[Epoch], options: TrainOptions) -> Epoch:
    """Return the epoch whose weights are kept: the best one or the last one, as the option `keep` says."""
    return history[-1] if options.keep == "last" else best_epoch(history)


def has_learnt(history: Sequence[Epoch], options: TrainOptions) -> bool:
    """Return whether the last epoch has the training accuracy at which training stops, if the options name one."""
    return options.until_accuracy is not None and history[-1].train_accuracy >= options.until_accuracy


def _count_images(train: Dataset[Any], batch_size: int) -> int:
    """Return the number of training images; raise an error if there are none or they cannot be batched like this."""
    if not isinstance(train, Sized) or not hasattr(train, "__getitem__"):
        raise InputError(f"training images come as a map-style data set, not as a {type(train).__name__}")
    if len(train) == 0:
        raise DataError("no images to train on")
    if batch_size % world_size():
        raise InputError(f"batch_size={batch_size} cannot be shared evenly by {world_size()} processes")
    return len(train)


def _make_batches(images: Dataset[Any], order: _EpochOrder, batch_size: int, workers: int = 0) -> Loader:
    """Return this process's shares of the batches of an epoch.

    Args:
        images: Map-style data set of (image, label).
        order: The order of the images.
        batch_size: Images of one step, over all processes together.
        workers: Processes that read images.
    """
    share = batch_size // world_size()
    # Batch norms cannot train on a single image.
    drop_last = len(order) > 1 == len(order) % share
    return make_loader(images, share, workers, sampler=order, drop_last=drop_last)


def _make_optimizer(
    part: TrainedPart, options: TrainOptions, momentum_buffers: Mapping[str, Tensor]
) -> torch.optim.SGD:
    """Return SGD for the trained weights, starting with copies of the momentum buffers.

    The weights of each factor of the learning rate are a group; the group has it as "lr_factor".
    """
    weights = part.weights
    if momentum_buffers:
        refuse_unlike_weights(momentum_buffers, part.model, "momentum_buffers")
        if options.momentum == 0:
            raise InputError("momentum_buffers were given, but momentum is 0")
    factors = rate_factors(part, options.lr_by_layer)
    groups = [
        {"params": [weights[name] for name in weights if factors[name] == factor], "lr_factor": factor}
        for factor in dict.fromkeys(factors.values())
    ]
    optimizer = torch.optim.SGD(groups, lr=options.lr, momentum=options.momentum, weight_decay=options.weight_decay)
    _set_momentum(optimizer, weights, momentum_buffers)
    return optimizer


def _set_momentum(
    optimizer: torch.optim.Optimizer, weights: Mapping[str, Tensor], momentum_buffers: Mapping[str, Tensor]
) -> None:
    """Give the optimizer copies of the momentum buffers of the weights with these names."""
    for name, buffer in momentum_buffers.items():
        if name in weights:
            optimizer.state[weights[name]]["momentum_buffer"] = torch.empty_like(weights[name]).copy_(buffer.detach())


def _copy_momentum(optimizer: torch.optim.Optimizer, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return copies of the momentum buffers by parameter name; a weight that had no gradient yet has none."""
    buffers = {name: optimizer.state.get(weight, {}).get("momentum_buffer") for name, weight in weights.items()}
    return {name: buffer.clone() for name, buffer in buffers.items() if buffer is not None}


def _require_batch(batch: Any) -> Sequence[Tensor]:
    """Return a batch of images, labels and possibly the teacher's logits, after checking what it is made of."""
    parts = list(batch) if isinstance(batch, tuple | list) else []
    if len(parts) not in (2, 3) or not all(isinstance(part, Tensor) for part in parts):
        raise InputError(f"training images come with labels, as (image, label); a batch is a {type(batch).__name__}")
    if fault := find_layout_fault(parts[0]):
        raise InputError(f"a batch of training images {fault}")
    if parts[1].ndim != 1 or not is_whole(parts[1]):
        raise InputError(f"the labels are {parts[1].dtype} {tuple(parts[1].shape)}; an image has one whole number")
    return parts


def _require_tensor(model: nn.Module, logits: Any) -> Tensor:
    if not isinstance(logits, Tensor):
        raise InputError(
            f"{type(model).__name__} returns a {type(logits).__name__} in training, one tensor is needed; "
            "networks with auxiliary heads are built with aux_logits=False"
        )
    return logits


class _EpochOrder(Sampler[int]):
    """The order of the images in an epoch: a permutation that depends on seed and epoch alone.

    Each process gets an equal share of it; some images are repeated if their number cannot be divided evenly.
    """

    def __init__(self, n_images: int, seed: int) -> None:
        self.n_images, self.seed, self.epoch = n_images, seed, 0

    def __len__(self) -> int:
        return math.ceil(self.n_images / world_size())

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed * SEED_STRIDE + self.epoch)
        indices = torch.randperm(self.n_images, generator=generator).tolist()
        # Repeating the order fills the last shares, so that all processes take equally many steps.
        return iter((indices * world_size())[rank() : len(self) * world_size() : world_size()])
