"""How an image becomes a network's input: resized, perhaps cropped, and normalised."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Self, get_args

from prune_fe.data.options import Interpolation
from prune_fe.errors import InputError

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

CROP_SHARE = 0.875
"""Share of the short side that the centre crop keeps, where nothing else is known: 224 of 256 pixels."""


@dataclass(frozen=True)
class Preprocessing:
    """The steps from an image to a network's input.

    Attributes:
        size: Height and width of the network's input, in pixels.
        resize: Without it, the image is resized to size×size, whatever its shape. Otherwise its short side is resized
            to so many pixels, and the centre of size×size is cut out.
        interpolation: How an image is resized; always with antialiasing.
        mean: Mean of each channel that is subtracted, for pixel values from 0 to 1.
        std: Standard deviation of each channel that is divided by.
    """

    size: int
    resize: int | None = None
    interpolation: Interpolation = "bilinear"
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD

    @property
    def keeps_shape(self) -> bool:
        """Whether the images are cut out of larger ones instead of being resized to a square."""
        return self.resize is not None

    @classmethod
    def cropping(cls, size: int, **settings: Any) -> Self:
        """Return the usual preprocessing for ImageNet: the short side resized, and 87.5 % of it cut out."""
        return cls(size, **{"resize": int(size / CROP_SHARE)} | settings)

    def at_size(self, size: int) -> Self:
        """Return the same for another size of the network's input; what is cut out stays the same part."""
        resize = None if self.resize is None else round(self.resize * size / self.size)
        return replace(self, size=size, resize=resize)

    def describe(self) -> str:
        """Return the steps in words, for messages."""
        if self.resize is None:
            steps = f"resized to {self.size}×{self.size}"
        else:
            steps = f"short side resized to {self.resize}, centre {self.size}×{self.size} cut out"
        return steps if self.interpolation == "bilinear" else f"{steps} ({self.interpolation})"

    @property
    def about(self) -> dict[str, Any]:
        """The steps as they are saved with a network."""
        if self.resize is None:
            steps: dict[str, Any] = {"resize": [self.size, self.size]}
        else:
            steps = {"resize": self.resize, "crop": [self.size, self.size]}
        if self.interpolation != "bilinear":
            steps["interpolation"] = self.interpolation
        return steps | {"antialias": True, "scale": 1 / 255, "mean": self.mean, "std": self.std}

    @classmethod
    def from_about(cls, about: Mapping[str, Any]) -> Self | None:
        """Return what was saved with a network (`Splits.about`); None where that does not say it."""
        steps = about.get("preprocessing")
        if not isinstance(steps, Mapping):
            return None
        try:
            resize, crop = steps["resize"], steps.get("crop")
            size = (resize if crop is None else crop)[0]
            mean, std = (tuple(map(float, steps[key])) for key in ("mean", "std"))
            interpolation = steps.get("interpolation", "bilinear")
            known = interpolation in get_args(Interpolation) and all(
                type(n) is int for n in (size, resize if crop else 1)
            )
            return cls(size, resize if crop else None, interpolation, mean, std) if known else None
        except (KeyError, TypeError, ValueError, IndexError):
            return None

    def require_channels(self, channels: int, source: str) -> None:
        """Raise InputError unless mean and standard deviation are given for each channel of the images."""
        for name, values in (("mean", self.mean), ("std", self.std)):
            if len(values) != channels:
                raise InputError(f"{name}: {len(values)} numbers, images of {source} have {channels} channels")


def describe_sizes(stored: tuple[tuple[int, int], ...], steps: Preprocessing) -> str:
    """Return how large some images are and what is made of them: "64×64 pixels, enlarged 3.5 times: …".

    Args:
        stored: Width and height of the images as they are stored.
        steps: What is made of them.
    """
    sizes = sorted(stored, key=lambda size: (size[0] * size[1], size))
    first, last = ("×".join(map(str, size)) for size in (sizes[0], sizes[-1]))
    words = first if first == last else f"{first} to {last}"
    shorter = sorted(min(size) for size in stored)[len(stored) // 2]
    factor = (steps.resize or steps.size) / shorter
    if abs(factor - 1) < 0.01:
        change = "not resized" if first == last and sizes[0][0] == sizes[0][1] == steps.size else ""
    else:
        change = f"enlarged {factor:.3g} times" if factor > 1 else f"reduced {1 / factor:.3g} times"
    change = ", ".join(part for part in (change, "" if change == "not resized" else steps.describe()) if part)
    return f"{words} pixels, {change}"
