"""Networks: built by name, read from checkpoints, and saved so that a pruned one comes back."""

from __future__ import annotations

import difflib
import errno
import hashlib
import json
import os
import re
import shutil
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load as read_tensors
from safetensors.torch import save as write_tensors
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from prune_fe.errors import CheckpointError, EnvironmentFault, InputError

FORMAT = 1
MANIFEST, WEIGHTS = "manifest.json", "model.safetensors"
SMALL_VGG = "vgg-small"
COUNTS = (
    "in_channels", "out_channels", "groups", "num_features", "in_features", "out_features", "num_channels",
    "num_groups", "normalized_shape", "num_parameters",
)  # fmt: skip
"""The settings that pruning changes in a module beside its weights."""


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


SmallVGG.__module__ = "prune_fe.models"  # the name that the manifests of saved networks hold


def build(name: str, classes: int, *, in_channels: int = 3, pretrained: bool = False, **arguments: Any) -> nn.Module:
    """A network by name: `vgg-small`, a torchvision name, or a timm name; `torchvision/…` and `timm/…` say which.

    pretrained downloads the library's weights; with another number of classes only timm can do that. arguments go
    to the network's own constructor; in_channels is of the images.
    """
    library, plain = _library_of(name)
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
        return _torchvision(plain, classes, pretrained, arguments)
    except OSError as error:
        raise EnvironmentFault(f"model {name!r}: its weights cannot be fetched ({error})") from error
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(f"model {name!r}: {error}") from error


def _torchvision(name: str, classes: int, pretrained: bool, arguments: Mapping[str, Any]) -> nn.Module:
    import torchvision

    weights = torchvision.models.get_model_weights(name).DEFAULT if pretrained else None
    known = len(weights.meta["categories"]) if weights is not None else classes
    if known != classes:
        raise ValueError(f"its weights tell {known} classes apart, the data has {classes}")
    return torchvision.models.get_model(name, weights=weights, num_classes=classes, **arguments)


def _library_of(name: str) -> tuple[str, str]:
    library, _, plain = name.rpartition("/")
    if plain == SMALL_VGG and library in ("", "prune_fe"):
        return "prune_fe", plain
    ours = _torchvision_names()
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
            ours = list(dict.fromkeys([SMALL_VGG, *ours, *timm.list_models()]))
    close = difflib.get_close_matches(plain, ours, n=3)
    raise InputError(f"unknown model {name!r}" + (f"; did you mean {', '.join(close)}?" if close else ""))


def _torchvision_names() -> list[str]:
    """torchvision's classifiers. Its detectors fetch weights even when none are asked for."""
    import torchvision

    return torchvision.models.list_models(module=torchvision.models)


def load_weights(model: nn.Module, path: str | Path) -> None:
    """Read a state dict (.pth, .pt, .safetensors) into `model`: bare, or under `state_dict` or `model`; `module.` is
    stripped. Nothing in the file is executed. CheckpointError names the first key that does not fit."""
    path = Path(path)
    try:
        if path.suffix == ".safetensors":
            found: Any = read_tensors(path.read_bytes())
        else:
            found = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such file") from None
    except Exception as error:  # what a damaged file raises depends on where the damage is
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(f"{path}: not a checkpoint that can be read safely ({first})") from error
    for key in ("state_dict", "model"):
        if isinstance(found, Mapping) and isinstance(found.get(key), Mapping):
            found = found[key]
    if not isinstance(found, Mapping) or not all(isinstance(value, Tensor) for value in found.values()):
        raise CheckpointError(f"{path}: holds no state dict")
    expected = model.state_dict()
    state = {key if key in expected else str(key).removeprefix("module."): value for key, value in found.items()}
    for key, value in expected.items():
        if key not in state:
            raise CheckpointError(f"{path}: {key!r} is missing; it is a checkpoint of another model")
        if state[key].shape != value.shape:
            raise CheckpointError(f"{path}: {key!r} is {tuple(state[key].shape)}, the model has {tuple(value.shape)}")
    extra = [key for key in state if key not in expected]
    if extra:
        raise CheckpointError(f"{path}: {extra[0]!r} is not in the model; it is a checkpoint of another model")
    model.load_state_dict(state)


