"""Find the layers of a network whose units can be scored.

The map of a unit is read behind the norm and the activation that belong to the layer, and before pooling, concatenation
or a residual sum. A module hook alone cannot find that point, because activations may be functions, work in place or
serve several layers. Therefore the network runs once, and the output of each layer is followed through the torch
functions that receive it. This works for any network that runs.
"""

from __future__ import annotations

import difflib
import fnmatch
import math
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from prune_fe.errors import InputError
from prune_fe.io import shorten
from prune_fe.tracing.nested import Inputs, count_rows, take_rows
from prune_fe.tracing.survey import ACTIVATIONS, NORMS, Survey, survey
from prune_fe.tracing.weights import require_network


@dataclass(frozen=True)
class Layer:
    """A module with units, which are the channels of its output, and the point where their maps are read.

    Attributes:
        name: The module's name in the network.
        units: Number of its units.
        map_size: (height, width) of a map for the example that `find_layers` ran the network on. Without a map, height
            is the number of positions at which a unit has a value, and width is 1.
        steps: Number of norms, activations and identities between the module and the point where its maps are read and
            masked.
        norm: Name of the batch norm of its units among these steps; None if there is none, or one for each run.
        at_input: Whether the maps are the module's input instead: features (images, units), or maps.
        is_activated: Whether an activation is among these steps. (That a block ends with one is not known.)
        has_map: Whether the output of the module is (images, units, height, width). Units of a linear layer and of a
            convolution over one or three dimensions have no map.
        is_linear: Whether it is a linear layer, or a convolution that acts as one on globally pooled features.
        channel_dim: The dimension of the units in the module's output.
        rows: Rows of the module's output for each image: more than 1 where windows of an image are rows of their own,
            and 0 where it is not known which image a row belongs to.
        runs: How often the module runs in a forward pass.
    """

    name: str
    units: int
    map_size: tuple[int, int]
    steps: int = 0
    norm: str | None = None
    at_input: bool = False
    is_activated: bool = field(default=False, compare=False)
    has_map: bool = True
    is_linear: bool = False
    channel_dim: int = 1
    rows: int = 1
    runs: int = 1

    def maps_of(self, output: Tensor) -> Tensor:
        """Return the output of the module, or of a step behind it, as maps (images, units, height, width).

        Without a map, the values of a unit are (positions, 1).
        """
        if self.has_map or self.at_input:
            return output
        by_row = output.movedim(self.channel_dim, 1).reshape(len(output) // self.rows, self.rows, self.units, -1)
        return by_row.transpose(1, 2).reshape(len(by_row), self.units, -1, 1)

    def over_units(self, factors: Tensor, output: Tensor) -> Tensor:
        """Return one number for each unit of each image, (images, units), in a shape that fits the module's output."""
        shape = [1] * output.ndim
        shape[0], shape[self.channel_dim] = len(output), self.units
        return factors.repeat_interleave(self.rows, 0).view(shape)


def find_layers(model: nn.Module, example: Inputs, names: Sequence[str] | None = None) -> tuple[Layer, ...]:
    """Find the layers of a network whose units have maps, by running it once.

    Args:
        model: The network. It is run in evaluation mode and left as it was.
        example: Inputs of the network: a tensor (images, channels, height, width), a tuple of positional arguments, or
            a dict of keyword arguments.
        names: Names of modules, or patterns of the names of convolutions, such as "layer[12].*". A module that is no
            convolution, such as a residual block, is read at its output as well. None for every convolution that runs
            once on a map. (A convolution behind a global pooling, as in the gate of a squeeze-and-excite block, is a
            linear layer on pooled features: it has no map.)

    Returns:
        The layers in the order in which they run.

    Raises:
        InputError: A name does not exist, does not run, runs more than once or gives no maps; or the network does not
            run on the example.
    """
    require_network(model)
    names = None if names is None else expand_patterns(model, names)
    watched = _modules_with_units(model) if names is None else _named_modules(model, names)
    surveyed = survey(model, example, watched)
    layers = [replace(layer, rows=1) for layer in _layers_of(surveyed, watched) if layer.has_map and layer.runs == 1]
    # No map is expected of a gate.
    expected = watched.keys() - {layer.name for layer in layers} - (surveyed.gates if names is None else set())
    _report_faults({name: _find_fault(name, surveyed, needs_map=True) for name in watched if name in expected}, names)
    return tuple(layers)


def find_layers_with_units(
    model: nn.Module, example: Inputs, names: Sequence[str] | None = None, *, linear: bool = False
) -> tuple[Layer, ...]:
    """Find the layers of a network whose units can be scored and removed, whether they have maps or not.

    Args:
        model: The network, as in `find_layers`.
        example: As in `find_layers`.
        names: As in `find_layers`. None for every convolution that runs, with or without a map.
        linear: Without `names`, also find the linear layers, and the convolutions that are linear layers on globally
            pooled features, as in the gate of a squeeze-and-excite block.

    Returns:
        The layers in the order in which they run.

    Raises:
        InputError: A name does not exist, does not run or gives no tensor with units; or the network does not run on
            the example.
    """
    require_network(model)
    names = None if names is None else expand_patterns(model, names, linear=linear)
    watched = _modules_with_units(model, linear=linear) if names is None else _named_modules(model, names)
    surveyed = survey(model, example, watched)
    layers = _with_rows(_layers_of(surveyed, watched), model, example, watched)
    unfit = watched.keys() - {layer.name for layer in layers}
    if names is None:
        # The network's code passes the weights of these to functions. They are cut although they do not run.
        unfit -= {name for name in unfit if name not in surveyed.runs and id(watched[name].weight) in surveyed.read}
    _report_faults({name: _find_fault(name, surveyed, needs_map=False) for name in watched if name in unfit}, names)
    return tuple(layer for layer in layers if names is not None or linear or not layer.is_linear)


def describe_faults(faults: Mapping[str, str]) -> str:
    """Return layers and what is wrong with each as one text, by fault.

    >>> describe_faults({"a": "it has no map", "b": "it has no map", "c": "it does not run"})
    "layers 'a', 'b': it has no map; layer 'c': it does not run"
    """
    names_with: dict[str, list[str]] = {}
    for name, fault in faults.items():
        names_with.setdefault(fault, []).append(repr(name))
    return "; ".join(
        f"layer{'s' if len(names) > 1 else ''} {shorten(names)}: {fault}" for fault, names in names_with.items()
    )


def _report_faults(faults: Mapping[str, str], names: Sequence[str] | None) -> None:
    """Raise the faults of layers that were asked for by name; warn of the others."""
    if faults and names is not None:
        raise InputError(describe_faults(faults))
    if faults:
        warnings.warn(f"left out: {describe_faults(faults)}", stacklevel=3)


def _named_modules(model: nn.Module, names: Sequence[str]) -> dict[str, nn.Module]:
    """Return the modules with these names."""
    if not isinstance(names, Sequence) or isinstance(names, str) or not names:
        raise InputError(f"layers is {names!r}; it must be a list of names")
    modules = dict(model.named_modules())
    for name in names:
        if name not in modules:
            raise InputError(f"layer {name!r}: the model has no such module; {suggest_names(name, modules)}")
    return {name: modules[name] for name in names}


def _with_rows(
    layers: Sequence[Layer], model: nn.Module, example: Inputs, watched: Mapping[str, nn.Module]
) -> tuple[Layer, ...]:
    """Return the layers with their rows for each image in place of the rows of the whole example."""
    images = count_rows(example)
    if all(layer.rows == images for layer in layers):
        return tuple(replace(layer, rows=1) for layer in layers)
    # Only with other images is it clear whether the rows are images, or windows of images.
    more = survey(model, take_rows(example, 2 * images), watched)
    doubled = {layer.name: layer for layer in _layers_of(more, watched)}
    with_rows = []
    for layer in layers:
        twice, positions = doubled.get(layer.name), math.prod(layer.map_size)
        rows = layer.rows // images if twice is not None and twice.rows == 2 * layer.rows else 0
        if layer.rows == images:
            with_rows.append(replace(layer, rows=1))
        else:
            with_rows.append(replace(layer, rows=rows, has_map=False, map_size=(max(rows, 1) * positions, 1)))
    return tuple(with_rows)


def find_response(model: nn.Module, example: Inputs) -> Layer:
    """Find the final response layer (Yu et al. 2018): what the linear classifier reads.

    Args:
        model: The network.
        example: Inputs of the network.

    Returns:
        The input of the last layer with weights that runs.

    Raises:
        InputError: That layer is not linear, or runs more than once.
    """
    weighted = {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear | _ConvNd)}
    runs = survey(model, example, weighted).runs
    last = next((name for name in reversed(runs) if name in weighted), None)
    module = weighted.get(last or "")
    if not isinstance(module, nn.Linear) or len(runs[str(last)]) > 1:
        last_layer = f"layer {last!r} is a {type(module).__name__}" if module is not None else "there is none"
        raise InputError(f"the final responses are what a linear classifier reads at the network's end; {last_layer}")
    return Layer(str(last), module.in_features, (1, 1), at_input=True)


