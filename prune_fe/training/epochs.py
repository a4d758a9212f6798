"""The epochs of a training: steps, validation, and the choice of the best one."""

from __future__ import annotations

import copy
import dataclasses
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from prune_fe.data.batches import check_labels
from prune_fe.distributed import all_gather, all_reduce_mean, rank, world_size
from prune_fe.errors import InputError, PruneFEError, first_line
from prune_fe.measure.evaluate import evaluate
from prune_fe.tracing.nested import Inputs, map_tensors, move, run, take_logits
from prune_fe.tracing.watching import explain_run
from prune_fe.training.augmentation import flip_and_shift
from prune_fe.training.averaging import MovingAverage
from prune_fe.training.batches import SEED_STRIDE, Batches, ReadyBatches, Share
from prune_fe.training.custom import Custom, Epoch, Step
from prune_fe.training.distillation import Criterion, Teaching
from prune_fe.training.features import TrainingInput
from prune_fe.training.mixing import Mixing
from prune_fe.training.options import TrainOptions
from prune_fe.training.parallel import weigh, without_averaging
from prune_fe.training.part import TrainedPart
from prune_fe.training.precision import autocast
from prune_fe.training.progress import StepCounter
from prune_fe.training.schedule import Rate, epoch_rates
from prune_fe.training.sync_batchnorm import SyncBatchNorms
from prune_fe.training.unfinished import TrainingState, UnfinishedTraining, trained_tensors
from prune_fe.training.update import Update

RANK_STRIDE = 7919
"""Distance between the random seeds of two processes."""


