"""Removals are tried out before anything is cut."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from prune_fe.pruning.analysis import analyse
from prune_fe.pruning.cut import Cutter, find_code_sizes
from prune_fe.pruning.groups import GroupId
from prune_fe.pruning.verify import MAX_IMAGES, Trial, Verifier, randomise, verification_copy

X = torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(3))


class Peeking(nn.Module):
    """Its code reads the first unit of `b` in a way that cannot be followed."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 1)
        self.head = nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.b(torch.relu(self.a(x)))
        gate = torch.from_numpy(x.detach().numpy()[:, :1])
        return self.head(torch.relu(self.c(x * gate)).mean((2, 3)))


class Sized(nn.Module):
    """Two attributes have the size of the first half of `conv`; only one of them is used."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 2, 1)
        self.width, self.epochs = 4, 4

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.conv(x))
        first, second = torch.split(x, [self.width, x.shape[1] - self.width], 1)
        return self.head(torch.cat([second, first], 1)).mean((2, 3))


def test_a_group_fails_by_the_units_that_are_removed_from_it() -> None:
    analysis = analyse(Peeking(), X)
    a, b, c = (group.sets for group in analysis.groups)
    verifier, cutter = analysis.verifier, analysis.cutter
    assert verifier.find_failing_groups(cutter, {GroupId(0): a[:4], GroupId(1): b[4:], GroupId(2): c[:4]}) == {}
    failing = verifier.find_failing_groups(cutter, {GroupId(0): a[:4], GroupId(1): b[:4], GroupId(2): c[:4]})
    assert list(failing) == [1]
    assert failing[GroupId(1)].startswith("removing its units is not masking them (the outputs differ by ")
    assert list(verifier.find_failing_groups(cutter, {GroupId(1): b[:1]}, removed=a[:4])) == [1]


def test_code_that_does_not_run_is_a_fault() -> None:
    analysis = analyse(Sized(), X)
    cutter = analysis.cutter.with_code_sizes({})
    fault = analysis.verifier.find_fault(cutter, analysis.groups[0].sets[:5])
    assert fault is not None
    assert fault.startswith("without some of its units the network does not run: split_with_sizes expects")


def test_a_verification_holds_for_the_sizes_that_were_changed_and_not_for_as_many_others() -> None:
    analysis = analyse(Sized(), X)
    sizes = find_code_sizes(analysis.verifier.model, analysis.cutter.graph)
    assert sizes.keys() == {("", "width"), ("", "epochs")}
    assert analysis.cutter.code_sizes.keys() == {("", "width")}
    removed = [analysis.groups[0].sets[n] for n in (0, 4)]
    width, epochs = (analysis.cutter.with_code_sizes({key: sizes[key]}) for key in (("", "width"), ("", "epochs")))
    assert analysis.verifier.find_fault(width, removed) is None
    assert analysis.verifier.find_fault(epochs, removed) is not None


def test_a_verification_holds_for_the_channels_and_not_for_others_of_the_same_number() -> None:
    analysis = analyse(Peeking(), X)
    graph, (_, b, _) = analysis.cutter.graph, (group.sets for group in analysis.groups)
    first, second = b[0], b[1]  # the code reads the first unit
    swapped = np.where(
        graph.coupled_set == first, second, np.where(graph.coupled_set == second, first, graph.coupled_set)
    )
    other = Cutter(analysis.verifier.model, replace(graph, coupled_set=swapped))
    assert analysis.verifier.find_fault(analysis.cutter, [second]) is None
    assert analysis.verifier.find_fault(other, [second]) is not None


def test_what_was_verified_is_not_run_again(monkeypatch: pytest.MonkeyPatch) -> None:
    analysis = analyse(Sized(), X)
    verifier = Verifier(Trial(analysis.verifier.model, analysis.verifier.inputs))
    removed = [analysis.groups[0].sets[n] for n in (0, 4)]
    assert verifier.find_fault(analysis.cutter, removed) is None
    monkeypatch.setattr(verifier, "_trial", None)
    assert verifier.find_fault(analysis.cutter, removed[::-1]) is None


def test_the_copy_is_in_double_precision_and_has_many_small_images() -> None:
    model = Sized().train()
    twin, images = verification_copy(model, X)
    assert next(twin.parameters()).dtype == images.dtype == torch.float64
    assert images.shape == (MAX_IMAGES, 3, 8, 8)
    assert verification_copy(model, torch.zeros(1, 3, 64, 64))[1].shape == (1, 3, 64, 64)
    assert next(model.parameters()).dtype == torch.float32
    assert model.training


class SinglePrecision(Sized):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x + torch.ones(1, dtype=x.dtype)) if x.dtype == torch.float32 else self._refuse()

    def _refuse(self) -> Tensor:
        raise TypeError("single precision only")


def test_a_network_that_needs_single_precision_is_tried_in_it() -> None:
    twin, images = verification_copy(SinglePrecision(), X)
    assert next(twin.parameters()).dtype == images.dtype == torch.float32
    assert len(images) == 1


class LargeOnly(nn.Module):
    """Large images take another way, on which the first unit is read in a way that cannot be followed."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 8, 3), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        large = x.shape[-1] > 100
        x = torch.relu(self.conv(x))
        if large:
            x = x * torch.from_numpy(x.detach().numpy()[:, :1])
        return self.head(x.mean((2, 3)))


