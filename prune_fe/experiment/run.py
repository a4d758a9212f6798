"""A recipe, from the images to the table: the whole method on one page.

Train a network. Score its units. Remove the weakest, layer by layer. Fine-tune what is left. Do the same, on the
same network and with the same budget, for every scorer, and for every seed. Each finished step is in the run folder;
a run that was killed goes on behind the last one.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor, nn

from prune_fe.data.cifar import cifar10
from prune_fe.data.digits import digits
from prune_fe.data.image_folder import folder
from prune_fe.data.labels import image_labels, image_names
from prune_fe.data.sampling import choose_images
from prune_fe.data.splits import Splits, hold_out
from prune_fe.distributed import all_gather, from_rank_0, local_rank, rank, world_size
from prune_fe.errors import CheckpointError, DataError, InputError
from prune_fe.experiment import recipe as recipes
from prune_fe.experiment.recipe import Recipe, Train
from prune_fe.experiment.results import BY_LAYER, UNPRUNED, Result, Row
from prune_fe.experiment.run_folder import RunFolder, environment
from prune_fe.measure.cost import cost, speed
from prune_fe.measure.evaluate import evaluate
from prune_fe.models import networks as models
from prune_fe.pruning.prune import prune
from prune_fe.pruning.records import Step
from prune_fe.scorers import resolve_scorer
from prune_fe.scorers.base import Scorer
from prune_fe.scoring.score import check_judge, score_all
from prune_fe.scoring.scores import Scores
from prune_fe.tracing.feature_maps import find_layers
from prune_fe.training.loop import Epoch, best_epoch, finetune, recalibrate


class Reporter(Protocol):
    """Who tells the user how far a run is."""

    def say(self, text: str) -> None: ...

    def progress(self, task: str) -> Callable[[int, int], None]:
        """A function to call with (done, total)."""


@dataclasses.dataclass(frozen=True)
class Compressed:
    """A pruned network and what is known of it; correct: (images,) bool. epochs: of its fine-tuning."""

    model: nn.Module
    row: Row
    correct: Tensor
    steps: Sequence[Step] = ()
    epochs: Sequence[Epoch] = ()

    def cell(self, network: str, recipe: Recipe, seconds: float) -> Result:
        """What a comparison needs of it; `recipe` says what was asked for."""
        goal = next((goal for goal in recipes.GOALS if getattr(recipe.prune, goal) is not None), "ratio")
        amount = getattr(recipe.prune, goal)
        if isinstance(amount, dict):
            goal, amount = BY_LAYER, 0.0
        elif amount is None:
            amount = 0.5  # prune()'s default
        removed: dict[str, list[int]] = {}
        for step in self.steps:
            for layer, units in step.removed.items():
                removed[layer] = sorted([*removed.get(layer, []), *units])
        pruned = self.row.scorer != UNPRUNED
        return Result(
            network, self.row, self.correct.numpy(), goal if pruned else None,
            amount if pruned else None, removed,
            {", ".join(step.layers): step.left for step in self.steps if step.left},
            [dataclasses.asdict(epoch) for epoch in self.epochs], seconds, environment(),
        )  # fmt: skip


class Folder(Protocol):
    """Where a run leaves what it has done: a RunFolder, or a place in one."""

    @property
    def path(self) -> Path: ...

    def log(self, event: str, **values: object) -> None: ...


def run(recipe: Recipe, folder: RunFolder, report: Reporter) -> list[Row]:
    """Do what `recipe` says, in `folder`; returns the rows of the table, unpruned networks included."""
    device = prepare(recipe.device, recipe.threads)
    for entry in recipe.scorers:
        scorer_for(entry, seed=0)  # a wrong setting is said before any work
    here, earlier = environment(), folder.events("environment")
    folder.log("environment", **here)
    if not earlier:
        folder.write_json("env.json", here)
    elif changed := [key for key in here if here[key] != earlier[-1].get(key)]:
        report.say(f"note: {', '.join(changed)} differ from when this run began; its numbers will not be the same bits")
    done = [Row(**event["row"]) for event in folder.events("row")]
    every = load_data(recipe, report)
    write_test(every, folder)
    for seed in recipe.seeds:
        splits = hold_out(every, recipe.data.validation, seed)
        example = splits.test[0][0][None]
        network = trained(recipe, splits, seed, folder, report, device)
        if not any(row.scorer == UNPRUNED and row.seed == seed for row in done):
            plain = measured(UNPRUNED, seed, network, splits, example, recipe)
            done.append(_kept(plain, recipe, folder))
        before = next(row for row in done if row.scorer == UNPRUNED and row.seed == seed)
        report.say(f"seed {seed}: the unpruned network is right on {before.accuracy_before:.2%} of the test images")
        pending = [e for e in recipe.scorers if not any((row.scorer, row.seed) == (e.label, seed) for row in done)]
        if not pending:
            continue
        scores = scored(recipe, pending, network, splits, example, seed, report, folder.path / f"seed-{seed}")
        for entry in pending:
            begun = time.perf_counter()
            found = compress(recipe, entry, scores[entry.label], network, splits, example, before, folder, report)
            about = {"recipe": recipe.name, "seed": seed, "scores": scores[entry.label].about} | splits.about
            models.save(found.model, folder.path / f"seed-{seed}" / entry.label / "pruned", about, overwrite=True)
            done.append(_kept(found, recipe, folder, time.perf_counter() - begun))
    folder.write_table("summary.csv", map(dataclasses.asdict, done))
    return done


def _kept(found: Compressed, recipe: Recipe, folder: RunFolder, seconds: float = 0.0) -> Row:
    """The row, when it is on the disk."""
    found.cell(recipe.model.name, recipe, seconds).save(
        folder.path / "cells" / f"seed-{found.row.seed}.{found.row.scorer}.json"
    )
    folder.log("row", row=dataclasses.asdict(found.row))
    return found.row


def trained(
    recipe: Recipe, splits: Splits, seed: int, folder: Folder, report: Reporter, device: torch.device
) -> nn.Module:
    """The network that every scorer of this seed starts from; trained once, then read from the run folder."""
    path, about = folder.path / f"seed-{seed}" / "trained", recipe.model
    if from_rank_0(path.exists):
        try:
            # Some networks can only be rebuilt with the recipe's arguments.
            named = models.read_manifest(path)["factory"] is not None
            twin = None if named else untrained(about, splits)
            return placed(models.load(path, twin), device)
        except CheckpointError as error:
            raise CheckpointError(f"{error}; delete {path}, and it is made again") from error
    torch.manual_seed(seed)
    network = untrained(about, splits, about.pretrained)
    if about.checkpoint is not None:
        models.load_weights(network, about.checkpoint)
    network = placed(network, device)
    report.say(f"seed {seed}: checking layers and scorers (the first time, kernels are compiled for some 15 seconds)")
    check(recipe, network, splits, seed)
    if recipe.train is not None:
        history = fit(network, splits, recipe.train, recipe.workers, seed, report, "training")
        for epoch in history:
            folder.log("epoch", phase="training", seed=seed, **dataclasses.asdict(epoch))
    if rank() == 0:
        models.save(network, path, {"recipe": recipe.name, "seed": seed} | splits.about, overwrite=True)
    all_gather(None)  # nobody looks for it before it is there
    return network


def untrained(about: recipes.Model, splits: Splits, pretrained: bool = False) -> nn.Module:
    """The recipe's network for these images, as it is built."""
    return models.build(
        about.name, len(splits.classes), in_channels=splits.channels, pretrained=pretrained, **about.arguments
    )


