"""One image: every 8-bit mode is read, damage becomes one error."""

import io
import os
import random
import warnings

import numpy as np
import pytest
from PIL import Image, ImageOps

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


@pytest.mark.parametrize("form", ["jpeg", "png", "tiff", "webp"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_orientation_of_a_camera_is_applied(tmp_path, form, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = picture(size=(24, 16)).resize((240, 160))
    stored.save(tmp_path / f"image.{form}", exif=exif)
    with Image.open(tmp_path / f"image.{form}") as image:
        expected = ImageOps.exif_transpose(image).convert("RGB")
    np.testing.assert_array_equal(np.asarray(read_image(str(tmp_path / f"image.{form}"))), np.asarray(expected))
    assert expected.size == ((240, 160) if orientation < 5 else (160, 240))


def test_damaged_exif_data_does_not_hide_an_image(tmp_path):
    picture().save(tmp_path / "image.png", exif=b"Exif\0\0II*\0\xff\xff\xff\x7f")
    assert read_image(str(tmp_path / "image.png")).size == (12, 9)


def test_a_pipe_is_refused_at_once_and_a_pointer_is_named(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    with pytest.raises(DataError, match=r"pipe\.png: .*not a regular file"):
        read_image(str(tmp_path / "pipe.png"))
    (tmp_path / "0.png").write_text("version https://git-lfs.github.com/spec/v1")
    with pytest.raises(DataError, match=r"0\.png: not an image that can be read; it is a Git LFS pointer"):
        read_image(str(tmp_path / "0.png"))
