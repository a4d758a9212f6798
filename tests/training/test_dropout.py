"""Dropout layers have other rates while a network is trained, and their own afterwards."""

import pytest
from torch import nn

from prune_fe.errors import InputError
from prune_fe.training.dropout import dropout_rates


def network():
    return nn.Sequential(nn.Dropout(0.5), nn.Linear(2, 2), nn.Sequential(nn.Dropout2d(0.4)), nn.Dropout(0.1))


def test_rates_hold_inside_the_context_only():
    net = network()
    with dropout_rates(net, {"*": 0.2, "2.*": 0.0}):
        assert (net[0].p, net[2][0].p, net[3].p) == (0.2, 0.0, 0.2)
    assert (net[0].p, net[2][0].p, net[3].p) == (0.5, 0.4, 0.1)
    with pytest.raises(RuntimeError), dropout_rates(net, {"0": 0.9}):
        raise RuntimeError
    assert net[0].p == 0.5


def test_what_names_no_dropout_layer_is_refused_and_changes_nothing():
    net = network()
    match = "dropout: no dropout layer is called '1'"
    with pytest.raises(InputError, match=match), dropout_rates(net, {"0": 0.9, "1": 0.0}):
        pass
    assert net[0].p == 0.5
    with pytest.raises(InputError, match="the network has none"), dropout_rates(nn.ReLU(), {"*": 0.0}):
        pass
