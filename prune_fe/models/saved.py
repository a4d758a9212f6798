"""Save a network, pruned or not, to a folder, and load it again to the bit."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save as dump_safetensors
from torch import nn

from prune_fe.errors import CheckpointError, InputError
from prune_fe.file_types import open_regular_file, require_path
from prune_fe.io import write_folder
from prune_fe.models.build import build
from prune_fe.models.factories import build_from_factory, check_arguments, find_factory
from prune_fe.models.manifest import FORMAT, MANIFEST, WEIGHTS, compute_digest, read_manifest
from prune_fe.models.settings import CHANNEL_COUNTS, add_settings, apply_settings, whole_number_settings
from prune_fe.models.tensors import check_channel_counts, parse_tensors, set_tensors, tensors_to_save, tied_names
from prune_fe.tracing.memory_format import CHANNELS_LAST, is_channels_last, to_channels_last
from prune_fe.tracing.quantised import require_float
from prune_fe.tracing.shared_tensors import named_tensors
from prune_fe.tracing.weights import require_module, require_sound_weights
from prune_fe.tracing.wrappers import unwrap


def save(model: nn.Module, path: str | Path, about: Mapping[str, Any] | None = None, overwrite: bool = False) -> Path:
    """Write a network to a folder, whole or not at all; `load` reads it.

    The folder holds `model.safetensors` and `manifest.json`. The manifest contains the settings of every module,
    `about`, the SHA-256 of the content and, for networks of prune_fe, torchvision and timm, the constructor; other
    networks must be built by the caller of `load`. It also says which names share one tensor, and which weights are in
    channels-last. Attributes that were added to the network of such a library (numbers, texts, tuples of these)
    are saved too; of other networks, attributes that are whole numbers.

    Args:
        model: The network. One in a wrapper, such as DistributedDataParallel, is saved without it.
        path: The folder.
        about: Anything worth keeping that JSON can express.
        overwrite: Replace a network that was saved to `path` before; any other folder is refused.

    Returns:
        The path.

    Raises:
        InputError: The folder exists, a weight is NaN or infinite, or the network keeps something that cannot be saved.
        CheckpointError: A layer states other channel counts than its weight has.
        EnvironmentFault: The folder cannot be written.
    """
    require_module(model)
    model = unwrap(model)
    require_float(model, prepared=False)
    require_sound_weights(model)
    path = require_path(path)
    try:
        about = json.loads(json.dumps(dict(about or {})))
    except (TypeError, ValueError, RecursionError) as error:
        raise InputError(f"about is {str(about)[:60]!r}, no mapping that JSON can express ({error})") from error
    if path.exists() and not overwrite:
        raise InputError(f"{path} exists already; choose another path or pass overwrite=True")
    if path.exists() and not (path.is_dir() and {entry.name for entry in path.iterdir()} <= {MANIFEST, WEIGHTS}):
        raise InputError(f"{path} holds more than a saved model and is not overwritten; choose another path")
    check_channel_counts(model, type(model).__name__)
    weights = dump_safetensors(tensors_to_save(model))
    factory = find_factory(model)
    manifest = {
        "format": FORMAT,
        "class": f"{type(model).__module__}.{type(model).__qualname__}",
        "factory": factory.name if factory else None,
        "arguments": factory.arguments if factory else {},
        "settings": factory.settings if factory else whole_number_settings(model),
        "frozen": [name for name, weight in model.named_parameters() if not weight.requires_grad],
        "about": about,
    }
    optional = {
        "added": factory.added if factory else {},
        "tied": tied_names(model),
        "channels_last": [name for name, tensor in named_tensors(model).items() if is_channels_last(tensor)],
    }
    manifest |= {key: value for key, value in optional.items() if value}
    # The digest is of what will be read: JSON turns tuples into lists and numbers as keys into texts.
    manifest = json.loads(json.dumps(manifest))
    manifest["sha256"] = compute_digest(manifest, weights)
    write_folder(path, {WEIGHTS: weights, MANIFEST: json.dumps(manifest, indent=1).encode()})
    return path


def load(path: str | Path, model: nn.Module | None = None) -> nn.Module:
    """Load the network that `save` wrote to a folder. Nothing in its files is executed.

    Args:
        path: The folder.
        model: A freshly built network of the same architecture, which is changed and returned; needed only if the
            manifest names no constructor. If it is in a wrapper, the network without the wrapper is returned.

    Returns:
        The network, on the CPU, in evaluation mode.

    Raises:
        InputError: The path is no path, or the model no module.
        CheckpointError: The files are missing or damaged, or hold another architecture.
    """
    path = require_path(path)
    if model is not None and not isinstance(model, nn.Module):
        raise InputError(f"model is a {type(model).__name__}; it must be an nn.Module")
    model = None if model is None else unwrap(model)
    manifest = read_manifest(path)
    try:
        with open_regular_file(path / WEIGHTS) as file:
            content = file.read()
    except OSError as error:
        raise CheckpointError(f"{path}: {error.strerror}: {WEIGHTS}") from error
    if compute_digest(manifest, content) != manifest["sha256"]:
        raise CheckpointError(f"{path} is damaged: the SHA-256 of its files is not the one in {MANIFEST}")
    is_given = model is not None
    if model is None:
        if manifest["factory"] is None:
            raise CheckpointError(f"{path} holds a {manifest['class']}: build one and pass load(path, model=...)")
        model = build_from_factory(manifest["factory"], manifest["arguments"])
    apply_settings(model, manifest["settings"], path, may_add=is_given)
    add_settings(model, manifest.get("added", {}), path)
    tensors = parse_tensors(content, path)
    for name in manifest.get("channels_last", ()):
        if name not in tensors or tensors[name].ndim not in CHANNELS_LAST:
            raise CheckpointError(
                f"{path}: {MANIFEST} says that {name!r} is laid out in channels-last, but {WEIGHTS} holds no tensor of "
                "this name with 4 or 5 dimensions"
            )
        tensors[name] = to_channels_last(tensors[name])
    set_tensors(model, tensors, path, manifest.get("tied", {}))
    check_channel_counts(model, path)
    weights = dict(model.named_parameters())
    for name in manifest["frozen"]:
        if name not in weights:
            raise CheckpointError(f"{path}: {name!r} is to be frozen, {type(model).__name__} has no such weight")
        weights[name].requires_grad_(False)
    return model.eval()


def build_original(path: str | Path, outputs: int, in_channels: int = 3) -> nn.Module:
    """Build the unpruned architecture of a saved network, with new weights.

    Args:
        path: The folder of the saved network.
        outputs: Its number of outputs.
        in_channels: Its number of input channels.

    Returns:
        The network, on the CPU, in evaluation mode.

    Raises:
        CheckpointError: The manifest names no constructor, or that constructor alone does not give the network.
    """
    path = Path(path)
    manifest = read_manifest(path)
    factory = manifest["factory"]
    advice = "say with --against what it is compared with"
    if factory is None:
        raise CheckpointError(f"{path} holds a {manifest['class']}, whose constructor is not known; {advice}")
    check_arguments(factory, manifest["arguments"])
    arguments = {key: value for key, value in manifest["arguments"].items() if key not in ("classes", "channels")}
    # Other settings than channel counts may have been changed by hand, such as a stride; they apply to the original.
    settings = {
        name: {key: value for key, value in own.items() if key not in CHANNEL_COUNTS}
        for name, own in manifest["settings"].items()
        if "torch.nn." in str(own.get("class"))
    }
    try:
        with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
            warnings.simplefilter("ignore")  # The libraries warn about initial weights.
            model = build(factory, outputs, in_channels=in_channels, **arguments)
        apply_settings(model, settings, path)
    except (CheckpointError, InputError, TypeError) as error:
        raise CheckpointError(f"{path}: its original cannot be built ({error}); {advice}") from error
    for name, module in model.named_modules():
        if isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Conv3d)) and module.kernel_size != module.weight.shape[2:]:
            built = "×".join(map(str, module.weight.shape[2:]))
            raise CheckpointError(f"{path}: {name!r} has other kernels than the {built} of {factory}; {advice}")
    return model.eval()
