"""Watch a network while it runs: the outputs of its modules and every torch function that it calls."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from prune_fe.errors import InputError, PruneFEError, first_line


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put a network in evaluation mode for a context, and then every module back in the mode that it had."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


@contextmanager
def explain_run(model: nn.Module, images: Any) -> Iterator[None]:
    """Turn what a network's own code raises in the block into an InputError that says what it was run on.

    Args:
        model: The network.
        images: Its input.
    """
    try:
        yield
    except (PruneFEError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # A network raises anything on a wrong input.
        if "allocate memory" in str(error):
            raise
        kind = (
            f"images {tuple(images.shape)} of {images.dtype}" if isinstance(images, Tensor) else type(images).__name__
        )
        reason = _describe_half(model, images, str(error)) or first_line(error)
        raise InputError(f"{type(model).__name__} does not run on {kind}: {reason}") from error


def _describe_half(model: nn.Module, images: Any, text: str) -> str | None:
    """Return that a network's weights have half precision, if an error speaks of types and its images have not."""
    half = (torch.float16, torch.bfloat16)
    weights = {weight.dtype for weight in model.parameters() if weight.dtype in half}
    if not weights or not isinstance(images, Tensor) or images.dtype in weights or "type" not in text:
        return None
    return (
        f"its weights are {weights.pop()}; make them float32 with model.float(), also to train with amp=True, or give "
        "it images of their type"
    )


class Watch(TorchFunctionMode, ABC):
    """Base class of what runs beside a network.

    Subclasses see the torch functions in `__torch_function__` and the outputs of modules in `after_module`.
    """

    @abstractmethod
    def after_module(self, name: str, inputs: tuple[Any, ...], output: Any) -> Any:
        """Handle the output of a module.

        Args:
            name: The module's name.
            inputs: What it was called with: positional arguments, then the values of the keywords.
            output: What it returned.

        Returns:
            The value that replaces the output in the network, or None to keep the output.
        """

    @contextmanager
    def watching(self, modules: Mapping[str, nn.Module]) -> Iterator[None]:
        """Watch these modules (by name), and all functions, for the duration of a context."""
        with ExitStack() as stack:
            for name, module in modules.items():
                handle = module.register_forward_hook(
                    lambda _, args, kwargs, output, name=name: self.after_module(
                        name, (*args, *kwargs.values()), output
                    ),
                    with_kwargs=True,
                )
                stack.callback(handle.remove)
            stack.enter_context(self)
            yield


def tensors_in(values: Any) -> list[Tensor]:
    """Return the tensors in nested lists, tuples and dicts, in their order."""
    if isinstance(values, Tensor):
        return [values]
    if isinstance(values, dict):
        values = values.values()
    elif not isinstance(values, tuple | list):
        return []
    return [tensor for value in values for tensor in tensors_in(value)]
