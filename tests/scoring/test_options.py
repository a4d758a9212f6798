"""The options of scoring."""

from typing import Any

import numpy as np
import pytest

from prune_fe.errors import InputError
from prune_fe.options import validate_options
from prune_fe.scoring.options import ScoreOptions
from prune_fe.scoring.score import score
from tests.scoring.sample import Counting, Net, assert_same_bits


def test_classes_are_a_number_or_indices() -> None:
    assert validate_options(ScoreOptions, None, classes=2).classes == 2
    assert validate_options(ScoreOptions, None, classes=[2, 0]).classes == (2, 0)
    assert validate_options(ScoreOptions, None, classes=range(2)).classes == (0, 1)
    assert validate_options(ScoreOptions, None, classes=np.array([1, 3])).classes == (1, 3)
    assert validate_options(ScoreOptions, None, layers={"conv": 0}.keys()).layers == ("conv",)


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"classes": 0}, "classes: input should be greater than or equal to 1 .got 0."),
        ({"classes": []}, "classes: list should have at least 1 item"),
        ({"classes": [-1]}, "classes.0: input should be greater than or equal to 0"),
        ({"samples": 0}, "samples: input should be greater than or equal to 1 .got 0."),
        ({"samples": 1.5}, "samples: input should be a valid integer"),
        ({"layers": "conv"}, "layers: input should be a valid list .got 'conv'."),
        ({"layers": []}, "layers: list should have at least 1 item"),
        ({"batch_size": 0}, "batch_size: input should be greater than or equal to 1"),
        ({"linear_scorer": "taylor"}, "linear_scorer: taylor scores linear layers, set linear: true too"),
        ({"linear": True, "linear_scorer": "tailor"}, "linear_scorer: unknown scorer 'tailor'; did you mean 'taylor'"),
        ({"sample": 3}, "sample: unknown key; did you mean 'samples'"),
    ],
)
def test_options_out_of_range_are_refused(net: Net, images: Counting, settings: dict[str, Any], text: str) -> None:
    with pytest.raises(InputError, match=text):
        score(net, images, "apoz", **settings)


def test_keywords_win_over_options(net: Net, images: Counting) -> None:
    options = ScoreOptions(classes=(0, 2), samples=4, layers=("first",))
    by_options = score(net, images, "apoz", options=options)
    assert_same_bits(by_options, score(net, images, "apoz", classes=[0, 2], samples=4, layers=["first"]))
    assert score(net, images, "apoz", options=options, samples=2).images == 4
