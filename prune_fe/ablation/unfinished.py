"""The file of unfinished runs with masked units, from which an interrupted ablation continues."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

import torch

from prune_fe.ablation.tally import Tally
from prune_fe.errors import CheckpointError
from prune_fe.records import damaged, read_npz, write_npz

SAVE_SECONDS = 30.0
"""Time between two writes, which is the most work that a killed process loses."""

COUNTS = ("images", "hits", "called", "loss")
"""The attributes of a tally that the file holds."""


class UnfinishedRuns:
    """The file of the tallies of unfinished runs; it is written whole or not at all, with a digest.

    Args:
        path: The file; None keeps nothing.
        key: Text that identifies the runs; the file of other runs is ignored.
    """

    def __init__(self, path: Path | None, key: str) -> None:
        self.path, self.key, self._last_written = path, key, time.monotonic()

    def restore(self, tallies: Sequence[Tally]) -> int:
        """Fill empty tallies with the counts in the file.

        Args:
            tallies: The tally of each run; unchanged where the file is missing or of other runs.

        Returns:
            How many parts of the runs are counted already.

        Raises:
            CheckpointError: The file is damaged.
        """
        if self.path is None or not self.path.exists():
            return 0
        advice = "delete it, and these units are masked again from the first one"
        try:
            about, arrays = read_npz(self.path)
        except CheckpointError as error:
            raise CheckpointError(f"{error}; {advice}") from error
        try:
            if about["key"] != self.key:
                return 0
            for name, array in arrays.items():
                number, attribute = name.split("/")
                setattr(tallies[int(number)], attribute, torch.from_numpy(array))
            return int(about["parts"])
        except (KeyError, ValueError, IndexError, TypeError) as error:
            raise CheckpointError(f"{damaged(self.path, error)}; {advice}") from error

    def write_if_due(self, n_parts: int, tallies: Sequence[Tally]) -> None:
        """Write the counts, if the last time was long ago.

        Args:
            n_parts: How many parts of the runs are counted.
            tallies: The tally of each run; those that no part was counted for yet are left out.

        Raises:
            EnvironmentFault: The file cannot be written; the one before is there still.
        """
        if self.path is None or time.monotonic() - self._last_written < SAVE_SECONDS:
            return
        arrays = {
            f"{number}/{attribute}": getattr(tally, attribute).numpy()
            for number, tally in enumerate(tallies)
            for attribute in COUNTS
            if tally.images.shape[1]
        }
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_npz(self.path, {"key": self.key, "parts": n_parts}, arrays)
        self._last_written = time.monotonic()
