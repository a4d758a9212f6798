"""Record which modules and functions a network calls, to tell whether it does the same on another input."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from prune_fe.tracing.nested import tensors_in
from prune_fe.tracing.ops import plain_name
from prune_fe.tracing.watching import running_eagerly


class CallRecorder(TorchFunctionMode):
    """Records the calls of a network, in their order.

    Attributes:
        calls: The modules and functions: the names of modules that are handled as a whole, and the plain names of the
            functions that are called outside of these and return a tensor.
        whole: Names of the modules that are handled as a whole, whatever they call.
        whole_running: How many of these are running.
    """

    def __init__(self, whole: Collection[str]) -> None:
        super().__init__()
        self.calls: list[str] = []
        self.whole = frozenset(whole)
        self.whole_running = 0

    @contextmanager
    def recording(self, model: nn.Module) -> Iterator[None]:
        """Record what a network calls, for the duration of a context."""
        with ExitStack() as stack:
            for name, module in model.named_modules():
                if not self.watches(name):
                    continue
                # Our hook runs before the network's own, because the functions that those call belong to the module.
                enter = module.register_forward_pre_hook(lambda _, args, name=name: self.enter(name), prepend=True)
                leave = module.register_forward_hook(
                    lambda _, args, kwargs, output, name=name: self._leave(name, (*args, *kwargs.values()), output),
                    with_kwargs=True,
                )
                stack.callback(enter.remove)
                stack.callback(leave.remove)
            stack.enter_context(running_eagerly())
            stack.enter_context(self)
            yield

    def watches(self, name: str) -> bool:
        """Return whether `enter` and `leave` have to be called for a module."""
        return name in self.whole

    def enter(self, name: str) -> None:
        """Note that a module begins to run."""
        if name in self.whole:
            if not self.whole_running:
                self.calls.append(name)
            self.whole_running += 1

    def leave(self, name: str, inputs: Sequence[Any], output: Any) -> None:
        """Note that a module has run.

        Args:
            name: The module's name.
            inputs: What it was called with: positional arguments, then the values of the keywords.
            output: What it returned.
        """
        self.whole_running -= name in self.whole

    def _leave(self, name: str, inputs: Sequence[Any], output: Any) -> None:
        # What the hook itself computes is no part of the network.
        with torch._C.DisableTorchFunction(), torch._C._DisableTorchDispatch():
            self.leave(name, inputs, output)

    def follow(self, func: Any, args: Any, kwargs: Any, output: Any) -> None:
        """Note that a function was called outside of the modules that are handled as a whole."""
        if tensors_in(output):
            self.calls.append(plain_name(func))

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        output = func(*args, **kwargs)
        if not self.whole_running:
            with torch._C._DisableTorchDispatch():  # what follows is no part of the network
                self.follow(func, args, kwargs, output)
        return output
