"""The source of images that a Python program has given: they can be named in a recipe, but not be read again."""

from __future__ import annotations

from typing import NoReturn

from prune_fe.data.assemble import Reading
from prune_fe.data.options import DataOptions
from prune_fe.data.registry import IN_MEMORY
from prune_fe.errors import InputError


def load(options: DataOptions, *, reading: Reading) -> NoReturn:
    """Refuse to read the images for `prune_fe.data.registry.load_data`.

    Raises:
        InputError: Always.
    """
    raise InputError(
        f"data.source: {IN_MEMORY} stands for images that a Python program had in memory; a command needs --data PATH"
    )
