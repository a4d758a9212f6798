"""Continue an optimizer of the user's own after its network was pruned."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from prune_fe.errors import InputError
from prune_fe.pruning.records import Pruned


def carry_over(optimizer: torch.optim.Optimizer, model: nn.Module, pruned: Pruned) -> torch.optim.Optimizer:
    """Return an optimizer for the pruned network that continues one of the original network.

    Class, parameter groups, settings and learning rates are those of `optimizer`. State that has the shape of a weight
    (momentum, Adam's moments) is cut as the weight was; other state is copied. A learning rate scheduler refers to the
    old optimizer and must be created anew.

    Args:
        optimizer: The optimizer of `model`; it is not changed.
        model: The network that was pruned.
        pruned: What `prune` returned for it.

    Raises:
        InputError: A parameter is in only one of the networks, the widths of `model` are not those that were pruned, or
            a state is neither a number nor of the shape of its weight.
    """
    old, new = dict(model.named_parameters()), dict(pruned.model.named_parameters())
    if unmatched := sorted(old.keys() ^ new.keys()):
        side = "pruned" if unmatched[0] in new else "original"
        raise InputError(f"parameter {unmatched[0]!r}: only the {side} model has it")
    _refuse_other_widths(model, pruned)
    names = {id(weight): name for name, weight in old.items()}
    replacements: dict[int, Tensor] = {}  # Object id -> what copy.deepcopy puts in the object's place.
    for weight in (weight for group in optimizer.param_groups for weight in group["params"]):
        name = names.get(id(weight))
        if name is None:
            shape = tuple(weight.shape)
            raise InputError(f"optimizer: this {type(model).__name__} does not have its parameter of shape {shape}")
        replacements[id(weight)] = new[name]
        replacements |= _cut_state(optimizer, name, weight, new[name], pruned)
    return copy.deepcopy(optimizer, replacements)


def _cut_state(
    optimizer: torch.optim.Optimizer, name: str, weight: Tensor, new_weight: Tensor, pruned: Pruned
) -> dict[int, Tensor]:
    """Return the object id of each state that has the shape of `weight` -> its values for the pruned weight."""
    cut_shape = pruned.surviving({name: weight.detach()})[name].shape
    if cut_shape != new_weight.shape:
        cut = f"{tuple(cut_shape)} remains of {tuple(weight.shape)}"
        raise InputError(f"parameter {name!r}: {cut}, the pruned model has {tuple(new_weight.shape)}")
    replacements: dict[int, Tensor] = {}
    for key, value in optimizer.state.get(weight, {}).items():
        if not isinstance(value, Tensor):
            continue
        if value.shape == weight.shape:
            replacements[id(value)] = pruned.surviving({name: value})[name].to(new_weight.device, copy=True)
        elif value.numel() > 1 and cut_shape != weight.shape:
            shapes = f"shape {tuple(value.shape)}, the parameter {tuple(weight.shape)}"
            raise InputError(f"optimizer: {key!r} of parameter {name!r} has {shapes}; it cannot be cut")
    return replacements


def _refuse_other_widths(model: nn.Module, pruned: Pruned) -> None:
    """Raise an error if a layer of `model` has another number of units than the network that was pruned."""
    for (layer, side), axis in pruned.cutter.axes.items():
        units = getattr(model.get_submodule(layer), "out_channels", None)
        if side in ("out", "both") and units not in (None, len(axis.channels)):
            raise InputError(f"layer {layer!r}: {units} units, the model that was pruned had {len(axis.channels)}")
