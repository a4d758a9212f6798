"""Networks: built by name, read from checkpoints, and saved so that a pruned one comes back."""

from __future__ import annotations

import difflib
import hashlib
import json
import os
import pickle
import re
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as read_tensors
from safetensors.torch import save as write_tensors
from torch import Tensor, nn

from prune_fe.errors import CheckpointError, InputError

FORMAT = 1
SMALL_VGG = "vgg-small"
CHANNEL_ATTRIBUTES = (
    "in_channels", "out_channels", "groups", "num_features", "in_features", "out_features", "num_channels",
    "num_groups", "normalized_shape", "num_parameters",
)  # fmt: skip
"""The numbers that pruning changes in a module beside its weights."""


class SmallVGG(nn.Module):
    """VGG (Simonyan & Zisserman 2014) in small: 3×3 convolutions with batch norm, "M" halves the map, one linear layer.

    stages: the widths of the convolutions between poolings, such as ((16, 16), (32, 32), (64, 64)).
    """

    def __init__(
        self,
        classes: int = 10,
        channels: int = 3,
        stages: Sequence[Sequence[int]] = ((16, 16), (32, 32), (64, 64)),
    ) -> None:
        super().__init__()
        self.arguments = {
            "classes": classes,
            "channels": channels,
            "stages": [list(stage) for stage in stages],
        }
        features: list[nn.Module] = []
        for number, stage in enumerate(stages):
            features += [nn.MaxPool2d(2)] if number else []
            for width in stage:
                features += [
                    nn.Conv2d(channels, width, 3, padding=1, bias=False),
                    nn.BatchNorm2d(width),
                    nn.ReLU(),
                ]
                channels = width
        self.features = nn.Sequential(*features)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(channels, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, images: Tensor) -> Tensor:
        """images: (n, channels, height, width) -> logits (n, classes)."""
        return self.classifier(self.pool(self.features(images)).flatten(1))


def build(name: str, classes: int, *, channels: int = 3, pretrained: bool = False, **arguments: Any) -> nn.Module:
    """A network by name: `vgg-small`, a torchvision name, or a timm name; `torchvision/…` and `timm/…` say which.

    pretrained downloads the library's weights; with another number of classes only timm can do that. arguments go
    to the network's own constructor.
    """
    library, plain = _library_of(name)
    if library == "prune_fe":
        if pretrained:
            raise InputError(f"model {name!r} has no pretrained weights")
        return SmallVGG(classes, channels, **arguments)
    if library == "timm":
        import timm

        return timm.create_model(plain, pretrained=pretrained, num_classes=classes, in_chans=channels, **arguments)
    import torchvision

    if channels != 3:
        raise InputError(f"model {name!r} reads 3 channels, the images have {channels}; timm's models take any number")
    weights = "DEFAULT" if pretrained else None
    if pretrained:
        known = len(torchvision.models.get_model_weights(plain).DEFAULT.meta["categories"])
        if known != classes:
            raise InputError(f"model {name!r}: its weights tell {known} classes apart, the data has {classes}")
    return torchvision.models.get_model(plain, weights=weights, num_classes=classes, **arguments)


def _library_of(name: str) -> tuple[str, str]:
    import torchvision

    library, _, plain = name.rpartition("/")
    if plain == SMALL_VGG and library in ("", "prune_fe"):
        return "prune_fe", plain
    ours = torchvision.models.list_models()
    if library in ("", "torchvision") and plain in ours:
        return "torchvision", plain
    if library in ("", "timm"):
        try:
            import timm
        except ImportError:
            if library == "timm":
                raise InputError(f"model {name!r} needs timm: pip install 'prune-fe[timm]'") from None
            ours = [SMALL_VGG, *ours]
        else:
            if re.fullmatch(r"[\w.]+", plain) and timm.is_model(plain):
                return "timm", plain
            ours = [SMALL_VGG, *ours, *timm.list_models()]
    close = difflib.get_close_matches(plain, ours, n=3)
    raise InputError(f"unknown model {name!r}" + (f"; did you mean {', '.join(close)}?" if close else ""))


