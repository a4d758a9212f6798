"""What is found out about a network before it is pruned."""

import threading

import pytest
import torch
from torch import Tensor, nn

from prune_fe.errors import InputError
from prune_fe.pruning.analysis import analyse
from tests.tracing.networks import Gate

X = torch.randn(1, 3, 8, 8)


def test_an_analysis_names_layers_widths_and_groups() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 6, 1), nn.Conv2d(6, 2, 1))
    analysis = analyse(model, X)
    assert analysis.layers == ("0", "1", "2")
    assert analysis.widths == {"0": 4, "1": 6, "2": 2}
    assert [group.layers for group in analysis.groups] == [("0",), ("1",)]
    assert analysis.cutter.code_sizes == {}
    assert analysis.verifier.model is not model


class HandNorm(nn.Module):
    """A layer norm by hand behind the first convolution: every channel depends on all."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 1), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        x = (x - x.mean(1, keepdim=True)) / (x.var(1, keepdim=True) + 1e-3).sqrt()
        return self.head(torch.relu(self.second(x)).mean((2, 3)))


def test_a_group_that_fails_has_a_reason_and_the_others_do_not() -> None:
    first, second = analyse(HandNorm(), X).groups
    assert str(first.reason).startswith("removing its units is not masking them")
    assert second.reason is None


def test_what_cannot_be_analysed_is_refused() -> None:
    with pytest.raises(InputError, match=r"example is \(0, 3, 8, 8\); it must hold an image"):
        analyse(HandNorm(), X[:0])
    with pytest.raises(InputError, match="HandNorm does not run on an input of"):
        analyse(HandNorm(), torch.randn(1, 4, 8, 8))


def test_what_cannot_be_copied_is_refused_by_name() -> None:
    model = Gate()
    model.lock = threading.Lock()  # type: ignore[assignment]
    with pytest.raises(InputError, match="Gate cannot be copied: cannot pickle '_thread.lock' object"):
        analyse(model, X)


def test_layers_that_share_weights_are_one_group() -> None:
    model = Gate()
    model.conv.weight = model.stem.weight = nn.Parameter(torch.randn(8, 8, 1, 1))
    model.stem.in_channels, model.stem.kernel_size, model.stem.padding = 8, (1, 1), (0, 0)
    groups = analyse(model, torch.randn(1, 8, 8, 8)).groups
    assert {layer for group in groups for layer in group.layers if "conv" in group.layers} >= {"stem", "conv"}


@pytest.mark.filterwarnings("ignore:left out")
def test_a_network_that_runs_none_of_its_layers_is_refused() -> None:
    class Idle(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 1)

        def forward(self, x: Tensor) -> Tensor:
            return x * 2

    with pytest.raises(InputError, match="Idle runs none of its layers on the example"):
        analyse(Idle(), X)
