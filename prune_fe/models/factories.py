"""Constructors that a manifest can name: those of our own, torchvision's and timm's networks."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from prune_fe.errors import CheckpointError, InputError
from prune_fe.models import arguments as arguments_module
from prune_fe.models.build import parse_name, torchvision_names
from prune_fe.models.settings import Settings, apply_settings, module_settings, split_settings
from prune_fe.models.small_vgg import SMALL_VGG, SmallVGG
from prune_fe.tracing.ops import Kind, functions
from prune_fe.tracing.shared_tensors import TensorName, all_tensor_names

ALLOCATIONS = functions(Kind.ALLOCATION)

ALLOWED_ARGUMENTS: Mapping[str, frozenset[str]] = {
    "prune_fe": frozenset({"classes", "channels", "stages", "hidden", "dropout", "pool"}),
    "torchvision": frozenset({"aux_logits"}),
}
"""The arguments that a manifest may give to a library's constructor; others could fetch or run something."""


@dataclass(frozen=True)
class Factory:
    """A constructor of a library, and what turns the network that it makes into a given one.

    Attributes:
        name: The constructor's name, such as "torchvision/resnet18".
        arguments: Its arguments.
        settings: The settings of the given network's modules, without `added`.
        added: The attributes of the given network's modules that the constructor does not make.
    """

    name: str
    arguments: dict[str, Any]
    settings: Settings
    added: Settings


def find_factory(model: nn.Module) -> Factory | None:
    """Find a constructor whose network equals `model` after its settings and tensors are replaced by those of `model`.

    Returns:
        The constructor, or None if there is none.
    """
    every = module_settings(model)
    # Tensors that are no buffers are not in the files.
    if "torch.Tensor" in json.dumps(every):
        return None
    for name, arguments in _candidates(model):
        try:
            twin = build_from_factory(name, arguments)
            settings, added = split_settings(every, module_settings(twin))
            apply_settings(twin, settings, name)
        except CheckpointError:
            continue
        if _tensor_names(twin) == _tensor_names(model) and module_settings(twin) == settings:
            return Factory(name, arguments, settings, added)
    return None


def _tensor_names(model: nn.Module) -> set[TensorName]:
    """Return all names of parameters and buffers; some may be names of the same tensor."""
    return {name for name, _ in all_tensor_names(model)}


def _candidates(model: nn.Module) -> list[tuple[str, dict[str, Any]]]:
    """Return the constructors, with their arguments, that a network of this class may come from."""
    if type(model) is SmallVGG:
        return [(f"prune_fe/{SMALL_VGG}", model.arguments)]
    module = type(model).__module__
    if module.startswith("torchvision.models."):
        import torchvision

        names = [n for n in torchvision_names() if torchvision.models.get_model_builder(n).__module__ == module]
        heads: list[dict[str, Any]] = [{}, {"aux_logits": False}] if hasattr(model, "aux_logits") else [{}]
        return [(f"torchvision/{name}", arguments) for name in names for arguments in heads]
    config = getattr(model, "pretrained_cfg", None)
    if module.startswith("timm.models.") and isinstance(config, Mapping) and config.get("architecture"):
        return [(f"timm/{config['architecture']}", {})]
    return []


def build_from_factory(factory: str, arguments: Mapping[str, Any]) -> nn.Module:
    """Build the network of a manifest's constructor, without values or memory for its weights.

    Raises:
        CheckpointError: The constructor is unknown, or takes no such arguments.
    """
    check_arguments(factory, arguments)
    try:
        with warnings.catch_warnings(), torch.random.fork_rng(devices=[]), Weightless():
            warnings.simplefilter("ignore")  # The libraries warn about initial weights.
            return _construct(factory, arguments)
    except (InputError, TypeError, ValueError, RuntimeError) as error:
        raise CheckpointError(f"the manifest's factory {factory!r} cannot be built: {error}") from error


def check_arguments(factory: str, arguments: Mapping[str, Any]) -> None:
    """Check that a manifest gives only harmless arguments to its constructor.

    Raises:
        CheckpointError: An argument is not in ALLOWED_ARGUMENTS, or its value is not one that a file may give.
    """
    library = factory.partition("/")[0]
    try:
        arguments_module.check_arguments(arguments, ALLOWED_ARGUMENTS.get(library, frozenset()))
    except InputError as error:
        raise CheckpointError(f"the manifest's factory {factory!r} cannot be built: {error}") from error


class Weightless(TorchFunctionMode):
    """Networks built inside get weights on the meta device.

    `torch.device("meta")` would not do: it also reaches what constructors compute with, such as RegNet's widths.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        return func(*args, **(kwargs | {"device": "meta"} if func in ALLOCATIONS else kwargs))


def _construct(factory: str, arguments: Mapping[str, Any]) -> nn.Module:
    library, name = parse_name(factory)
    if library == "prune_fe":
        return SmallVGG(**arguments)
    if library == "torchvision":
        import torchvision

        return torchvision.models.get_model(name, weights=None, **arguments)
    import timm

    return timm.create_model(name, pretrained=False)