def save_weights(model: nn.Module, path: str | Path) -> None:
    """Write the state dict to a .pth file that load_weights reads; the whole file or none of it."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}")
    torch.save(model.state_dict(), partial)
    partial.replace(path)


def save(model: nn.Module, path: str | Path, about: Mapping[str, Any] | None = None, overwrite: bool = False) -> Path:
    """Write `model` to the folder `path`: model.safetensors and manifest.json. `load` brings it back.

    The manifest names the constructor (of our own, torchvision's and timm's networks; others must be built by the
    caller), the settings of every module, the SHA-256 of it all, and `about`: anything worth keeping, as JSON.
    overwrite: replace what save wrote to `path` before; any other folder is refused.
    """
    path = Path(path)
    if path.exists() and not overwrite:
        raise InputError(f"{path} exists already; choose another path or pass overwrite=True")
    if path.exists() and not (path.is_dir() and {entry.name for entry in path.iterdir()} <= {MANIFEST, WEIGHTS}):
        raise InputError(f"{path} holds more than a saved model and is not overwritten; choose another path")
    _check_counts(model, type(model).__name__)
    weights = write_tensors(_tensors(model))
    factory, arguments = _factory_of(model)
    manifest = {
        "format": FORMAT,
        "class": f"{type(model).__module__}.{type(model).__qualname__}",
        "factory": factory,
        "arguments": arguments,
        "settings": _settings(model) if factory else _counts(model),
        "frozen": [name for name, weight in model.named_parameters() if not weight.requires_grad],
        "about": dict(about or {}),
    }
    manifest = json.loads(json.dumps(manifest))
    manifest["sha256"] = _digest(manifest, weights)
    _write(path, {WEIGHTS: weights, MANIFEST: json.dumps(manifest, indent=1).encode()})
    return path


def load(path: str | Path, model: nn.Module | None = None) -> nn.Module:
    """The network that `save` wrote to the folder `path`, on the CPU, in evaluation mode, its files verified.

    model: a freshly built network of the same architecture, needed when the manifest names no constructor; it is
    changed and returned. Nothing in the files is executed. Raises CheckpointError for damaged or foreign files.
    """
    path = Path(path)
    manifest = read_manifest(path)
    try:
        content = (path / WEIGHTS).read_bytes()
    except OSError as error:
        raise CheckpointError(f"{path}: {error.strerror}: {WEIGHTS}") from error
    if _digest(manifest, content) != manifest["sha256"]:
        raise CheckpointError(f"{path} is damaged: the SHA-256 of its files is not the one in {MANIFEST}")
    if model is None:
        if manifest["factory"] is None:
            raise CheckpointError(f"{path} holds a {manifest['class']}: build one and pass load(path, model=...)")
        model = _from_factory(manifest["factory"], manifest["arguments"])
    _set_settings(model, manifest["settings"], path)
    _set_tensors(model, _read_tensors(content, path), path)
    _check_counts(model, path)
    weights = dict(model.named_parameters())
    for name in manifest["frozen"]:
        if name not in weights:
            raise CheckpointError(f"{path}: {name!r} is to be frozen, {type(model).__name__} has no such weight")
        weights[name].requires_grad_(False)
    return model.eval()


def original(path: str | Path, outputs: int, in_channels: int = 3) -> nn.Module:
    """The network that the one in the folder `path` was before it was pruned, with fresh weights, on the CPU.

    outputs and in_channels: of the saved network. Raises CheckpointError when the manifest names no constructor, or
    when it was built otherwise than by that constructor alone.
    """
    path = Path(path)
    manifest = read_manifest(path)
    factory = manifest["factory"]
    instead = "say with --against what it is compared with"
    if factory is None:
        raise CheckpointError(f"{path} holds a {manifest['class']}, whose constructor is not known; {instead}")
    _check_arguments(factory, manifest["arguments"])
    known = {key: value for key, value in manifest["arguments"].items() if key not in ("classes", "channels")}
    uncounted = {  # what pruning leaves alone in torch's own modules may have been set by hand, such as a stride
        name: {key: value for key, value in own.items() if key not in COUNTS}
        for name, own in manifest["settings"].items()
        if "torch.nn." in str(own.get("class"))
    }
    try:
        with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
            warnings.simplefilter("ignore")  # about initial weights
            model = build(factory, outputs, in_channels=in_channels, **known)
        _set_settings(model, uncounted, path)
    except (CheckpointError, InputError, TypeError) as error:
        raise CheckpointError(f"{path}: its original cannot be built ({error}); {instead}") from error
    for name, module in model.named_modules():
        if isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Conv3d)) and module.kernel_size != module.weight.shape[2:]:
            built = "×".join(map(str, module.weight.shape[2:]))
            raise CheckpointError(f"{path}: {name!r} has other kernels than the {built} of {factory}; {instead}")
    return model.eval()


def read_manifest(path: str | Path) -> dict[str, Any]:
    """The manifest of a folder that `save` wrote."""
    file = Path(path) / MANIFEST
    try:
        manifest = json.loads(file.read_text())
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no {MANIFEST} there; prune_fe.save writes one") from None
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{file}: cannot be read ({error})") from error
    if not isinstance(manifest, dict) or "format" not in manifest:
        raise CheckpointError(f"{file}: not a manifest of prune_fe")
    if manifest["format"] != FORMAT:
        raise CheckpointError(f"{file}: format {manifest['format']!r}, this version reads {FORMAT}")
    kinds: dict[str, Any] = {
        "class": str, "factory": str | None, "arguments": dict, "settings": dict, "frozen": list, "about": dict,
        "sha256": str,
    }  # fmt: skip
    for key, kind in kinds.items():
        if key not in manifest or not isinstance(manifest[key], kind):
            raise CheckpointError(f"{file}: not a manifest of prune_fe, {key!r} is missing or of a wrong type")
    if not all(isinstance(values, dict) for values in manifest["settings"].values()):
        raise CheckpointError(f"{file}: not a manifest of prune_fe, 'settings' holds something else than modules")
    if not all(isinstance(name, str) for name in manifest["frozen"]):
        raise CheckpointError(f"{file}: not a manifest of prune_fe, 'frozen' holds something else than names")
    return manifest


def _digest(manifest: Mapping[str, Any], weights: bytes) -> str:
    fields = {key: value for key, value in manifest.items() if key != "sha256"}
    return hashlib.sha256(json.dumps(fields, sort_keys=True).encode() + weights).hexdigest()


def _write(path: Path, files: Mapping[str, bytes]) -> None:
    """All or nothing: a new folder beside `path` that takes its place when it is on the disk."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        aside = Path(tempfile.mkdtemp(prefix=f".{path.name}-", dir=path.parent))
        try:
            (aside / "new").mkdir()
            for name, content in files.items():
                with (aside / "new" / name).open("wb") as file:
                    file.write(content)
                    file.flush()
                    os.fsync(file.fileno())
            _swap(path, aside)
        finally:
            shutil.rmtree(aside, ignore_errors=True)
    except OSError as error:
        if error.errno == errno.ENOSPC:
            free, needed = shutil.disk_usage(path.parent).free >> 20, sum(map(len, files.values())) >> 20
            raise EnvironmentFault(f"{path}: no space left, {free} MiB free, {needed + 1} MiB needed") from error
        raise EnvironmentFault(f"{path}: cannot be written ({error.strerror})") from error


