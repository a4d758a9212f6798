"""Which images the flags name, and what is said about them."""

from typing import Any

import pytest

from prune_fe.cli.images import choose_images, describe_images
from prune_fe.cli.parameters import ModelFlags, RequiredDataFlags
from prune_fe.data.preprocessing import Preprocessing
from prune_fe.data.splits import Splits
from prune_fe.errors import DataError, InputError

CROP = Preprocessing(176, 201, "bicubic", (0.5, 0.5, 0.5), (0.2, 0.2, 0.2))


def chosen(known: Preprocessing | None = None, notes: Any = None, size: int | None = None, **flags: Any) -> Any:
    model = ModelFlags(model="resnet10t", size=size)
    return choose_images(model, RequiredDataFlags(**{"data": "photos"} | flags), notes or {}, known)


def test_without_known_weights_images_become_squares_as_always() -> None:
    options = chosen()
    assert (options.transform, options.size, options.resize, options.interpolation) == ("paper", 224, None, None)
    assert chosen(notes={"size": 64}).size == 64


def test_validation_is_a_share_or_a_folder(tmp_path: Any) -> None:
    assert (chosen(validation=0.2).validation, chosen(validation=0.2).validation_path) == (0.2, None)
    assert (chosen(validation=str(tmp_path)).validation, chosen(validation=str(tmp_path)).validation_path) == (
        0.1,
        str(tmp_path),
    )
    with pytest.raises(DataError, match=r"--validation held-out: no such folder or tar file"):
        chosen(validation="held-out")


def test_what_weights_ask_for_is_the_default_and_flags_win() -> None:
    options = chosen(CROP)
    assert (options.transform, options.size, options.resize, options.interpolation) == ("crop", 176, 201, "bicubic")
    assert (options.mean, options.std) == (CROP.mean, CROP.std)
    assert (chosen(CROP, size=88).size, chosen(CROP, size=88).resize) == (88, 100)
    options = chosen(CROP, interpolation="nearest", resize=190, mean=(0.0, 0.0, 0.0))
    assert (options.interpolation, options.resize, options.mean, options.std) == ("nearest", 190, (0.0,) * 3, CROP.std)
    assert chosen(CROP, transform="paper").resize is None
    assert (chosen(CROP, transform="imagenet").transform, chosen(CROP, transform="imagenet").resize) == (
        "imagenet",
        201,
    )
    assert chosen(Preprocessing(64)).transform == "paper"


def test_a_crop_means_that_the_shape_is_kept() -> None:
    assert (chosen(crop=96).transform, chosen(crop=96).size) == ("crop", 96)
    assert chosen(resize=256).transform == "crop"
    with pytest.raises(InputError, match="--size 64 and --crop 96: they are the same, give one of them"):
        chosen(size=64, crop=96)


def test_images_in_memory_take_mean_and_deviation_of_the_weights_only() -> None:
    options = chosen(CROP, data="photos", source="cifar10")
    assert (options.transform, options.interpolation, options.mean) == ("paper", None, CROP.mean)
    assert chosen(CROP, data="digits").mean is None


def test_sizes_and_what_the_network_was_trained_with_are_said(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr("prune_fe.cli.images.reporter.say", said.append)
    splits = Splits([], [], [], (), 3, 224, stored_sizes=((64, 64),))  # type: ignore[arg-type]
    describe_images(splits, ModelFlags(model="old"), {"size": 64}, None)
    describe_images(splits, ModelFlags(model="resnet10t", checkpoint="my.pth"), {}, None)  # type: ignore[arg-type]
    assert said == [
        "images: 64×64 pixels, enlarged 3.5 times, resized to 224×224; old was trained with 64×64 (--size 64)",
        "images: 64×64 pixels, enlarged 3.5 times, resized to 224×224; my.pth does not say what it was trained with "
        "(--size N)",
    ]
