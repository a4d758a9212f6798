"""One image: every 8-bit mode is read, damage becomes one error."""

import io
import random
import warnings

import numpy as np
import pytest
from PIL import Image

from prune_fe.data.transforms import read_image
from prune_fe.errors import DataError
from tests.data.pictures import picture


@pytest.mark.parametrize("mode", ["L", "P", "CMYK", "RGBA", "1", "LA"])
def test_an_image_of_any_8_bit_mode_becomes_rgb(tmp_path, mode):
    suffix = "tiff" if mode == "CMYK" else "png"
    original = picture(mode=mode)
    original.save(tmp_path / f"image.{suffix}")
    image = read_image(str(tmp_path / f"image.{suffix}"))
    assert (image.mode, image.size) == ("RGB", (12, 9))
    np.testing.assert_array_equal(np.asarray(image), np.asarray(original.convert("RGB")))


def test_a_16_bit_image_is_refused_and_not_clipped_to_white(tmp_path):
    Image.fromarray(np.full((9, 9), 3000, np.uint16)).save(tmp_path / "deep.png")
    with pytest.raises(DataError, match=r"deep\.png: pixels of mode 'I;16'; images have 8 bits"):
        read_image(str(tmp_path / "deep.png"))


@pytest.mark.parametrize("form", ["jpeg", "png", "bmp", "gif", "tiff", "webp", "ppm"])
def test_whatever_a_decoder_raises_at_damage_becomes_one_error(tmp_path, form):
    stream = io.BytesIO()
    picture(size=(24, 20)).save(stream, form.upper())
    whole, chance, path = stream.getvalue(), random.Random(0), tmp_path / f"image.{form}"
    refused = 0
    for number in range(60):
        content = bytearray(whole if number % 2 else whole[: chance.randrange(len(whole))])
        for _ in range(number % 5 if content else 0):
            content[chance.randrange(min(len(content), 60))] = chance.randrange(256)
        path.write_bytes(content)
        try:
            with warnings.catch_warnings(action="ignore"):
                read_image(str(path))
        except DataError as error:
            refused += str(error).startswith(f"{path}: ")
    assert refused >= 20


def test_a_decompression_bomb_is_refused(tmp_path, monkeypatch):
    picture().save(tmp_path / "bomb.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    with pytest.raises(DataError, match=r"bomb\.png: not an image that can be read .*exceeds limit"):
        read_image(str(tmp_path / "bomb.png"))
