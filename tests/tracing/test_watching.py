"""A network that is watched computes what it did before, and nothing stays on it."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from prune_fe.tracing.nested import tensors_in
from prune_fe.tracing.watching import Watch, evaluating


class Recorder(Watch):
    """Notes what it sees."""

    def __init__(self) -> None:
        super().__init__()
        self.modules: list[tuple[str, int]] = []
        self.functions: list[str] = []

    def after_module(self, name: str, inputs: tuple[Any, ...], output: Any) -> Any:
        self.modules.append((name, len(inputs)))
        return None if name == "0" else output + 1

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.functions.append(getattr(func, "__name__", ""))
        return func(*args, **(kwargs or {}))


class ByKeyword(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.relu(input=x)


def test_outputs_of_modules_and_functions_are_seen_and_may_be_replaced() -> None:
    model, watch = nn.Sequential(nn.ReLU(), nn.Sigmoid()), Recorder()
    x = torch.randn(3)
    with watch.watching(dict(model.named_children())):
        watched = model(x)
    assert torch.equal(watched, x.relu().sigmoid() + 1)
    assert watch.modules == [("0", 1), ("1", 1)]
    assert watch.functions[:2] == ["relu", "sigmoid"]
    assert torch.equal(model(x), x.relu().sigmoid())


def test_inputs_by_keyword_are_inputs() -> None:
    model, watch = ByKeyword(), Recorder()
    with watch.watching(dict(model.named_children())):
        model(torch.zeros(1))
    assert watch.modules == [("relu", 1)]


def test_hooks_are_removed_when_the_body_raises() -> None:
    model = nn.Sequential(nn.ReLU())
    with pytest.raises(KeyError), Recorder().watching(dict(model.named_modules())):
        raise KeyError
    assert not any(module._forward_hooks for module in model.modules())
    assert torch.overrides._get_current_function_mode_stack() == []


def test_every_module_gets_its_mode_back() -> None:
    model = nn.Sequential(nn.ReLU(), nn.Dropout().eval())
    with pytest.raises(KeyError), evaluating(model):
        assert not any(module.training for module in model.modules())
        raise KeyError
    assert [module.training for module in model.modules()] == [True, True, False]


def test_tensors_are_found_in_nested_values() -> None:
    a, b, c = torch.zeros(3)
    assert [id(value) for value in tensors_in(([a, 1], {"x": (b, None)}, "c", c))] == [id(a), id(b), id(c)]
    assert tensors_in(torch.Size([1])) == tensors_in(None) == []
