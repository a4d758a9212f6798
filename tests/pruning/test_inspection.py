"""What `prune_fe.inspect` says of a network, against what `prune` does with it and what it costs."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import prune_fe.pruning.inspection
from prune_fe import cost, find_layers, inspect, prune
from prune_fe.errors import InputError
from prune_fe.scoring.score import score
from prune_fe.tracing.layers import count_units
from tests.tracing.networks import (
    Awkward,
    Branches,
    Chunks,
    Concatenation,
    Gate,
    Grouped,
    Multiplied,
    Net,
    Parts,
    Shuffle,
    Split,
    X,
)

NETWORKS = [Awkward, Branches, Chunks, Concatenation, Gate, Grouped, Multiplied, Net, Parts, Shuffle, Split]


def rows(net: nn.Module, example: Tensor = X[:1]) -> dict[str, dict[str, Any]]:
    return {row["layer"]: row for row in inspect(net.eval(), example).to_dict("records")}


@pytest.mark.filterwarnings("ignore:left out")
@pytest.mark.parametrize("kind", NETWORKS)
def test_as_many_units_can_be_removed_as_prune_removes_at_most(kind: type[nn.Module]) -> None:
    net = kind().eval()
    found = rows(net)
    pruned = prune(net, score(net, scorer="random", example=X[:1], linear=True), 0.99, X[:1])
    for name, module in pruned.model.named_modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            assert found[name]["units"] - count_units(module) == found[name]["removable"], name
    for step in pruned.steps:
        assert all((found[layer]["reason"] != "") == (step.count == 0) for layer in step.layers)


@pytest.mark.parametrize("kind", NETWORKS)
def test_costs_add_up_and_maps_are_those_that_are_scored(kind: type[nn.Module]) -> None:
    net = kind().eval()
    table, whole = inspect(net, X[:1]), cost(net, X[:1])
    assert (table.parameters.sum(), table.macs.sum()) == (whole.parameters, whole.macs)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("warnings.warn", lambda *_, **__: None)
        layers = find_layers(net, X[:1])
    found = table.set_index("layer")
    for layer in layers:
        assert tuple(found.loc[layer.name, ["units", "map_height", "map_width"]]) == (layer.units, *layer.map_size)


def test_layers_that_a_sum_ties_name_each_other() -> None:
    found = rows(Awkward())
    assert (found["b"]["tied_to"], found["d"]["tied_to"]) == ("d", "b")
    assert found["b"]["groups"] == found["d"]["groups"] != found["c"]["groups"]
    assert found["a"]["tied_to"] == ""
    assert list(found) == ["a", "norm", "b", "c", "d", "head", "unused"]


def test_each_reason_is_said() -> None:
    found = rows(Awkward())
    assert found["head"]["reason"] == "the network's outputs"
    assert found["unused"]["reason"] == "it does not run in a forward pass"
    assert found["norm"]["reason"] == ""
    gate = rows(Gate())
    assert (gate["down"]["reason"], gate["down"]["removable"]) == ("", gate["down"]["units"] - 1)
    assert (gate["up"]["reason"], gate["up"]["tied_to"], gate["up"]["removable"]) == ("", "conv", 7)


def test_a_layer_that_runs_twice_and_a_linear_layer_within_can_be_pruned() -> None:
    class Twice(Net):
        def __init__(self) -> None:
            super().__init__(4)
            self.conv, self.hidden = nn.Conv2d(8, 8, 1), nn.Linear(8, 6)
            self.head = nn.Linear(6, 3)

        def forward(self, x: Tensor) -> Tensor:
            x = self.conv(self.conv(self.stem(x)).relu())
            return self.head(self.hidden(x.mean((2, 3))))

    found = rows(Twice())
    assert (found["conv"]["removable"], found["conv"]["tied_to"], found["conv"]["reason"]) == (7, "stem", "")
    assert found["conv"]["macs"] == 2 * 8 * 8 * 16 * 16
    assert (found["hidden"]["removable"], found["hidden"]["reason"]) == (5, "")


def test_units_of_a_grouped_convolution_go_in_steps() -> None:
    found = rows(Grouped())
    assert found["conv"]["step"] == 4  # of each part of the norm one
    assert found["stem"]["step"] == 2


def test_a_network_that_prune_refuses_is_shown_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> Any:
        raise InputError("it is too odd")

    monkeypatch.setattr(prune_fe.pruning.inspection, "analyse", refuse)
    found = rows(Concatenation())
    assert [found[name]["reason"] for name in ("stem", "conv", "last", "head")] == ["it is too odd"] * 4
    assert found["stem"]["map_height"] == 16


def test_wrong_arguments_are_refused() -> None:
    with pytest.raises(InputError, match="model is a str; it must be an nn.Module"):
        inspect("net", X)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="example is a int"):
        inspect(Net(), 5)  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"Net does not run on images \(1, 4, 8, 8\)"):
        inspect(Net(), torch.zeros(1, 4, 8, 8))


def test_the_network_is_left_as_it_was() -> None:
    net = Concatenation().train()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    inspect(net, X)
    assert net.training
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert not any(module._forward_hooks for module in net.modules())