def scored(
    recipe: Recipe,
    entries: Sequence[recipes.Scorer],
    network: nn.Module,
    splits: Splits,
    example: Tensor,
    seed: int,
    report: Reporter,
    folder: Path | None = None,
    layers: Sequence[str] | None = None,
) -> dict[str, Scores]:
    """Label -> scores, from one pass that all scorers share; kept in `folder`, where what is finished is not redone."""
    choice = recipe.score
    return score_all(
        network, splits.train, {entry.label: scorer_for(entry, seed) for entry in entries},
        layers=layers or choice.layers, classes=choice.classes, samples=choice.samples, seed=seed,
        batch_size=choice.batch_size, workers=recipe.workers, example=example, progress=report.progress("scoring"),
        folder=folder,
    )  # fmt: skip


def compress(
    recipe: Recipe,
    entry: recipes.Scorer,
    scores: Scores,
    network: nn.Module,
    splits: Splits,
    example: Tensor,
    before: Row,
    folder: Folder,
    report: Reporter,
) -> Compressed:
    """Prune a copy of `network` by `scores` and fine-tune it."""
    seed, spent = before.seed, scores.seconds
    epochs: list[Epoch] = []

    def rescored(model: nn.Module, layers: Sequence[str]) -> Scores:
        nonlocal spent
        again = scored(recipe, [entry], model, splits, example, seed, report, layers=layers)[entry.label]
        spent += again.seconds
        return again

    momentum: dict[str, Tensor] = {}

    def tune(model: nn.Module, after: str = "") -> None:
        if recipe.finetune is not None:
            what = f"{entry.label}: fine-tuning{after}"
            history = fit(model, splits, recipe.finetune, recipe.workers, seed, report, what, momentum)
            epochs.extend(history)
            for epoch in history:
                folder.log("epoch", phase=what, seed=seed, **dataclasses.asdict(epoch))

    rounds = itertools.count(1)

    def recover(model: nn.Module, steps: Sequence[Step]) -> None:
        by_layer = recipe.prune.rounds == "layers"
        after = f" after {steps[0].layers[0]}" if by_layer else f" after round {next(rounds)} of {recipe.prune.rounds}"
        if (samples := recipe.prune.recalibrate) is not None:
            norms = recalibrate(model, splits.train, samples=samples, seed=seed, workers=recipe.workers)
            folder.log("recalibrate", scorer=entry.label, seed=seed, norms=norms, images=samples)
            report.say(f"{entry.label}: {norms} batch norms recalibrated on {samples} images{after}")
        if recipe.finetune is not None and recipe.finetune.when == "each_round":
            tune(model, after)

    pruned = prune(
        network, scores, example=example, after=recover, carry=momentum,
        rescore=rescored if recipe.prune.rescore == "each_round" else None,
        **recipe.prune.model_dump(exclude={"rescore", "recalibrate"}),
    )  # fmt: skip
    for step in pruned.steps:
        folder.log("prune", scorer=entry.label, seed=seed, **dataclasses.asdict(step))
        if step.left:
            report.say(f"{entry.label}: {', '.join(step.layers)} keeps {step.units - step.count} units: {step.left}")
    for note in pruned.notes:
        report.say(f"{entry.label}: {note}")
    model = placed(pruned.model, next(network.parameters()).device)
    right_after = None
    if recipe.finetune is None or recipe.finetune.when == "after":
        right_after = evaluate(model, splits.test, workers=recipe.workers).accuracy
        tune(model)
    found = measured(entry.label, seed, model, splits, example, recipe)
    row = dataclasses.replace(
        found.row,
        accuracy_before=before.accuracy_before,
        accuracy_pruned=right_after,
        accuracy_finetuned=found.row.accuracy_before if recipe.finetune is not None else None,
        scoring_seconds=spent,
    )
    return Compressed(model, row, found.correct, pruned.steps, epochs)


