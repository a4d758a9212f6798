"""Copy networks, which the package does only here, and undo what a network's own code writes into it when it runs."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from types import CellType, FunctionType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from prune_fe.errors import InputError, first_line
from prune_fe.tracing.module_rules import is_computed_weight
from prune_fe.tracing.nested import Inputs, move, run, tensors_in
from prune_fe.tracing.shared_tensors import find_shared_tensors, set_tensor
from prune_fe.tracing.watching import evaluating
from prune_fe.tracing.weights import find_layout_fault

DICTS = (dict, OrderedDict)
"""The types of dicts that hold nothing but their entries; derived classes may hold more."""

CONTAINERS = (list, set, tuple, dict)
"""The types of containers that attributes are searched in; most attributes are none, and are left out at once."""

OF_EVERY_MODULE = vars(nn.Module()).keys()
"""The attributes of torch's own that every module has: its mode, parameters, buffers, modules and hooks."""

AttributeOf = tuple[nn.Module, str]
"""A module and the name of one of its attributes."""


def copy_model(model: nn.Module, stand_ins: Mapping[nn.Parameter, nn.Parameter] | None = None) -> nn.Module:
    """Return a deep copy of a model, without gradients.

    Feature maps and other computed tensors that the model, or an object of its hooks, keeps from its last run are
    copied without their autograd graph.

    Args:
        model: The model.
        stand_ins: Parameters of the model that are not copied -> what the copy has instead of them.

    Raises:
        InputError: The model cannot be copied; the text names the attribute.
    """
    twin = _copy(model, {id(weight): other for weight, other in (stand_ins or {}).items()})
    for weight in twin.parameters():
        weight.grad = None
    return twin


def copy_modules(model: nn.Module) -> nn.Module:
    """Return a copy of a model that has the model's own parameters and buffers: only the modules are copied.

    Raises:
        InputError: The model cannot be copied; the text names the attribute.
    """
    return _copy(model, {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())})


def _copy(model: nn.Module, memo: dict[int, Any]) -> nn.Module:
    """Return a deep copy of a model.

    Args:
        model: The model.
        memo: id() of an object -> what the copy has in its place.
    """
    _refuse_closures(model)
    # A module has ten dicts for hooks, most of them empty. deepcopy() takes most of its time for those.
    for module in model.modules():
        memo |= {id(value): type(value)() for value in vars(module).values() if type(value) in DICTS and not value}
    try:
        try:
            return copy.deepcopy(model, dict(memo))
        except RuntimeError:  # deepcopy() refuses computed tensors
            with _Detaching():
                return copy.deepcopy(model, memo)
    except Exception as error:  # modules may hold anything: locks, files, generators
        where = _find_uncopyable(model)
        advice = f"; it is {where}: remove it, or give it a __deepcopy__()" if where else ""
        raise InputError(f"{type(model).__name__} cannot be copied: {first_line(error)}{advice}") from error


def _refuse_closures(model: nn.Module) -> None:
    """Check that no function in an attribute of a model holds modules of the model: a copy of it would run those.

    Raises:
        InputError: One does, such as `model.forward = lambda x: model.head(model.body(x))`.
    """
    own: set[int] = set()
    for name, module in model.named_modules():
        for key, value in vars(module).items():
            if not isinstance(value, FunctionType) or not value.__closure__:
                continue
            own = own or {id(part) for part in model.modules()}
            if any(_cell_id(cell) in own for cell in value.__closure__):
                where = f"layer {name!r}" if name else type(model).__name__
                raise InputError(
                    f"attribute {key!r} of {where} is a function that holds modules of the model, which a copy would "
                    "share; make it a method of the class, or use functools.partial(function, module)"
                )


def _cell_id(cell: CellType) -> int | None:
    """Return id() of what a variable of a closure holds; None if it holds nothing yet."""
    try:
        return id(cell.cell_contents)
    except ValueError:
        return None


