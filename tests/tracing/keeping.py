"""A network that keeps tensors of its last run."""

from typing import Any

import torch
from torch import Tensor, nn


class Keeping(nn.Module):
    """A classifier that keeps its last map: in an attribute, a list and a dict, by a hook, in an object of one."""

    last: Any
    history: list[Tensor]
    cache: dict[str, Any]
    total: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 2, 1)
        self.last, self.history, self.cache, self.calls, self.note = None, [], {"deep": [()]}, 0, "x"
        self.grid = torch.ones(1)
        self.register_buffer("total", torch.zeros(()))
        self.first.register_forward_hook(lambda module, inputs, output: setattr(module, "seen", output))
        self.second.register_forward_hook(Stored().store)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        self.last, self.calls, self.height = x, self.calls + 1, x.shape[-1]
        self.history.append(x)
        self.cache["deep"] = [x]
        self.total += x.detach().sum()
        return self.second(x * self.grid).mean((2, 3))


class Stored:
    def __init__(self) -> None:
        self.maps: list[Tensor] = []

    def store(self, module: nn.Module, inputs: Any, output: Tensor) -> None:
        self.maps.append(output)


def state(model: nn.Module) -> dict[str, Any]:
    own = vars(nn.Module()).keys()
    return {
        f"{name} {key}": value for name, m in model.named_modules() for key, value in vars(m).items() if key not in own
    }
