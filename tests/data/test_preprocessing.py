"""The steps from an image to a network's input, in words and as they are saved."""

import json

import pytest

from prune_fe.data.preprocessing import Preprocessing, describe_sizes
from prune_fe.data.splits import Splits
from prune_fe.errors import InputError

SQUARE, CROP = Preprocessing(64), Preprocessing.cropping(224, interpolation="bicubic")


def test_what_is_saved_of_a_square_is_what_earlier_versions_saved() -> None:
    splits = Splits([], [], [], (), 3, 64, (SQUARE.mean, SQUARE.std))  # type: ignore[arg-type]
    assert splits.about["preprocessing"] == SQUARE.about
    assert list(SQUARE.about) == ["resize", "antialias", "scale", "mean", "std"]
    assert SQUARE.about["resize"] == [64, 64]


@pytest.mark.parametrize("steps", [SQUARE, CROP, Preprocessing(8, mean=(0.5,), std=(0.25,))])
def test_the_steps_come_back_from_a_file(steps: Preprocessing) -> None:
    assert Preprocessing.from_about(json.loads(json.dumps({"preprocessing": steps.about}))) == steps


@pytest.mark.parametrize(
    "about",
    [{}, {"preprocessing": None}, {"preprocessing": {"resize": "64"}}, {"preprocessing": SQUARE.about | {"mean": "x"}}]
    + [{"preprocessing": CROP.about | {"interpolation": "magic"}}, {"preprocessing": CROP.about | {"crop": []}}],
)
def test_what_says_nothing_gives_nothing(about: dict) -> None:
    assert Preprocessing.from_about(about) is None


def test_another_size_cuts_out_the_same_part() -> None:
    assert CROP.resize == 256
    assert (CROP.at_size(112).size, CROP.at_size(112).resize) == (112, 128)
    assert SQUARE.at_size(32) == Preprocessing(32)


@pytest.mark.parametrize(
    ("stored", "steps", "words"),
    [
        ([(64, 64)], Preprocessing(224), "64×64 pixels, enlarged 3.5 times, resized to 224×224"),
        ([(64, 64)], SQUARE, "64×64 pixels, not resized"),
        ([(500, 375), (640, 480), (300, 400)], CROP, "300×400 to 640×480 pixels, reduced 1.46 times, short side"),
        ([(64, 32)], Preprocessing(32), "64×32 pixels, resized to 32×32"),
    ],
)
def test_sizes_are_said(stored: list, steps: Preprocessing, words: str) -> None:
    assert describe_sizes(tuple(stored), steps).startswith(words)


def test_channels_need_a_number_each() -> None:
    with pytest.raises(InputError, match="mean: 3 numbers, images of digits have 1 channels"):
        SQUARE.require_channels(1, "digits")
