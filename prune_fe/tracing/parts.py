"""Parts into which code divides channels, such as the halves of a split or the heads of attention.

Whether parts lose equally many channels, or go as a whole, is known when the network has run.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from prune_fe.tracing.channel_ids import IdArray


def find_whole_parts(parts: IdArray) -> list[int]:
    """Return the dimensions along which the parts of channels are removed as a whole, such as those of heads.

    Args:
        parts: (parts, ..., channels) the coupled sets of channels that code divides into parts.

    Returns:
        The dimensions, without the last, along which each part is one coupled set that no other part has. Parts that
        differ along an earlier dimension, such as the queries and the values of a head, may be of different sets.
    """
    whole = []
    for dim in range(parts.ndim - 1):
        rows = parts.reshape(-1, parts.shape[dim], int(np.prod(parts.shape[dim + 1 :])))
        firsts = np.sort(rows[:, :, 0], axis=1)
        if (rows == rows[:, :, :1]).all() and (firsts[:, 1:] != firsts[:, :-1]).all():
            whole.append(dim)
    return whole


@dataclass(frozen=True)
class Parts:
    """Channels that the code of a module divides into parts.

    Attributes:
        module: The module.
        channels: (parts, ..., channels) the ids of each part.
    """

    module: str
    channels: IdArray

    def resolve(self, coupled_set: IdArray) -> list[IdArray]:
        """Return the blocks that must lose equally many channels; none where all parts are removed as a whole.

        Args:
            coupled_set: Array indexed by channel id: the coupled set of the channel.
        """
        whole = find_whole_parts(coupled_set[self.channels])
        others = [dim for dim in range(self.channels.ndim - 1) if dim not in whole]
        count = int(np.prod([self.channels.shape[dim] for dim in others]))
        blocks = np.moveaxis(self.channels, others, range(len(others))).reshape(count, -1)
        return list(blocks) if others else []

    def whole_parts(self, coupled_set: IdArray) -> list[tuple[str, IdArray]]:
        """Return the module and a channel of each part, for each dimension of parts that are removed as a whole."""
        whole = find_whole_parts(coupled_set[self.channels])
        firsts = (np.moveaxis(self.channels, dim, -1).reshape(-1, self.channels.shape[dim])[0] for dim in whole)
        return [(self.module, channels) for channels in firsts]


@dataclass(frozen=True)
class SameWidth:
    """Channels that code gives the width of its inputs.

    Attributes:
        channels: (channels,) or (heads, ..., channels), the ids of the channels.
        inputs: (channels,) the ids of the inputs.
        may_be_attribute: Whether an attribute of the module has this size too, which can change by itself.
    """

    channels: IdArray
    inputs: IdArray
    may_be_attribute: bool = False

    def blocks(self) -> list[IdArray]:
        """Return the inputs and the channels, which must lose equally many."""
        return [self.inputs, self.channels.ravel()]

    def is_certain(self, coupled_set: IdArray) -> bool:
        """Return whether the code must compute the width from its inputs.

        That is so where no attribute of the module has this size, and the channels are heads, removed as a whole.

        Args:
            coupled_set: Array indexed by channel id: the coupled set of the channel.
        """
        return not self.may_be_attribute and bool(find_whole_parts(coupled_set[self.channels]))
