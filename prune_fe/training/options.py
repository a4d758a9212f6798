"""The options of training: the schedule of the learning rate, the update and the batches."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from cyclopts import Parameter, Token
from pydantic import Field, StrictBool, StrictFloat

from prune_fe.errors import InputError
from prune_fe.options import BatchSize, Epochs, NonNegative, Patterns, Positive, Share, options

Schedule = Literal["step", "cosine"]


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
    """How a network is trained or fine-tuned with stochastic gradient descent.

    The defaults are those with which the paper fine-tunes pruned networks: three epochs at 1e-3, 1e-4 and 1e-5.

    """

    lr: Positive = 1e-3
    """Learning rate at the start."""

    lr_by_layer: Annotated[
        dict[str, Positive], Parameter(converter=_parse_factors, n_tokens=-1, consume_multiple=True)
    ] = dataclasses.field(default_factory=dict)
    """Factors of the learning rate for names or patterns of modules and parameters, such as 0.1 for "features.*". A
    name wins over a pattern, and an inner module's name over an outer one's; all other weights have the factor 1."""

    schedule: Schedule = "step"
    """step: divide the learning rate by ten after each epoch. cosine: lower it to zero over the epochs."""

    epochs: Epochs | None = None
    """Number of epochs. By default the step schedule ends after the final learning rate: three epochs, as in the
    paper. The cosine schedule needs a number."""

    final_lr: Positive = 1e-5
    """Lowest learning rate of the step schedule; all further epochs have it."""

    momentum: Share = 0.9
    """Momentum of the gradients, in [0, 1)."""

    weight_decay: Annotated[NonNegative, Parameter(name=["--weight-decay", "--wd"])] = 5e-4
    """L2 penalty of the weights."""

    batch_size: Annotated[BatchSize, Parameter(name=["--batch-size", "-b"])] = 512
    """Images of one step, over all processes together."""

    augment: StrictBool = False
    """Flip and shift the training images at random."""

    amp: StrictBool = False
    """Compute in bfloat16, on CUDA and on CPUs with AVX-512 BF16 or AMX; other devices compute in float32."""

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
        """Check the rule that concerns several options.

        Raises:
            InputError: The schedule is "cosine" and `epochs` is missing.
        """
        if self.schedule == "cosine" and self.epochs is None:
            raise InputError("the cosine schedule needs epochs")
