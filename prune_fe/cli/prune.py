"""prune-fe prune: remove units from a network by scores."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter, validators

from prune_fe.cli.inputs import new_output, require_data
from prune_fe.cli.networks import RECALIBRATED, load
from prune_fe.cli.output import reporter, say_next
from prune_fe.cli.parameters import DataFlags, Device, ModelFlags, NewFolder, Seed
from prune_fe.errors import DataError, InputError
from prune_fe.pruning.options import PruneOptions
from prune_fe.signals import ignore_signals


def prune(
    *,
    model: ModelFlags,
    scores: Path,
    options: Annotated[PruneOptions, Parameter(name="*")] = PruneOptions(),
    sensitivity: Path | None = None,
    data: DataFlags = DataFlags(),
    recalibrate: Annotated[int | None, Parameter(validator=validators.Number(gte=2))] = None,
    output: NewFolder = Path("pruned"),
    device: Device = "auto",
    seed: Seed = 0,
) -> None:
    """Remove the units with the lowest scores, and write a folder that prune_fe.load reads.

    Images (--data) are needed for --recalibrate only; the saved model also takes the names of its classes from them.

    Args:
        scores: A folder that `prune-fe score` wrote.
        sensitivity: A folder that `prune-fe sensitivity` wrote for the same weights and scores, for --ratio auto.
        recalibrate: Recompute the statistics of the pruned network's batch norms on this many training images of
            --data.
        seed: Seed with which the images are drawn.
    """
    require_data(data.data)
    if recalibrate is not None and data.data is None:
        raise InputError("--recalibrate needs training images: pass --data PATH")
    if options.is_auto and sensitivity is None:
        raise InputError("--ratio auto needs --sensitivity FOLDER, which prune-fe sensitivity writes")
    if sensitivity is not None and not options.is_auto:
        raise InputError("--sensitivity has no effect without --ratio auto; pass both, or leave it out")
    with new_output(output):
        _prune(model, scores, sensitivity, options, data, recalibrate, output, device, seed)
    reporter.say(f"pruned model: {output}")
    say_next("finetune", "--model", output, "--data", data.data or "PATH", "--output", "finetuned")


def _prune(
    model: ModelFlags,
    scores: Path,
    sensitivity: Path | None,
    options: PruneOptions,
    data: DataFlags,
    recalibrate: int | None,
    output: Path,
    device: str,
    seed: int,
) -> None:
    """Load, prune and save the network."""
    from prune_fe.data.labels import image_labels
    from prune_fe.measure.cost import cost
    from prune_fe.models.saved import save
    from prune_fe.pruning.loss_curves import load_sensitivity
    from prune_fe.pruning.prune import prune as prune_units
    from prune_fe.scoring.fingerprint import hash_weights
    from prune_fe.scoring.scores import load_scores
    from prune_fe.training.recalibration import has_batch_norms
    from prune_fe.training.recalibration import recalibrate as recalibrate_norms

    loaded_scores = load_scores(scores)
    curves = None if sensitivity is None else load_sensitivity(sensitivity)
    loaded = load(model, data, device, seed)
    network, splits, example = loaded.network, loaded.splits, loaded.example
    if splits is not None and recalibrate is not None and recalibrate > len(image_labels(splits.train)):
        raise DataError(f"--recalibrate {recalibrate}: there are {len(image_labels(splits.train))} training images")
    if loaded_scores.provenance.get("model_sha256", "") != hash_weights(network):
        reporter.say(f"note: {scores} holds scores of other weights, or does not record the weights that it is for")
    pruned = prune_units(network, loaded_scores, example=example, options=options, sensitivity=curves)
    for step in pruned.steps:
        counts = f"{step.asked} asked, {step.count} removed, {step.units - step.count} kept"
        why = f" ({step.left})" if step.left else f"; with them outputs of {', '.join(step.also)}" if step.also else ""
        reporter.say(f"{', '.join(step.layers)}: {step.units} units, {counts}{why}")
    for note in pruned.notes:
        reporter.say(f"note: {note}")
    if recalibrate is not None and splits is not None:
        norms = recalibrate_norms(pruned.model, splits.train, samples=recalibrate, seed=seed)
        reporter.say(
            f"{norms} batch norms recalibrated on {recalibrate} training images" if norms else "no batch norms"
        )
    elif has_batch_norms(pruned.model):
        images = "" if data.data else " --data PATH"
        reporter.say(
            "note: its batch norms have the statistics of the unpruned network; the same command with"
            f"{images} --recalibrate {RECALIBRATED} computes them anew, in seconds and without training"
        )
    asked = dataclasses.asdict(options)
    del asked["rounds"]  # The command prunes in one step.
    notes = loaded.notes | (splits.about if splits else {"size": example.shape[-1]})
    before, after = cost(network, example), cost(pruned.model, example)
    ignore_signals()
    save(pruned.model, output, notes | {"scores": loaded_scores.about, "prune": asked})
    reporter.say(
        f"parameters {before.parameters:,} -> {after.parameters:,} ({after.parameters / before.parameters:.1%} left), "
        f"multiply-adds {before.macs:,} -> {after.macs:,} ({after.macs / before.macs:.1%} left)"
    )
