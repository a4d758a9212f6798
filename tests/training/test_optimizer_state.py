"""An optimizer of the user's own after pruning: the same steps as for the masked network."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from prune_fe.errors import InputError
from prune_fe.training.optimizer_state import carry_over
from tests.training.helpers import by_hand, pictures, without_one_and_three

OPTIMIZERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "SGD": lambda groups: torch.optim.SGD(groups, lr=0.01, momentum=0.9, nesterov=True),
    "Adam": lambda groups: torch.optim.Adam(groups, lr=0.01, amsgrad=True),
    "AdamW": lambda groups: torch.optim.AdamW(groups, lr=0.01),
    "RMSprop": lambda groups: torch.optim.RMSprop(groups, lr=0.01, momentum=0.5, centered=True),
}


def two_groups(model: nn.Module) -> list[dict[str, Any]]:
    named = list(model.named_parameters())
    biases = [weight for name, weight in named if name.endswith("bias")]
    return [
        {"params": [weight for name, weight in named if not name.endswith("bias")], "weight_decay": 0.1},
        {"params": biases, "lr": 0.05},
    ]


def take_step(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    images, labels = pictures(12, classes=2).tensors
    optimizer.zero_grad()
    nn.functional.cross_entropy(model(images), labels).backward()
    optimizer.step()


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_an_optimizer_carried_over_goes_on_as_that_of_the_masked_network(kind: str) -> None:
    model, _ = by_hand()
    optimizer = OPTIMIZERS[kind](two_groups(model))
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
    for _ in range(3):
        take_step(model, optimizer)
        schedule.step()
    model.get_parameter("2.weight").data[:, [1, 3]] = 0
    pruned = without_one_and_three(model)
    before = copy.deepcopy(optimizer.state_dict())
    new = carry_over(optimizer, model, pruned)

    assert type(new) is type(optimizer)
    names = {id(weight): name for name, weight in pruned.model.named_parameters()}
    assert [[names[id(w)] for w in group["params"]] for group in new.param_groups] == [
        ["0.weight", "2.weight"],
        ["2.bias"],
    ]
    for group, old in zip(new.param_groups, optimizer.param_groups, strict=True):
        assert {key: value for key, value in group.items() if key != "params"} == {
            key: value for key, value in old.items() if key != "params"
        }
    assert new.param_groups[1]["lr"] == pytest.approx(0.05 / 8)
    cut = next(value for key, value in new.state[pruned.model.get_parameter("0.weight")].items() if key != "step")
    assert cut.shape == (2, 1, 1, 1)

    take_step(pruned.model, new)
    torch.testing.assert_close(optimizer.state_dict(), before, rtol=0, atol=0)
    take_step(model, optimizer)
    torch.testing.assert_close(dict(pruned.model.named_parameters()), pruned.surviving(dict(model.named_parameters())))
    take_step(pruned.model, new)  # the old schedule does not reach it


def test_an_optimizer_that_has_not_stepped_is_carried_over() -> None:
    model, _ = by_hand()
    pruned = without_one_and_three(model)
    new = carry_over(torch.optim.Adam([model.get_parameter("2.bias")], lr=0.5), model, pruned)
    assert [group["params"] for group in new.param_groups] == [[pruned.model.get_parameter("2.bias")]]
    assert not new.state


def test_what_cannot_be_carried_over_is_refused_by_name() -> None:
    model, _ = by_hand()
    pruned = without_one_and_three(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=1, momentum=0.9)
    stranger = torch.optim.SGD([nn.Parameter(torch.ones(7))], lr=1)
    with pytest.raises(InputError, match=r"optimizer: this Sequential does not have its parameter of shape \(7,\)"):
        carry_over(stranger, model, pruned)
    with pytest.raises(InputError, match="layer '0': 2 units, the model that was pruned had 4"):
        carry_over(optimizer, pruned.model, pruned)
    optimizer.state[model.get_parameter("0.weight")]["rows"] = torch.ones(4)
    with pytest.raises(
        InputError, match=r"'rows' of parameter '0.weight' has shape \(4,\), the parameter \(4, 1, 1, 1"
    ):
        carry_over(optimizer, model, pruned)
    optimizer.state.clear()
    pruned.model.get_submodule("2").bias = nn.Parameter(torch.ones(5))
    with pytest.raises(InputError, match=r"parameter '2.bias': \(2,\) remains of \(2,\), the pruned model has \(5,\)"):
        carry_over(optimizer, model, pruned)
    pruned.model.add_module("6", nn.Linear(1, 1))
    with pytest.raises(InputError, match="parameter '6.bias': only the pruned model has it"):
        carry_over(optimizer, model, pruned)