def _swap(path: Path, aside: Path) -> None:
    """aside/new becomes `path`. A folder cannot replace a full one in one step: the old one waits in aside/old."""
    if path.exists():
        os.replace(path, aside / "old")
    try:
        os.replace(aside / "new", path)
    except BaseException:
        if (aside / "old").exists():
            os.replace(aside / "old", path)
        raise
    parent = os.open(path.parent, os.O_RDONLY)
    os.fsync(parent)
    os.close(parent)


def _stored(model: nn.Module) -> dict[str, Tensor]:
    """Every parameter and buffer, a shared one once; buffers outside the state dict too."""
    return dict(model.named_parameters()) | dict(model.named_buffers())


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    """What _stored says, on the CPU and as safetensors wants it."""
    every = {*dict(model.named_parameters(remove_duplicate=False)), *dict(model.named_buffers(remove_duplicate=False))}
    if odd := [key for key in model.state_dict() if key not in every]:
        raise InputError(f"{type(model).__name__} keeps {odd[0]!r} in its state dict, no tensor; it cannot be saved")
    storages: set[int] = set()
    tensors = {}
    for key, value in _stored(model).items():
        place = value.untyped_storage().data_ptr()
        # safetensors refuses tensors that share memory
        tensors[key] = (value.detach().clone() if place in storages else value.detach()).cpu().contiguous()
        storages.add(place)
    return tensors