def load_weights(model: nn.Module, path: str | Path) -> None:
    """Read a state dict (.pth, .pt, .safetensors) into `model`: bare, or under `state_dict` or `model`; `module.` is
    stripped. Nothing in the file is executed. CheckpointError names the first keys that do not fit."""
    path = Path(path)
    try:
        if path.suffix == ".safetensors":
            found: Any = read_tensors(path.read_bytes())
        else:
            found = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such file") from None
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError, SafetensorError) as error:
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(f"{path}: not a checkpoint that can be read safely ({first})") from error
    for key in ("state_dict", "model"):
        if isinstance(found, Mapping) and isinstance(found.get(key), Mapping):
            found = found[key]
    if not isinstance(found, Mapping) or not all(isinstance(value, Tensor) for value in found.values()):
        raise CheckpointError(f"{path}: holds no state dict")
    state = {key.removeprefix("module."): value for key, value in found.items()}
    expected = model.state_dict()
    for key, value in expected.items():
        if key not in state:
            raise CheckpointError(f"{path}: {key!r} is missing; it is a checkpoint of another model")
        if state[key].shape != value.shape:
            raise CheckpointError(f"{path}: {key!r} is {tuple(state[key].shape)}, the model has {tuple(value.shape)}")
    extra = [key for key in state if key not in expected]
    if extra:
        raise CheckpointError(f"{path}: {extra[0]!r} is not in the model; it is a checkpoint of another model")
    model.load_state_dict(state)


def save(model: nn.Module, path: str | Path, about: Mapping[str, Any] | None = None, overwrite: bool = False) -> Path:
    """Write `model` to the folder `path`: model.safetensors and manifest.json. `load` brings it back.

    The manifest names the constructor (of our own, torchvision's and timm's networks; others must be built by the
    caller), the channels of every module, the SHA-256 of the weights, and `about`: anything worth keeping, as JSON.
    """
    path = Path(path)
    if path.exists() and not overwrite:
        raise InputError(f"{path} exists already; choose another path or pass overwrite=True")
    tensors = write_tensors({key: value.detach().cpu().contiguous() for key, value in _untied(model).items()})
    manifest = {
        "format": FORMAT,
        "class": f"{type(model).__module__}.{type(model).__qualname__}",
        "factory": None,
        "arguments": {},
        "channels": _channels(model),
        "frozen": [name for name, weight in model.named_parameters() if not weight.requires_grad],
        "sha256": hashlib.sha256(tensors).hexdigest(),
        "about": dict(about or {}),
    }
    manifest["factory"], manifest["arguments"] = _factory_of(model, manifest)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{path.name}-", dir=path.parent))
    try:
        partial.chmod(0o755)
        for name, content in (
            ("model.safetensors", tensors),
            ("manifest.json", json.dumps(manifest, indent=1).encode()),
        ):
            with (partial / name).open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
        if path.exists():
            shutil.rmtree(path)
        os.replace(partial, path)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return path


def load(path: str | Path, model: nn.Module | None = None) -> nn.Module:
    """The network that `save` wrote to the folder `path`, in evaluation mode, its weights verified.

    model: a freshly built network of the same architecture, needed when the manifest names no constructor; it is
    changed and returned. Nothing in the files is executed. Raises CheckpointError for damaged or foreign files.
    """
    path = Path(path)
    manifest = read_manifest(path)
    try:
        content = (path / "model.safetensors").read_bytes()
    except OSError as error:
        raise CheckpointError(f"{path}: {error.strerror}: model.safetensors") from error
    if hashlib.sha256(content).hexdigest() != manifest["sha256"]:
        raise CheckpointError(f"{path}/model.safetensors is damaged: its SHA-256 is not the manifest's")
    if model is None:
        if manifest["factory"] is None:
            raise CheckpointError(f"{path} holds a {manifest['class']}: build one and pass load(path, model=...)")
        model = _from_factory(manifest["factory"], manifest["arguments"])
    _set_channels(model, manifest["channels"], path)
    _set_tensors(model, read_tensors(content), path)
    for name, weight in model.named_parameters():
        weight.requires_grad_(name not in manifest["frozen"])
    return model.eval()


def read_manifest(path: str | Path) -> dict[str, Any]:
    """The manifest of a folder that `save` wrote."""
    file = Path(path) / "manifest.json"
    try:
        manifest = json.loads(file.read_text())
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no manifest.json there; prune_fe.save writes one") from None
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{file}: cannot be read ({error})") from error
    keys = {"format", "class", "factory", "arguments", "channels", "frozen", "sha256"}
    if not isinstance(manifest, dict) or not keys <= manifest.keys():
        raise CheckpointError(f"{file}: not a manifest of prune_fe")
    if manifest["format"] != FORMAT:
        raise CheckpointError(f"{file}: format {manifest['format']}, this version reads {FORMAT}")
    return manifest


