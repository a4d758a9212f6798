"""Copies of networks, also of those that keep tensors of their last run, and what is undone after a run."""

import functools
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.prune import l1_unstructured

import prune_fe
from prune_fe import load, prune, save, score
from prune_fe.errors import InputError
from prune_fe.tracing.copying import (
    convert,
    copy_model,
    copy_modules,
    copy_sharing_weights,
    copy_without_last_run,
    own_weights,
    restoring_attributes,
    restoring_state,
    restoring_weights,
)
from prune_fe.tracing.wrappers import unwrap
from tests.tracing.keeping import Keeping, state

X = torch.randn(1, 3, 6, 6)


def test_a_copy_has_no_gradients_and_is_refused_where_it_cannot_be_made() -> None:
    model = nn.Sequential(nn.Conv2d(3, 2, 1))
    model(X).sum().backward()
    assert all(weight.grad is None for weight in copy_model(model).parameters())
    assert all(weight.grad is not None for weight in model.parameters())
    model.lock = threading.Lock()  # type: ignore[assignment]
    with pytest.raises(InputError, match="Sequential cannot be copied: cannot pickle '_thread.lock' object"):
        copy_model(model)


def test_a_copy_that_shares_weights_gets_its_own() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1))
    model[3].weight = model[2].weight
    model[0].requires_grad_(False)
    twin = copy_sharing_weights(model)
    assert all(a is not b and a.data_ptr() == b.data_ptr() for a, b in zip(twin.parameters(), model.parameters()))  # noqa: B905
    assert [weight.requires_grad for weight in twin.parameters()] == [False, False, *[True] * 5]
    new = twin[0].bias = nn.Parameter(torch.zeros(4))  # type: ignore[index]
    own_weights(twin, model)
    pointers = {weight.data_ptr() for weight in model.parameters()}
    assert pointers.isdisjoint(weight.data_ptr() for weight in twin.parameters())
    assert twin[0].bias is new  # type: ignore[index]
    assert twin[3].weight is twin[2].weight  # type: ignore[index]
    with torch.no_grad():
        for tensor in (*twin.parameters(), *twin.buffers()):
            tensor.fill_(7)
    assert not any((tensor == 7).any() for tensor in (*model.parameters(), *model.buffers()))


def test_a_network_that_keeps_computed_tensors_is_copied_and_left_as_it_was() -> None:
    model = Keeping()
    model(X).sum().backward()
    before = state(model)
    for copied in (copy_model(model), copy_sharing_weights(model)):
        twin: Any = copied
        assert torch.equal(twin.last, model.last)
        assert twin.last.is_leaf
        assert twin.last is twin.history[0] is twin.cache["deep"][0] is twin.first.seen, "one tensor stays one"
        assert torch.equal(twin(X), model(X))
        assert twin.calls == 2
        model.history.pop()
        model.calls, model.last, model.first.seen = 1, before[" last"], before["first seen"]
        model.cache["deep"] = [model.last]
    assert model.last.grad_fn is not None


@pytest.mark.parametrize(
    ("spoil", "text"),
    [
        (lambda m: setattr(m.first, "lock", threading.Lock()), r"attribute 'lock' of layer 'first' \(a lock\)"),
        (lambda m: setattr(m, "images", iter(i for i in [1])), r"attribute 'images' of Keeping \(a generator\)"),
        (lambda m: m.cache.update(x=threading.Lock()), r"attribute 'cache' of Keeping \(a dict\)"),
        (lambda m: m.second.register_forward_hook(Locked()), "one of the hooks of layer 'second'"),
    ],
)
def test_an_attribute_that_cannot_be_copied_is_named(spoil: Callable[[Any], Any], text: str) -> None:
    model = Keeping()
    model(X)
    spoil(model)
    with pytest.raises(
        InputError, match=rf"Keeping cannot be copied: cannot pickle .*; it is {text}: remove it"
    ) as caught:
        copy_model(model)
    assert "\n" not in str(caught.value)


class Locked:
    def __init__(self) -> None:
        self.lock = threading.Lock()

    def __call__(self, *_: Any) -> None: ...


def test_a_copy_of_the_modules_has_the_tensors_of_the_network() -> None:
    model = Keeping()
    model(X).sum().backward()
    twin: Any = copy_modules(model)
    assert twin.first is not model.first
    assert twin.first.weight is model.first.weight
    assert twin.total is model.total
    assert model.first.weight.grad is not None
    assert twin.last.is_leaf


def test_what_a_run_writes_into_a_network_is_undone() -> None:
    model: Any = Keeping()
    model(X)
    before, kept = state(model), (list(model.history), model.cache["deep"], model.total.clone())
    with restoring_state(model) as written:
        model(X)
        model.grid.mul_(3)
        model.total = torch.ones(())
        model.added = 3
        del model.note
    assert {key for _, key in written} == {"last", "calls", "history", "cache", "seen", "added", "note"}
    after = state(model)
    assert before.keys() == after.keys()
    assert all(before[key] is after[key] for key in before)
    assert (len(model.history), model.history[0] is kept[0][0], model.cache["deep"] is kept[1]) == (1, True, True)
    assert torch.equal(model.total, kept[2])
    assert model.grid == 1