def list_layers(model: nn.Module, names: Sequence[str] | None = None, *, linear: bool = False) -> tuple[Layer, ...]:
    """Return convolutions and linear layers without running the network, for scorers that read weights only.

    Args:
        model: The network.
        names: Names of layers; None for all convolutions.
        linear: Without `names`, also list the linear layers.

    Returns:
        Layers in the order of `names`, or of the network's modules. Their maps cannot be read: map_size is (0, 0).

    Raises:
        InputError: The network has no such layer, or none at all.
    """
    names = None if names is None else expand_patterns(model, names, linear=linear)
    modules = _modules_with_units(model, linear=linear or names is not None)
    for name in names or ():
        if name not in modules:
            raise InputError(f"layer {name!r}: the model has no such layer with units; {suggest_names(name, modules)}")
    return tuple(
        Layer(
            name,
            count_units(modules[name]),
            (0, 0),
            has_map=not (is_linear := isinstance(modules[name], nn.Linear)),
            is_linear=is_linear,
        )
        for name in (modules if names is None else names)
    )


def is_pattern(name: str) -> bool:
    """Return whether a name of layers has wildcards: *, ? or a set of characters in brackets."""
    return any(sign in name for sign in "*?[")


def expand_patterns(model: nn.Module, names: Sequence[str], *, linear: bool = False) -> Sequence[str]:
    """Return names of layers, with the names that match in the place of each pattern, each once.

    Args:
        model: The network.
        names: Names and patterns; anything else than a list of texts is returned as it is.
        linear: Whether a pattern also stands for linear layers, and not for convolutions only.

    Raises:
        InputError: A pattern matches nothing.
    """
    if isinstance(names, str) or not all(isinstance(name, str) for name in names) or not any(map(is_pattern, names)):
        return names
    known, modules = list(_modules_with_units(model, linear=linear)), dict(model.named_modules())
    expanded: list[str] = []
    for name in names:
        # A module whose own name has such a sign is meant itself.
        matching = fnmatch.filter(known, name) if is_pattern(name) and name not in modules else [name]
        if not matching:
            kind = "layer with units" if linear else "convolution"
            raise InputError(f"layer {name!r}: no {kind} is called so; there are {shorten(known, 5)}")
        expanded += matching
    return list(dict.fromkeys(expanded))


