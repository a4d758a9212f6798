"""Verify removals on a copy of the network with random weights, before anything is cut."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from prune_fe.errors import first_line
from prune_fe.pruning.cut import Cutter, copy_model
from prune_fe.pruning.groups import GroupId
from prune_fe.pruning.masking import largest_difference
from prune_fe.tracing.dependency_graph import SetId
from prune_fe.tracing.watching import evaluating

TOLERANCE = {torch.float64: 1e-8}
"""Largest difference to the masked network that counts as equal, as a share of the largest output, by dtype."""

DEFAULT_TOLERANCE = 1e-3
"""The tolerance for dtypes of less precision."""

MIN_PIXELS = 4096
"""A verification uses so many images that they have this many pixels together ..."""

MAX_IMAGES = 16
"""... but not more than this number."""


class Verifier:
    """Checks on one copy of a network whether removing coupled sets equals masking them.

    Attributes:
        model: The copy, with random weights.
        images: (images, channels, height, width), the random images that it is run on.
    """

    def __init__(self, model: nn.Module, images: Tensor) -> None:
        self.model, self.images = model, images
        # Removals that passed: the coupled sets, and the attributes of modules that were changed with them.
        self._verified: set[tuple[frozenset[SetId], frozenset[tuple[str, str]]]] = set()

    def find_fault(self, cutter: Cutter, removed: Iterable[SetId]) -> str | None:
        """Remove coupled sets from a copy of the whole network, and compare its outputs with the masked network's.

        Args:
            cutter: The index mapping of the network.
            removed: The coupled sets.

        Returns:
            The reason why they cannot be removed together, or None if they can.
        """
        sets = frozenset(removed)
        key = sets, frozenset(cutter.code_sizes)
        if key in self._verified:
            return None
        kept, twin = cutter.channels_without(sets), copy_model(self.model)
        try:
            cutter.cut(twin, cutter.all_channels(), kept)
            difference, scale = largest_difference(self.model, twin, cutter.axes, kept, self.images)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # the network's own code may raise anything
            return f"without some of its units the network does not run: {first_line(error)}"
        # The comparison is also false, and the removal refused, where an output is NaN.
        if not difference <= TOLERANCE.get(self.images.dtype, DEFAULT_TOLERANCE) * scale:
            share = f"the outputs differ by {difference:.2g} of {scale:.2g}"
            return f"removing its units is not masking them ({share}): some code mixes channels in a way not known"
        # Faults are not remembered: they end the pruning of their group.
        self._verified.add(key)
        return None

    def find_failing_groups(
        self, cutter: Cutter, sets_of: Mapping[GroupId, Sequence[SetId]], removed: Iterable[SetId] = ()
    ) -> dict[GroupId, str]:
        """Return the groups for which removing units does not equal masking them, and the reason.

        Args:
            cutter: The index mapping of the network.
            sets_of: Group -> the coupled sets to remove from it.
            removed: Coupled sets that are removed already.

        Returns:
            Group -> reason. The other groups can be removed together.
        """
        sound = list(removed)
        if self.find_fault(cutter, [*sound, *(set_id for sets in sets_of.values() for set_id in sets)]) is None:
            return {}
        failing = {}
        # Groups are added one by one to those that passed, so that the ones that remain pass together.
        for group, sets in sets_of.items():
            reason = self.find_fault(cutter, [*sound, *sets])
            if reason is None:
                sound += sets
            else:
                failing[group] = reason
        return failing


def verification_copy(model: nn.Module, example: Tensor) -> tuple[nn.Module, Tensor]:
    """Return a copy of a network to verify removals on, and random images for it.

    Both are on the CPU and in double precision where the network's code allows it, so that a small difference cannot
    be a rounding error. The smaller the images, the more there are, so that no unit is zero on all of them.

    Args:
        model: The network.
        example: (images, channels, height, width), an input of the network.

    Returns:
        The copy, and (images, channels, height, width) random images.
    """
    pixels = max(math.prod(example.shape[2:]), 1)
    count = min(max(len(example), MIN_PIXELS // pixels), MAX_IMAGES)
    generator = torch.Generator().manual_seed(0)
    images = torch.randn((count, *example.shape[1:]), generator=generator, dtype=torch.float64)
    # Some networks run only on as many images as the example has.
    for tried in (count, len(example)):
        twin = copy_model(model)
        try:
            twin.to("cpu", torch.float64)
            with evaluating(twin), torch.no_grad():
                twin(images[:tried])
            return twin, images[:tried]
        except (RuntimeError, TypeError, ValueError, NotImplementedError):
            continue
    weight = next(model.parameters(), example)
    return copy_model(model), images[: len(example)].to(weight.device, weight.dtype)


def randomise(model: nn.Module, seed: int = 0) -> None:
    """Replace weights and statistics, in place, by random ones with which every channel affects the outputs.

    A layer that is initialised to zero, as the last norms of residual blocks are, would hide a wrong removal.

    Args:
        model: The network.
        seed: Seed of the random numbers.
    """
    generator = torch.Generator().manual_seed(seed)

    def draw_uniform(tensor: Tensor, low: float, high: float) -> None:
        tensor.copy_(torch.empty(tensor.shape).uniform_(low, high, generator=generator))

    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.endswith("bias"):
                draw_uniform(weight, -0.2, 0.2)
            elif sum(size > 1 for size in weight.shape) > 1:
                # He's initialisation, so that values neither vanish nor overflow in a deep network.
                scale = (2 * len(weight) / weight.numel()) ** 0.5
                weight.copy_(torch.empty(weight.shape).normal_(0, scale, generator=generator))
            else:
                draw_uniform(weight, 0.5, 1.5)
        for module in model.modules():
            if isinstance(module, _NormBase) and module.running_mean is not None and module.running_var is not None:
                draw_uniform(module.running_mean, -0.2, 0.2)
                draw_uniform(module.running_var, 0.5, 1.5)
