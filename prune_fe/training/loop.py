"""Training from scratch, and fine-tuning after pruning."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from prune_fe.data.random_crops import crop_at_random
from prune_fe.data.relabelled import corrupt_labels
from prune_fe.distributed import naming_lost_processes, world_size
from prune_fe.errors import InputError
from prune_fe.options import Seed, Workers, validate_options, validate_value
from prune_fe.tracing.quantised import require_float
from prune_fe.tracing.weights import require_sound_weights, require_trainable
from prune_fe.training.averaging import MovingAverage
from prune_fe.training.batches import (
    DatasetBatches,
    EpochOrder,
    ReadyBatches,
    count_images,
    first_image,
    is_ready,
    unpacked,
)
from prune_fe.training.custom import Custom, Epoch, take_custom
from prune_fe.training.distillation import Teaching, count_outputs, make_teaching, teacher_logits
from prune_fe.training.dropout import dropout_rates
from prune_fe.training.epochs import Training, best_epoch, kept_epoch
from prune_fe.training.features import TrainingInput, is_constant, prepare_input
from prune_fe.training.mixing import Mixing, make_mixing
from prune_fe.training.options import DistillOptions, TrainOptions
from prune_fe.training.parallel import distribute, smallest_batch
from prune_fe.training.part import TrainedPart, select_part
from prune_fe.training.precision import warn_without_half
from prune_fe.training.progress import Progress, StepCounter, restoring_after_error
from prune_fe.training.recalibration import has_batch_norms
from prune_fe.training.schedule import FEW_STEPS, complete, epoch_rates
from prune_fe.training.unfinished import UnfinishedTraining, identify_training, trained_tensors
from prune_fe.training.update import make_update

__all__ = ["Epoch", "best_epoch", "finetune", "kept_epoch"]


def finetune(
    model: nn.Module,
    train: Any,
    validation: Any,
    options: TrainOptions | Mapping[str, Any] | None = None,
    *,
    momentum_buffers: dict[str, Tensor] | None = None,
    workers: int = 0,
    seed: int = 0,
    progress: Progress | None = None,
    teacher: nn.Module | Tensor | None = None,
    unfinished: str | Path | None = None,
    **settings: Any,
) -> list[Epoch]:
    """Train `model` in place, and set it to the weights of its best epoch on the validation images (see `keep`).

    The network before training counts as epoch 0: it stays unchanged if no epoch is better. After an error or an
    interruption it has the weights of the best epoch so far, and its mode and gradients are as before. The order of the
    images, their augmentation and dropout depend only on the seed and the epoch.

    Under torch.distributed (`torchrun`, `accelerate launch`) each process trains on its share of every batch, through
    torch's DistributedDataParallel. The gradient of a step is the one that one process would have, also where the last
    batch is not shared evenly; batch norms use the statistics of each process's share, unless `sync_batchnorm` is on.

    Args:
        model: Network that returns logits (images, classes).
        train: Map-style data set of (image, label), or a DataLoader of (images, labels), which then says what a batch
            is and in which order they come. With several processes a DataLoader needs a DistributedSampler.
        validation: Data set of (image, label), or batches, that selects the best epoch.
        options: Learning rate schedule, update and batches.
        momentum_buffers: Name of a parameter -> the momentum that SGD starts with; parameters that it does not name
            start with none. It is updated to the momentum of the best epoch, so that the next call continues with it,
            also after `prune(carry=momentum_buffers)`.
        workers: Processes that read images of a data set.
        seed: Seed of everything that is random.
        progress: Called with (None, finished steps, all steps) after each step, and with (epoch, finished steps, all
            steps) after each epoch. A batch of images whose features (`only`) or teacher's logits are computed before
            training counts as a step.
        teacher: A network with the same outputs that `model` learns from beside the labels, as the option `distill`
            says; it is not changed. Or its logits of the training images in their order, (images, classes), where the
            images are not augmented; see `prune_fe.training.distillation.teacher_logits`.
        unfinished: File that is written after each epoch, or less often where that takes long. If the call is
            interrupted, the same call goes on from it, on one thread to the same bits; also with another number of
            processes, then to what these compute. The caller removes it when the trained network is saved.
        settings: Single options in place of those of `options`, such as `lr=0.1`, see `TrainOptions`; and objects of
            one's own, see `prune_fe.training.custom.Custom`: `optimizer`, `scheduler`, `scheduler_interval`, `loss`,
            `unpack`, `logits`, `on_step` and `on_epoch`.

    Returns:
        The epochs, beginning with epoch 0.

    Raises:
        InputError: An option is out of range, `only` or `lr_by_layer` names nothing, no weight is trainable, the
            teacher is missing or does not fit, the loss is not finite, or `unfinished` is of another training.
        DataError: There are no training images.
        CheckpointError: `unfinished` is damaged.
        EnvironmentFault: `unfinished` cannot be written, or another process has ended.
    """
    custom, given = take_custom(settings)
    chosen = validate_options(TrainOptions, options, **given)
    seed, workers = validate_value(Seed, seed, "seed"), validate_value(Workers, workers, "workers")
    require_float(model, prepared=False)  # A layer without gradients would leave the others as they are.
    require_sound_weights(model)
    require_trainable(model)
    if chosen.distill is not None and teacher is None:
        raise InputError("distill needs a teacher: finetune(..., teacher=network)")
    if (crops := crop_at_random(train, seed, augment=chosen.augment)) is not None:
        train, chosen = crops, dataclasses.replace(chosen, augment=False)
    train, validation = unpacked(train, custom.unpack), unpacked(validation, custom.unpack)
    if chosen.label_noise:
        if is_ready(train):
            raise InputError("label_noise needs a data set, whose labels are known; batches are trained on as they are")
        train = corrupt_labels(train, chosen.label_noise, seed)
    with ExitStack() as stack:
        stack.enter_context(naming_lost_processes(_advise(unfinished)))
        stack.enter_context(restoring_after_error(model))
        stack.enter_context(dropout_rates(model, chosen.dropout))
        part = stack.enter_context(select_part(model, chosen.only))
        order = _make_order(train, part, chosen, seed)
        chosen = complete(chosen, len(order), has_batch_norms(model), custom.optimizer is not None)
        n_steps = len(epoch_rates(chosen)) * len(order)
        _warn_about_few(n_steps)
        steps = StepCounter(progress, n_steps)
        warn_without_half(part.device, chosen)
        update = make_update(part, chosen, custom, momentum_buffers or {})
        file = UnfinishedTraining(None, "")
        if unfinished is not None:
            key = identify_training(model, train, chosen, seed, momentum_buffers or {}, teacher, custom.describe())
            file = UnfinishedTraining(Path(unfinished), key)
        state = file.read()
        teaching = None if teacher is None else _make_teaching(model, teacher, train, chosen, custom, workers, steps)
        source = stack.enter_context(prepare_input(part, train, validation, chosen, workers, steps.expect))
        best_momentum = dict[str, Tensor]()
        stack.callback(lambda: momentum_buffers is not None and momentum_buffers.update(best_momentum))
        batches = order if isinstance(order, ReadyBatches) else _read(source, teaching, order)
        network, mixing = _wrap(part, source, chosen, train)
        average = None
        if chosen.ema:
            average = MovingAverage(model, trained_tensors(model, part.weights), chosen.ema)
        training = Training(
            part, source, network, mixing, teaching, update, batches, seed, chosen, custom, average, best_momentum,
            steps, file,
        )  # fmt: skip
        return training.run(state)


def _advise(unfinished: str | Path | None) -> str:
    if unfinished is None:
        return "start it again; with unfinished=FILE it would go on where it stopped"
    return f"the same call goes on from {unfinished} after the last epoch in it, with any number of processes"


def _make_order(train: Any, part: TrainedPart, options: TrainOptions, seed: int) -> EpochOrder | ReadyBatches:
    """Return the order of a data set's images, or the batches that the user gave."""
    if is_ready(train):
        return ReadyBatches(train)
    n_images = count_images(train, options.batch_size)
    return EpochOrder(n_images, options.batch_size, seed, smallest_batch(part.modules, options))


