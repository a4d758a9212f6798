"""Networks by name: our own, torchvision's and timm's."""

from __future__ import annotations

import difflib
import re
import warnings
from pathlib import Path
from typing import Any

from torch import nn

from prune_fe.errors import EnvironmentFault, InputError
from prune_fe.models.checkpoints import fill
from prune_fe.models.classifier import describe_renewed, is_in_classifier, set_classifier_width
from prune_fe.models.small_vgg import SMALL_VGG, SmallVGG
from prune_fe.options import Count, validate_value


def build(
    name: str,
    classes: int,
    *,
    in_channels: int = 3,
    pretrained: bool = False,
    classifier_width: int | None = None,
    **arguments: Any,
) -> nn.Module:
    """Build a network by name.

    Args:
        name: `vgg-small`, the name of a torchvision classifier, or that of a timm model. The prefixes `torchvision/`
            and `timm/` choose the library; a name without one is searched for in this order.
        classes: Number of outputs.
        in_channels: Number of channels of the images.
        pretrained: Download the library's weights. A warning names the layers of the classifier that they do not fit,
            which get random weights.
        classifier_width: Width of the hidden linear layers of the classifier (VGG and AlexNet have two); by default
            the network's own.
        arguments: More arguments of the network's constructor.

    Returns:
        The network on the CPU, in training mode.

    Raises:
        InputError: The name is unknown, or the network cannot be built with these arguments.
        EnvironmentFault: The weights cannot be downloaded.
    """
    classes, in_channels = validate_value(Count, classes, "classes"), validate_value(Count, in_channels, "in_channels")
    settings = {"in_channels": in_channels, "classifier_width": classifier_width, **arguments}
    if not pretrained:
        return _build(name, classes, pretrained=False, **settings)
    network, renewed = build_pretrained(name, classes, **settings)
    if renewed:
        warnings.warn(describe_renewed(f"the weights of {name}", renewed), stacklevel=2)
    return network


def build_pretrained(name: str, classes: int, **settings: Any) -> tuple[nn.Module, list[str]]:
    """Build a network by name with the library's trained weights.

    Args:
        name: Name of the network; see `build`.
        classes: Number of outputs.
        settings: Further arguments of `build`.

    Returns:
        The network, and the keys of its classifier that have random weights because the library's do not fit.
    """
    network = _build(name, classes, pretrained=False, **settings)
    library, plain = parse_name(name)
    if library == "prune_fe":
        raise InputError(f"model {name!r} has no pretrained weights")
    source = f"the weights of {name}"
    try:
        if library == "torchvision":
            import torchvision

            state = torchvision.models.get_model_weights(plain).DEFAULT.get_state_dict(progress=False, check_hash=True)
            return network, fill(network, state, source, new_classifier=True)
        # timm adapts the first convolution to the images and leaves out a classifier of other classes.
        trained = _build(name, classes, pretrained=True, **settings | {"classifier_width": None})
    except OSError as error:
        raise EnvironmentFault(f"model {name!r}: its weights cannot be fetched ({error})") from error
    state = trained.state_dict()
    if getattr(trained, "pretrained_cfg", {}).get("num_classes") != classes:
        state = {key: value for key, value in state.items() if not is_in_classifier(key)}
    return network, fill(network, state, source, new_classifier=True)


def draw_weights(network: nn.Module) -> nn.Module:
    """Give a network random weights, as its layers have them when they are made, in place.

    The weights that a library's own code sets after its layers are made, such as an initialisation for deep networks,
    are not repeated.

    Args:
        network: The network.

    Returns:
        The network.

    Raises:
        InputError: A module has parameters of its own and no method `reset_parameters`.
    """
    for name, module in network.named_modules():
        if callable(reset := getattr(module, "reset_parameters", None)):
            reset()
        elif any(True for _ in module.parameters(recurse=False)):
            raise InputError(
                f"{name or type(network).__name__}: a {type(module).__name__} has no reset_parameters(), so that it "
                "cannot be given random weights; name the network instead of a saved folder"
            )
    return network


def _build(
    name: str,
    classes: int,
    *,
    pretrained: bool,
    in_channels: int = 3,
    classifier_width: int | None = None,
    **arguments: Any,
) -> nn.Module:
    """Build a network; see `build`. Only timm's can have trained weights here."""
    library, plain = parse_name(name)
    if library == "torchvision" and in_channels != 3:
        raise InputError(
            f"model {name!r} reads 3 channels, the images have {in_channels}; timm's models take any number"
        )
    try:
        network: nn.Module
        if library == "prune_fe":
            network = SmallVGG(classes, in_channels, **arguments)
        elif library == "timm":
            import timm

            network = timm.create_model(
                plain, pretrained=pretrained, num_classes=classes, in_chans=in_channels, **arguments
            )
        else:
            import torchvision

            network = torchvision.models.get_model(plain, weights=None, num_classes=classes, **arguments)
    except OSError as error:
        raise EnvironmentFault(f"model {name!r}: its weights cannot be fetched ({error})") from error
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(f"model {name!r}: {error}") from error
    if classifier_width is not None:
        set_classifier_width(network, classifier_width)
    return network


def parse_name(name: str) -> tuple[str, str]:
    """Return the library (prune_fe, torchvision or timm) of a network's name, and its name there.

    Only known names pass: timm would fetch and run what some other names point to.

    Raises:
        InputError: The name is unknown, or its library is not installed.
    """
    if not isinstance(name, str):
        raise InputError(f"name is a {type(name).__name__}; it must be the name of a network")
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
    is_path = library not in ("", "prune_fe", "torchvision", "timm")
    missing = ", and there is no such folder" if is_path and not Path(name).exists() else ""
    raise InputError(f"unknown model {name!r}{missing}" + (f"; did you mean {', '.join(close)}?" if close else ""))


def torchvision_names() -> list[str]:
    """Return the names of torchvision's classifiers."""
    import torchvision

    # This leaves out the detectors, which download weights even if none are requested.
    return torchvision.models.list_models(module=torchvision.models)