def _untied(model: nn.Module) -> dict[str, Tensor]:
    """The state dict with a copy wherever two names share one tensor; safetensors knows no sharing."""
    seen: set[int] = set()
    state = {}
    for key, value in model.state_dict().items():
        state[key] = value.clone() if value.data_ptr() in seen else value
        seen.add(value.data_ptr())
    return state


def _channels(model: nn.Module) -> dict[str, dict[str, Any]]:
    table = {}
    for name, module in model.named_modules():
        found = {key: value for key in CHANNEL_ATTRIBUTES if _is_count(value := getattr(module, key, None))}
        if found:
            table[name] = {key: list(value) if isinstance(value, tuple) else value for key, value in found.items()}
    return table


def _is_count(value: Any) -> bool:
    if isinstance(value, tuple):
        return all(isinstance(entry, int) for entry in value)
    return isinstance(value, int) and not isinstance(value, bool)


def _set_channels(model: nn.Module, channels: Mapping[str, Mapping[str, Any]], where: object) -> None:
    modules = dict(model.named_modules())
    for name, values in channels.items():
        if name not in modules:
            raise CheckpointError(f"{where}: module {name!r} is not in {type(model).__name__}; another architecture")
        for key, value in values.items():
            if key not in CHANNEL_ATTRIBUTES or not hasattr(modules[name], key):
                raise CheckpointError(f"{where}: module {name!r} has no {key!r} in {type(model).__name__}")
            new = tuple(value) if isinstance(value, list) else value
            if getattr(modules[name], key) != new:
                setattr(modules[name], key, new)


def _set_tensors(model: nn.Module, tensors: Mapping[str, Tensor], where: object) -> None:
    """Replace every parameter and buffer, whatever its shape was."""
    odd = sorted(set(tensors) ^ set(model.state_dict()))
    if odd:
        whose = "the file" if odd[0] in tensors else "the model"
        raise CheckpointError(f"{where}: {odd[0]!r} is only in {whose}; another architecture")
    for key, tensor in tensors.items():
        owner, _, name = key.rpartition(".")
        module = model.get_submodule(owner)
        if name in module._parameters:
            module._parameters[name] = nn.Parameter(tensor, requires_grad=tensor.is_floating_point())
        else:
            module._buffers[name] = tensor


def _factory_of(model: nn.Module, manifest: Mapping[str, Any]) -> tuple[str | None, dict[str, Any]]:
    """The constructor that gives a network which, with the manifest's channels, prints like `model`."""
    if isinstance(model, SmallVGG):
        return f"prune_fe/{SMALL_VGG}", model.arguments
    for factory in _candidates(model):
        with torch.device("meta"):
            twin = _from_factory(factory, {})
        if type(twin) is not type(model) or set(twin.state_dict()) != set(model.state_dict()):
            continue
        _set_channels(twin, manifest["channels"], factory)
        if repr(twin) == repr(model):
            return factory, {}
    return None, {}


def _candidates(model: nn.Module) -> list[str]:
    module = type(model).__module__
    if module.startswith("torchvision.models."):
        import torchvision

        names = torchvision.models.list_models(module=None)
        builders = {name: torchvision.models.get_model_builder(name) for name in names}
        return [f"torchvision/{name}" for name, builder in builders.items() if builder.__module__ == module]
    config = getattr(model, "pretrained_cfg", None)
    if module.startswith("timm.models.") and isinstance(config, Mapping) and config.get("architecture"):
        return [f"timm/{config['architecture']}"]
    return []


def _from_factory(factory: str, arguments: Mapping[str, Any]) -> nn.Module:
    library, _, name = str(factory).partition("/")
    if not re.fullmatch(r"[\w.-]+", name):
        raise CheckpointError(f"the manifest's factory {factory!r} is no name of a model")
    if library == "prune_fe" and name == SMALL_VGG:
        return SmallVGG(**arguments)
    if library == "torchvision":
        import torchvision

        return torchvision.models.get_model(name, weights=None, **arguments)
    if library == "timm":
        try:
            import timm
        except ImportError:
            raise CheckpointError(f"the model is timm's {name}: pip install 'prune-fe[timm]'") from None
        return timm.create_model(name, pretrained=False, **arguments)
    raise CheckpointError(f"the manifest's factory {factory!r} is unknown; known are prune_fe, torchvision and timm")
