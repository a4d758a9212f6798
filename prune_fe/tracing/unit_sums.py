"""Masks of units in front of a linear layer: its outputs are sums over the units, and a mask leaves out some terms.

A layer's maps often go through a prefix that acts on each channel separately, such as pooling, straight into a linear
layer. The term of each unit is then computed once for each image, and serves for every mask.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn
from torch.nn.functional import linear

from prune_fe.tracing.split import SplitNetwork, TailInputs, inputs_of, subgraph

DENSE_SHARE = 0.25
"""Share of the units that may change from mask to mask before a matrix product is the faster way to add them up."""


@dataclass(frozen=True)
class UnitSums:
    """What each unit contributes to the outputs of a linear layer for some images.

    Attributes:
        terms: What a unit adds to the outputs where it is not masked, (units, images, outputs).
        masked: The outputs, with the bias, where all units are masked, (images, outputs) or (1, outputs).
        inputs: The other values that the network behind the linear layer reads.
    """

    terms: Tensor
    masked: Tensor
    inputs: TailInputs


@dataclass(frozen=True)
class LinearTail:
    """The rest of a split network whose first operation is a linear layer.

    Attributes:
        weight: (units, positions, outputs), a view of the linear layer's weight.
        bias: (outputs,), or None.
        shape: What follows the outputs in the shape of the layer's output: (1, 1) for a convolution.
        rest: The network behind the linear layer. It reads its output and the other values of the tail.
    """

    weight: Tensor
    bias: Tensor | None
    shape: tuple[int, ...]
    rest: nn.Module

    @property
    def image_bytes(self) -> int:
        """The memory that the terms of one image take."""
        return self.weight.shape[0] * self.row_bytes

    @property
    def row_bytes(self) -> int:
        """The memory that the outputs of the linear layer for one image and mask take."""
        return self.weight.shape[2] * self.weight.element_size()

    def unit_sums(self, inputs: TailInputs) -> UnitSums:
        """Return the terms of each unit for some images.

        Args:
            inputs: From `SplitNetwork.tail_inputs`.
        """
        n_units, n_positions, _ = self.weight.shape
        difference = (inputs.unmasked - inputs.masked).reshape(-1, n_units, n_positions)
        terms = torch.bmm(difference.transpose(0, 1), self.weight)
        masked = linear(inputs.masked.flatten(1), self.weight.permute(2, 0, 1).flatten(1), self.bias)
        return UnitSums(terms, masked, inputs)

    def logits(self, sums: UnitSums, keep: Tensor) -> Tensor:
        """Run the rest of the network for every mask.

        The outputs are those of `SplitNetwork.logits` but for rounding: the same terms are added in another order.

        Args:
            sums: From `unit_sums`.
            keep: (masks, units) bool, False for the units that a mask sets to zero.

        Returns:
            The network's outputs, (masks, images, classes).
        """
        n_masks, (_, n_images, n_outputs) = len(keep), sums.terms.shape
        outputs = masked_sums(sums.terms.flatten(1), keep).view(n_masks, n_images, n_outputs)
        outputs += sums.masked
        rows = outputs.view(n_masks * n_images, n_outputs, *self.shape)
        logits: Tensor = self.rest(rows, *sums.inputs.repeated_others(n_masks))
        return logits.view(n_masks, n_images, *logits.shape[1:])


def masked_sums(terms: Tensor, keep: Tensor) -> Tensor:
    """Return for each mask the sum of the rows that it keeps.

    Masks of which each differs from the one before in few units, as in cumulative ablation, add only what changes.

    Args:
        terms: (units, numbers).
        keep: (masks, units) bool.

    Returns:
        The sums, (masks, numbers).
    """
    changes = keep[1:] != keep[:-1]
    # Single additions start one kernel each, for which a matrix product is always faster on a GPU.
    if terms.device.type != "cpu" or changes.sum() > DENSE_SHARE * changes.numel():
        return keep.to(terms.dtype) @ terms
    sums = terms.new_empty(len(keep), terms.shape[1])
    torch.matmul(keep[:1].to(terms.dtype), terms, out=sums[:1])
    for row, previous, mask, changed in zip(sums[1:], sums[:-1], keep[1:], changes, strict=True):
        row.copy_(previous)
        for unit in changed.nonzero()[:, 0].tolist():
            row.add_(terms[unit], alpha=1 if mask[unit] else -1)
    return sums


def find_linear_tail(network: SplitNetwork, images: Tensor) -> LinearTail | None:
    """Return the rest of a split network as a linear layer and what follows, or None if it does not begin with one.

    Args:
        network: The network in parts.
        images: (2, channels, height, width). Both forms of the rest must give the same for them.
    """
    assert isinstance(network.rest, fx.GraphModule)
    with torch.no_grad():
        inputs = network.tail_inputs(images)
        tail = _cut_rest(network.rest, inputs.unmasked.shape[1:])
        if tail is None:
            return None
        keep = torch.ones(2, inputs.unmasked.shape[1], dtype=torch.bool, device=images.device)
        keep[1, ::2] = False
        expected, summed = network.logits(inputs, keep), tail.logits(tail.unit_sums(inputs), keep)
        return tail if torch.allclose(summed, expected, rtol=1e-3, atol=1e-4) else None


def _cut_rest(rest: fx.GraphModule, shape: Sequence[int]) -> LinearTail | None:
    """Cut the rest of a network behind its first linear layer, if all that it reads of the units goes through that.

    Args:
        rest: The rest; its first input are the values of the units.
        shape: Shape of the values of one image, (units, ...).
    """
    given, *others = (node for node in rest.graph.nodes if node.op == "placeholder")
    stored = {node for node in rest.graph.nodes if node.op == "get_attr"}
    work = [node for node in rest.graph.nodes if node not in stored and node not in {given, *others}]
    number = next((number for number, node in enumerate(work) if _linear_module(rest, node, shape)), None)
    if number is None:
        return None
    early, layer, late = work[:number], work[number], work[number + 1 :]
    if not {given, *early}.isdisjoint(inputs_of(late)) or not set(inputs_of([*early, layer])) <= {given, *early}:
        return None
    module = _linear_module(rest, layer, shape)
    assert module is not None
    weight = module.weight
    # What stands before the layer may reshape the values, nothing else.
    generator = torch.Generator().manual_seed(0)  # torch's global random state is the caller's.
    values = 100 * torch.randn(3, *shape, generator=generator, dtype=torch.float64).to(weight.device, weight.dtype)
    read = subgraph(rest, early, stored, [given], layer.all_input_nodes[0])(values)
    if not torch.equal(read, values.flatten(1) if isinstance(module, nn.Linear) else values):
        return None
    return LinearTail(
        weight.reshape(len(weight), shape[0], -1).permute(1, 2, 0),
        module.bias,
        () if isinstance(module, nn.Linear) else (1, 1),
        subgraph(rest, late, stored, [layer, *others]),
    )


def _linear_module(rest: fx.GraphModule, node: fx.Node, shape: Sequence[int]) -> nn.Linear | nn.Conv2d | None:
    """Return the module of a node, if it is a linear layer, or a convolution whose kernel covers the whole map."""
    if node.op != "call_module":
        return None
    module = rest.get_submodule(str(node.target))
    # A subclass may compute something else.
    if type(module) is nn.Linear:
        return module
    if type(module) is not nn.Conv2d or module.groups != 1 or module.kernel_size != tuple(shape[1:]):
        return None
    return module if module.padding in ((0, 0), "valid") and module.dilation == (1, 1) else None
