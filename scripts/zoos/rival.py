"""torch-pruning's own pruner on a network of the zoo, and whether its cut is right."""

from __future__ import annotations

import copy
import time
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from prune_fe.pruning.cut import Cutter, KeptChannels
from prune_fe.pruning.masking import largest_difference
from prune_fe.tracing.channel_tracer import build_dependency_graph
from prune_fe.tracing.copying import convert
from prune_fe.tracing.dependency_graph import Axis
from prune_fe.tracing.nested import move, run, tensors_in
from prune_fe.tracing.shared_tensors import find_axis_tensors

OUTPUT_LAYERS = "cls_logits bbox_reg bbox_pred bbox_ctrness cls_score low_classifier high_classifier".split()
"""What the layers that compute the outputs of torchvision's detectors and of LR-ASPP are called."""


class UnknownCutError(Exception):
    """Which channels were removed cannot be found out."""


def prune_by_torch_pruning(model: nn.Module, inputs: Any, ratio: float, tolerance: float) -> dict[str, Any]:
    """Try torch-pruning's own pruner on one network, and compare the result with the masked network.

    Args:
        model: The network, in evaluation mode; it is pruned in place, in double precision.
        inputs: Its inputs.
        ratio: The share of channels to remove of each layer.
        tolerance: The largest difference of the outputs that counts as none, as a share of the largest output.

    Returns:
        The columns of the table: `their_outcome` ("right", "WRONG ...", "not checked ..." or the error), and, if the
        network is pruned, `their_left`, the share of its parameters, and `their_seconds`.
    """
    import torch_pruning

    convert(model, torch.float64)
    _make_distinct(model)
    attention: Any
    for attention in filter(_has_heads, model.modules()):
        attention.fused_attn = False  # The fused function would take another scale for heads with fewer channels.
    inputs = move(inputs, dtype=torch.float64)
    original = copy.deepcopy(model)
    before = sum(weight.numel() for weight in model.parameters())
    heads = {module.qkv: module.num_heads for module in model.modules() if _has_heads(module)}
    start = time.process_time()
    try:
        pruner = torch_pruning.pruner.BasePruner(
            model,
            inputs if isinstance(inputs, dict) else (inputs,),
            torch_pruning.importance.MagnitudeImportance(),
            pruning_ratio=ratio,
            ignored_layers=find_output_layers(model),
            num_heads=dict(heads),
            output_transform=_sum_outputs,
            in_channel_groups={},
            out_channel_groups={},
            channel_groups={},
        )
        pruner.step()
        for attention in filter(_has_heads, model.modules()):
            attention.num_heads = pruner.num_heads[attention.qkv]
            attention.attn_dim = attention.qkv.out_features // 3
            attention.head_dim = attention.attn_dim // attention.num_heads
        if hasattr(model, "conv_proj"):  # torchvision's VisionTransformer
            model.hidden_dim = model.conv_proj.out_channels  # type: ignore[union-attr]
        seconds = time.process_time() - start
        with torch.no_grad():
            run(model, inputs)
    except Exception as error:  # It raises anything.
        return {"their_outcome": f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"}
    left = sum(weight.numel() for weight in model.parameters()) / before
    outcome = "removes nothing" if left == 1 else check_cut(original, model, inputs, tolerance)
    return {"their_outcome": outcome, "their_left": left, "their_seconds": seconds}


def _make_distinct(model: nn.Module) -> None:
    """Change the weights and statistics, in place, by so little that no two are equal: each can be found again."""
    generator = torch.Generator().manual_seed(7)
    statistics = [tensor for name, tensor in model.named_buffers() if name.endswith(("running_mean", "running_var"))]
    with torch.no_grad():
        for tensor in (*model.parameters(), *statistics):
            tensor.add_(torch.rand(tensor.shape, generator=generator, dtype=tensor.dtype), alpha=1e-3)


def _has_heads(module: nn.Module) -> bool:
    """Return whether a module is attention with one layer for queries, keys and values, whose heads its code counts."""
    return isinstance(getattr(module, "qkv", None), nn.Linear) and isinstance(getattr(module, "num_heads", None), int)


def find_output_layers(model: nn.Module) -> list[nn.Module]:
    """Return the layers that compute the outputs, which torch-pruning has to be told."""
    modules = dict(model.named_modules())
    outputs = getattr(model, "outputs", None)
    if isinstance(outputs, tuple):  # the networks of zoos/tested.py say it
        return [modules[name] for name in outputs]
    layers = {name: module for name, module in modules.items() if isinstance(module, nn.Linear | nn.Conv2d)}
    named: list[nn.Module] = [module for name, module in layers.items() if name.rpartition(".")[2] in OUTPUT_LAYERS]
    if any("module_list" in name for name in layers):  # SSDLite: the last layer of each of its heads
        named += [module for name, module in layers.items() if "module_list" in name and name.endswith(".1")]
    for ends in ("boxes", "labels"):  # of the network like YOLO
        named += [module for name, module in layers.items() if name.startswith(f"{ends}.") and name.endswith(".2")]
    return named or [list(layers.values())[-1]]


def _sum_outputs(outputs: Any) -> Tensor:
    """Return one number that every output with a gradient is a part of, from which torch-pruning goes backwards."""
    return torch.stack([tensor.sum() for tensor in tensors_in(outputs) if tensor.grad_fn is not None]).sum()


def check_cut(original: nn.Module, pruned: nn.Module, inputs: Any, tolerance: float) -> str:
    """Return "right" if a pruned network equals the original with the removed channels masked, or else what is wrong.

    Which channels are left is read from the tensors: each weight of the pruned network is found in the original. The
    masked network is that of `prune_fe.pruning.masking`.
    """
    try:
        cutter = Cutter(original, build_dependency_graph(original, inputs))
        kept = find_kept_channels(original, pruned, cutter)
        difference, largest = largest_difference(original, pruned, cutter.axes, kept, inputs)
    except Exception as error:  # The networks' own code may raise anything.
        return f"not checked ({str(error).splitlines()[0][:60]})"
    share = difference / largest
    return "right" if share <= tolerance else f"WRONG by {share:.0e}"


def find_kept_channels(original: nn.Module, pruned: nn.Module, cutter: Cutter) -> KeptChannels:
    """Return the channels of each axis of the original that the pruned network has.

    Raises:
        UnknownCutError: A weight of the pruned network is not found in the original.
    """
    kept: KeptChannels = {}
    before, after = dict(original.named_modules()), dict(pruned.named_modules())
    for key, axis in cutter.axes.items():
        channels = _find_in_tensors(axis, before[axis.module], after[axis.module])
        if channels is not None:
            kept[key] = channels
    removed = [cutter.axis_sets[key][np.delete(np.arange(len(cutter.axis_sets[key])), kept[key])] for key in kept]
    gone = np.unique(np.concatenate(removed))
    # Axes without tensors, such as those of norms without parameters, have what is coupled to them.
    rest = {key: np.flatnonzero(~np.isin(sets, gone)) for key, sets in cutter.axis_sets.items() if key not in kept}
    return {key: kept[key] if key in kept else rest[key] for key in cutter.axes}


def _find_in_tensors(axis: Axis, before: nn.Module, after: nn.Module) -> NDArray[np.int64] | None:
    """Return the channels of an axis that are left; None if no tensor of its module tells."""
    if axis.call is not None:
        return None
    for attribute, dim in find_axis_tensors(before, axis):
        old, new = getattr(before, attribute).detach(), getattr(after, attribute).detach()
        if len(old.unique()) < 2 <= old.numel():
            continue  # All values are equal, such as the scales of a new norm.
        blocks = axis.blocks if dim == 1 and axis.side in ("in", "out") else 1
        parts = [
            _find_slices(*pair, dim) + number * old.shape[dim]
            for number, pair in enumerate(zip(old.chunk(blocks), new.chunk(blocks), strict=True))
        ]
        return np.concatenate(parts)
    return None


def _find_slices(old: Tensor, new: Tensor, dim: int) -> NDArray[np.int64]:
    """Return where the slices of `new` along a dimension are in `old`, by their first values."""
    places = (old == new.flatten()[0]).nonzero()
    first = (new.movedim(dim, 0).flatten(1)[:, 0] if new.ndim > 1 else new).contiguous()
    if len(places):
        # All first values are on one line of the original.
        line = old[tuple(slice(None) if d == dim else place for d, place in enumerate(places[0].tolist()))]
        values, order = line.sort()
        nearest = torch.searchsorted(values, first).clamp(max=len(values) - 1)
        if torch.equal(values[nearest], first):
            return order[nearest].numpy()
    raise UnknownCutError("it has weights that the original has not")
