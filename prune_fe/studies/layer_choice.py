"""Choose the layers, classes and images of a study whose layers are scored by feature entropy."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from torch import nn
from torch.nn.modules.conv import _ConvNd

from prune_fe.data.labels import image_labels
from prune_fe.data.sampling import choose_images
from prune_fe.errors import DataError, InputError
from prune_fe.experiment.experiment import Experiment
from prune_fe.experiment.recipe import ScorerEntry
from prune_fe.io import nearest
from prune_fe.scorers import resolve_scorer
from prune_fe.scorers.feature_entropy import FeatureEntropy
from prune_fe.tracing.layers import Layer, find_layers, list_layers

ENTROPY = "feature-entropy"


def choose_scored_images(experiment: Experiment, wanted: int | None) -> tuple[list[str], int]:
    """Return the names of the scored classes, and how many images of each of them are read.

    Args:
        experiment: The experiment.
        wanted: Training images of a class; None means the recipe's number, or as many as the smallest class has.

    Raises:
        DataError: A class has fewer.
    """
    splits, score = experiment.splits, experiment.recipe.score
    labels = image_labels(splits.train)
    counts = Counter(labels[index] for index in choose_images(splits.train, score.classes, None, experiment.seed))
    available = min(counts.values())
    samples = wanted or score.samples or available
    if samples > available:
        raise DataError(f"{samples} samples asked for, the smallest class has {available} training images")
    return [splits.classes[label] for label in sorted(counts)], samples


def choose_class(names: Sequence[str], wanted: str | None) -> str:
    """Return the class that is shown by itself.

    Raises:
        InputError: It is none of those that are scored.
    """
    if wanted is None:
        return names[0]
    if wanted not in names:
        raise InputError(f"class {wanted!r}: not among the {len(names)} scored classes; {nearest(wanted, names[:20])}")
    return wanted


def find_scorable_layers(
    experiment: Experiment, network: nn.Module, names: Sequence[str] | None, entry: ScorerEntry
) -> tuple[list[Layer], list[str]]:
    """Return the layers that feature entropy can score, and texts that name all others with the reason why not.

    Raises:
        InputError: There is no such layer, or feature entropy can score none.
    """
    scorer = resolve_scorer(ENTROPY, entry.settings)
    assert isinstance(scorer, FeatureEntropy)
    layers = find_layers(network, experiment.example.to(experiment.device), names)
    fit, unfit = [], dict[str, list[str]]()
    if names is None:
        with_maps = {layer.name for layer in layers}
        mapless = [layer.name for layer in list_layers(network) if layer.name not in with_maps]
        unfit |= {"no feature map: behind a global pooling, or not run exactly once": mapless} if mapless else {}
    for layer in layers:
        try:
            scorer.check([layer])
        except InputError as error:
            reason = str(error).removeprefix(f"{ENTROPY}: ").removeprefix(f"layer {layer.name!r}: ")
            unfit.setdefault(reason.partition(";")[0], []).append(layer.name)
        else:
            fit.append(layer)
    reasons = [f"{', '.join(map(repr, names))} ({reason})" for reason, names in unfit.items()]
    if not fit:
        raise InputError(f"{ENTROPY} can score none of the layers: {'; '.join(reasons)}")
    return fit, reasons


def layers_of_blocks(network: nn.Module, blocks: Sequence[str]) -> list[str]:
    """Return the names of the convolutions inside each of some blocks, and of the blocks, whose output is a map too.

    Args:
        network: The network.
        blocks: Names of modules, such as "layer4.1".

    Raises:
        InputError: There is no such module, or no convolution is inside it.
    """
    modules = dict(network.named_modules())
    holding = [name for name in modules if name and _convolutions_inside(modules, name)]
    names = []
    for block in blocks:
        if block not in holding:
            what = "has no convolution inside it" if block in modules else "there is no such module"
            raise InputError(f"block {block!r}: {what}; {nearest(block, holding)}")
        names += [*_convolutions_inside(modules, block), block]
    return names


def _convolutions_inside(modules: Mapping[str, nn.Module], block: str) -> list[str]:
    """Return the names of the convolutions inside a module."""
    return [name for name, module in modules.items() if name.startswith(f"{block}.") and isinstance(module, _ConvNd)]


def describe_maps(network: nn.Module, layer: Layer) -> str:
    """Return what the maps of a layer are: a convolution's with or without an activation, or a module's output."""
    if not isinstance(network.get_submodule(layer.name), _ConvNd):
        return "output"
    return "activated" if layer.is_activated else "not activated"