def exclude_layers(layers: Sequence[Layer], patterns: Sequence[str]) -> tuple[Layer, ...]:
    """Return the layers whose names match none of the patterns.

    Args:
        layers: The layers.
        patterns: Names and patterns; each must match a layer.

    Raises:
        InputError: A pattern matches no layer, or no layer is left.
    """
    names = [layer.name for layer in layers]
    for pattern in patterns:
        if not fnmatch.filter(names, pattern):
            raise InputError(f"exclude {pattern!r}: no layer has such a name; there are {shorten(names, 5)}")
    kept = tuple(each for each in layers if not any(fnmatch.fnmatchcase(each.name, pattern) for pattern in patterns))
    if layers and not kept:
        raise InputError(f"exclude {', '.join(patterns)}: no layer is left")
    return kept


def count_units(module: nn.Module) -> int:
    """Return the number of units of a convolution or linear layer."""
    return int(module.out_channels if isinstance(module, _ConvNd) else module.out_features)  # type: ignore[arg-type]


def suggest_names(name: str, known: Iterable[str]) -> str:
    """Return a hint for an unknown module.

    Args:
        name: The unknown name.
        known: The names of the modules that exist.

    Returns:
        Up to three similar names, because networks have too many modules to list them all.
    """
    close = difflib.get_close_matches(name, list(known), n=3, cutoff=0.4)
    return f"did you mean {' or '.join(map(repr, close))}?" if close else "model.named_modules() lists them"


