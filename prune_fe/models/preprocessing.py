"""What trained weights ask of the images: how they were resized, cropped and normalised in training."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

from prune_fe.data.options import Interpolation
from prune_fe.data.preprocessing import Preprocessing
from prune_fe.models.build import parse_name
from prune_fe.models.manifest import MANIFEST, read_manifest


def known_preprocessing(name: str, *, pretrained: bool) -> Preprocessing | None:
    """Return what the weights of a network ask for; None where that is not known.

    Args:
        name: Name of the network, or a folder that prune_fe saved, whose manifest says it.
        pretrained: Whether a network that is built by name has its library's weights.
    """
    path = Path(name)
    if (path / MANIFEST).exists():
        about = read_manifest(path)["about"]
        return Preprocessing.from_about(about)
    return library_preprocessing(name) if pretrained else None


def library_preprocessing(name: str) -> Preprocessing | None:
    """Return what the pretrained weights of a network of torchvision or timm ask for.

    Args:
        name: Name of the network; see `prune_fe.models.build.build`.

    Returns:
        It, or None for networks without such weights, and for steps that no option describes.

    Raises:
        InputError: The name is unknown.
    """
    library, plain = parse_name(name)
    if library == "torchvision":
        from torchvision.models import get_model_weights

        steps: Any = get_model_weights(plain).DEFAULT.transforms()
        values = {"crop": steps.crop_size[0], "resize": steps.resize_size[0], "mode": steps.interpolation.value}
        return _make(values | {"mean": steps.mean, "std": steps.std})
    if library != "timm":
        return None
    import timm

    cfg = timm.get_pretrained_cfg(plain)
    if cfg is None or not cfg.has_weights or cfg.input_size[1] != cfg.input_size[2]:
        return None
    size, share = cfg.input_size[1], cfg.crop_pct or 0.875
    if cfg.crop_mode not in (None, "center") and share != 1.0:
        return None
    # Cut out of an image whose sides are all `size` long, the centre is all of it.
    resize = None if cfg.crop_mode == "squash" else int(size / share)
    return _make({"crop": size, "resize": resize, "mode": cfg.interpolation, "mean": cfg.mean, "std": cfg.std})


def _make(values: Mapping[str, Any]) -> Preprocessing | None:
    mode = values["mode"]
    if mode not in get_args(Interpolation):
        return None
    mean, std = tuple(map(float, values["mean"])), tuple(map(float, values["std"]))
    return Preprocessing(values["crop"], values["resize"], mode, mean, std)
