"""What several tests of scoring use."""

import pytest

from tests.scoring.sample import Counting, Net


@pytest.fixture
def net() -> Net:
    return Net().eval()


@pytest.fixture
def images() -> Counting:
    return Counting()
