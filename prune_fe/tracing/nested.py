"""What networks are called with and what they return: tensors in nested tuples, lists, dicts and dataclasses."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from prune_fe.errors import InputError

Inputs = Tensor | tuple[Any, ...] | list[Any] | Mapping[str, Any]
"""What a network is called with: a tuple holds its positional arguments, a dict its keyword arguments. Anything else is
its only argument: a tensor, or a list such as the images of a detector."""


FILL_RATIO = 1e5
"""Outputs that are so many times as large as half of the others are compared apart from these."""

PLAIN = frozenset({type(None), bool, int, float, str})
"""Types of values that hold no others: most of the arguments of functions, for which `tensors_in` has to be fast."""

Logits = Callable[[Any], Any]
"""A function that takes the logits, (images, classes), out of what a network returns."""


def run(model: nn.Module, inputs: Inputs) -> Any:
    """Call a network with its inputs, and return what it returns."""
    positional, named = as_arguments(inputs)
    return model(*positional, **named)


def as_arguments(inputs: Inputs) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return the positional and the keyword arguments that a network is called with."""
    if isinstance(inputs, Mapping):
        return (), dict(inputs)
    return (inputs if isinstance(inputs, tuple) else (inputs,)), {}


def take_logits(output: Any, logits: Logits | None, need: str = "a classifier returns") -> Tensor:
    """Return the logits, (images, classes), in what a network returned.

    Args:
        output: What it returned.
        logits: Function that takes the logits out of it; None where it is the logits.
        need: What needs logits, with its verb, for the message.

    Raises:
        InputError: There are no logits; the message says how to pass the argument `logits`.
    """
    result = output
    if logits is not None:
        try:
            result = logits(output)
        except Exception as error:  # a function of the user's
            raise InputError(f"logits= fails on what the model returns, {describe(output)}: {error!r}") from error
    if isinstance(result, Tensor) and result.ndim == 2:
        return result
    who = "the model" if logits is None else "logits="
    raise InputError(
        f"{who} returns {describe(result)}, {need} logits (images, classes); logits=FUNCTION takes them out of what "
        "the model returns, such as logits=lambda out: out['logits']"
    )