def test_large_images_are_made_smaller_where_the_network_does_the_same_on_them() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(32, 2))
    analysis = analyse(model, torch.zeros(1, 3, 192, 128))
    assert analysis.verifier.inputs.shape == (1, 3, 96, 64)
    assert analysis.groups[0].reason is None
    assert analyse(model, torch.zeros(3, 3, 80, 80)).verifier.inputs.shape == (2, 3, 80, 80)


def test_a_network_that_does_something_else_on_small_images_is_tried_on_large_ones() -> None:
    analysis = analyse(LargeOnly(), torch.zeros(1, 3, 128, 128))
    assert analysis.verifier.inputs.shape == (1, 3, 128, 128)
    assert str(analysis.groups[0].reason).startswith("removing its units is not masking them")
    assert analyse(LargeOnly(), torch.zeros(1, 3, 96, 96)).groups[0].reason is None


def test_a_network_for_one_size_is_tried_at_that_size() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3, stride=8), nn.Flatten(), nn.Linear(4 * 16 * 16, 2))
    analysis = analyse(model, torch.zeros(1, 3, 128, 128))
    assert analysis.verifier.inputs.shape == (1, 3, 128, 128)
    assert analysis.groups[0].reason is None


def test_a_network_that_needs_single_precision_is_analysed_in_it() -> None:
    analysis = analyse(SinglePrecision(), X)
    assert analysis.verifier.inputs.dtype == torch.float32
    assert analysis.cutter.code_sizes.keys() == {("", "width")}


def test_random_weights_leave_no_channel_without_effect() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    nn.init.zeros_(model[1].weight)  # type: ignore[arg-type]
    randomise(model)
    assert all(weight.abs().min() > 0 for weight in model.parameters())
    before = model.state_dict()["1.running_var"].clone()
    randomise(model)
    assert torch.equal(model.state_dict()["1.running_var"], before)
    assert before.unique().numel() == 4


@pytest.mark.parametrize(
    ("noise", "reason"),
    [
        (torch.randn_like, "the network draws other random numbers for fewer units, so no cut can be verified"),
        (lambda x: x * float("nan"), "with random weights the network's outputs are NaN, so no cut can be verified"),
    ],
)
def test_outputs_that_cannot_be_compared_are_named(noise: Any, reason: str) -> None:
    class Noisy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 1)

        def forward(self, x: Tensor) -> Tensor:
            x = self.first(x)
            return self.last(x + noise(x)).mean((2, 3))

    (group,) = [group for group in analyse(Noisy().eval(), X).groups if group.layers == ("first",)]
    assert group.reason == reason


def test_outputs_of_random_shapes_are_named() -> None:
    class Dropping(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 1)

        def forward(self, x: Tensor) -> Tensor:
            count = int(torch.randint(1, 100, (1,)))
            x = self.first(x)
            return self.last(x + torch.randn_like(x)).flatten()[:count]

    (group,) = [group for group in analyse(Dropping().eval(), X).groups if group.layers == ("first",)]
    assert group.reason == "the network draws other random numbers for fewer units, so no cut can be verified"
