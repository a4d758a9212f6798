"""How an image becomes a network's input: resized, perhaps cropped, and normalised."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
        squash: With `resize`: both sides are resized to it, so that the shape is not kept.
        interpolation: How an image is resized; always with antialiasing.
        mean: Mean of each channel that is subtracted, for pixel values from 0 to 1.
        std: Standard deviation of each channel that is divided by.
    """

    size: int
    resize: int | None = None
    squash: bool = False
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
        elif self.squash:
            steps = f"resized to {self.resize}×{self.resize}, centre {self.size}×{self.size} cut out"
        else:
            steps = f"short side resized to {self.resize}, centre {self.size}×{self.size} cut out"
        return steps if self.interpolation == "bilinear" else f"{steps} ({self.interpolation})"

    @property
    def about(self) -> dict[str, Any]:
        """The steps as they are saved with a network."""
        if self.resize is None:
            steps: dict[str, Any] = {"resize": [self.size, self.size]}
        else:
            resize = [self.resize, self.resize] if self.squash else self.resize
            steps = {"resize": resize, "crop": [self.size, self.size]}
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
            squash = crop is not None and not isinstance(resize, int)
            short = None if crop is None else (resize[0] if squash else resize)
            mean, std = (tuple(map(float, steps[key])) for key in ("mean", "std"))
            interpolation = steps.get("interpolation", "bilinear")
            if interpolation not in get_args(Interpolation) or not isinstance(size, int):
                return None
            return cls(size, short, squash, interpolation, mean, std)
        except (KeyError, TypeError, ValueError, IndexError):
            return None

    def require_channels(self, channels: int, source: str) -> None:
        """Raise InputError unless mean and standard deviation are given for each channel of the images."""
        for name, values in (("mean", self.mean), ("std", self.std)):
            if len(values) != channels:
                raise InputError(f"{name}: {len(values)} numbers, images of {source} have {channels} channels")


def resize_words(sizes: Sequence[tuple[int, int]]) -> str:
    """Return the sizes (width, height) of some images in words: "64×64", or "200×150 to 640×480"."""
    by_area = sorted(set(sizes), key=lambda size: (size[0] * size[1], size))
    first, last = ("×".join(map(str, size)) for size in (by_area[0], by_area[-1]))
    return first if first == last else f"{first} to {last}"
