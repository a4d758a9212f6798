"""Choose the layer that a study looks at where the user names none: the last one that can be studied."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from prune_fe.errors import InputError
from prune_fe.experiment.experiment import Experiment
from prune_fe.scorers import scorer_name
from prune_fe.scorers.base import Scorer, explain_faults
from prune_fe.tracing.layers import Layer, find_layers
from prune_fe.tracing.nested import Inputs, run, tensors_in
from prune_fe.tracing.watching import Watch, evaluating

SHORTCUT_NAME = re.compile(r"(^|[._])(downsample|shortcut|skip|identity)([._]|$)")
"""Names of modules that libraries give to what runs beside the main path of a residual block."""


def choose_layer(experiment: Experiment, network: nn.Module, name: str | None, scorers: Sequence[Scorer]) -> Layer:
    """Return the layer of a name or, without one, the last that can be studied, and say which it is.

    Args:
        experiment: The experiment, whose reporter says it.
        network: Its network, which need not be trained.
        name: Name of a module; None chooses.
        scorers: What has to score the layer.

    Raises:
        InputError: There is no such layer, or none can be scored by all scorers.
    """
    example = experiment.example.to(experiment.device)
    if name is not None:
        return find_layers(network, example, [name])[-1]
    layer, reason = choose_last_layer(network, example, scorers)
    experiment.reporter.say(reason)
    return layer


def choose_last_layer(network: nn.Module, example: Inputs, scorers: Sequence[Scorer]) -> tuple[Layer, str]:
    """Return the last convolution on a main path that all scorers can score, and a line that says which it is and why.

    A convolution of a shortcut is taken only where there is no other. A scorer that can score none of the network's
    convolutions does not count, unless it is the only one.

    Args:
        network: The network.
        example: Its inputs.
        scorers: The scorers.

    Raises:
        InputError: No convolution can be scored by all of them.
    """
    layers = find_layers(network, example)
    able = [scorer for scorer in scorers if any(_find_fault(layer, [scorer]) is None for layer in layers)]
    faults = {layer.name: _find_fault(layer, able or scorers) for layer in layers}
    shortcuts = find_shortcuts(network, example)
    possible = [layer for layer in layers if faults[layer.name] is None]
    if not possible:
        raise InputError(f"no convolution can be scored by all scorers; of the last one: {faults[layers[-1].name]}")
    chosen = next((layer for layer in reversed(possible) if layer.name not in shortcuts), possible[-1])
    text = f"layer {chosen.name!r}: the last convolution"
    later = [layer.name for layer in layers[layers.index(chosen) + 1 :]]
    left_out = [f"{name!r} behind it is left out, {faults[name] or 'it lies on a shortcut'}" for name in later]
    return chosen, "; ".join([text, *left_out]) + ("; --layer names another" if left_out else "")


def _find_fault(layer: Layer, scorers: Sequence[Scorer]) -> str | None:
    """Return why one of the scorers cannot score a layer; None if all can."""
    for scorer in scorers:
        try:
            with explain_faults(scorer, layer.name):
                scorer.check([layer])
        except InputError as error:
            text = str(error).removeprefix(f"{scorer_name(scorer)}: ").removeprefix(f"layer {layer.name!r}: ")
            return f"{scorer_name(scorer)} cannot score it: {text.partition(';')[0]}"
    return None


def find_shortcuts(network: nn.Module, example: Inputs) -> set[str]:
    """Return the names of the 1×1 convolutions that lie beside a main path, as in the shortcut of a residual block.

    Such a convolution reads the tensor that the first layer of the main path reads too, or has a name that says so.

    Args:
        network: The network, which is run once in evaluation mode and left as it was.
        example: Its inputs.
    """
    convolutions = {name: module for name, module in network.named_modules() if isinstance(module, _ConvNd)}
    reads = _Reads()
    with reads.watching(convolutions), evaluating(network), torch.no_grad():
        run(network, example)
    readers = list(reads.inputs.items())
    shortcuts = set()
    for number, (name, read) in enumerate(readers):
        is_pointwise = set(convolutions[name].kernel_size) == {1}
        is_read_before = any(read is other for _, other in readers[:number])
        if SHORTCUT_NAME.search(name) or (is_pointwise and is_read_before):
            shortcuts.add(name)
    return shortcuts


class _Reads(Watch):
    """Keeps the first tensor that each module reads, so that its identity stays its own."""

    def __init__(self) -> None:
        super().__init__()
        self.inputs: dict[str, Tensor] = {}

    def after_module(self, name: str, inputs: tuple[Any, ...], output: Any) -> None:
        """Keep the input of a module."""
        tensors = tensors_in(inputs)
        if tensors:
            self.inputs.setdefault(name, tensors[0])

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return func(*args, **(kwargs or {}))