def _read_tensors(content: bytes, where: object) -> dict[str, Tensor]:
    try:
        return read_tensors(content)
    except Exception as error:
        raise CheckpointError(f"{where}/{WEIGHTS}: not a safetensors file ({error})") from error


def _set_tensors(model: nn.Module, tensors: Mapping[str, Tensor], where: object) -> None:
    """Replace every parameter and buffer, whatever its size was; what was shared stays shared."""
    expected = _stored(model)
    if odd := sorted(set(tensors) ^ set(expected)):
        whose = "the file" if odd[0] in tensors else "the model"
        raise CheckpointError(f"{where}: {odd[0]!r} is only in {whose}; another architecture")
    new: dict[int, Any] = {}
    for key, old in expected.items():
        tensor = tensors[key]
        if tensor.ndim != old.ndim or tensor.is_floating_point() != old.is_floating_point():
            found, wanted = (f"{value.dtype} {tuple(value.shape)}" for value in (tensor, old))
            raise CheckpointError(f"{where}: {key!r} is {found}, the model has {wanted}")
        new[id(old)] = nn.Parameter(tensor, tensor.is_floating_point()) if isinstance(old, nn.Parameter) else tensor
    for module in model.modules():
        for store in (module._parameters, module._buffers):
            store.update({name: new[id(old)] for name, old in store.items() if old is not None})


def _check_counts(model: nn.Module, where: object) -> None:
    """The counts of every plain layer must be those of its weight: they are what is read back and shown."""
    for name, module in model.named_modules():
        stated: tuple[Any, ...] = ()
        found: tuple[Any, ...] = ()
        if type(module) in (nn.Conv1d, nn.Conv2d, nn.Conv3d):
            stated = (module.out_channels, module.in_channels, module.groups)
            found = (len(module.weight), module.weight.shape[1] * module.groups, max(module.groups, 1))
        elif type(module) is nn.Linear:
            stated, found = (module.out_features, module.in_features), tuple(module.weight.shape)
        elif type(module) in (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d) and module.weight is not None:
            stated, found = (module.num_features,), tuple(module.weight.shape)
        if stated != found:
            raise CheckpointError(f"{where}: module {name!r} says {stated} channels, its weight has {found}")


def _settings(model: nn.Module) -> dict[str, dict[str, Any]]:
    """What the forward pass of every module may read beside its tensors: module -> attribute -> value as JSON."""
    return {name: dict(_settings_of(module)) for name, module in model.named_modules()}


def _settings_of(module: nn.Module) -> Iterator[tuple[str, Any]]:
    yield "class", _plain(type(module))
    for key, value in vars(module).items():
        # timm's notes on where weights come from are no settings
        if key not in _INTERNAL and key not in ("pretrained_cfg", "default_cfg"):
            yield key, _plain(value)


_INTERNAL = vars(nn.Module()).keys()


def _plain(value: Any) -> Any:
    """None, bool, int, float, str and lists of them as they are; of anything else the name: {"is": name}."""
    if value is None or type(value) in (bool, int, float, str):
        return value
    if type(value) in (list, tuple, torch.Size):
        entries = [_plain(entry) for entry in value]
        return {"is": json.dumps(entries)} if "{" in json.dumps(entries) else entries
    named = value if hasattr(value, "__qualname__") else type(value)
    return {"is": f"{named.__module__}.{named.__qualname__}"}


def _counts(model: nn.Module) -> dict[str, dict[str, Any]]:
    """Every whole number, or list of them, that a module keeps: channel counts, and sizes of splits and views."""
    found = {name: {k: v for k, v in own.items() if _is_count(v)} for name, own in _settings(model).items()}
    return {name: values for name, values in found.items() if values}


def _is_count(value: Any) -> bool:
    return bool(value) and all(map(_is_count, value)) if isinstance(value, list) else type(value) is int