def measured(label: str, seed: int, model: nn.Module, splits: Splits, example: Tensor, recipe: Recipe) -> Compressed:
    """What the test images and the clock say of a network."""
    result = evaluate(model, splits.test, workers=recipe.workers)
    price, pace = cost(model, example), from_rank_0(lambda: speed(model, example))
    row = Row(
        label, seed, result.accuracy, None, None, result.balanced_accuracy, result.loss, price.parameters, price.macs,
        pace.images_per_second, pace.low, pace.high, str(pace), None,
    )  # fmt: skip
    return Compressed(model, row, result.correct)


def fit(
    model: nn.Module,
    splits: Splits,
    settings: Train,
    workers: int,
    seed: int,
    report: Reporter,
    what: str,
    momentum: dict[str, Tensor] | None = None,
) -> list[Epoch]:
    """Train on the training images; the validation images choose the epoch."""
    tick = report.progress(what)
    history = finetune(
        model, splits.train, splits.validation, workers=workers, seed=seed, momentum_buffers=momentum,
        progress=lambda epoch, done, total: tick(done, total), **settings.model_dump(exclude={"when"}),
    )  # fmt: skip
    best = best_epoch(history)
    report.say(
        f"{what}: {len(history) - 1} epochs, epoch {best.number} is best on the validation images "
        f"({best.validation_accuracy:.2%})"
    )
    return history