def leaves(values: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Yield (path, value) of everything in nested values that is no container.

    >>> list(leaves({"out": 1, "more": [2, (3,)]}))
    [("['out']", 1), ("['more'][0]", 2), ("['more'][1][0]", 3)]

    Args:
        values: Tuples, lists, dicts and dataclasses, nested; anything else is a leaf.
        path: What the paths begin with.
    """
    for step, value in _entries(values):
        yield from leaves(value, path + step)
    if not _is_container(values):
        yield path, values


def tensors_in(values: Any) -> list[Tensor]:
    """Return the tensors in nested values, in their order."""
    if isinstance(values, Tensor):
        return [values]
    if type(values) in PLAIN:
        return []
    parts = values if type(values) in (tuple, list) else [value for _, value in _entries(values)]
    return [tensor for value in parts for tensor in tensors_in(value)]


def map_tensors(change: Callable[[Tensor], Tensor], values: Any) -> Any:
    """Return a copy of nested values in which each tensor is replaced by the result of a function for it.

    Args:
        change: The function.
        values: Tuples, lists, dicts and dataclasses, nested.
    """
    if isinstance(values, Tensor):
        return change(values)
    if isinstance(values, Mapping):
        changed = {key: map_tensors(change, value) for key, value in values.items()}
        return changed if type(values) is dict else type(values)(changed)  # type: ignore[call-arg]
    if isinstance(values, tuple | list):
        parts = [map_tensors(change, value) for value in values]
        return type(values)(*parts) if hasattr(values, "_fields") else type(values)(parts)
    if _is_dataclass(values):
        fields = [field.name for field in dataclasses.fields(values) if field.init]
        return dataclasses.replace(values, **{name: map_tensors(change, getattr(values, name)) for name in fields})
    return values


def move(values: Any, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Any:
    """Return a copy of nested values with all tensors on a device, and floating-point tensors in a data type.

    Args:
        values: Tuples, lists, dicts and dataclasses, nested.
        device: The device; None leaves the tensors where they are.
        dtype: The data type of floating-point tensors; None leaves it as it is. Other tensors keep theirs.
    """

    def change(tensor: Tensor) -> Tensor:
        return tensor.to(device, dtype if tensor.is_floating_point() else None, non_blocking=True)

    return map_tensors(change, values)


def describe(values: Any) -> str:
    """Return the shapes of the tensors in nested values, and the types of other values, for messages.

    >>> describe((torch.zeros(1, 3), {"scale": 2}))
    "[0] (1, 3), [1]['scale'] int"
    >>> describe(torch.zeros(1, 3))
    '(1, 3)'
    """
    parts = [
        f"{path} {tuple(leaf.shape) if isinstance(leaf, Tensor) else type(leaf).__name__}".strip()
        for path, leaf in leaves(values)
    ]
    return ", ".join(parts) or f"an empty {type(values).__name__}"


def has_rows(inputs: Inputs) -> bool:
    """Return whether the number of images can be read off the inputs of a network, and changed.

    This is so for a list of images, and for tensors that all have the same first size.
    """
    sizes = {len(tensor) if tensor.ndim else 0 for tensor in tensors_in(inputs)}
    return _image_list(inputs) is not None or (len(sizes) == 1 and sizes != {0})


def _image_list(inputs: Any) -> list[Any] | None:
    """Return the list of images that is the only argument of a network; None for other inputs."""
    if isinstance(inputs, tuple) and len(inputs) == 1:
        (inputs,) = inputs
    return inputs if isinstance(inputs, list) else None


def count_rows(inputs: Inputs) -> int:
    """Return the number of images in the inputs of a network; 1 where `has_rows` is false."""
    if not has_rows(inputs):
        return 1
    images = _image_list(inputs)
    return len(images) if images is not None else len(tensors_in(inputs)[0])


def take_rows(inputs: Any, count: int) -> Any:
    """Return the inputs of a network with another number of images: the first ones, repeated if there are too few.

    Args:
        inputs: The inputs; they are returned as they are where `has_rows` is false.
        count: Number of images, at least 1.
    """
    rows = count_rows(inputs)
    if rows == count or not has_rows(inputs):
        return inputs
    if (images := _image_list(inputs)) is not None:
        taken = (images * math.ceil(count / rows))[:count]
        return (taken,) if isinstance(inputs, tuple) else taken
    if count < rows:
        return map_tensors(lambda tensor: tensor[:count], inputs)
    return map_tensors(lambda tensor: tensor[torch.arange(count, device=tensor.device) % rows], inputs)


def draw_like(inputs: Any, generator: torch.Generator, dtype: torch.dtype) -> Any:
    """Return inputs of the same shapes on the CPU, with random normal numbers.

    Tensors of whole numbers, such as tokens, keep their values.

    Args:
        inputs: The inputs of a network.
        generator: Draws the numbers.
        dtype: The data type of the numbers.
    """

    def draw(tensor: Tensor) -> Tensor:
        if not tensor.is_floating_point():
            return tensor.detach().cpu()
        return torch.randn(tensor.shape, generator=generator, dtype=dtype)

    return map_tensors(draw, inputs)


def compare_outputs(output: Any, expected: Any, name: str) -> tuple[float, float]:
    """Compare what two networks return, tensor by tensor.

    Args:
        output: What the changed network returned: tensors and numbers, perhaps nested.
        expected: What the original returned.
        name: What the changed network is, for messages.

    Returns:
        Of one tensor, the largest absolute difference and the largest absolute expected value. It is the tensor for
        which the first is the largest share of the second.

    Raises:
        InputError: They return different kinds of values, or tensors of different shapes.
    """
    ours, theirs = dict(leaves(output)), dict(leaves(expected))
    if unmatched := sorted(ours.keys() ^ theirs.keys()):
        who = "the original" if unmatched[0] in ours else name
        raise InputError(f"{name} returns other values than the original: output{unmatched[0]} is missing in {who}")
    difference, scale = 0.0, 0.0
    for path, value in theirs.items():
        found, wanted = _as_numbers(ours[path]), _as_numbers(value)
        kinds = [_describe_kind(ours[path]), _describe_kind(value)]
        if kinds[0] != kinds[1]:
            where = f" as output{path}" if path else ""
            raise InputError(f"{name} returns {kinds[0]}{where}, the original {kinds[1]}")
        if found is None or wanted is None or not wanted.numel():
            continue
        for distance, largest in _distances(found, wanted):
            # What is NaN differs most: a comparison with it is false.
            if scale == 0 == difference or not (math.isnan(difference) or distance * scale <= difference * largest):
                difference, scale = distance, largest
    return difference, scale


def _distances(found: Tensor, wanted: Tensor) -> Iterator[tuple[float, float]]:
    """Yield the largest difference between two tensors and the largest value, apart for values of another magnitude.

    Beside what fills masked places, such as -1e9 or -inf, any difference between the other values would be small.

    Args:
        found: The tensor to compare.
        wanted: The tensor that it should equal.
    """
    distance, size = (found - wanted).abs(), wanted.abs()
    is_equal_infinity = wanted.isinf() & (found == wanted)
    distance, size = distance[~is_equal_infinity], size[~is_equal_infinity]
    if not size.numel():
        return
    limit = FILL_RATIO * size[size > 0].double().median() if (size > 0).any() else size.new_zeros(())
    for chosen in (~(size > limit), size > limit):
        if chosen.any():
            yield float(distance[chosen].max()), float(size[chosen].max())


def _as_numbers(value: Any) -> Tensor | None:
    """Return a tensor or a number as a tensor whose values can be subtracted; None for anything else."""
    if isinstance(value, bool | int | float):
        value = torch.tensor(value)
    if not isinstance(value, Tensor):
        return None
    return value if value.is_floating_point() or value.is_complex() else value.double()


def _describe_kind(value: Any) -> str:
    return str(tuple(value.shape)) if isinstance(value, Tensor) else f"a {type(value).__name__}"


def _is_dataclass(values: Any) -> bool:
    return dataclasses.is_dataclass(values) and not isinstance(values, type)


def _is_container(values: Any) -> bool:
    return isinstance(values, tuple | list | Mapping) or _is_dataclass(values)


def _entries(values: Any) -> Iterator[tuple[str, Any]]:
    """Yield (path, value) of each entry of a container; nothing for a value that is no container."""
    if isinstance(values, Mapping):
        yield from ((f"[{key!r}]", value) for key, value in values.items())
    elif isinstance(values, tuple) and hasattr(values, "_fields"):
        yield from ((f".{name}", value) for name, value in zip(values._fields, values, strict=True))
    elif isinstance(values, tuple | list):
        yield from ((f"[{number}]", value) for number, value in enumerate(values))
    elif _is_dataclass(values):
        yield from ((f".{field.name}", getattr(values, field.name)) for field in dataclasses.fields(values))
