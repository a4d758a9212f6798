"""The tensors of a network, read into it whatever its layers' sizes are."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from safetensors.torch import load as load_safetensors
from torch import Tensor, nn

from prune_fe.errors import CheckpointError, InputError
from prune_fe.models.manifest import WEIGHTS
from prune_fe.tracing.shared_tensors import (
    all_tensor_names,
    find_shared_tensors,
    full_name,
    named_tensors,
    set_tensor,
)


def tensors_to_save(model: nn.Module) -> dict[str, Tensor]:
    """Return the tensors of `named_tensors` on the CPU, contiguous and without shared memory, as safetensors needs.

    Raises:
        InputError: The state dict holds something else than parameters and buffers.
    """
    every = {*dict(model.named_parameters(remove_duplicate=False)), *dict(model.named_buffers(remove_duplicate=False))}
    if odd := [key for key in model.state_dict() if key not in every]:
        raise InputError(f"{type(model).__name__} keeps {odd[0]!r} in its state dict, no tensor; it cannot be saved")
    storages: set[int] = set()
    tensors = {}
    for key, value in named_tensors(model).items():
        address = value.untyped_storage().data_ptr()
        tensors[key] = (value.detach().clone() if address in storages else value.detach()).cpu().contiguous()
        storages.add(address)
    return tensors


def parse_tensors(content: bytes, where: object) -> dict[str, Tensor]:
    """Return the tensors of a safetensors file.

    Args:
        content: The content of the file.
        where: The folder to name in an error.

    Raises:
        CheckpointError: It is no safetensors file.
    """
    try:
        return load_safetensors(content)
    except Exception as error:
        raise CheckpointError(f"{where}/{WEIGHTS}: not a safetensors file ({error})") from error


def tied_names(model: nn.Module) -> dict[str, str]:
    """Map each further name of a tied parameter or buffer to its first name, the one in `named_tensors`."""
    return {full_name(name): full_name(first) for first, *others in find_shared_tensors(model) for name in others}


def set_tensors(
    model: nn.Module, tensors: Mapping[str, Tensor], where: object, tied: Mapping[str, str] | None = None
) -> None:
    """Replace every parameter and buffer of a network; sizes may change, and shared ones stay shared.

    Args:
        model: The network.
        tensors: The new tensors, by the names of `named_tensors`.
        where: The folder to name in an error.
        tied: The result of `tied_names` for the saved network. Its names share a tensor afterwards, and names with a
            tensor of their own in `tensors` share none.

    Raises:
        CheckpointError: A tensor is missing, unknown, or of another kind or number of dimensions.
    """
    _tie(model, tied or {}, tensors.keys(), where)
    expected = named_tensors(model)
    if odd := sorted(set(tensors) ^ set(expected)):
        whose = "the file" if odd[0] in tensors else "the model"
        raise CheckpointError(f"{where}: {odd[0]!r} is only in {whose}; another architecture")
    new: dict[int, Any] = {}
    for key, old in expected.items():
        tensor = tensors[key]
        if tensor.ndim != old.ndim or tensor.is_floating_point() != old.is_floating_point():
            got, wanted = (f"{value.dtype} {tuple(value.shape)}" for value in (tensor, old))
            raise CheckpointError(f"{where}: {key!r} is {got}, the model has {wanted}")
        new[id(old)] = nn.Parameter(tensor, tensor.is_floating_point()) if isinstance(old, nn.Parameter) else tensor
    for module in model.modules():
        for store in (module._parameters, module._buffers):
            store.update({name: new[id(old)] for name, old in store.items() if old is not None})


def _tie(model: nn.Module, tied: Mapping[str, str], given: Collection[str], where: object) -> None:
    """Let names of a network share a tensor if they do so in a file, and give others a tensor of their own.

    Args:
        model: The network.
        tied: Further name of a tensor -> its first name.
        given: The names that have a tensor in the file.
        where: The folder to name in an error.
    """
    places = {full_name(name): name for name, _ in all_tensor_names(model)}
    modules = dict(model.named_modules())
    for name, first in tied.items():
        if name not in places or first not in places:
            missing = name if name not in places else first
            raise CheckpointError(
                f"{where}: {name!r} and {first!r} are one tensor, but the model lacks {missing!r}; another architecture"
            )
        owner, attribute = places[first]
        set_tensor(modules[places[name][0]], places[name][1], getattr(modules[owner], attribute))
    for _, *others in find_shared_tensors(model):
        for owner, attribute in others:
            name = full_name((owner, attribute))
            if name in given and name not in tied:
                old = getattr(modules[owner], attribute)
                new = nn.Parameter(old.detach().clone()) if isinstance(old, nn.Parameter) else old.clone()
                set_tensor(modules[owner], attribute, new)


def check_channel_counts(model: nn.Module, where: object) -> None:
    """Check that the channel counts of torch's own layers are those of their weights.

    Args:
        model: The network.
        where: What to name in an error.

    Raises:
        CheckpointError: A layer states other counts than its weight has.
    """
    for name, module in model.named_modules():
        stated: tuple[Any, ...] = ()
        actual: tuple[Any, ...] = ()
        if type(module) in (nn.Conv1d, nn.Conv2d, nn.Conv3d):
            stated = (module.out_channels, module.in_channels, module.groups)
            actual = (len(module.weight), module.weight.shape[1] * module.groups, max(module.groups, 1))
        elif type(module) is nn.Linear:
            stated, actual = (module.out_features, module.in_features), tuple(module.weight.shape)
        elif type(module) in (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d) and module.weight is not None:
            stated, actual = (module.num_features,), tuple(module.weight.shape)
        if stated != actual:
            raise CheckpointError(f"{where}: module {name!r} says {stated} channels, its weight has {actual}")
