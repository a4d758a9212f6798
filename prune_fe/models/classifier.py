"""The classifier of a network: the part that depends on the classes, which a new data set needs anew."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor, nn

from prune_fe.errors import InputError

CLASSIFIERS = ("classifier", "fc", "head", "heads")
"""The names that torchvision, timm and most users give to the child module that holds the classifier."""


def is_in_classifier(key: str) -> bool:
    """Return whether a key of a state dict belongs to the classifier."""
    return key.partition(".")[0] in CLASSIFIERS


def find_unfit_keys(expected: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> list[str]:
    """Return the keys of a network's classifier that a checkpoint cannot fill.

    The weight and the bias of a layer belong together: if one of them does not fit, both are returned.

    Args:
        expected: State dict of the network.
        state: State dict of the checkpoint.
    """
    unfit = {
        key.rpartition(".")[0]
        for key, value in expected.items()
        if is_in_classifier(key) and (key not in state or state[key].shape != value.shape)
    }
    return [key for key in expected if is_in_classifier(key) and key.rpartition(".")[0] in unfit]


def describe_renewed(source: str, keys: Sequence[str]) -> str:
    """Return the message that says which layers of a classifier start with random weights.

    Args:
        source: Where the other weights come from.
        keys: Keys of the layers' weights and biases.
    """
    layers = dict.fromkeys(key.rpartition(".")[0] for key in keys)
    return f"{source}: does not fit {', '.join(layers)}, made anew with random weights; all other layers are loaded"


def set_classifier_width(network: nn.Module, width: int) -> None:
    """Give every hidden linear layer of a network's classifier a new width and new weights, in place.

    A narrow classifier suits data sets with few classes: 89 % of the weights of VGG16 are in two layers that tell
    1,000 classes apart.

    Args:
        network: A network whose classifier is a sequence of linear layers, such as VGG or AlexNet.
        width: Number of outputs of each linear layer of the classifier but the last.

    Raises:
        InputError: The network has no classifier with a hidden linear layer.
    """
    layers = [
        (name, module)
        for name, module in network.named_modules()
        if isinstance(module, nn.Linear) and is_in_classifier(name)
    ]
    if len(layers) < 2:
        raise InputError(
            f"classifier_width: {type(network).__name__} has no hidden linear layer in its classifier; "
            "VGG and AlexNet have"
        )
    inputs, last = layers[0][1].in_features, layers[-1][1]
    for name, old in layers:
        outputs = old.out_features if old is last else width
        new = nn.Linear(inputs, outputs, bias=old.bias is not None, device=old.weight.device, dtype=old.weight.dtype)
        network.set_submodule(name, new)
        inputs = outputs
