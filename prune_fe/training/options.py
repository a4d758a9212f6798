"""The options of training: the schedule of the learning rate, the update and the batches."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from cyclopts import Parameter, Token
from pydantic import Field, StrictBool, StrictFloat

from prune_fe.errors import InputError
from prune_fe.options import BatchSize, Count, Epochs, NonNegative, Patterns, Positive, Share, options

Schedule = Literal["step", "cosine", "constant"]


def _parse_factors(_: Any, tokens: Sequence[Token]) -> dict[str, float]:
    """Return the value of `--lr-by-layer NAME=FACTOR ...`."""
    factors: dict[str, float] = {}
    for token in tokens:
        name, _, factor = token.value.rpartition("=")
        try:
            factors[name] = float(factor)
        except ValueError:
            name = ""
        if not name:
            raise ValueError(f"{token.value}: write NAME=FACTOR, such as features.*=0.1")
    return factors


def _parse_arguments(_: Any, tokens: Sequence[Token]) -> dict[str, Any]:
    """Return the value of `--opt-args NAME=VALUE ...`; a value is a number, true, false, or numbers with commas."""
    arguments: dict[str, Any] = {}
    for token in tokens:
        name, _, text = token.value.partition("=")
        try:
            values = [json.loads(part) for part in text.split(",")]
        except ValueError:
            name = ""
        if not name:
            raise ValueError(f"{token.value}: write NAME=VALUE, such as betas=0.9,0.95 or nesterov=true")
        arguments[name] = values if len(values) > 1 else values[0]
    return arguments


@options
class DistillOptions:
    """How much a network learns from a teacher beside the labels (Hinton et al. 2015, section 2).

    The paper is "Distilling the Knowledge in a Neural Network".
    """

    weight: Annotated[StrictFloat, Field(gt=0, le=1), Parameter(name="--distill-weight")] = 0.5
    """Share w of the teacher in the loss, in (0, 1]: (1 - w) cross-entropy + w T² KL(teacher || network), where KL is
    the divergence of the network's class probabilities from the teacher's, both at temperature T."""

    temperature: Annotated[Positive, Parameter(name="--distill-temperature")] = 4.0
    """Temperature T, by which both networks' logits are divided."""


