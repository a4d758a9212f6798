"""Which layers, classes and images the studies of layers choose; the rest is in the tests of the studies."""

import pytest

from prune_fe.errors import InputError
from prune_fe.models.build import build
from prune_fe.studies.layer_choice import choose_class, describe_maps, layers_of_blocks
from prune_fe.studies.options import LayersOptions
from prune_fe.tracing.layers import find_layers

NETWORK = build("timm/resnet18", 3, channels=[4, 4, 8, 8], layers=[1, 1, 1, 1])


def test_a_block_brings_its_convolutions_and_its_output():
    inside = ["conv1", "conv2", "downsample.0"]  # the stem has another width than the stage
    assert layers_of_blocks(NETWORK, ["layer1.0"]) == [*(f"layer1.0.{name}" for name in inside), "layer1.0"]
    both = layers_of_blocks(NETWORK, ["layer2.0", "layer1.0"])
    assert both[3::4] == ["layer2.0", "layer1.0"]
    with pytest.raises(InputError, match=r"block 'layer1\.9': there is no such module; did you mean 'layer1\.0'"):
        layers_of_blocks(NETWORK, ["layer1.9"])
    with pytest.raises(InputError, match="block 'bn1': has no convolution inside it"):
        layers_of_blocks(NETWORK, ["bn1"])
    with pytest.raises(ValueError, match="a block brings its own layers"):
        LayersOptions(layers=("conv1",), blocks=("layer1.0",))


def test_maps_are_described_by_what_is_read():
    import torch

    names = ["layer1.0.conv1", "layer1.0.conv2", "layer1.0"]
    layers = find_layers(NETWORK, torch.rand(1, 3, 32, 32), names)
    assert [describe_maps(NETWORK, layer) for layer in layers] == ["activated", "not activated", "output"]


def test_a_class_is_chosen_by_its_name():
    assert choose_class(["cat", "dog"], None) == "cat"
    assert choose_class(["cat", "dog"], "dog") == "dog"
    with pytest.raises(InputError, match="class 'dgo': not among the 2 scored classes; did you mean 'dog'"):
        choose_class(["cat", "dog"], "dgo")
