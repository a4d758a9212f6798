"""Networks by name: our own, torchvision's and timm's."""

from __future__ import annotations

import difflib
import re
import warnings
from collections.abc import Mapping
from typing import Any

from torch import nn

from prune_fe.errors import EnvironmentFault, InputError
from prune_fe.models.small_vgg import SMALL_VGG, SmallVGG


def build(name: str, classes: int, *, in_channels: int = 3, pretrained: bool = False, **arguments: Any) -> nn.Module:
    """Build a network by name.

    Args:
        name: `vgg-small`, the name of a torchvision classifier, or that of a timm model. The prefixes `torchvision/`
            and `timm/` choose the library; a name without one is searched for in this order.
        classes: Number of outputs.
        in_channels: Number of channels of the images.
        pretrained: Download the library's weights. For another number of classes than the weights have, only timm
            supports this.
        arguments: More arguments of the network's constructor.

    Returns:
        The network on the CPU, in training mode.

    Raises:
        InputError: The name is unknown, or the network cannot be built with these arguments.
        EnvironmentFault: The weights cannot be downloaded.
    """
    library, plain = parse_name(name)
    if library == "torchvision" and in_channels != 3:
        raise InputError(
            f"model {name!r} reads 3 channels, the images have {in_channels}; timm's models take any number"
        )
    if library == "prune_fe" and pretrained:
        raise InputError(f"model {name!r} has no pretrained weights")
    try:
        if library == "prune_fe":
            return SmallVGG(classes, in_channels, **arguments)
        if library == "timm":
            import timm

            return timm.create_model(
                plain, pretrained=pretrained, num_classes=classes, in_chans=in_channels, **arguments
            )
        return _build_torchvision(plain, classes, pretrained, arguments)
    except OSError as error:
        raise EnvironmentFault(f"model {name!r}: its weights cannot be fetched ({error})") from error
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(f"model {name!r}: {error}") from error


def _build_torchvision(name: str, classes: int, pretrained: bool, arguments: Mapping[str, Any]) -> nn.Module:
    import torchvision

    weights = torchvision.models.get_model_weights(name).DEFAULT if pretrained else None
    known = len(weights.meta["categories"]) if weights is not None else classes
    if known != classes:
        raise ValueError(f"its weights tell {known} classes apart, the data has {classes}")
    return torchvision.models.get_model(name, weights=weights, num_classes=classes, **arguments)


def parse_name(name: str) -> tuple[str, str]:
    """Return the library (prune_fe, torchvision or timm) of a network's name, and its name there.

    Only known names pass: timm would fetch and run what some other names point to.

    Raises:
        InputError: The name is unknown, or its library is not installed.
    """
    library, _, plain = name.rpartition("/")
    if plain == SMALL_VGG and library in ("", "prune_fe"):
        return "prune_fe", plain
    known = torchvision_names()
    if library in ("", "torchvision") and plain in known:
        return "torchvision", plain
    if library in ("", "timm"):
        try:
            # Some versions of timm define scripted functions, which some versions of torch call deprecated.
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", DeprecationWarning)
                import timm
        except ImportError:
            if library == "timm":
                raise InputError(f"model {name!r} needs timm: pip install 'prune-fe[timm]'") from None
            known = [SMALL_VGG, *known]
        else:
            if re.fullmatch(r"[\w.]+", plain) and timm.is_model(plain):
                return "timm", plain
            known = list(dict.fromkeys([SMALL_VGG, *known, *timm.list_models()]))
    close = difflib.get_close_matches(plain, known, n=3)
    raise InputError(f"unknown model {name!r}" + (f"; did you mean {', '.join(close)}?" if close else ""))


def torchvision_names() -> list[str]:
    """Return the names of torchvision's classifiers."""
    import torchvision

    # This leaves out the detectors, which download weights even if none are requested.
    return torchvision.models.list_models(module=torchvision.models)
