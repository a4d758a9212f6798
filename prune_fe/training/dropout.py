"""Change the rates of dropout layers while a network is trained."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from fnmatch import fnmatchcase

from torch import nn
from torch.nn.modules.dropout import _DropoutNd

from prune_fe.errors import InputError
from prune_fe.io import nearest


@contextmanager
def dropout_rates(model: nn.Module, rates: Mapping[str, float]) -> Iterator[None]:
    """Give the dropout layers of a network other rates for the duration of the context.

    Args:
        model: The network.
        rates: Name or shell pattern of dropout layers -> rate; a later entry wins over an earlier one.

    Raises:
        InputError: A name or pattern matches no dropout layer.
    """
    layers = {name: module for name, module in model.named_modules() if isinstance(module, _DropoutNd)}
    before = {module: module.p for module in layers.values()}
    try:
        for pattern, rate in rates.items():
            matched = [name for name in layers if fnmatchcase(name, pattern)]
            if not matched:
                known = nearest(pattern, list(layers)) if layers else "the network has none"
                raise InputError(f"dropout: no dropout layer is called {pattern!r}; {known}")
            for name in matched:
                layers[name].p = rate
        yield
    finally:
        for module, rate in before.items():
            module.p = rate
