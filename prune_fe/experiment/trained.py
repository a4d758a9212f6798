"""The trained network of an experiment: read from its folder, or initialised, trained and saved there."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn

from prune_fe.distributed import all_gather, from_rank_0, rank
from prune_fe.errors import CheckpointError
from prune_fe.experiment.device import to_device
from prune_fe.experiment.recipe import TRAINED, held_out_images, seen_elsewhere
from prune_fe.experiment.steps import check, fit
from prune_fe.models.build import build_pretrained
from prune_fe.models.checkpoints import load_weights, read_checkpoint
from prune_fe.models.classifier import describe_renewed
from prune_fe.models.manifest import read_manifest
from prune_fe.models.outputs import find_output_keys, match_classes
from prune_fe.models.saved import load, save

if TYPE_CHECKING:
    from prune_fe.experiment.experiment import Experiment


def load_or_train(experiment: Experiment) -> nn.Module:
    """Return the network from the experiment's folder, or train it and save it there."""
    path, seed = experiment.seed_folder / TRAINED, experiment.seed
    if from_rank_0(path.exists):
        try:
            # Without a factory in the manifest, load() needs a network, which the recipe's arguments can build.
            is_known = read_manifest(path)["factory"] is not None
            network = load(path, None if is_known else experiment.build_any())
        except CheckpointError as error:
            raise CheckpointError(f"{error}; delete {path}, and the next run makes it again") from error
        return to_device(network, experiment.device)
    network, origin = initialise(experiment)
    unfinished = path.with_name(f"{TRAINED}.unfinished")
    if experiment.recipe.train is not None:
        for epoch in fit(experiment, network, experiment.recipe.train, "training", unfinished=unfinished):
            experiment.log("epoch", phase="training", seed=seed, **dataclasses.asdict(epoch))
    save_trained(experiment, network, origin)
    return network


def initialise(experiment: Experiment) -> tuple[nn.Module, dict[str, str]]:
    """Return the network before training, on its device and checked, and where its weights come from."""
    model, seed = experiment.recipe.model, experiment.seed
    torch.manual_seed(seed)  # for the initial weights
    network, renewed = _initial_network(experiment)
    origin = {}
    if model.checkpoint is not None:
        with open(model.checkpoint, "rb") as file:
            origin = {"checkpoint_sha256": hashlib.file_digest(file, "sha256").hexdigest()}
        experiment.log("checkpoint", seed=seed, file=Path(model.checkpoint).name, **origin)
    if renewed:
        message = describe_renewed(model.checkpoint or f"the weights of {model.name}", renewed)
        if experiment.recipe.train is None:
            raise CheckpointError(f"{message}; without train: in the recipe, nothing trains the new layers")
        experiment.reporter.say(f"note: {message}")
        experiment.log("new_classifier", seed=seed, keys=renewed)
    network = to_device(network, experiment.device)
    check(experiment, network)
    return network, origin


def save_trained(experiment: Experiment, network: nn.Module, origin: Mapping[str, str]) -> None:
    """Save the trained network in the experiment's folder, where every command looks for it.

    Args:
        experiment: The experiment.
        network: Its network.
        origin: Where its initial weights came from, as returned by `initialise`.
    """
    path = experiment.seed_folder / TRAINED
    if rank() == 0:
        about = {"recipe": experiment.recipe.name, "seed": experiment.seed, **origin} | experiment.splits.about
        if seen_elsewhere(experiment.recipe) is None:
            about["held_out"] = held_out_images(experiment.recipe.data, experiment.seed)
        save(network, path, about, overwrite=True)
        path.with_name(f"{TRAINED}.unfinished").unlink(missing_ok=True)
    all_gather(None)  # a barrier: no process looks for the network before it is saved


def _initial_network(experiment: Experiment) -> tuple[nn.Module, list[str]]:
    """Return the network before training, and the keys of its classifier that trained weights do not fit."""
    model, renewed = experiment.recipe.model, list[str]()
    start = experiment.copy_start()
    if start is not None:
        network = start
    elif model.pretrained:
        network, renewed = experiment.build_by(build_pretrained)
    else:
        network = experiment.build_network()
    if model.checkpoint is not None:
        checkpoint = match_classes(
            read_checkpoint(model.checkpoint, network.state_dict().keys()),
            experiment.splits.classes,
            # In a saved network, it is not known which layers depend on the classes.
            lambda: (
                [] if start is not None else experiment.build_by(lambda name, _, **kept: find_output_keys(name, **kept))
            ),
            new_classifier=True,
        )
        renewed = load_weights(network, checkpoint, new_classifier=True)
        if checkpoint.summary:
            experiment.reporter.say(f"note: {checkpoint.summary}")
    return network, renewed
