"""What weights ask of the images is what their library does."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.models import get_model_weights

from prune_fe.data.preprocessing import Preprocessing
from prune_fe.data.transforms import prepare
from prune_fe.models.preprocessing import known_preprocessing, library_preprocessing
from prune_fe.models.saved import save
from prune_fe.models.small_vgg import SmallVGG


@pytest.fixture
def photo() -> Image.Image:
    noise = np.random.default_rng(0).integers(0, 256, (30, 40, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize((400, 300), Image.Resampling.BICUBIC)


@pytest.mark.parametrize("name", ["resnet50", "efficientnet_b0", "vgg16"])
def test_torchvisions_images(name: str, photo: Image.Image) -> None:
    steps: Any = library_preprocessing(name)
    expected = get_model_weights(name).DEFAULT.transforms()(photo)
    torch.testing.assert_close(prepare(steps)(photo), expected, rtol=0, atol=2e-6)


@pytest.mark.parametrize("name", ["resnet10t", "convnext_tiny"])
def test_timms_images(name: str, photo: Image.Image) -> None:
    timm = pytest.importorskip("timm")
    cfg = timm.get_pretrained_cfg(name)
    expected = timm.data.create_transform(**timm.data.resolve_data_config({}, pretrained_cfg=cfg.to_dict()))(photo)
    steps: Any = library_preprocessing(f"timm/{name}")
    torch.testing.assert_close(prepare(steps)(photo), expected, rtol=0, atol=2e-6)


def test_what_is_not_known_is_none(tmp_path: Path) -> None:
    assert library_preprocessing("vgg-small") is None
    assert known_preprocessing("resnet50", pretrained=False) is None
    steps = Preprocessing.cropping(32)
    save(SmallVGG(2, 3), tmp_path / "saved", {"preprocessing": steps.about})
    assert known_preprocessing(str(tmp_path / "saved"), pretrained=False) == steps
    save(SmallVGG(2, 3), tmp_path / "other")
    assert known_preprocessing(str(tmp_path / "other"), pretrained=False) is None
