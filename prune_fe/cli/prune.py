"""prune-fe prune: remove units from a network by scores."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from prune_fe.cli.inputs import new_output, require_data
from prune_fe.cli.networks import RECALIBRATED, Loaded, data_words, load, use_threads
from prune_fe.cli.output import print_json, reporter, say_next, text_to_stderr
from prune_fe.cli.parameters import DataFlags, Device, Json, ModelFlags, NewFolder, Seed, Threads
from prune_fe.errors import DataError, InputError
from prune_fe.experiment.recipe import PruneSection
from prune_fe.signals import ignore_signals

if TYPE_CHECKING:
    from torch import nn

    from prune_fe.pruning.records import Step
    from prune_fe.scoring.scores import Scores


def prune(
    *,
    model: ModelFlags,
    scores: Path,
    options: Annotated[PruneSection, Parameter(name="*")] = PruneSection(),
    sensitivity: Path | None = None,
    data: DataFlags = DataFlags(),
    other_weights: bool = False,
    output: NewFolder = Path("pruned"),
    device: Device = "auto",
    threads: Threads = None,
    seed: Seed = 0,
    json: Json = False,
) -> None:
    """Remove the units with the lowest scores, and write a folder that prune_fe.load reads.

    Images (--data) are needed for --recalibrate, and for --rescore each_round by a scorer that reads images; the saved
    model also takes the names of its classes from them. Fine-tuning after each round is done by `prune-fe compress
    --rounds N`.

    Args:
        scores: A folder that `prune-fe score` wrote.
        sensitivity: A folder that `prune-fe sensitivity` wrote for the same weights and scores, for --ratio auto.
        other_weights: Take scores that were computed for other weights of the same network. Without it they are
            refused.
        seed: Seed with which the images are drawn.
    """
    text_to_stderr(json)
    require_data(data.data)
    if options.recalibrate is not None and data.data is None:
        raise InputError("--recalibrate needs training images: pass --data PATH")
    if options.is_auto and sensitivity is None:
        raise InputError("--ratio auto needs --sensitivity FOLDER, which prune-fe sensitivity writes")
    if sensitivity is not None and not options.is_auto:
        raise InputError("--sensitivity has no effect without --ratio auto; pass both, or leave it out")
    if options.rounds != 1 and options.rescore == "once":
        raise InputError(
            f"--rounds {options.rounds} does the same as 1 without --rescore each_round; prune-fe compress fine-tunes "
            "after each round"
        )
    use_threads(threads)
    with new_output(output):
        numbers = _prune(model, scores, sensitivity, options, data, other_weights, output, device, seed)
    reporter.say(f"pruned model: {output}")
    images = data_words(data) if data.data else ["--data", "PATH"]
    say_next("finetune", "--model", output, *images, "--output", "finetuned")
    if json:
        print_json({"model": model.model, "scores": str(scores), "output": str(output)} | numbers)


def _prune(
    model: ModelFlags,
    scores: Path,
    sensitivity: Path | None,
    options: PruneSection,
    data: DataFlags,
    other_weights: bool,
    output: Path,
    device: str,
    seed: int,
) -> dict[str, Any]:
    """Load, prune and save the network, and return the main numbers."""
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
    recalibrate = options.recalibrate
    if splits is not None and recalibrate is not None and recalibrate > len(image_labels(splits.train)):
        raise DataError(f"--recalibrate {recalibrate}: there are {len(image_labels(splits.train))} training images")
    if loaded_scores.keep.keys() <= dict(network.named_modules()).keys():  # else they are of another network
        scored = loaded_scores.provenance.get("model_sha256")
        _compare_weights(scores, scored, hash_weights(network), model, other_weights)
    rescore = _rescoring(loaded_scores, loaded, options, seed)

    def recover(network: nn.Module, steps: Sequence[Step]) -> None:
        if recalibrate is not None and splits is not None:
            norms = recalibrate_norms(network, splits.train, samples=recalibrate, seed=seed)
            reporter.say(
                f"{norms} batch norms recalibrated on {recalibrate} training images" if norms else "no batch norms"
            )

    pruned = prune_units(
        network, loaded_scores, example=example, options=options, sensitivity=curves, rescore=rescore, after=recover
    )
    for step in pruned.steps:
        counts = f"{step.asked} asked, {step.count} removed, {step.units - step.count} kept"
        why = f" ({step.left})" if step.left else f"; with them outputs of {', '.join(step.also)}" if step.also else ""
        reporter.say(f"{', '.join(step.layers)}: {step.units} units, {counts}{why}")
    for note in pruned.notes:
        reporter.say(f"note: {note}")
    if recalibrate is None and has_batch_norms(pruned.model):
        images = "" if data.data else " --data PATH"
        reporter.say(
            "note: its batch norms have the statistics of the unpruned network; the same command with"
            f"{images} --recalibrate {RECALIBRATED} computes them anew, in seconds and without training"
        )
    asked = dataclasses.asdict(options)
    notes = loaded.notes | (splits.about if splits else {"size": example.shape[-1]})
    before, after = cost(network, example), cost(pruned.model, example)
    ignore_signals()
    save(pruned.model, output, notes | {"scores": loaded_scores.about, "prune": asked})
    reporter.say(
        f"parameters {before.parameters:,} -> {after.parameters:,}, multiply-adds {before.macs:,} -> {after.macs:,}: "
        + options.describe_reached(after.macs / before.macs, after.parameters / before.parameters)
    )
    steps = [
        {"layers": step.layers, "units": step.units, "asked": step.asked, "removed": step.count, "reason": step.left}
        for step in pruned.steps
    ]
    costs = {"before": dataclasses.asdict(before), "after": dataclasses.asdict(after)}
    left = {"macs_left": after.macs / before.macs, "parameters_left": after.parameters / before.parameters}
    return costs | left | {"steps": steps, "notes": pruned.notes}


def _rescoring(
    scores: Scores, loaded: Loaded, options: PruneSection, seed: int
) -> Callable[[nn.Module, Sequence[str]], Scores] | None:
    """Return the function that scores the network again before each round, with the scorer and images of its scores.

    None without --rescore each_round.

    Raises:
        InputError: The scorer is not known by name, or reads images and there are none.
    """
    if options.rescore == "once":
        return None
    from prune_fe.data.sampling import select_by_name
    from prune_fe.scorers import resolve_scorer
    from prune_fe.scoring.score import score

    scorer = resolve_scorer(scores.scorer, dict(scores.settings), seed)
    images = None
    if scorer.needs_data:
        if loaded.splits is None:
            raise InputError(f"--rescore each_round: {scores.scorer} reads images, pass --data PATH")
        names = [name for name, _ in scores.provenance.get("images", ())]
        images = select_by_name(loaded.splits.train, names) if names else loaded.splits.train

    def score_again(network: nn.Module, layers: Sequence[str]) -> Scores:
        reporter.say(f"scoring {len(layers)} layers again by {scores.scorer}")
        return score(network, images, scorer, layers=tuple(layers), seed=seed, example=loaded.example)

    return score_again


def _compare_weights(scores: Path, scored: str | None, weights: str, model: ModelFlags, other_weights: bool) -> None:
    """Refuse scores of other weights, unless they are asked for.

    Raises:
        InputError: They are not asked for.
    """
    if scored == weights:
        return
    if scored is None:
        reporter.say(f"note: {scores} does not record the weights that it is for")
    elif other_weights:
        reporter.say(f"note: {scores} holds scores of other weights than those of {model.model}")
    else:
        hint = "" if model.checkpoint or model.pretrained else "; is --checkpoint FILE missing?"
        raise InputError(
            f"{scores} holds scores of other weights than those of {model.model}{hint} (--other-weights takes them)"
        )
