"""Turn an image file into the network's input: decode, resize, normalise."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from prune_fe.errors import DataError
from prune_fe.file_types import describe_content, open_regular_file

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


ORIENTATION = 0x0112
"""EXIF's tag of the orientation."""

UPRIGHT = {
    2: "FLIP_LEFT_RIGHT",
    3: "ROTATE_180",
    4: "FLIP_TOP_BOTTOM",
    5: "TRANSPOSE",
    6: "ROTATE_270",
    7: "TRANSVERSE",
    8: "ROTATE_90",
}
"""EXIF's orientation -> PIL's transposition that turns the image upright."""


class Normalise:
    """Turn uint8 (…, channels, height, width) into float (x / 255 − mean) / std.

    Args:
        mean: Mean of each channel, for values from 0 to 1.
        std: Standard deviation of each channel, for values from 0 to 1.
    """

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        self.scale = 1 / (255 * torch.tensor(std).view(-1, 1, 1))
        self.shift = torch.tensor(mean).view(-1, 1, 1) / torch.tensor(std).view(-1, 1, 1)

    def __call__(self, pixels: Tensor) -> Tensor:
        """Return the normalised image or images, on the device of `pixels`."""
        # The same bits as pixels * scale − shift, without its slow product of integers and floats.
        scale, shift = (value.to(pixels.device, non_blocking=True) for value in (self.scale, self.shift))
        return pixels.float().mul_(scale).sub_(shift)


@dataclass(frozen=True)
class ResizeToPixels:
    """Turn a PIL image into uint8 (channels, size, size).

    Attributes:
        size: Height and width, in pixels.
    """

    size: int

    def __call__(self, image: Any) -> Tensor:
        """Return the resized image's pixels."""
        from torchvision.transforms.v2 import functional

        return functional.pil_to_tensor(functional.resize(image, [self.size, self.size], antialias=True))


@dataclass(frozen=True)
class Steps:
    """Apply one transform after the other.

    Attributes:
        steps: The transforms.
    """

    steps: Sequence[Callable[[Any], Any]]

    def __call__(self, value: Any) -> Any:
        """Return what the last transform returns."""
        for step in self.steps:
            value = step(value)
        return value


def read_image(path: str) -> Any:
    """Return the PIL image of a file, as RGB and upright, as its EXIF orientation says.

    Raises:
        DataError: It is no regular file, cannot be decoded to the end, or has more than 8 bits a channel; the message
            names the file.
    """
    from PIL import Image, UnidentifiedImageError

    try:
        with open_regular_file(Path(path)) as file, Image.open(file) as image:
            if image.mode.startswith(("I", "F")):
                # convert() would clip these to white.
                raise DataError(f"{path}: pixels of mode {image.mode!r}; images have 8 bits a channel, convert it")
            return _upright(image).convert("RGB")
    except (DataError, MemoryError):
        raise
    except UnidentifiedImageError as error:
        content = describe_content(Path(path))
        known = f"; it is {content}" if content else ""
        raise DataError(f"{path}: not an image that can be read{known}") from error
    except Exception as error:  # Decoders raise nearly everything at a damaged file.
        raise DataError(f"{path}: not an image that can be read ({error})") from error


def _upright(image: Any) -> Any:
    """Return a PIL image, rotated or mirrored as its EXIF orientation says."""
    from PIL import Image

    image.load()  # Pillow turns TIFF files itself as it decodes them, and forgets the orientation then.
    try:
        orientation = image.getexif().get(ORIENTATION)
    except Exception:  # Damaged EXIF data says nothing about the pixels, and raises nearly everything.
        return image
    turn = UPRIGHT.get(orientation)
    return image if turn is None else image.transpose(Image.Transpose[turn])