def test_an_error_in_the_run_does_not_keep_it_from_being_undone() -> None:
    model = Keeping()
    with pytest.raises(RuntimeError), restoring_attributes(model) as written:
        model(torch.zeros(1, 4, 2, 2))
    assert written == []
    with pytest.raises(KeyError), restoring_attributes(model) as written:
        model.last = X
        raise KeyError
    assert [key for _, key in written] == ["last"]
    assert model.last is None


@pytest.mark.parametrize("inputs", [X, (X.double(),), {"x": X}])
def test_a_copy_forgets_the_maps_of_the_last_run_and_nothing_that_it_computes_from(inputs: Any) -> None:
    model = Keeping().eval()
    model(X)
    twin: Any = copy_without_last_run(model, inputs)
    assert (twin.last, twin.history, twin.cache, twin.first.seen) == (None, [], {}, None)
    assert (twin.grid, twin.calls, twin.note) == (1, 1, "x")
    assert model.last is not None
    assert twin.first.weight.data_ptr() == model.first.weight.data_ptr()

    class Recurrent(Keeping):
        def forward(self, x: Tensor) -> Tensor:
            self.grid = self.grid / 2
            return super().forward(x)

    stateful = Recurrent().eval()
    stateful(X)
    assert copy_without_last_run(stateful, X) is stateful, "without what it kept, it does not run"
    plain = nn.Sequential(nn.Conv2d(3, 2, 1))
    assert copy_without_last_run(plain, {"nothing": "is run"}) is plain


def test_tensors_with_several_names_stay_one_when_they_are_converted() -> None:
    model = nn.Sequential(nn.BatchNorm2d(3), nn.BatchNorm2d(3))
    model[1].running_mean, model[1].weight = model[0].running_mean, model[0].weight
    torn: Any = copy_model(model).double()
    assert torn[1].running_mean is not torn[0].running_mean
    twin: Any = convert(copy_model(model), "cpu", torch.float64)
    assert twin[1].running_mean is twin[0].running_mean
    assert twin[1].weight is twin[0].weight
    assert twin[1].running_var is not twin[0].running_var
    assert twin[1].running_mean.dtype == torch.float64


def test_what_a_network_writes_into_its_weights_is_undone() -> None:
    model: Any = nn.Sequential(nn.Conv2d(3, 2, 1))
    before = model[0].weight.detach().clone()
    with torch.no_grad(), restoring_weights(model):
        model[0].weight.mul_(2)
        assert not torch.equal(model[0].weight, before)
    assert torch.equal(model[0].weight, before)


def test_measuring_and_inspecting_leave_what_a_network_keeps_of_its_last_run() -> None:
    model = Keeping()
    model(X).sum().backward()
    before, total = state(model), model.total.clone()
    prune_fe.cost(model, X)
    prune_fe.inspect(model, X)
    model.training_step = lambda: None  # type: ignore[assignment]
    before[" training_step"] = model.training_step
    assert unwrap(model, X) is model
    assert state(model).keys() == before.keys()
    assert all(before[key] is value for key, value in state(model).items())
    assert (len(model.history), torch.equal(model.total, total)) == (1, True)


@pytest.mark.filterwarnings("ignore:.*weight_norm")
@pytest.mark.parametrize(
    "compute",
    [torch.nn.utils.weight_norm, torch.nn.utils.spectral_norm, lambda layer: l1_unstructured(layer, "weight", 0.3)],
)
def test_weights_that_hooks_compute_are_not_forgotten(compute: Callable[[Any], Any], tmp_path: Path) -> None:
    def build() -> Any:
        torch.manual_seed(0)
        parts = [nn.Conv2d(3, 8, 3), nn.Conv2d(8, 6, 3), nn.Conv2d(6, 6, 3)]
        compute(parts[2])
        return nn.Sequential(*parts, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 2)).eval()

    model, x = build(), torch.randn(2, 3, 9, 9)
    pruned = prune(model, score(model, scorer="l1-filter"), 0.5, x).model
    loaded = load(save(pruned, tmp_path / "saved"), build())
    assert pruned.get_submodule("0").out_channels == 4
    assert torch.equal(loaded(x), pruned(x))


def test_functions_that_hold_modules_of_the_network_are_refused_by_name() -> None:
    model: Any = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 6, 3))
    model.scale = lambda x, factor=2.0: x * factor  # holds nothing
    copy_model(model)
    model.forward = lambda x: model[1](model[0](x).relu())
    with pytest.raises(InputError, match="attribute 'forward' of Sequential is a function that holds modules"):
        prune(model, score(model, scorer="l1-filter"), 0.5, X)
    model.forward = functools.partial(lambda network, x: network[1](network[0](x).relu()), model)
    assert prune(model, score(model, scorer="l1-filter"), 0.5, X).steps[0].count == 4