def write_test(splits: Splits, folder: RunFolder) -> None:
    """The classes, names and labels of the test images, for a report. InputError where the folder has others."""
    labels, path = image_labels(splits.test), folder.path / "test.json"
    names = image_names(splits.test, range(len(labels)))
    digest = hashlib.sha256(json.dumps([names, labels]).encode()).hexdigest()
    content = {"classes": list(splits.classes), "labels": labels, "sha256": digest}
    if not path.exists():
        folder.write_json(path.name, content)
    elif json.loads(path.read_text(encoding="utf-8")) != content:
        raise InputError(f"{folder.path} was begun with other test images or classes; start a new run")


def load_data(recipe: Recipe, report: Reporter) -> Splits:
    about = recipe.data
    if about.source == "digits":
        return digits(about.size)
    if about.path is None:
        raise InputError(f"recipe {recipe.name!r} reads a folder of images: pass --data PATH")
    if about.source == "cifar10":
        return cifar10(about.path, about.size)
    tick = report.progress("reading images")
    return folder(about.path, about.size, memory_gib=about.memory_gib, progress=tick)


def write_figure(folder: RunFolder, name: str, plot: Callable[[Path], None], report: Reporter) -> None:
    """What `plot` draws, if matplotlib is there."""
    try:
        plot(folder.path / name)
        report.say(f"figure: {folder.path}/{name}")
    except ImportError:
        report.say("no figure: matplotlib is missing (pip install 'prune-fe[plot]'); --resume draws it later")


def placed(network: nn.Module, device: torch.device) -> nn.Module:
    """On the device, its filters in the memory format that convolutions are fastest in, here and on a GPU."""
    return network.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]


def check(recipe: Recipe, network: nn.Module, splits: Splits, seed: int) -> None:
    """Say what would go wrong when the units are scored, before the network is trained."""
    example = splits.test[0][0][None].to(next(network.parameters()).device)
    layers = find_layers(network, example, recipe.score.layers)
    wanted, there = recipe.prune.recalibrate or 0, len(image_labels(splits.train))
    if wanted > there:
        raise DataError(f"prune.recalibrate: {wanted} training images asked for, there are {there}")
    for entry in recipe.scorers:
        judge = scorer_for(entry, seed)
        chosen: list[int] = []
        if judge.needs_data:
            chosen = choose_images(splits.train, recipe.score.classes, recipe.score.samples, seed)
        labels = image_labels(splits.train)
        check_judge(judge, network, layers, example, len(chosen), {labels[number] for number in chosen})


def scorer_for(entry: recipes.Scorer, seed: int) -> Scorer:
    """The recipe's scorer; one with a seed of its own gets the run's, unless the recipe says which."""
    return resolve_scorer(entry.name, entry.settings, seed)


def prepare(device: str, threads: int | None) -> torch.device:
    """The device, with torch set up so that the same seed gives the same numbers on it."""
    if threads is not None:
        torch.set_num_threads(threads)
    torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = True, False
    if device == "auto":
        return torch.device("cuda", local_rank()) if torch.cuda.is_available() else torch.device("cpu")
    if device == "cuda" and world_size() > 1:
        device = f"cuda:{local_rank()}"
    try:
        return torch.empty(0, device=device).device
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"device {device!r} cannot be used here: {str(error).splitlines()[0]}") from error
