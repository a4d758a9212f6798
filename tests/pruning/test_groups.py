"""Groups: what is removed together, in which order, and what stays."""

import numpy as np
import torch
from torch import Tensor, nn

from prune_fe.pruning.groups import Group, find_groups, list_demands
from prune_fe.tracing.channel_tracer import build_dependency_graph
from prune_fe.tracing.dependency_graph import SetId

X = torch.randn(1, 3, 6, 6)


def groups_of(model: nn.Module) -> tuple[Group, ...]:
    layers = [name for name, module in model.named_modules() if isinstance(module, nn.Conv2d)]
    return find_groups(model.eval(), build_dependency_graph(model, X), layers)


def test_a_chain_has_a_group_for_each_layer_but_the_one_that_makes_the_outputs() -> None:
    first, second = groups_of(nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 5, 1), nn.Conv2d(5, 2, 1)))
    assert (first.layers, second.layers) == (("0",), ("1",))
    assert first.layer_units == {"0": ((0,), (1,), (2,), (3,))}
    assert (second.block_count, second.is_residual, second.reason, second.keep_one_of) == (1, False, None, ())


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.conv, self.deep = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1, groups=4)
        self.gate, self.head = nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        x = self.deep(x + self.conv(x))
        x = x * torch.sigmoid(self.gate(x.mean((2, 3))))[..., None, None]
        return self.head(x.mean((2, 3)))


def test_sums_depthwise_convolutions_and_gates_tie_units() -> None:
    (group,) = groups_of(Residual())
    assert group.layers == ("stem", "conv", "deep")
    assert group.is_residual
    assert group.other_modules == ("gate",)
    assert group.units_at([3, 1]) == dict.fromkeys(group.layers, (1, 3))


def test_a_depthwise_convolution_is_no_residual_sum() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1, groups=4), nn.Conv2d(4, 2, 1))
    (group,) = groups_of(model)
    assert (group.layers, group.is_residual) == (("0", "1"), False)


def test_blocks_of_several_constraints_are_their_intersections() -> None:
    model = nn.Sequential(nn.Conv2d(3, 12, 1), nn.GroupNorm(2, 12), nn.Conv2d(12, 12, 1, groups=4), nn.Conv2d(12, 2, 1))
    stem, grouped = groups_of(model)
    assert stem.block_ids == (0,) * 3 + (1,) * 3 + (2,) * 3 + (3,) * 3
    assert grouped.block_count == 4
    assert stem.demands == ("GroupNorm '1' with 2 groups", "Conv2d '2' with 4 groups")


def test_blocks_that_cannot_all_lose_equally_many_are_a_reason_to_stay() -> None:
    model = nn.Sequential(nn.Conv2d(3, 6, 1), nn.GroupNorm(2, 6), nn.Conv2d(6, 6, 1, groups=3), nn.Conv2d(6, 2, 1))
    assert groups_of(model)[0].reason == (
        "its units cannot keep the equal parts that are demanded by GroupNorm '1' with 2 groups and Conv2d '2' with 3 "
        "groups"
    )


def test_blocks_of_different_sizes_lose_the_same_share() -> None:
    model = nn.Sequential(nn.Conv2d(3, 12, 1), nn.GroupNorm(2, 12), nn.Conv2d(12, 12, 1, groups=3), nn.Conv2d(12, 2, 1))
    group = groups_of(model)[0]
    assert group.block_ids == (0,) * 4 + (1,) * 2 + (2,) * 2 + (3,) * 4
    assert (group.reason, group.shares, group.step) == (None, (2, 1, 1, 2), 6)
    order = group.removal_order(np.arange(12.0))
    assert (group.count_steps(order), group.take_steps(order, 0, 1)) == (2, [[0, 1], [4], [6], [8, 9]])


class Split(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.small, self.head = nn.Conv2d(3, 8, 1), nn.Conv2d(2, 3, 1), nn.Conv2d(9, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        a, b = torch.split(self.conv(x), [2, 6], 1)
        return self.head(torch.cat([self.small(a), b], 1))


def test_a_piece_of_a_split_keeps_a_unit() -> None:
    whole = groups_of(Split())[0]
    assert whole.keep_one_of == ((0, 1), (2, 3, 4, 5, 6, 7))
    assert whole.removal_order([0, 1, 2, 3, 4, 5, 6, 7]) == [[0, 2, 3, 4, 5, 6]]
    assert whole.removal_order([0, 1, 2, 3, 4, 5, 6, 7], removed=[6]) == [[6, 0, 2, 3, 4, 5]]


class OwnConv(nn.Conv2d):
    """A convolution whose forward pass is somebody else's, and cannot be followed."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.einsum("nchw,oc->nohw", x, self.weight.flatten(1))


def test_a_convolution_with_code_of_its_own_is_a_group_that_stays() -> None:
    group = groups_of(nn.Sequential(OwnConv(3, 4, 1), nn.Conv2d(4, 2, 1)))[0]
    assert group.layers == ("0",)
    assert group.reason == "layer '0' is a OwnConv, whose code is not torch's"
    assert len(group.sets) == 4


def test_what_demands_equal_parts_is_named_and_of_many_the_first() -> None:
    assert [list_demands(("a", "b", "c", "d", "e")[:count]) for count in (1, 2, 5)] == [
        "a",
        "a and b",
        "a, b, c and 2 more",
    ]
    grouped = groups_of(nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1, groups=2), nn.Conv2d(4, 2, 1)))
    assert [group.demands for group in grouped] == [("Conv2d '1' with 2 groups",)] * 2
    assert groups_of(Split())[0].demands == ()


def test_equal_scores_are_removed_by_position_and_blocks_apart() -> None:
    group = Group({"a": tuple((n,) for n in range(6))}, (0, 1, 0, 1, 0, 1), tuple(map(SetId, range(6))))
    assert group.removal_order(np.zeros(6)) == [[0, 2, 4], [1, 3, 5]]
    assert group.removal_order(np.array([3.0, 1, 1, 1, 2, 0]), removed=[0]) == [[0, 2, 4], [5, 1, 3]]
