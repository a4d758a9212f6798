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
        The dimensions, without the last, along which each part is one coupled set that no other part has.
    """
    whole = []
    for dim in range(parts.ndim - 1):
        rows = np.moveaxis(parts, dim, 0).reshape(parts.shape[dim], -1)
        is_one_set = bool((rows == rows[:, :1]).all())
        if is_one_set and len(np.unique(rows[:, 0])) == len(rows):
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
        rest = np.moveaxis(self.channels, whole, range(len(whole)))[(0,) * len(whole)]
        return list(rest.reshape(-1, rest.shape[-1])) if rest.ndim > 1 else []

    def whole_parts(self, coupled_set: IdArray) -> list[tuple[str, IdArray]]:
        """Return the module and a channel of each part, for each dimension of parts that are removed as a whole."""
        whole = find_whole_parts(coupled_set[self.channels])
        firsts = (np.moveaxis(self.channels, dim, -1).reshape(-1, self.channels.shape[dim])[0] for dim in whole)
        return [(self.module, channels) for channels in firsts]


@dataclass(frozen=True)
class SameWidth:
    """Channels that code gives the width of its inputs.

    Attributes:
        heads: (heads, ..., channels) the ids of the channels.
        inputs: (channels,) the ids of the inputs.
    """

    heads: IdArray
    inputs: IdArray

    def resolve(self, coupled_set: IdArray) -> list[IdArray]:
        """Return the inputs and the channels, which must lose equally many; nothing if these are no heads.

        Args:
            coupled_set: Array indexed by channel id: the coupled set of the channel.
        """
        return [self.inputs, self.heads.ravel()] if find_whole_parts(coupled_set[self.heads]) else []
