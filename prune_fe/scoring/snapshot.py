"""The file of an unfinished collection, from which an interrupted scoring continues."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from prune_fe.distributed import rank
from prune_fe.errors import CheckpointError
from prune_fe.records import read_sealed, write_sealed
from prune_fe.scorers.base import Rows
from prune_fe.scorers.counts import Counts

if TYPE_CHECKING:
    from prune_fe.scoring.collection import Collection

PREFIX = ".unfinished-"
"""What the names of all these files begin with."""


class Snapshot:
    """The file of one process's unfinished collection.

    It is a SHA-256 digest followed by what torch.save writes, so that a damaged file is recognised.

    Args:
        folder: Folder of the file `.unfinished-<rank>`.
        key: Text that identifies the work; the snapshot of other work is ignored.
    """

    def __init__(self, folder: Path, key: str) -> None:
        self.path, self.key = folder / f"{PREFIX}{rank()}", key

    def write(self, collection: Collection) -> None:
        """Write the sums, counts and times of `collection`, whole or not at all."""
        content = {
            "key": self.key,
            "totals": {
                label: {
                    name: {key: _pack(value) for key, value in running.total().items()}
                    for name, running in layers.items()
                }
                for label, layers in collection.totals.items()
            },
            "counts": collection.counts,
            "seconds": collection.seconds,
            "meters": {label: (meter.seconds, meter.peak_bytes) for label, meter in collection.meters.items()},
        }
        buffer = io.BytesIO()
        torch.save(content, buffer)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_sealed(self.path, buffer.getvalue())

    def restore(self, collection: Collection) -> bool:
        """Add the content of the file to an empty collection.

        Args:
            collection: The collection; it is unchanged if the result is False.

        Returns:
            Whether it was added: False where the file is missing, damaged or belongs to other work.
        """
        if not self.path.is_file():
            return False
        try:
            content = read_sealed(self.path)
        except CheckpointError:
            return False
        # weights_only: the file is data, and loading it must not run code.
        saved = torch.load(io.BytesIO(content), weights_only=True)
        if saved["key"] != self.key:
            return False
        collection.counts, collection.seconds = saved["counts"], saved["seconds"]
        for label, layers in saved["totals"].items():
            collection.meters[label].seconds, collection.meters[label].peak_bytes = saved["meters"][label]
            for name, sums in layers.items():
                collection.totals[label][name].add({key: _unpack(value) for key, value in sums.items()})
        return True

    def remove(self) -> None:
        """Delete the file, if there is one."""
        self.path.unlink(missing_ok=True)


def _pack(value: Tensor | Rows | Counts) -> Any:
    """Return a measurement as tensors, which are all that torch.load reads with weights_only."""
    if isinstance(value, Rows):
        return {"rows": value.values, "most": value.max_rows}
    if isinstance(value, Counts):
        counted = value.counted()
        indices = torch.from_numpy(np.stack(counted.indices))
        return {"indices": indices, "values": torch.from_numpy(counted.counts), "shape": counted.shape}
    return value


def _unpack(value: Any) -> Tensor | Rows | Counts:
    """Return the measurement that `_pack` turned into tensors."""
    if not isinstance(value, dict):
        return value
    if "rows" in value:
        return Rows(value["rows"], value["most"])
    return Counts.from_indices(value["shape"], value["indices"].numpy(), value["values"].numpy())
