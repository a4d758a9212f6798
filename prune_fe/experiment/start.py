"""The trained network that an experiment starts from where its model is no name: a saved folder, or one in memory."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from prune_fe.errors import DataError, InputError
from prune_fe.experiment.recipe import ModelOptions
from prune_fe.models.manifest import is_saved, read_manifest
from prune_fe.models.outputs import compare_classes
from prune_fe.models.saved import load
from prune_fe.tracing.copying import copy_model


def copy_start(given: nn.Module | None, model: ModelOptions, classes: Sequence[str]) -> nn.Module | None:
    """Return a copy of the trained network that an experiment starts from, on the CPU.

    Args:
        given: A network in memory, which is copied; None reads the folder that `model` names.
        model: The recipe's model.
        classes: The classes of the images.

    Returns:
        The network; None where the model is one that is built by name.

    Raises:
        InputError: The model is a folder, and has options for one that is built by name.
        DataError: The images have other classes than those that the saved network was trained on.
    """
    if given is not None:
        return copy_model(given).cpu()
    if not is_saved(model.name):
        return None
    if model.pretrained or model.arguments or model.classifier_width is not None:
        raise InputError(
            f"model.name: {model.name} is a saved network; pretrained, arguments and classifier_width are for one that "
            "is built by name"
        )
    known = read_manifest(model.name)["about"].get("classes")
    if known is not None and list(known) != list(classes):
        raise DataError(
            f"{model.name} was trained on other classes than the data has: {compare_classes(known, list(classes))}"
        )
    return load(model.name)