@dataclass(frozen=True)
class Training:
    """One call of `finetune`.

    Attributes:
        part: The weights that are trained.
        source: The images or features.
        network: The network as it is called: wrapped for several processes, or compiled.
        mixing: Mixes images and labels, or None.
        teaching: What is learnt from beside the labels; None for nothing.
        update: The update of the trained weights.
        batches: The batches.
        seed: Seed of everything that is random.
        options: How the network is trained.
        custom: The objects of the user's own.
        average: The moving average of the weights, or None.
        best_momentum: Is filled with the momentum of the best epoch.
        steps: Counts the steps.
        file: Where the state is kept while training is unfinished.
    """

    part: TrainedPart
    source: TrainingInput
    network: nn.Module
    mixing: Mixing | None
    teaching: Teaching | None
    update: Update
    batches: Batches
    seed: int
    options: TrainOptions
    custom: Custom
    average: MovingAverage | None
    best_momentum: dict[str, Tensor]
    steps: StepCounter
    file: UnfinishedTraining

    def run(self, state: TrainingState | None) -> list[Epoch]:
        """Train all epochs, or those behind a state; leave the weights of the best one, and return the epochs."""
        model = self.part.model
        rates = list(enumerate(epoch_rates(self.options), 1))
        if state is None:
            accuracy, loss = self._validate()
            history = [Epoch(0, 0.0, math.nan, accuracy, loss, 0.0)]
            best_state = copy.deepcopy(model.state_dict())
        else:
            history = [Epoch(int(number), *rest) for number, *rest in state.epochs]
            best_state = self._restore(state)
            self.steps.n_done += (len(history) - 1) * len(self.batches)
            rates = [] if state.has_ended else rates
        try:
            for number, rate in rates[len(history) - 1 :]:
                if has_learnt(history, self.options):
                    break
                start = time.perf_counter()
                loss, train_accuracy, used = self._train_epoch(number, rate)
                seconds = time.perf_counter() - start
                with nullcontext() if self.average is None else self.average.applied():
                    accuracy, validation_loss = self._validate()
                    measured = (loss, accuracy, validation_loss, seconds, train_accuracy)
                    history.append(Epoch(number, used[-1], *measured, used[0]))
                    if kept_epoch(history, self.options) is history[-1]:
                        best_state = copy.deepcopy(model.state_dict())
                        self.best_momentum.update(self.update.momentum())
                    self.steps.report(history[-1])
                    answers = [tell(history[-1], model) for tell in self.custom.listeners("on_epoch")]
                self.update.end_epoch(validation_loss)
                is_last = any(all_gather(any(answers))) or number == len(rates) or has_learnt(history, self.options)
                if self.file.is_due(is_last):
                    self._keep(history, best_state, is_last)
                if is_last:
                    break
        finally:
            model.load_state_dict(best_state)
            model.eval()
        return history

    def _validate(self) -> tuple[float, float]:
        """Return accuracy and loss on the validation images."""
        source = self.source
        result = evaluate(source.evaluated, source.validation, workers=source.workers, logits=self.custom.logits)
        return result.accuracy, result.loss

    def _keep(self, history: Sequence[Epoch], best_state: Mapping[str, Tensor], has_ended: bool) -> None:
        """Write the state after an epoch to the file."""
        weights = trained_tensors(self.part.model, self.part.weights)
        is_best = kept_epoch(history, self.options) is history[-1] and self.average is None
        best = None if is_best else {name: best_state[name] for name in weights}
        epochs = [list(dataclasses.astuple(epoch)) for epoch in history]
        average = {} if self.average is None else self.average.values
        state = TrainingState(
            epochs, weights, self.update.momentum(), best, self.best_momentum, self.update.state(), average, has_ended
        )
        self.file.write(state)

    def _restore(self, state: TrainingState) -> dict[str, Tensor]:
        """Put network and optimizer into a state, and return the state dict of the best epoch."""
        model = self.part.model
        best = model.state_dict() | (state.weights if state.best_weights is None else state.best_weights)
        # The copy is made before the network is changed, whose tensors the state dict shares.
        best = copy.deepcopy(best)
        model.load_state_dict(model.state_dict() | state.weights)
        self.update.set_momentum(state.momentum)
        self.update.restore(state.update)
        if self.average is not None:
            self.average.restore(state.average)
        self.best_momentum.update({name: value.to(self._device) for name, value in state.best_momentum.items()})
        return best

    def _train_epoch(self, number: int, rate: Rate) -> tuple[float, float, list[float]]:
        """Train for one epoch; return the mean loss of an image and the accuracy over all processes, and the rates."""
        self.batches.begin(number)
        self.part.begin_training()
        # The epoch has its own seed, and the random numbers of the caller are not changed.
        with torch.random.fork_rng(devices=[self._device] if self._device.type == "cuda" else []):
            torch.manual_seed(self.seed * SEED_STRIDE + number + RANK_STRIDE * rank())
            loss_sum, n_right, n_images, rates = self._run_batches(number, rate)
        # Each process has computed the statistics of batch norms from its own share of the images.
        all_reduce_mean(self.part.model.buffers())
        if self.average is not None:
            self.average.average_processes()
        shares = all_gather((loss_sum, n_right, n_images))
        loss_sum, n_right, n_images = (sum(share) for share in zip(*shares, strict=True))
        loss = loss_sum / n_images
        if not math.isfinite(loss):
            raise InputError(f"the loss is {loss} in epoch {number}: lower lr (it is {self.options.lr:g})")
        return loss, n_right / n_images, rates

    def _run_batches(self, number: int, rate: Rate) -> tuple[float, int, int, list[float]]:
        """Take a step for each batch.

        Returns:
            The sum of the images' losses; how many were classified correctly; how many there are; the learning rates.
        """
        losses, right, n_images, rates = list[Tensor](), list[Tensor](), 0, list[float]()
        draws, listeners = self._draws(number), self.custom.listeners("on_step")
        is_own = self.custom.optimizer is not None or self.custom.scheduler is not None
        for step, share in enumerate(self.batches.shares(self._device)):
            scheduled = rate(step / len(self.batches))
            self.update.set_rate(scheduled)
            rates.append(self.update.rate if is_own else scheduled)
            loss, n_right = self._take_step(share, draws)
            if self.average is not None:
                self.average.update()
            losses.append(loss * share.n_own)  # Not .item(), which would wait for the GPU in every step.
            right.append(n_right * (share.n_own > 0))
            n_images += share.n_own
            self.steps.count_step()
            for tell in listeners:
                done = (number - 1) * len(self.batches) + step + 1
                tell(Step(done, number, rates[-1], loss, self.part.model))
        if not losses:
            raise InputError(f"the training images gave no batch in epoch {number}: they can be read only once")
        return torch.stack(losses).cpu().double().sum().item(), int(torch.stack(right).sum()), n_images, rates

    def _draws(self, number: int) -> torch.Generator:
        """Return the source of the random numbers of the augmentation: one for all processes, where images are shared.

        Each process draws for the whole step, so that an image is changed as one process would change it.
        """
        if world_size() == 1 or isinstance(self.batches, ReadyBatches):
            return torch.default_generator
        draws = torch.Generator().manual_seed(self.seed * SEED_STRIDE + number)
        torch.empty((), dtype=torch.int64).random_(generator=draws)  # One process's DataLoader has drawn this number.
        return draws

    def _take_step(self, share: Share, draws: torch.Generator) -> tuple[Tensor, Tensor]:
        """Update the weights with the images of a step; return their mean loss and how many were classified correctly.

        Both are of this process's images.
        """
        inputs, labels = move(share.images, self._device), share.labels
        targets = (labels.long() if self.custom.loss is None else labels).to(self._device, non_blocking=True)
        if self.options.augment:
            inputs = flip_and_shift(_require_image(inputs, "augment"), draws, share.rows, share.n_all)
        if self.mixing is not None:
            inputs, targets = self.mixing(_require_image(inputs, "mixup and cutmix"), targets)
        self.update.optimizer.zero_grad(set_to_none=True)
        # No part has a single image, on which batch norms cannot train, and all processes have equally many.
        n_parts = max(min(self.options.accumulate, share.n_all // world_size() // 2, len(labels)), 1)
        total = targets.new_zeros((), dtype=torch.float32)
        right = targets.new_zeros((), dtype=torch.int64)
        for number in range(n_parts):
            part: Any = (inputs, targets, labels, share.kept)
            if n_parts > 1:
                part = _take_part(part, number, n_parts)
            with nullcontext() if number == n_parts - 1 else without_averaging(self.network):
                loss, n_right = self._loss(share, *part)
                n_images = len(part[2])
                self.update.backward(weigh(loss, n_images if share.n_own else 0, share.n_all))
            right += n_right
            total = loss.detach() if n_parts == 1 else total + loss.detach() * (n_images / len(labels))
        self.update.take_step()
        return total, right

    def _loss(
        self, share: Share, inputs: Inputs, targets: Tensor, labels: Tensor, kept: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Return the mean loss of some images and how many are classified correctly.

        Args:
            share: The images of the step that these are a part of.
            inputs: What the network reads.
            targets: Their labels, or the classes' shares.
            labels: Their labels, on the CPU.
            kept: The teacher's logits of them.
        """
        network = self.source.network
        with autocast(self._device, self.options):
            with explain_run(network, inputs), self._running(share):
                outputs = run(self.network, inputs)
            if self.custom.logits is None:
                logits = _require_tensor(network, outputs)
            else:
                logits = take_logits(outputs, self.custom.logits)
            criterion: Criterion = partial(F.cross_entropy, label_smoothing=self.options.label_smoothing)
            if self.custom.loss is None:
                check_labels(labels, logits.shape[1])
            else:
                criterion = self.custom.loss
            # Mixed images count as the class that they have most of.
            true = targets if targets.ndim == 1 else targets.argmax(dim=1)
            n_right = (logits.detach().argmax(dim=1) == true).sum()
            if self.teaching is None:
                return _require_scalar(criterion(logits, targets)), n_right
            return self.teaching.loss(logits, targets, inputs, kept, criterion), n_right

    @contextmanager
    def _running(self, share: Share) -> Iterator[None]:
        """Let batch norms be synchronised in a context, if the options say so, and explain errors of a compiler."""
        with ExitStack() as stack:
            if self.options.sync_batchnorm and world_size() > 1:
                norms = SyncBatchNorms()
                norms.counts, norms.all_count = share.n_own > 0, share.n_all >= world_size()
                stack.enter_context(norms)
            try:
                yield
            except PruneFEError:
                raise
            except Exception as error:
                if self.options.compile and type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
                    raise InputError(f"compile: torch cannot compile this network: {first_line(error)}") from error
                raise

    @property
    def _device(self) -> torch.device:
        return self.part.device


def best_epoch(history: Sequence[Epoch]) -> Epoch:
    """Return the epoch with the highest validation accuracy; among equal ones the lowest loss decides, then order."""
    return max(history, key=lambda epoch: (epoch.validation_accuracy, -epoch.validation_loss))


def kept_epoch(history: Sequence[Epoch], options: TrainOptions) -> Epoch:
    """Return the epoch whose weights are kept: the best one or the last one, as the option `keep` says."""
    return history[-1] if options.keep == "last" else best_epoch(history)


def has_learnt(history: Sequence[Epoch], options: TrainOptions) -> bool:
    """Return whether the last epoch has the training accuracy at which training stops, if the options name one."""
    return options.until_accuracy is not None and history[-1].train_accuracy >= options.until_accuracy


def _take_part(values: Any, number: int, count: int) -> Any:
    """Return one of `count` parts of the rows of each tensor in nested values."""
    return map_tensors(lambda value: value.tensor_split(count)[number], values)


def _require_tensor(model: nn.Module, logits: Any) -> Tensor:
    if not isinstance(logits, Tensor):
        raise InputError(
            f"{type(model).__name__} returns a {type(logits).__name__} in training, one tensor is needed; "
            "networks with auxiliary heads are built with aux_logits=False; logits=FUNCTION takes it out of the rest"
        )
    return logits


def _require_image(inputs: Inputs, name: str) -> Tensor:
    if not isinstance(inputs, Tensor):
        raise InputError(
            f"{name} changes images that are one tensor; here a network's input is a {type(inputs).__name__}"
        )
    return inputs


def _require_scalar(loss: Any) -> Tensor:
    if not isinstance(loss, Tensor) or loss.ndim:
        raise InputError("loss= must return a tensor with one number, the mean loss of the images")
    return loss
