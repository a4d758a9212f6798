"""Watch a network while it runs: the outputs of its modules and every torch function that it calls."""

from __future__ import annotations

import sys
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from prune_fe.errors import InputError, PruneFEError, first_line
from prune_fe.tracing.nested import describe, tensors_in


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
def running_eagerly() -> Iterator[None]:
    """Run compiled networks in the block without their compiled code, into which hooks cannot see."""
    if "torch._dynamo" not in sys.modules:  # Nothing is compiled, and the import would take a second.
        yield
        return
    with torch.compiler.set_stance("force_eager"):
        yield


@contextmanager
def explain_run(model: nn.Module, inputs: Any) -> Iterator[None]:
    """Turn what a network's own code raises in the block into an InputError that says what it was run on.

    Args:
        model: The network.
        inputs: Its inputs.
    """
    try:
        yield
    except (PruneFEError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # A network raises anything on a wrong input.
        # torch raises the death of a DataLoader's worker in whatever code is running.
        if "allocate memory" in str(error) or "DataLoader worker" in str(error):
            raise
        kind = f"images {tuple(inputs.shape)} of {inputs.dtype}" if isinstance(inputs, Tensor) else describe(inputs)
        reason = _describe_half(model, inputs, str(error)) or first_line(error)
        raise InputError(f"{type(model).__name__} does not run on {kind}: {reason}") from error


def _describe_half(model: nn.Module, inputs: Any, text: str) -> str | None:
    """Return that a network's weights have half precision, if an error speaks of types and its images have not."""
    half = (torch.float16, torch.bfloat16)
    weights = {weight.dtype for weight in model.parameters() if weight.dtype in half}
    given = {tensor.dtype for tensor in tensors_in(inputs) if tensor.is_floating_point()}
    if not weights or given <= weights or "type" not in text:
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
            stack.enter_context(running_eagerly())
            stack.enter_context(self)
            yield
