"""Recognise quantised networks: their weights are whole numbers, or are rounded in each run, and cannot be cut."""

from __future__ import annotations

import re

from torch import nn

from prune_fe.errors import InputError

ADVICE = "prune first, quantise afterwards"
"""What to do instead."""

QUANTISED = (
    "torch.ao.nn.quantized.",
    "torch.ao.nn.intrinsic.quantized.",
    "torch.ao.nn.sparse.quantized.",
    "torchao.",
    "bitsandbytes.",
    "optimum.quanto.",
)
"""Where the modules and the tensors of quantised networks are defined."""

PREPARED = (
    "torch.ao.nn.qat.",
    "torch.ao.nn.intrinsic.",
    "torch.ao.quantization.fake_quantize.",
    "torch.ao.quantization.observer.",
    "torchao.quantization.qat.",
)
"""Where those of networks are defined that are prepared for quantisation, and can still be trained."""

INTRINSIC = "torch.ao.nn.intrinsic.quantized."
"""Of the modules that stand for several layers, those that are quantised."""

FLOAT = "FloatFunctional"
"""A module that computes in floating point although it is defined there: it marks what may be quantised later."""

NAMES = re.compile(r"(^|\.)(_packed_params|zero_point|weight_fake_quant|activation_post_process)(_\d+)?(\.|$)")
"""Parts of names that only the state dict of a quantised or prepared network has."""


def find_quantised(model: nn.Module, *, prepared: bool = True) -> str | None:
    """Return which layer of a network is quantised, and as what; None if none is.

    Args:
        model: The network.
        prepared: Whether layers that are prepared for quantisation count as well.
    """
    # Observers have names that no user gave, so they come last.
    modules = sorted(model.named_modules(), key=lambda each: "activation_post_process" in each[0])
    for name, module in modules:
        for each in (module, *module._parameters.values(), *module._buffers.values()):
            kind = f"{type(each).__module__}.{type(each).__qualname__}"
            where = f"layer {name!r}" if name else type(model).__name__
            if kind.startswith(PREPARED) and not kind.startswith(INTRINSIC):
                if prepared:
                    return f"{where} is prepared for quantisation ({kind})"
            elif getattr(each, "is_quantized", False) is True or (
                kind.startswith(QUANTISED) and not kind.endswith(FLOAT)
            ):
                return f"{where} is quantised ({kind})"
    return None


def require_float(model: object, *, prepared: bool = True) -> None:
    """Check that a network is not quantised.

    Args:
        model: The network. Anything else passes: other checks name what it is.
        prepared: Whether layers that are prepared for quantisation are refused as well.

    Raises:
        InputError: A layer is quantised.
    """
    if isinstance(model, nn.Module) and (fault := find_quantised(model, prepared=prepared)):
        raise InputError(f"{fault}; {ADVICE}")


def is_quantised_name(name: str) -> bool:
    """Return whether only the state dict of a quantised network has a name.

    >>> is_quantised_name("fc._packed_params._packed_params"), is_quantised_name("fc.weight")
    (True, False)
    """
    return NAMES.search(name) is not None
