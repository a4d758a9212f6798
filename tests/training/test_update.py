"""The optimizer by its name and its groups; tests/training/test_custom.py has those of one's own."""

import pytest
import torch

from prune_fe.errors import InputError
from prune_fe.training.custom import Custom
from prune_fe.training.options import TrainOptions
from prune_fe.training.part import select_part
from prune_fe.training.update import find_optimizer, make_update
from tests.training.helpers import small


def test_an_optimizer_is_found_in_any_case() -> None:
    assert find_optimizer("adamw") is find_optimizer("AdamW") is torch.optim.AdamW
    assert find_optimizer("RMSprop") is torch.optim.RMSprop
    with pytest.raises(InputError, match="unknown optimizer 'Optimizer'; allowed are adadelta"):
        find_optimizer("Optimizer")


@pytest.mark.parametrize("name", ["sgd", "adam", "adamw", "nadam", "radam", "rmsprop", "adagrad", "adamax", "asgd"])
def test_the_groups_have_their_factors_and_the_options_they_take(name: str) -> None:
    model = small()
    options = TrainOptions(opt=name, lr=0.5, momentum=0.8, weight_decay=0.1, lr_by_layer={"classifier": 0.25})
    with select_part(model) as part:
        update = make_update(part, options, Custom(), {})
    assert type(update.optimizer) is find_optimizer(name)
    update.set_rate(2.0)
    assert [group["lr"] for group in update.optimizer.param_groups] == [2.0, 0.5]
    assert update.optimizer.param_groups[0]["weight_decay"] == 0.1
    assert update.optimizer.param_groups[0].get("momentum", 0.8) == 0.8
    assert sum(len(group["params"]) for group in update.optimizer.param_groups) == len(list(model.parameters()))


def test_a_rate_that_is_a_tensor_stays_one() -> None:
    model = small()
    optimizer = torch.optim.AdamW(model.parameters(), lr=torch.tensor(0.5))
    with select_part(model) as part:
        update = make_update(part, TrainOptions(lr=1.0), Custom(optimizer=optimizer), {})
    update.set_rate(0.5)
    assert isinstance(optimizer.param_groups[0]["lr"], torch.Tensor)
    assert update.rate == 0.25
