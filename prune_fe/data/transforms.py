"""Turn an image file into the network's input: decode, resize, normalise."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from prune_fe.data.options import Interpolation
from prune_fe.data.preprocessing import Preprocessing
from prune_fe.errors import DataError
from prune_fe.file_types import describe_content, open_regular_file

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
class ToPixels:
    """Turn a PIL image, or one in uint8 (channels, height, width), into uint8 (channels, size, size).

    Attributes:
        steps: How it is resized and cut out.
    """

    steps: Preprocessing

    @property
    def size(self) -> int:
        """Height and width of the result, in pixels."""
        return self.steps.size

    def __call__(self, image: Any) -> Tensor:
        """Return the pixels of the resized and cut out image."""
        from torchvision.transforms.v2 import functional

        steps = self.steps
        resize = [steps.size] * 2 if steps.resize is None else [steps.resize]
        mode = interpolation_mode(steps.interpolation)
        image = functional.resize(image, resize, interpolation=mode, antialias=True)
        if steps.resize is not None:
            image = functional.center_crop(image, [steps.size, steps.size])
        return image if isinstance(image, Tensor) else functional.pil_to_tensor(image)


def interpolation_mode(name: Interpolation) -> Any:
    """Return torchvision's name of a way to resize."""
    from torchvision.transforms import InterpolationMode

    return InterpolationMode(name)


def prepare(steps: Preprocessing) -> Steps:
    """Return the transform from an image to a network's input."""
    return Steps((ToPixels(steps), Normalise(steps.mean, steps.std)))


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
    try:
        with open_regular_file(Path(path)) as file:
            return decode_image(file, path)
    except OSError as error:
        raise DataError(f"{path}: not an image that can be read ({error})") from error


def decode_image(file: BinaryIO, where: str) -> Any:
    """Return the PIL image that a file holds, as RGB and upright; see `read_image`.

    Args:
        file: The opened file.
        where: Its path, or where else it lies, for messages.

    Raises:
        DataError: It cannot be decoded to the end, or has more than 8 bits a channel.
    """
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(file) as image:
            if image.mode.startswith(("I", "F")):
                # convert() would clip these to white.
                raise DataError(f"{where}: pixels of mode {image.mode!r}; images have 8 bits a channel, convert it")
            return _upright(image).convert("RGB")
    except (DataError, MemoryError):
        raise
    except UnidentifiedImageError as error:
        content = describe_content(Path(where))
        known = f"; it is {content}" if content else ""
        raise DataError(f"{where}: not an image that can be read{known}") from error
    except Exception as error:  # Decoders raise nearly everything at a damaged file.
        raise DataError(f"{where}: not an image that can be read ({error})") from error


def read_image_fast(path: str) -> Any:
    """Return the image of a file as `decode_image_fast` does."""
    try:
        with open_regular_file(Path(path)) as file:
            return decode_image_fast(file.read(), path)
    except OSError as error:
        raise DataError(f"{path}: not an image that can be read ({error})") from error


def decode_image_fast(content: bytes, where: str) -> Any:
    """Return a JPEG as uint8 (3, height, width), decoded by torchvision, upright; other images as `decode_image` does.

    The decoded pixels are PIL's, but torchvision resizes such an image faster, to pixels that differ by up to 2 of 255.

    Args:
        content: The encoded image.
        where: Where it lies, for messages.
    """
    from torchvision.io import ImageReadMode, decode_jpeg

    # libjpeg fills up what is missing from an image that was cut; PIL refuses it.
    if content.startswith(b"\xff\xd8\xff") and content.rstrip(b"\0").endswith(b"\xff\xd9"):
        encoded = torch.frombuffer(bytearray(content), dtype=torch.uint8)
        try:
            pixels: Tensor = decode_jpeg(encoded, mode=ImageReadMode.RGB, apply_exif_orientation=True)
            return pixels
        except RuntimeError:  # such as CMYK; PIL reads it, or says what is wrong
            pass
    return decode_image(io.BytesIO(content), where)


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
