"""The options of scoring."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

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


def test_layers_are_chosen_and_excluded_by_patterns() -> None:
    net = nn.Sequential()
    for name, layer in {"stem": nn.Conv2d(1, 2, 1), "one": nn.Conv2d(2, 3, 1), "two": nn.Conv2d(3, 4, 1)}.items():
        net.add_module(name, layer)
    net.add_module("flat", nn.Flatten())
    net.add_module("last", nn.LazyLinear(2))
    image = torch.rand(1, 1, 4, 4)
    net(image)

    def layers(**settings: Any) -> list[str]:
        return list(score(net, None, "l1-filter", example=image, **settings).keep)

    assert layers(layers=["[ot]*"]) == ["one", "two"]
    assert layers(layers=["stem", "t*"]) == ["stem", "two"]
    assert layers(layers=["*"], linear=True) == ["stem", "one", "two", "last"]
    assert layers(exclude=["t*"]) == ["stem", "one"]
    assert layers(linear=True, exclude=["s*", "last"]) == ["one", "two"]
    assert list(score(net, None, "l1-filter", exclude=["stem"]).keep) == ["one", "two"]
    with pytest.raises(InputError, match=r"layer 'x\*': no convolution is called so; there are stem, one, two"):
        layers(layers=["x*"])
    with pytest.raises(InputError, match=r"exclude 'x\*': no layer has such a name"):
        layers(exclude=["x*"])
    with pytest.raises(InputError, match=r"exclude \*: no layer is left"):
        layers(exclude=["*"])


def test_a_pattern_names_no_layer_so_that_one_that_cannot_be_scored_is_left_out() -> None:
    net = nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), nn.MaxPool2d(4), nn.Conv2d(2, 2, 1), nn.Flatten())
    batch = (torch.rand(4, 1, 8, 8), torch.arange(4) % 2)
    with pytest.warns(UserWarning, match="feature-entropy leaves out layer '2': maps are 2×2"):
        assert list(score(net, [batch], layers=["*"]).keep) == ["0"]
    for settings in ({"layers": ["0", "2"]}, {"layers": ["*"], "strict": True}, {"strict": True}):
        with pytest.raises(InputError, match="feature-entropy: layer '2': maps are 2×2"):
            score(net, [batch], **settings)