class _Detaching(TorchFunctionMode):
    """Lets deepcopy() copy the values of computed tensors, which it refuses."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is Tensor.__deepcopy__ and not args[0].is_leaf:
            tensor, memo = args
            if id(tensor) not in memo:
                memo[id(tensor)] = tensor.detach().clone()
            return memo[id(tensor)]
        return func(*args, **(kwargs or {}))


def _find_uncopyable(model: nn.Module) -> str | None:
    """Return which attribute of a model cannot be copied, such as "attribute 'lock' of layer 'conv' (a lock)"."""
    known = {id(part): part for part in (*model.modules(), *model.parameters())}
    for name, module in model.named_modules():
        where = f"layer {name!r}" if name else type(model).__name__
        for key, value in vars(module).items():
            try:
                with _Detaching():
                    copy.deepcopy(value, dict(known))
            except Exception:
                what = "one of the hooks" if key in OF_EVERY_MODULE else f"attribute {key!r}"
                return f"{what} of {where}" + ("" if key in OF_EVERY_MODULE else f" (a {type(value).__name__})")
    return None


def copy_sharing_weights(model: nn.Module) -> nn.Module:
    """Return a copy of a model whose parameters have the memory of the model's, so that it takes almost none.

    Buffers are copied. Parameters may be changed in place after `own_weights`, or under `restoring_weights`.

    Raises:
        InputError: The model cannot be copied.
    """
    # Parameters of derived classes may be more than their values, and are copied. So are those that were made under
    # torch.inference_mode(), whose memory cannot be trained.
    plain = [weight for weight in model.parameters() if type(weight) is nn.Parameter and not weight.is_inference()]
    return copy_model(model, {weight: nn.Parameter(weight.detach(), weight.requires_grad) for weight in plain})


def own_weights(twin: nn.Module, model: nn.Module) -> None:
    """Give each parameter of a copy that has the memory of a parameter of the model memory of its own, in place."""
    shared = {weight.data_ptr() for weight in model.parameters()}
    for weight in twin.parameters():
        if weight.data_ptr() in shared:
            weight.data = weight.data.clone()


def convert(model: nn.Module, *device_or_dtype: Any, **options: Any) -> nn.Module:
    """Apply `model.to(...)` in place and return the model; a tensor with several names stays one tensor.

    torch converts a buffer once for each of its names, which makes several buffers of it.

    Args:
        model: The model.
        device_or_dtype: What `nn.Module.to` takes.
        options: What `nn.Module.to` takes by name.
    """
    shared = find_shared_tensors(model)
    model.to(*device_or_dtype, **options)
    modules = dict(model.named_modules())
    for (owner, attribute), *others in shared:
        for module, name in others:
            set_tensor(modules[module], name, getattr(modules[owner], attribute))
    return model


def copy_without_last_run(model: nn.Module, inputs: Inputs) -> nn.Module:
    """Return a copy of a model without the tensors that it keeps from its last run, or the model if it keeps none.

    A feature map that a layer stores would still have the channels that pruning removes. Nothing that the model
    computes from is dropped: if the outputs of the copy differ from those of the model, the model is returned.

    Args:
        model: The model; a copy of it is run.
        inputs: Inputs of the model.
    """
    kept = (value for module in model.modules() for value in _own_attributes(module).values())
    if not any(_tensors_of(value) for value in kept):
        return model
    weight = next(model.parameters())
    try:
        twin, moved = copy_sharing_weights(model), move(inputs, weight.device, weight.dtype)
        with evaluating(twin), torch.no_grad(), restoring_weights(twin):
            with restoring_state(twin) as written:
                expected = run(twin, moved)
            stale = [
                (module, key)
                for module, key in written
                if _tensors_of(vars(module).get(key)) and not is_computed_weight(module, key)
            ]
            if not stale:
                return model
            for module, key in stale:
                value = vars(module)[key]
                vars(module)[key] = type(value)() if type(value) in (list, set, *DICTS) else None
            with restoring_state(twin):
                outputs = run(twin, moved)
    except Exception:  # the network's own code may raise anything, also because what it kept is missing
        return model
    pairs = list(zip(tensors_in(expected), tensors_in(outputs), strict=False))
    return twin if pairs and all(torch.equal(*pair) for pair in pairs) else model


@contextmanager
def restoring_state(model: nn.Module) -> Iterator[list[AttributeOf]]:
    """Undo what a model's code writes into its attributes and buffers when it runs in the block.

    Networks keep feature maps, sizes and counts of their last run. What hooks write into objects outside of the model
    is not undone.

    Yields:
        A list that is filled at the end of the block with the attributes that were given other values.
    """
    with restoring_attributes(model) as written:
        values = [value for module in model.modules() for value in _own_attributes(module).values()]
        tensors = [*model.buffers(), *(tensor for value in values for tensor in _tensors_of(value))]
        saved = [(tensor, tensor.detach().clone()) for tensor in tensors if _can_be_saved(tensor)]
        stores = [(module._buffers, dict(module._buffers)) for module in model.modules() if module._buffers]
        try:
            yield written
        finally:
            for store, before in stores:
                store.clear()
                store.update(before)
            with torch.no_grad():
                for tensor, value in saved:
                    # NaN equals nothing, and is written again.
                    if not torch.equal(tensor, value):
                        tensor.copy_(value)


def _can_be_saved(tensor: Tensor) -> bool:
    """Return whether `restoring_state` saves a tensor's values: it is dense, may be written to, and is no parameter."""
    is_weight = isinstance(tensor, nn.Parameter) or is_lazy(tensor)
    return not is_weight and not tensor.is_inference() and find_layout_fault(tensor) is None


