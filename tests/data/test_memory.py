"""Images of a Python program."""

import pytest

from prune_fe.data.options import DataOptions
from prune_fe.data.registry import load_data
from prune_fe.errors import InputError


def test_images_in_memory_cannot_be_read_again() -> None:
    with pytest.raises(InputError, match="a Python program had in memory; a command needs --data PATH"):
        load_data(DataOptions(source="memory", size=8), seed=0)