def _warn_about_few(n_steps: int) -> None:
    """Warn if a training has so few steps that it can hardly change the network."""
    if n_steps < FEW_STEPS:
        warnings.warn(
            f"training takes {n_steps} steps in all, which change a network little; more epochs or smaller batches "
            "give more",
            stacklevel=3,
        )


def _make_teaching(
    model: nn.Module,
    teacher: nn.Module | Tensor,
    train: Any,
    options: TrainOptions,
    custom: Custom,
    workers: int,
    steps: StepCounter,
) -> Teaching:
    if custom.logits is not None:
        raise InputError("teacher and logits=: both networks must return logits; give wrapped ones")
    return make_teaching(
        model,
        teacher,
        train,
        options.distill or DistillOptions(),
        image=first_image(train),
        changes=options.changes_images or not is_constant(train) or not isinstance(train[0][0], Tensor),
        compute=lambda network: teacher_logits(network, train, workers=workers, progress=steps.count_other),
    )


def _read(source: TrainingInput, teaching: Teaching | None, order: EpochOrder) -> DatasetBatches:
    images = source.train if teaching is None else teaching.wrap(source.train)
    return DatasetBatches(images, order, source.workers)


def _wrap(
    part: TrainedPart, source: TrainingInput, options: TrainOptions, train: Any
) -> tuple[nn.Module, Mixing | None]:
    """Return the network as it is called in training, and what mixes its images."""
    network, mixing = source.network, None
    if options.mixup or options.cutmix:
        mixing = make_mixing(options, count_outputs(part.model, first_image(train)))
    if world_size() > 1:
        network = distribute(network, part.weights, first_image(train))
    if options.compile:
        compiled: Any = torch.compile(network)
        network = compiled
    return network, mixing
