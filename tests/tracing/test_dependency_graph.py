"""What is learned about channels becomes sets that can only be removed together."""

import numpy as np
import pytest
import torch
from torch import nn

from prune_fe.tracing.channel_ids import expand_along
from prune_fe.tracing.dependency_graph import OUTPUT, GraphBuilder


@pytest.fixture
def builder() -> GraphBuilder:
    return GraphBuilder({"": nn.Identity(), "conv": nn.Conv2d(1, 1, 1), "linear": nn.Linear(1, 1)}, {})


def test_an_axis_gets_its_ids_once(builder: GraphBuilder) -> None:
    first, second = builder.axis("a", "out", 3), builder.axis("b", "out", 2)
    assert (first.channels.tolist(), second.channels.tolist()) == ([1, 2, 3], [4, 5])  # 0 is no channel
    assert builder.axis("a", "out", 3) is first


def test_coupled_channels_are_one_set(builder: GraphBuilder) -> None:
    a, b, c = (builder.axis(name, "out", 3).channels for name in "abc")
    builder.couple(a, b)
    builder.couple(b[:1], c[1:2])
    sets = builder.build(1).coupled_set
    assert sets[a].tolist() == sets[b].tolist()
    assert sets[c[1]] == sets[a[0]]
    assert len(set(sets.tolist())) == 1 + 3 + 2


def test_what_meets_no_channel_is_fixed(builder: GraphBuilder) -> None:
    channels = builder.axis("a", "out", 3).channels
    builder.couple(np.array([0, 0]), channels[:2])
    graph = builder.build(1)
    assert set(graph.fixed_sets) == set(graph.coupled_set[channels[:2]].tolist())
    assert set(graph.fixed_sets.values()) == {"padded with zeros, or added to values that no layer with units gave"}


def test_the_first_reason_stays_unless_the_channel_is_an_output(builder: GraphBuilder) -> None:
    channels = builder.axis("a", "out", 2).channels
    ids = expand_along(channels, 0, (2,))
    for tensor, reason in ((ids, "first"), (ids, "second"), (None, "none")):
        builder.fix(tensor, reason)
    other = builder.axis("b", "out", 1).channels
    builder.couple(channels[:1], other)
    builder.fix(expand_along(other, 0, (1,)), OUTPUT)
    graph = builder.build(1)
    assert [graph.fixed_sets[s] for s in graph.coupled_set[channels].tolist()] == [OUTPUT, "first"]


def test_channels_are_connected_to_the_axis_that_receives_them(builder: GraphBuilder) -> None:
    channels, axis = builder.axis("a", "out", 3).channels, builder.axis("b", "in", 3)
    builder.connect(axis, expand_along(channels, 1, (1, 3, 2)), 1, "wrong dimension")
    builder.connect(builder.axis("c", "in", 2), expand_along(channels, 1, (1, 3, 2)), 2)
    graph = builder.build(1)
    assert graph.coupled_set[channels].tolist() == graph.coupled_set[axis.channels].tolist()
    assert graph.fixed_sets == {}
    builder.connect(builder.axis("c", "in", 2), expand_along(channels, 1, (1, 3, 2)), 2, "wrong dimension")
    assert set(builder.build(1).fixed_sets.values()) == {"wrong dimension"}


def test_blocks_are_balanced_and_numbers_are_counted_unless_they_hold_no_channel(builder: GraphBuilder) -> None:
    channels = builder.axis("a", "out", 4, blocks=2).channels
    builder.balance([np.array([0, 1]), np.array([2, 3])], "a split")
    builder.count(channels, np.array([0, 1]))
    graph = builder.build(1)
    assert [[block.tolist() for block in blocks] for blocks in graph.balance_constraints] == [
        [graph.coupled_set[part].tolist() for part in (channels[:2], channels[2:])]
    ]
    ((module, sets),) = graph.counted_sets
    assert (module, sets.tolist()) == ("", graph.coupled_set[channels].tolist())


def test_positions_are_those_of_one_image(builder: GraphBuilder) -> None:
    for module in ("conv", "linear", "conv"):
        builder.apply_at(module, 6)
    assert builder.build(images=2).output_positions == {"conv": 12, "linear": 3}


def test_a_parameter_that_code_uses_has_channels_if_one_dimension_is_wide() -> None:
    scale, table, order = nn.Parameter(torch.ones(1, 3, 1)), nn.Parameter(torch.ones(2, 3)), torch.arange(3)
    own = {scale: ("net", "scale"), table: ("net", "table"), order: ("net", "order")}
    builder = GraphBuilder({"": nn.Identity()}, own)
    assert [builder.has_ids(value) for value in (scale, table, order, torch.ones(3))] == [True, False, False, False]
    assert builder.own_axis(scale, 3, 1).side == "scale"
    assert builder.ids[scale].shape == scale.shape


def test_messages_name_the_innermost_module(builder: GraphBuilder) -> None:
    assert builder.location == "the network's code"
    builder.running.append("layer1.0")
    assert builder.location == "'layer1.0'"
