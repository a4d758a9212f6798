"""The layer that is studied where the user names none."""

import pytest
import torch
from torch import nn

from prune_fe.errors import InputError
from prune_fe.scorers import resolve_scorer
from prune_fe.studies.last_layer import choose_last_layer, find_shortcuts

ENTROPY, FILTERS = resolve_scorer("feature-entropy"), resolve_scorer("l1-filter")


class Block(nn.Module):
    """A residual block whose shortcut runs last."""

    def __init__(self, stride: int = 2) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(3, 4, 3, stride, 1), nn.Conv2d(4, 4, 3, padding=1)
        self.beside = nn.Conv2d(3, 4, 1, stride)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        main = self.two(self.one(x).relu())
        return (main + self.beside(x)).relu()


class Named(Block):
    """A block whose shortcut pools first, so that it reads a tensor of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.downsample = nn.Sequential(nn.AvgPool2d(2), nn.Conv2d(3, 4, 1))
        del self.beside

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        main = self.two(self.one(x).relu())
        return (main + self.downsample(x)).relu()


@pytest.mark.parametrize(("block", "shortcut"), [(Block(), "beside"), (Named(), "downsample.1")])
def test_a_main_path_comes_before_a_shortcut(block: nn.Module, shortcut: str) -> None:
    image = torch.rand(1, 3, 16, 16)
    assert find_shortcuts(block, image) == {shortcut}
    layer, text = choose_last_layer(block, image, [ENTROPY])
    assert layer.name == "two"
    assert text == (
        f"layer 'two': the last convolution; {shortcut!r} behind it is left out, it lies on a shortcut; --layer names "
        "another"
    )


def test_a_layer_that_one_of_the_scorers_cannot_score_is_passed_over() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.MaxPool2d(8), nn.Conv2d(4, 5, 1))
    image = torch.rand(1, 3, 16, 16)
    assert choose_last_layer(network, image, [FILTERS]) == (
        choose_last_layer(network, image, [FILTERS])[0],
        "layer '2': the last convolution",
    )
    layer, text = choose_last_layer(network, image, [FILTERS, ENTROPY])
    assert layer.name == "0"
    assert "'2' behind it is left out, feature-entropy cannot score it: maps are 2×2, a hole needs at least 4×4" in text
    with pytest.raises(InputError, match="no convolution can be scored by all scorers; of the last one: feature-entr"):
        choose_last_layer(nn.Sequential(nn.Conv2d(3, 4, 16)), image, [ENTROPY])


def test_a_shortcut_is_taken_where_there_is_nothing_else() -> None:
    class Alone(Named):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.downsample(x)

    network = Alone()
    del network.one, network.two
    assert choose_last_layer(network, torch.rand(1, 3, 16, 16), [])[0].name == "downsample.1"