def _modules_with_units(model: nn.Module, *, linear: bool = False) -> dict[str, nn.Module]:
    """Return the convolutions by name, and the linear layers too if `linear` is true."""
    kinds = (_ConvNd, nn.Linear) if linear else (_ConvNd,)
    modules: dict[str, nn.Module] = {n: module for n, module in model.named_modules() if isinstance(module, kinds)}
    if not modules:
        what = "no convolution and no nn.Linear" if linear else "no convolution (linear=True takes linear layers)"
        raise InputError(f"{type(model).__name__} has {what}: there are no units to score or to prune")
    return modules


def _layers_of(surveyed: Survey, watched: Mapping[str, nn.Module]) -> list[Layer]:
    """Return the modules that have units, in the order in which they ran.

    Their `rows` is the size of the first dimension of their outputs, or 0 if that of their runs differs.
    """
    layers = (_make_layer(name, watched[name], surveyed) for name in surveyed.runs)
    return [layer for layer in layers if layer is not None]


def _make_layer(name: str, module: nn.Module, surveyed: Survey) -> Layer | None:
    """Return a module as a layer; None if it has no units or its runs give unlike outputs."""
    runs = surveyed.runs[name]
    dim = _channel_dim(module, runs[0].shapes)
    if dim is None or any(_channel_dim(module, each.shapes) != dim for each in runs):
        return None
    # With several runs the map is read behind the steps that all of them have.
    steps = min(each.steps for each in runs)
    while any(each.functions[:steps] != runs[0].functions[:steps] for each in runs):
        steps -= 1
    shape, between = runs[0].shapes[steps], runs[0].functions[:steps]
    # A batch norm normalises dimension 1, which is that of the tokens in the output of a linear layer on tokens.
    has_norm = not NORMS.isdisjoint(between) and dim == 1 and name not in surveyed.several_norms
    is_linear = name in surveyed.gates or isinstance(module, nn.Linear)
    has_map = len(shape) == 4 and not is_linear
    return Layer(
        name,
        units=shape[dim],
        map_size=(shape[2], shape[3]) if has_map else (math.prod(shape) // shape[0] // shape[dim], 1),
        steps=steps,
        norm=surveyed.norm_of.get(name) if has_norm else None,
        is_activated=not ACTIVATIONS.isdisjoint(between),
        has_map=has_map,
        is_linear=is_linear,
        channel_dim=dim,
        rows=shape[0] if all(each.shapes[0][0] == shape[0] for each in runs) else 0,
        runs=len(runs),
    )


def _find_fault(name: str, surveyed: Survey, *, needs_map: bool) -> str:
    """Return why a module is no layer: it does not run, has no units or, where a map is needed, no single map."""
    runs = len(surveyed.runs.get(name, ()))
    if not runs:
        return "it does not run in a forward pass"
    if not needs_map:
        return "its output has no dimension of units" + (" that is the same in all its runs" if runs > 1 else "")
    if runs > 1:
        return f"it runs {runs} times in a forward pass, its maps can be read only if it runs once"
    return "it gives no maps of shape (images, units, height, width)"


def _channel_dim(module: nn.Module, shapes: Sequence[torch.Size]) -> int | None:
    """Return the dimension of the units in the output of a module; None if it has none, or no images."""
    if not shapes or 0 in shapes[0]:
        return None
    dims = len(shapes[0])
    if isinstance(module, nn.Linear):
        return dims - 1 if dims > 1 else None
    return 1 if dims == (len(module.kernel_size) + 2 if isinstance(module, _ConvNd) else 4) else None