def _tensors_of(value: Any) -> list[Tensor]:
    """Return the tensors in the value of an attribute, also inside lists, dicts, sets and tuples."""
    if not isinstance(value, (Tensor, *CONTAINERS)):
        return []
    parts = [
        value,
        *(
            part
            for container in _containers(value)
            for part in (container.values() if isinstance(container, dict) else container)
        ),
    ]
    parts += [entry for part in parts if isinstance(part, tuple) for entry in part]
    return [part for part in parts if isinstance(part, Tensor)]


@contextmanager
def restoring_attributes(model: nn.Module) -> Iterator[list[AttributeOf]]:
    """Undo what a model's code writes in the block into attributes other than parameters, buffers and modules.

    Lists, dicts and sets, also nested ones, get back the entries that they had.

    Yields:
        A list that is filled at the end of the block with the attributes that were written to.
    """
    attributes = [(module, _own_attributes(module)) for module in model.modules()]
    values = [value for _, own in attributes for value in own.values()]
    contents = {
        id(container): (container, _copy_container(container)) for value in values for container in _containers(value)
    }
    written: list[AttributeOf] = []
    try:
        yield written
    finally:
        for module, own in attributes:
            now = _own_attributes(module)
            for key in (*own, *(key for key in now if key not in own)):
                containers = [
                    contents[id(container)] for container in _containers(own.get(key)) if id(container) in contents
                ]
                is_same = key in own and key in now and now[key] is own[key]
                if not is_same or any(not _holds(container, content) for container, content in containers):
                    written.append((module, key))
            for key in now.keys() - own.keys():
                del vars(module)[key]
            vars(module).update(own)
        for container, content in contents.values():
            if not _holds(container, content):
                container.clear()
                (container.extend if isinstance(container, list) else container.update)(content)


def find_listed_tensors(model: nn.Module) -> list[tuple[Any, Any, Tensor]]:
    """Return the parameters and buffers that a model also holds in lists and dicts, beside the names that they have.

    Returns:
        The list or dict, the index or key in it, and the tensor.
    """
    own = {id(tensor) for tensor in (*model.parameters(), *model.buffers())}
    return [
        (container, key, value)
        for module in model.modules()
        for attribute in _own_attributes(module).values()
        for container in _containers(attribute)
        if not isinstance(container, set)
        for key, value in (container.items() if isinstance(container, dict) else enumerate(container))
        if id(value) in own
    ]


def _own_attributes(module: nn.Module) -> dict[str, Any]:
    return {key: value for key, value in vars(module).items() if key not in OF_EVERY_MODULE}


def _containers(value: Any) -> Iterable[Any]:
    """Return the lists, dicts and sets in a value, the value itself included, the outer ones first."""
    return _walk_containers(value) if isinstance(value, CONTAINERS) else ()


def _walk_containers(value: Any) -> Iterator[Any]:
    """Yield the lists, dicts and sets in a list, dict, set or tuple."""
    waiting, seen = [value], set[int]()
    while waiting:
        container = waiting.pop()
        if isinstance(container, tuple):
            waiting += container
        elif type(container) in (list, set, *DICTS) and id(container) not in seen:
            seen.add(id(container))
            yield container
            waiting += container.values() if isinstance(container, dict) else container


def _copy_container(container: Any) -> Any:
    return dict(container) if isinstance(container, dict) else type(container)(container)


def _holds(container: Any, content: Any) -> bool:
    """Return whether a list, dict or set holds the same objects as a copy of it that was made before."""
    if isinstance(container, dict):
        return container.keys() == content.keys() and all(value is content[key] for key, value in container.items())
    if isinstance(container, set):
        return container == content
    return len(container) == len(content) and all(one is other for one, other in zip(container, content, strict=True))


@contextmanager
def restoring_weights(model: nn.Module) -> Iterator[None]:
    """Undo what a model's code writes into its parameters in the block; only those that it writes to are copied."""
    with _SavedWeights(model) as saved:
        try:
            yield
        finally:
            for weight, value in saved.values.values():
                weight.data.copy_(value)


class _SavedWeights(TorchDispatchMode):
    """Copies a parameter of a model before an operation writes to it for the first time.

    Attributes:
        values: Address of the memory -> the parameter and its copy.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self._weights = {weight.untyped_storage().data_ptr(): weight for weight in model.parameters()}
        self.values: dict[int, tuple[Tensor, Tensor]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func._schema.is_mutable:
            for tensor in tensors_in((*args, *(kwargs or {}).values())):
                address = tensor.untyped_storage().data_ptr()
                if address in self._weights and address not in self.values:
                    weight = self._weights[address]
                    self.values[address] = weight, weight.detach().clone()
        return func(*args, **(kwargs or {}))
