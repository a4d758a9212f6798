"""The options of training: the schedule of the learning rate, the update and the batches."""

from __future__ import annotations

from typing import Annotated, Literal

from cyclopts import Parameter
from pydantic import StrictBool

from prune_fe.errors import InputError
from prune_fe.options import Count, NonNegative, Patterns, Positive, Share, options

Schedule = Literal["step", "cosine"]


@options
class TrainOptions:
    """How a network is trained or fine-tuned with stochastic gradient descent.

    The defaults are those with which the paper fine-tunes pruned networks: three epochs at 1e-3, 1e-4 and 1e-5.

    """

    lr: Positive = 1e-3
    """Learning rate at the start."""

    schedule: Schedule = "step"
    """step: divide the learning rate by ten after each epoch. cosine: lower it to zero over the epochs."""

    epochs: Count | None = None
    """Number of epochs. By default the step schedule ends after the final learning rate: three epochs, as in the
    paper. The cosine schedule needs a number."""

    final_lr: Positive = 1e-5
    """Lowest learning rate of the step schedule; all further epochs have it."""

    momentum: Share = 0.9
    """Momentum of the gradients, in [0, 1)."""

    weight_decay: Annotated[NonNegative, Parameter(name=["--weight-decay", "--wd"])] = 5e-4
    """L2 penalty of the weights."""

    batch_size: Annotated[Count, Parameter(name=["--batch-size", "-b"])] = 512
    """Images of one step, over all processes together."""

    augment: StrictBool = False
    """Flip and shift the training images at random."""

    amp: StrictBool = False
    """Compute in bfloat16 on CUDA."""

    only: Annotated[Patterns, Parameter(consume_multiple=True)] = ()
    """Names or patterns of the modules and parameters that are trained, such as "classifier.*"; the default is all.
    Everything else stays fixed and runs in evaluation mode: its batch norms keep their statistics, its dropout is off,
    and weight decay does not act on it."""

    cache_gib: NonNegative = 4.0
    """With `only`: memory for the features in front of the trained part. Without augmentation they are computed once
    for each training and validation image. Features that need more are kept in a temporary file, if it takes at most
    half of the free space of its disk; otherwise, and with 0, they are computed again in each epoch."""

    def __post_init__(self) -> None:
        """Check the rule that concerns several options.

        Raises:
            InputError: The schedule is "cosine" and `epochs` is missing.
        """
        if self.schedule == "cosine" and self.epochs is None:
            raise InputError("the cosine schedule needs epochs")