@options
class TrainOptions:
    """How a network is trained or fine-tuned.

    The defaults suit a trained or pruned network and any number of images: a learning rate that fits the optimizer and
    the batch, warm-up, and a cosine over at least 600 steps, or 30 epochs where these have fewer. `PaperTrainOptions`
    has those of the paper.
    """

    lr: Positive | None = None
    """Learning rate at the start, or behind the warm-up. Default: 1e-3 with the step schedule; otherwise, for a batch
    of 64, 0.02 for SGD (0.002 for a network without batch norms), which grows with the batch, and 3e-4 for other
    optimizers, which grows with its root."""

    lr_by_layer: Annotated[
        dict[str, Positive], Parameter(converter=_parse_factors, n_tokens=-1, consume_multiple=True)
    ] = dataclasses.field(default_factory=dict)
    """Factors of the learning rate for names or patterns of modules and parameters, such as 0.1 for "features.*". A
    name wins over a pattern, and an inner module's name over an outer one's; all other weights have the factor 1."""

    schedule: Schedule = "cosine"
    """cosine: lower the learning rate to zero over the epochs. step: divide it by ten after each epoch, as in the
    paper. constant: leave it as it is."""

    warmup: Share | None = None
    """Share of all steps in which the learning rate rises to lr, from a hundredth of it. Default: 0.1 if lr is left to
    its default and the schedule is not step, otherwise 0."""

    epochs: Epochs | None = None
    """Number of epochs. Default: with the step schedule, one for each learning rate down to the final one (three in the
    paper); otherwise as many as have 600 steps, but from 3 to 30."""

    final_lr: Positive = 1e-5
    """Lowest learning rate of the step schedule; all further epochs have it."""

    opt: str = "sgd"
    """Optimizer: the name of one of torch.optim in any case, such as sgd, adamw, rmsprop or nadam."""

    opt_args: Annotated[dict[str, Any], Parameter(converter=_parse_arguments, n_tokens=-1, consume_multiple=True)] = (
        dataclasses.field(default_factory=dict)
    )
    """Further arguments of the optimizer, such as betas=0.9,0.95 or nesterov=true."""

    momentum: Share = 0.9
    """Momentum of the gradients, in [0, 1); without effect on an optimizer that has none."""

    weight_decay: Annotated[NonNegative, Parameter(name=["--weight-decay", "--wd"])] = 5e-4
    """L2 penalty of the weights, or what the optimizer calls weight decay."""

    batch_size: Annotated[BatchSize, Parameter(name=["--batch-size", "-b"])] = 64
    """Images of one step, over all processes together."""

    accumulate: Count = 1
    """Number of parts in which the images of a step go through the network one after the other; their gradients are
    added. It saves memory, and changes nothing but the statistics of batch norms."""

    augment: StrictBool = False
    """Flip and shift the training images at random."""

    mixup: NonNegative = 0.0
    """Mix pairs of images and their labels with a share from a beta distribution with this parameter (torchvision's
    MixUp); 0 does not. With cutmix too, one of both is drawn for each step."""

    cutmix: NonNegative = 0.0
    """Paste a part of another image, with its share of the label; the size comes from a beta distribution with this
    parameter (torchvision's CutMix); 0 does not."""

    label_smoothing: Share = 0.0
    """Share of each label that is spread evenly over all classes, in [0, 1)."""

    ema: Share = 0.0
    """Decay of the moving average of the weights and buffers over the steps, such as 0.99. The averaged network is
    validated and kept; 0 averages nothing."""

    amp: StrictBool = False
    """Compute in a half precision: on CUDA, and in bfloat16 on CPUs with AVX-512 BF16 or AMX; other devices compute in
    float32."""

    amp_dtype: Literal["bfloat16", "float16"] = "bfloat16"
    """The precision of amp. float16 is for CUDA, and scales the loss so that small gradients do not vanish."""

    compile: StrictBool = False
    """Train the network through torch.compile, which takes up to minutes at first. Two CPU cores gain nothing."""

    sync_batchnorm: StrictBool = False
    """With several processes: let batch norms use the statistics of the whole step and not those of a process's
    share. It costs a message for each batch norm."""

    only: Annotated[Patterns, Parameter(consume_multiple=True)] = ()
    """Names or patterns of the modules and parameters that are trained, such as "classifier.*"; the default is all.
    Everything else stays fixed and runs in evaluation mode: its batch norms keep their statistics, its dropout is off,
    and weight decay does not act on it."""

    cache_gib: NonNegative = 4.0
    """With `only`: memory for the features in front of the trained part. Without augmentation they are computed once
    for each training and validation image. Features that need more are kept in a temporary file, if it takes at most
    half of the free space of its disk; otherwise, and with 0, they are computed again in each epoch."""

    dropout: Annotated[dict[str, Share], Parameter(converter=_parse_factors, n_tokens=-1, consume_multiple=True)] = (
        dataclasses.field(default_factory=dict)
    )
    """Rates of dropout layers while the network is trained, in [0, 1), by name or pattern, such as 0.3 for
    "classifier.2"; a later one wins. By default the network's own."""

    label_noise: Annotated[StrictFloat, Field(ge=0, le=1)] = 0.0
    """Share of the training images whose label is replaced by a random one of all classes (Zhang et al. 2017). The seed
    decides which; those of a smaller share are among those of a larger one, with the same random labels. All that is
    measured or scored uses the true labels."""

    keep: Literal["best", "last"] = "best"
    """best: keep the weights of the epoch with the highest validation accuracy. last: keep those of the last epoch,
    such as to study networks that have learnt their training images by heart."""

    until_accuracy: Annotated[StrictFloat, Field(gt=0, le=1)] | None = None
    """Stop after the first epoch in whose steps at least this share of the training images was classified correctly,
    by the labels that are trained on. By default train all epochs."""

    distill: DistillOptions | None = None
    """Learn from a teacher beside the labels; by default from the labels alone."""

    def __post_init__(self) -> None:
        """Check the rules that concern several options.

        Raises:
            InputError: Two options exclude each other.
        """
        if self.compile and self.sync_batchnorm:
            raise InputError("compile and sync_batchnorm: the code of batch norms cannot be both; leave one out")
        if self.accumulate > self.batch_size:
            raise InputError(f"accumulate={self.accumulate} is above batch_size={self.batch_size}")

    @property
    def changes_images(self) -> bool:
        """Whether an image differs from epoch to epoch, whatever the data set does."""
        return self.augment or self.mixup > 0 or self.cutmix > 0


@options
class PaperTrainOptions(TrainOptions):
    """How a network is trained by a recipe: the section `train`.

    The defaults are those with which the paper fine-tunes pruned networks: three epochs at 1e-3, 1e-4 and 1e-5, of
    steps of 512 images.
    """

    lr: Positive = 1e-3
    """Learning rate at the start, or behind the warm-up."""

    schedule: Schedule = "step"
    """step: divide the learning rate by ten after each epoch. cosine: lower it to zero over the epochs. constant: leave
    it as it is."""

    warmup: Share = 0.0
    """Share of all steps in which the learning rate rises to lr, from a hundredth of it."""

    epochs: Epochs | None = None
    """Number of epochs. By default the step schedule ends after the final learning rate: three epochs, as in the
    paper. The other schedules need a number."""

    batch_size: BatchSize = 512
    """Images of one step, over all processes together."""

    def __post_init__(self) -> None:
        """Check the rules that concern several options.

        Raises:
            InputError: Two options exclude each other, or `epochs` is missing.
        """
        super().__post_init__()
        if self.schedule != "step" and self.epochs is None:
            raise InputError(f"the {self.schedule} schedule needs epochs")
