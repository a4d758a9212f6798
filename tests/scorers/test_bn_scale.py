"""The batch norm's scale: read from the right norm, and refused where there is none."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from prune_fe.errors import InputError
from prune_fe.scorers.bn_scale import BNScale
from prune_fe.scoring.score import score

EXAMPLE = torch.zeros(1, 3, 8, 8)


class Net(nn.Module):
    """Norms that stand in another order than their convolutions run, beside an idle one and one without a norm."""

    def __init__(self, units: int = 3) -> None:
        super().__init__()
        self.norm_b, self.norm_a, self.idle = nn.BatchNorm2d(units), nn.BatchNorm2d(units), nn.BatchNorm2d(units)
        self.a, self.b = nn.Conv2d(3, units, 3), nn.Conv2d(units, units, 1)
        self.bare, self.late = nn.Conv2d(units, 2, 1), nn.Conv2d(2, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm_a(self.a(x)))
        x = torch.relu(self.norm_b(self.b(x)))
        return self.late(torch.relu(self.bare(x))).mean((2, 3))


@given(st.lists(st.floats(-9, 9), min_size=1, max_size=6), st.integers(0, 9))
@settings(max_examples=20, deadline=None)
def test_it_is_the_absolute_scale_of_the_norm_behind_the_convolution(gamma: list[float], seed: int) -> None:
    net = Net(len(gamma))
    other = np.random.default_rng(seed).standard_normal(len(gamma)).tolist()
    with torch.no_grad():
        net.norm_a.weight.copy_(torch.tensor(gamma))
        net.norm_b.weight.copy_(torch.tensor(other))
    keep = score(net, scorer="bn-scale", layers=["a", "b"], example=EXAMPLE).keep
    assert keep["a"].tolist() == [abs(np.float32(g)) for g in gamma]
    assert keep["b"].tolist() == [abs(np.float32(g)) for g in other]


def test_by_hand() -> None:
    net = Net()
    with torch.no_grad():
        net.norm_a.weight.copy_(torch.tensor([0.5, -2, 0]))
    scores = score(net, scorer="bn-scale", layers=["a"], example=EXAMPLE)
    assert scores.keep["a"].tolist() == scores.raw["bn_scale"]["a"].tolist() == [0.5, 2, 0]


def test_a_norm_before_the_convolution_is_not_its_own() -> None:
    class PreActivation(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.norm, self.second = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 1)

        def forward(self, x: Tensor) -> Tensor:
            x = self.first(x)
            return torch.cat([x, self.second(torch.relu(self.norm(x)))], dim=1)

    with pytest.raises(InputError, match="between 'first', 'second' and the maps"):
        score(PreActivation(), scorer="bn-scale", example=EXAMPLE)


def test_layers_without_a_norm_are_left_out_by_name() -> None:
    with pytest.warns(UserWarning, match="bn-scale leaves out layer 'bare': there is no batch norm .*'late'"):
        scores = score(Net(), scorer="bn-scale", example=EXAMPLE)
    assert not {"bare", "late"} & set(scores.keep)
    with pytest.raises(InputError, match="there is no batch norm between 'bare'"):
        score(Net(), scorer="bn-scale", example=EXAMPLE, strict=True)


def test_a_norm_without_a_scale_is_refused_by_name() -> None:
    net = Net()
    net.norm_b = nn.BatchNorm2d(3, affine=False)
    with pytest.raises(InputError, match=r"layer 'b': its batch norm 'norm_b' has no scale \(affine=False\)"):
        score(net, scorer="bn-scale", layers=["a", "b"], example=EXAMPLE)


def test_it_needs_an_example_and_takes_an_image_of_the_data() -> None:
    with pytest.raises(InputError, match="scorer 'bn-scale' looks at the network as it runs: pass example=, zeros"):
        score(Net(), scorer="bn-scale", layers=["a"])
    assert score(Net(), [(EXAMPLE, torch.tensor([0]))], "bn-scale", layers=["a"]).keep["a"].tolist() == [1, 1, 1]


def test_it_has_no_settings() -> None:
    with pytest.raises(InputError, match="scorer 'bn-scale' has no setting 'p'; it has none"):
        BNScale.with_settings("bn-scale", {"p": 2})
