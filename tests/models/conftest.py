"""A saved network."""

from pathlib import Path

import pytest

from prune_fe.models.saved import save
from prune_fe.models.small_vgg import SmallVGG


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    return save(SmallVGG(4, 3, [[4], [6]]), tmp_path / "saved", {"size": 32})
