"""Gradients with respect to the units of a network."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from prune_fe.errors import InputError
from prune_fe.tracing.feature_maps import observe
from prune_fe.tracing.layers import Layer
from prune_fe.tracing.nested import Inputs, Logits, map_tensors, run, take_logits
from prune_fe.tracing.watching import evaluating
from prune_fe.tracing.weights import all_finite


def gate_gradients(
    model: nn.Module, images: Inputs, labels: Tensor, layers: Sequence[Layer], logits_of: Logits | None = None
) -> dict[str, Tensor]:
    """Return the gradient of each image's cross-entropy with respect to a gate on every unit.

    A gate is a factor 1 that every value of a unit's feature map is multiplied by. The gradients of the parameters
    are not changed.

    Args:
        model: The network.
        images: Its inputs, on its device.
        labels: (images,) int64.
        layers: Layers whose units have gates.
        logits_of: Function from what the network returns to its logits (images, classes); None where it returns them.

    Returns:
        For each layer's name the gradients, (images, units).

    Raises:
        InputError: A feature map or a gradient is not finite, no gradient reaches a layer, or the model does not
            return logits for every label.
    """
    gates: dict[str, Tensor] = {}

    def refuse_infinite(layer: Layer, maps: Tensor) -> None:
        if not all_finite(maps):
            raise InputError(f"layer {layer.name!r}: its maps hold NaN or infinite values")

    with torch.inference_mode(False), torch.enable_grad(), evaluating(model):
        with observe(model, layers, refuse_infinite, gates):
            # Autograd cannot record inference tensors.
            output = run(model, map_tensors(lambda value: value.clone() if value.is_inference() else value, images))
            output = take_logits(output, logits_of, "gradients need")
        if int(labels.max()) >= output.shape[1]:
            raise InputError(
                f"the logits are {tuple(output.shape)}, the largest label is {int(labels.max())}; gradients need "
                "logits (images, classes) for every label"
            )
        # In half precision a probability near 1 rounds to 1 and its gradient to zero.
        logits = output.float() if output.dtype != torch.float64 else output
        # The sum keeps the gradient of each image its own; a mean would divide it by the size of the batch.
        loss = F.cross_entropy(logits, labels.to(output.device), reduction="sum")
        if missing := [layer.name for layer in layers if layer.name not in gates]:
            raise InputError(f"layer {missing[0]!r}: its maps were not reached in a forward pass")
        gradients = torch.autograd.grad(loss, [gates[layer.name] for layer in layers], allow_unused=True)
    for layer, gradient in zip(layers, gradients, strict=True):
        if gradient is None or not gradient.isfinite().all():
            problem = "no gradient reaches its maps" if gradient is None else "the gradient at its maps is not finite"
            raise InputError(f"layer {layer.name!r}: {problem}")
    return {layer.name: gradient for layer, gradient in zip(layers, gradients, strict=True)}