def _set_settings(model: nn.Module, settings: Mapping[str, Mapping[str, Any]], where: object) -> None:
    """Only attributes that are there, and only by values of the same kind."""
    modules = dict(model.named_modules())
    for name, values in settings.items():
        if name not in modules:
            raise CheckpointError(f"{where}: module {name!r} is not in {type(model).__name__}; another architecture")
        known = dict(_settings_of(modules[name]))
        for key, value in values.items():
            if key not in known or _kind(value) != _kind(known[key]):
                raise CheckpointError(
                    f"{where}: module {name!r} cannot have {key} = {str(value)[:60]!r} in {type(model).__name__}; "
                    "another architecture, or another version of its library"
                )
            if value != known[key]:
                setattr(modules[name], key, _like(vars(modules[name])[key], value))


def _kind(value: Any) -> Any:
    """Values of one kind can stand for each other: numbers, lists of as many numbers, things of one name."""
    if isinstance(value, dict):
        return json.dumps(value)
    if isinstance(value, list):
        return tuple(_kind(entry) for entry in value)
    return "number" if type(value) in (int, float) else type(value)


def _like(old: Any, value: Any) -> Any:
    return type(old)(tuple(map(_like, old, value))) if isinstance(value, list) else value


def _factory_of(model: nn.Module) -> tuple[str | None, dict[str, Any]]:
    """A constructor, known by name, that gives `model` once its settings and tensors are put in."""
    settings = _settings(model)
    for factory, arguments in _candidates(model):
        try:
            twin = _from_factory(factory, arguments)
            _set_settings(twin, settings, factory)
        except CheckpointError:
            continue
        same = _stored(twin).keys() == _stored(model).keys() and _settings(twin) == settings
        if same and "torch.Tensor" not in json.dumps(settings):  # tensors that are no buffers are not in the files
            return factory, arguments
    return None, {}


def _candidates(model: nn.Module) -> list[tuple[str, dict[str, Any]]]:
    if type(model) is SmallVGG:
        return [(f"prune_fe/{SMALL_VGG}", model.arguments)]
    module = type(model).__module__
    if module.startswith("torchvision.models."):
        import torchvision

        names = [n for n in _torchvision_names() if torchvision.models.get_model_builder(n).__module__ == module]
        heads: list[dict[str, Any]] = [{}, {"aux_logits": False}] if hasattr(model, "aux_logits") else [{}]
        return [(f"torchvision/{name}", arguments) for name in names for arguments in heads]
    config = getattr(model, "pretrained_cfg", None)
    if module.startswith("timm.models.") and isinstance(config, Mapping) and config.get("architecture"):
        return [(f"timm/{config['architecture']}", {})]
    return []


def _from_factory(factory: str, arguments: Mapping[str, Any]) -> nn.Module:
    """The network without its weights."""
    _check_arguments(factory, arguments)
    try:
        with warnings.catch_warnings(), torch.random.fork_rng(devices=[]), _Weightless():
            warnings.simplefilter("ignore")  # about initial weights
            return _construct(factory, arguments)
    except (InputError, TypeError, ValueError, RuntimeError) as error:
        raise CheckpointError(f"the manifest's factory {factory!r} cannot be built: {error}") from error


def _check_arguments(factory: str, arguments: Mapping[str, Any]) -> None:
    """Only harmless arguments, and `build` takes only known names: a constructor may fetch and run."""
    allowed = {"prune_fe": {"classes", "channels", "stages"}, "torchvision": {"aux_logits"}, "timm": set()}
    library = factory.partition("/")[0]
    if odd := sorted(set(arguments) - allowed.get(library, set())):
        raise CheckpointError(f"the manifest's factory {factory!r} takes no argument {odd[0]!r}")


class _Weightless(TorchFunctionMode):
    """Networks built inside get weights without memory or values. (torch.device("meta") would also reach what
    constructors compute with: RegNet's widths.)"""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        return func(*args, **(kwargs | {"device": "meta"} if func is torch.empty else kwargs))


def _construct(factory: str, arguments: Mapping[str, Any]) -> nn.Module:
    library, name = _library_of(factory)
    if library == "prune_fe":
        return SmallVGG(**arguments)
    if library == "torchvision":
        import torchvision

        return torchvision.models.get_model(name, weights=None, **arguments)
    import timm

    return timm.create_model(name, pretrained=False)
