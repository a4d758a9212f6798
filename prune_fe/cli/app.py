"""The command line. torch is imported inside the commands: help, a typo and a bad recipe answer at once."""

from __future__ import annotations

import csv
import dataclasses
import errno
import fnmatch
import io
import json
import math
import os
import re
import shlex
import shutil
import signal
import sys
import traceback
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import cyclopts
from cyclopts import App, Parameter, validators
from rich.console import Console

from prune_fe.errors import CheckpointError, DataError, EnvironmentFault, InputError, PruneFEError
from prune_fe.report.console import (
    ConsoleReporter,
    latency_table,
    layer_table,
    results_table,
    study_table,
    training_table,
)
from prune_fe.scorers import SCORERS

if TYPE_CHECKING:
    from torch import Tensor, nn

    from prune_fe.data.images import Splits
    from prune_fe.experiment.recipe import Recipe
    from prune_fe.experiment.run_folder import RunFolder
    from prune_fe.scorers.base import Scorer
    from prune_fe.scoring.scores import Scores

WIDTH = 100
"""Columns of the table where there is no terminal."""

ABOUT_SCORES = "score.json"
"""What was asked for, and where it was done; it marks a folder of scores."""

app = App(
    name="prune-fe",
    help="Compress CNNs, ablate their units and benchmark pruning criteria.",
    version=lambda: metadata.version("prune-fe"),
    default_parameter=Parameter(negative=()),
    suppress_keyboard_interrupt=False,  # main() says it
)


def _check_device(_: Any, value: str) -> None:
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?|mps", value):
        raise ValueError("Allowed are auto, cpu, cuda, cuda:N and mps.")


# What several commands take.
Counted = validators.Number(gte=1)
ModelName = Annotated[str, Parameter(help="vgg-small, a torchvision or timm name, or a folder that prune_fe saved.")]
Checkpoint = Annotated[Path | None, Parameter(help="A state dict for the model.")]
DATA = 'A folder with train/CLASS/* and val/CLASS/*, a tar file of one, or "digits".'
DataPath = Annotated[str, Parameter(name=["--data", "--data-dir", "--data-path"], help=DATA)]
Output = Annotated[Path, Parameter(name=["--output", "--output-dir"], help="A new folder.")]
Outputs = Annotated[
    int | None,
    Parameter(help="Outputs of a model built by name; default: the classes of the data, or 1000.", validator=Counted),
]
Size = Annotated[
    int | None,
    Parameter(
        help="Height and width of the images; default: the saved model's, or 224 (digits: 32).", validator=Counted
    ),
]
BatchSize = Annotated[int, Parameter(name=["--batch-size", "-b"], help="Images at a time.", validator=Counted)]
Workers = Annotated[
    int, Parameter(name=["--workers", "-j"], help="Processes that read images.", validator=validators.Number(gte=0))
]
Device = Annotated[str, Parameter(help="auto, cpu, cuda, cuda:1 or mps.", validator=_check_device)]
Seed = Annotated[int, Parameter(validator=validators.Number(gte=0, lt=2**31))]
Share = Parameter(validator=validators.Number(gte=0, lt=1))
LeftShare = Parameter(validator=validators.Number(gt=0, lte=1))
Positive = Parameter(validator=validators.Number(gt=0, lt=math.inf))
Several = Parameter(consume_multiple=True)

RecipePath = Annotated[
    Path, Parameter(name=["recipe", "--config", "-c"], help="A YAML file, such as recipes/quickstart.yaml.")
]
Seeds = Annotated[list[int] | None, Several, Parameter(help="One or more seeds, instead of the recipe's.")]


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class RecipeOptions:
    """What every command takes that does what a recipe says."""

    data: DataPath | None = None
    output: Annotated[
        Path, Parameter(name=["--output", "--output-dir"], help="Where the run's own folder is made.")
    ] = Path("runs")
    resume: Annotated[
        str | None, Parameter(help='A run folder to go on with, or "auto" for the recipe\'s latest one in --output.')
    ] = None
    device: Annotated[str | None, Parameter(help="auto, cpu, cuda, cuda:1 or mps.")] = None
    threads: Annotated[int | None, Parameter(help="CPU threads.")] = None
    workers: Workers | None = None
    set_: Annotated[
        list[str] | None, Parameter(name="--set", help="KEY=VALUE, any other key of the recipe: --set prune.ratio=0.7.")
    ] = None


console = Console(width=None if sys.stdout.isatty() else WIDTH)
reporter = ConsoleReporter(console)


@app.command
def run(
    recipe: RecipePath,
    *,
    options: RecipeOptions = RecipeOptions(),
    seed: Seeds = None,
) -> None:
    """Train, score, prune and fine-tune as a recipe says, for each of its scorers, and print one table."""
    checked, folder = _recipe_and_folder(recipe, options, seed)
    from prune_fe.experiment.run import run as run_recipe
    from prune_fe.report.report import write_report

    with _discarded_if_empty(folder, options.resume), reporter.showing():
        rows = run_recipe(checked, folder, reporter)
    console.print(results_table(rows))
    last = folder.path / f"seed-{checked.seeds[-1]}" / checked.scorers[0].label / "pruned"
    reporter.say(f"results: {folder.path}/summary.csv, log.jsonl, and scores by unit in {last.parent}/scores.csv")
    try:
        reporter.say(f"report: {write_report(folder.path)}")
    except PruneFEError as error:  # the run itself has come to its end
        reporter.say(f"no report: {error}")
    reporter.say(f"pruned model: {last}   (in Python: prune_fe.load({str(last)!r}))")
    _say_next("evaluate", "--model", last, "--data", checked.data.path or "digits")
    images = ("--data", options.data) if options.data else ()
    _say_next("run", recipe, *images, "--set", "prune.ratio=0.7", "--seed", 0, 1, 2)


@app.command
def score(
    *,
    model: ModelName,
    data: Annotated[
        str | None,
        Parameter(
            name=["--data", "--data-dir", "--data-path"],
            help=f"{DATA} Scorers that read weights only need none.",
        ),
    ] = None,
    scorer: Annotated[
        tuple[str, ...],
        Parameter(help=f"One or more of {', '.join(SCORERS)}.", consume_multiple=True),
    ] = ("feature-entropy",),
    checkpoint: Checkpoint = None,
    from_checkpoints: Path | None = None,
    num_classes: Outputs = None,
    size: Size = None,
    classes: Annotated[list[str] | None, Several] = None,
    samples: Annotated[int | None, Parameter(validator=Counted)] = None,
    images: Path | None = None,
    layers: Annotated[list[str] | None, Several] = None,
    except_: Annotated[list[str] | None, Parameter(name="--except", consume_multiple=True)] = None,
    output: Annotated[Path, Parameter(name=["--output", "--output-dir"])] = Path("scores"),
    batch_size: BatchSize = 64,
    workers: Workers = 0,
    device: Device = "auto",
    seed: Seed = 0,
    set_: Annotated[list[str] | None, Parameter(name="--set")] = None,
) -> None:
    """Score every unit of a network; several scorers share one pass over the images.

    Writes OUTPUT/SCORER/scores.csv (a line a unit), classes.csv (a line a unit and class), layers.csv and scores.npz
    (prune_fe.load_scores). The same command goes on where it was interrupted, and reuses what is finished.

    Parameters
    ----------
    from_checkpoints
        A folder of state dicts: each is scored, in the order of their names, into OUTPUT/CHECKPOINT/SCORER.
    classes
        How many classes to score on, drawn with the seed, or the names of two or more; default all.
    samples
        Training images of each class; default all.
    images
        A CSV file with a column "image", such as OUTPUT/images.csv: exactly these training images.
    layers
        Names of modules; default every convolution with a map.
    except_
        Patterns of layers to leave out of these: --except 'layer4.*'.
    output
        A new folder, or one to go on with.
    seed
        Draws the classes and the images.
    set_
        KEY=VALUE, a setting of the scorer: --set rank=edges; of one of several: --set feature-entropy.rank=edges.
    """
    _require_scorers(scorer)
    if from_checkpoints is not None and checkpoint is not None:
        raise InputError("--checkpoint and --from-checkpoints: give one of them")
    if images is not None and (classes is not None or samples is not None):
        raise InputError("--images says which images are read; --classes and --samples have no say beside it")
    listed = _listed(images) if images is not None else None
    _require_data(data)
    _require_own(output)
    series = _checkpoints(from_checkpoints) if from_checkpoints is not None else {}
    settings = _settings_of(scorer, _assignments(set_))
    from prune_fe.data.images import named
    from prune_fe.scorers import resolve_scorer
    from prune_fe.scoring.score import score_all

    judges = {name: resolve_scorer(name, settings[name]) for name in scorer}
    if data is None and (readers := [name for name, judge in judges.items() if judge.needs_data]):
        raise InputError(f"scorer {readers[0]!r} needs images: pass --data PATH")
    first = next(iter(series.values()), checkpoint)
    network, splits, example = _network_and_data(model, first, data, num_classes, size, device, seed)
    train = splits.train if splits else None
    if train is not None and listed is not None:
        try:
            train = named(train, listed)
        except DataError as error:
            raise DataError(f"{error} (which training images are held out depends on --seed)") from error
    chosen = _chosen_classes(classes, splits)
    if except_:
        layers = _without(network, example, layers, except_)
    asked = {
        "model": model, "checkpoint": checkpoint or from_checkpoints, "data": Path(data) if data else None,
        "size": example.shape[-1], "classes": classes, "samples": samples, "images": images, "seed": seed,
        "layers": layers,
    }  # fmt: skip

    def scored(folder: Path) -> dict[str, Scores]:
        for name in judges:
            if (folder / name / "scores.npz").exists():
                reporter.say(f"{folder / name} is there already; it is used again if nothing has changed")
        return score_all(
            network, train, judges, layers=layers, classes=chosen, samples=samples, seed=seed, batch_size=batch_size,
            workers=workers, example=example, progress=reporter.progress(f"scoring {folder}"), folder=folder,
        )  # fmt: skip

    with _folder_of_scores(output, asked, judges), reporter.showing():
        if series:
            rows = _score_series(series, network, splits, output, judges, scored)
        else:
            found = scored(output)
            _write_images(output, found)
    if series:
        console.print(training_table(rows))
        reporter.say(f"every layer and quantity at every checkpoint: {output}/training.csv")
        return
    for name, scores in found.items():
        console.print(layer_table(name, scores))
        reporter.say(f"{output}/{name}/scores.csv   (in Python: prune_fe.load_scores({str(output / name)!r}))\n")
    outputs = None if _is_saved(model) else num_classes or (len(splits.classes) if splits else None)
    given = {"--checkpoint": checkpoint, "--num-classes": outputs, "--size": example.shape[-1]}
    same = [word for flag, value in given.items() if value is not None for word in (flag, value)]
    _say_next("prune", "--model", model, *same, "--scores", output / scorer[0], "--ratio", 0.5, "--output", "pruned")


@app.command
def study(
    kind: Literal["rescaling", "randomness", "characterisation", "samples", "classes", "ratio"],
    recipe: RecipePath,
    *,
    options: RecipeOptions = RecipeOptions(),
    layer: str | None = None,
    unit: Annotated[int | None, Parameter(validator=validators.Number(gte=0))] = None,
    class_: Annotated[str | None, Parameter(name="--class")] = None,
    samples: Annotated[list[int] | None, Several, Parameter(validator=Counted)] = None,
    draws: Annotated[int | None, Parameter(validator=validators.Number(gte=2))] = None,
    counts: Annotated[list[int] | None, Several, Parameter(validator=Counted)] = None,
    ratio: Annotated[list[float] | None, Several, Share] = None,
    seed: Seed | None = None,
) -> None:
    """Print the tables of one of the paper's studies, for the network that a recipe trains.

    Of a unit: rescaling (tables 1, 6, 9): the images, the filters or both halved; randomness (tables 2, 7, 10): a
    trained unit against 100 random ones; characterisation (table 5): birth, maximum and integral of the Betti curve.
    Of a layer: samples (figures 7, 8): how far H depends on which images are drawn, and how many are enough.
    Of pruning: classes and ratio (figure 13): accuracy against the number of classes scored on, and the share removed.

    Parameters
    ----------
    layer
        A convolution, or any other module with maps such as a residual block (layer4.1 of a ResNet, the paper's
        conv5_3_out); default the last convolution.
    unit
        Its number; default the one with the least H/ε for the class, of those with ε of a half or more.
    class_
        The name of the class; default the first.
    samples
        Training images of a class; default the recipe's, or all. For the study of samples one or more numbers; default
        50, 100 and 500.
    draws
        How many times as many images are drawn for the study of samples; default 100.
    counts
        Numbers of classes for the study of classes; default 1, 2, 5, 10, … and all.
    ratio
        Shares removed; one for the study of classes, default the recipe's; default 0.1 to 0.9 for that of ratio.
    seed
        Which of the recipe's networks; default its first seed.
    """
    of_unit = {"layer": layer, "unit": unit, "label": class_, "samples": samples}
    takes: dict[str, dict[str, Any]] = {
        "samples": {"layer": layer, "sizes": samples, "draws": draws}, "classes": {"counts": counts, "ratio": ratio},
        "ratio": {"ratios": ratio},
    }  # fmt: skip
    given = {
        "--layer": layer, "--unit": unit, "--class": class_, "--samples": samples, "--draws": draws,
        "--counts": counts, "--ratio": ratio,
    }  # fmt: skip
    taken = takes.get(kind, of_unit)
    names = {"--class": ("label",), "--samples": ("samples", "sizes"), "--ratio": ("ratio", "ratios")}
    for flag, value in given.items():
        if value is not None and taken.keys().isdisjoint(names.get(flag, (flag.removeprefix("--"),))):
            raise InputError(f"{flag}: the study of {kind} does not take it")
    extra = {name: value for name, value in taken.items() if value is not None}
    for name in ("samples", "ratio"):
        if name in extra:
            if len(extra[name]) > 1:
                raise InputError(f"--{name}: the study of {kind} takes one, not {len(extra[name])}")
            extra[name] = extra[name][0]
    checked, folder = _recipe_and_folder(recipe, options)
    from prune_fe.studies import series
    from prune_fe.studies import single_unit as studies

    do: dict[str, Callable[..., Any]] = {
        "samples": series.samples_study, "classes": series.classes_study, "ratio": series.ratio_study,
    }  # fmt: skip
    with _discarded_if_empty(folder, options.resume), reporter.showing():
        study_kind = do.get(kind, partial(studies.study, kind))
        tables = study_kind(checked, folder, reporter, seed=seed, **extra)
    for table in tables:
        console.print(study_table(table))
        console.print()


@app.command
def ablate(
    recipe: RecipePath,
    *,
    options: RecipeOptions = RecipeOptions(),
    layer: Annotated[list[str] | None, Parameter(consume_multiple=True)] = None,
    class_: Annotated[list[str] | None, Parameter(name="--class", consume_multiple=True)] = None,
    seed: Seeds = None,
) -> None:
    """Take the units of a layer away one after the other, by every scorer of a recipe, and watch the test images.

    Figure 12 and table 11: both orders, each class by the scores of its own training images, random orders as the
    control. Also how far each scorer agrees with what every unit alone is worth. Finished curves are not made again.

    Parameters
    ----------
    layer
        A convolution, or any other module with maps; default the last convolution. Of several, also by patterns such as
        'layer4.*' for convolutions, the same share of each is taken, with one run of the whole network for each mask.
    class_
        The names of one or more classes; default all.
    """
    checked, folder = _recipe_and_folder(recipe, options, seed)
    from prune_fe.studies.cumulative import ablation_study

    with _discarded_if_empty(folder, options.resume), reporter.showing():
        tables = ablation_study(checked, folder, reporter, layer, class_)
    for table in tables:
        console.print(study_table(table))
        console.print()


@app.command
def compare(
    recipe: RecipePath,
    *,
    options: RecipeOptions = RecipeOptions(),
    seed: Seeds = None,
) -> None:
    """Compare the scorers of a recipe at several ratios, for several seeds and networks, and write a report.

    Random units, filter L1 and the pruned architectures trained from scratch are always compared with. Finished cells
    are kept; the same command with --resume goes on, and given at the same time to other processes or machines that see
    the folder it shares the cells with them. Started by torchrun (torchrun -m prune_fe compare ...) several processes
    work on each cell together.
    """
    from prune_fe.distributed import from_rank_0, process_group, rank

    with process_group():
        console.quiet = rank() > 0
        begun: list[tuple[Recipe, RunFolder]] = []

        def begin() -> str:
            begun.append(_recipe_and_folder(recipe, options, seed, shared=True))
            return str(begun[0][1].path)

        path = from_rank_0(begin)
        if rank() > 0:
            options = dataclasses.replace(options, resume=path)
            begun.append(_recipe_and_folder(recipe, options, seed, shared=True))
        [(checked, folder)] = begun
        from prune_fe.experiment.compare import compare as fill
        from prune_fe.report.report import write_report

        with _discarded_if_empty(folder, options.resume), reporter.showing():
            fault: PruneFEError | None = None
            try:
                fill(checked, folder, reporter)
            except PruneFEError as error:  # some cells failed: the others are there
                fault = error
            if rank() == 0 and any(folder.path.glob("cells/[!.]*")):
                page = write_report(folder.path)
                reporter.say(f"report: {page}   (report.md, report.json and cells.csv beside it)")
            if fault is not None:
                raise fault


@app.command
def report(folder: Path) -> None:
    """Write report.html of what a run or a comparison has measured until now, with what is missing marked as missing.

    Parameters
    ----------
    folder
        A run folder of `prune-fe run` or `prune-fe compare`.
    """
    from prune_fe.report.report import write_report

    reporter.say(f"report: {write_report(folder)}   (report.md, report.json and cells.csv beside it)")


@app.command
def prune(
    *,
    model: ModelName,
    scores: Path,
    ratio: Annotated[list[str] | None, Parameter(name=["--ratio", "--pruning-ratio"], consume_multiple=True)] = None,
    target_macs: Annotated[float | None, LeftShare] = None,
    target_params: Annotated[float | None, LeftShare] = None,
    ranking: Literal["layer", "global"] = "layer",
    scope: Literal["all", "inner"] = "all",
    reduction: Literal["mean", "max", "min"] = "mean",
    round_to: Annotated[int, Parameter(validator=Counted)] = 1,
    protect: Annotated[list[str] | None, Several] = None,
    checkpoint: Checkpoint = None,
    num_classes: Outputs = None,
    size: Size = None,
    data: DataPath | None = None,
    recalibrate: Annotated[int | None, Parameter(validator=validators.Number(gte=2))] = None,
    output: Output = Path("pruned"),
    device: Device = "auto",
    seed: Seed = 0,
) -> None:
    """Remove the weakest units of every layer; writes a folder that prune_fe.load reads.

    Parameters
    ----------
    scores
        A folder that `prune-fe score` wrote.
    ratio
        The share of units removed from every layer, in [0, 1), default 0.5; or LAYER=SHARE for each layer or pattern,
        names before patterns: --ratio 'layer4.*=0.7' conv1=0.2. Layers that are tied go together.
    target_macs
        Instead: the share of the multiply-adds that is to be left, in (0, 1].
    target_params
        Instead: the share of the parameters that is to be left.
    ranking
        The same share of every layer, or the weakest of all layers by normalised scores.
    scope
        Prune units tied by residual sums as well, or only those inside blocks.
    reduction
        Tied units go by the mean, the largest or the smallest of their layers' scores.
    round_to
        Keep multiples of this number in every layer, such as 8: many kernels are fast only then.
    protect
        Patterns of layers whose outputs stay: --protect conv1 'layer4.*'.
    data
        Images for --recalibrate, and for the names of the classes.
    recalibrate
        Let the batch norms of the pruned network see this many training images of --data.
    seed
        Draws the images.
    """
    _require_new(output)
    _require_data(data)
    if recalibrate is not None and data is None:
        raise InputError("--recalibrate needs training images: pass --data PATH")
    shares = _shares(ratio)
    goals = {"--ratio": ratio, "--target-macs": target_macs, "--target-params": target_params}
    if len(given := [name for name, value in goals.items() if value is not None]) > 1:
        raise InputError(f"{', '.join(given)}: a network is pruned by one of them")
    from prune_fe.measure.cost import cost
    from prune_fe.models.networks import save
    from prune_fe.pruning.prune import prune as prune_units
    from prune_fe.scoring.score import weights_hash
    from prune_fe.scoring.scores import load_scores
    from prune_fe.training.loop import recalibrate as recalibrate_norms

    loaded = load_scores(scores)
    network, splits, example = _network_and_data(model, checkpoint, data, num_classes, size, device, seed)
    if splits is not None and recalibrate is not None and recalibrate > len(splits.train):  # type: ignore[arg-type]
        raise DataError(f"--recalibrate {recalibrate}: there are {len(splits.train)} training images")  # type: ignore[arg-type]
    if loaded.provenance.get("model_sha256", "") != weights_hash(network):
        reporter.say(f"note: {scores} holds scores of other weights than these, or does not say of which")
    asked: dict[str, Any] = {
        "ratio": shares, "target_macs": target_macs, "target_params": target_params, "ranking": ranking,
        "scope": scope, "reduction": reduction, "round_to": round_to, "protect": protect or [],
    }  # fmt: skip
    pruned = prune_units(network, loaded, example=example, **asked)
    for step in pruned.steps:
        done = f"{step.asked} asked, {step.count} removed, {step.units - step.count} kept"
        why = f" ({step.left})" if step.left else f"; with them outputs of {', '.join(step.also)}" if step.also else ""
        reporter.say(f"{', '.join(step.layers)}: {step.units} units, {done}{why}")
    for note in pruned.notes:
        reporter.say(f"note: {note}")
    if recalibrate is not None and splits is not None:
        norms = recalibrate_norms(pruned.model, splits.train, samples=recalibrate, seed=seed)
        reporter.say(
            f"{norms} batch norms recalibrated on {recalibrate} training images" if norms else "no batch norms"
        )
    about = _about(model) | (splits.about if splits else {"size": example.shape[-1]})
    save(pruned.model, output, about | {"scores": loaded.about, "prune": asked})
    before, after = cost(network, example), cost(pruned.model, example)
    reporter.say(
        f"parameters {before.parameters:,} -> {after.parameters:,} ({after.parameters / before.parameters:.1%} left), "
        f"multiply-adds {before.macs:,} -> {after.macs:,} ({after.macs / before.macs:.1%} left)"
    )
    reporter.say(f"pruned model: {output}")
    _say_next("finetune", "--model", output, "--data", data or "PATH", "--output", "finetuned")


@app.command
def finetune(
    *,
    model: ModelName,
    data: DataPath,
    checkpoint: Checkpoint = None,
    num_classes: Outputs = None,
    size: Size = None,
    epochs: Annotated[int | None, Parameter(validator=Counted)] = None,
    lr: Annotated[float, Positive] = 1e-3,
    schedule: Literal["step", "cosine"] = "step",
    momentum: Annotated[float, Share] = 0.9,
    weight_decay: Annotated[
        float, Parameter(name=["--weight-decay", "--wd"], validator=validators.Number(gte=0, lt=math.inf))
    ] = 5e-4,
    batch_size: BatchSize = 512,
    augment: bool = False,
    amp: bool = False,
    workers: Workers = 0,
    device: Device = "auto",
    seed: Seed = 0,
    output: Output = Path("finetuned"),
    checkpoints: Path | None = None,
) -> None:
    """Train a network on train/ and keep its best epoch on images held out from train/.

    Parameters
    ----------
    epochs
        Default: the paper's three (step schedule, 1e-3 to 1e-5).
    lr
        Learning rate at the start.
    schedule
        step: lr / 10 after each epoch; cosine: to zero over --epochs.
    augment
        Random flips and shifts.
    amp
        bfloat16 on CUDA.
    seed
        Draws the held-out images and their order in each epoch.
    checkpoints
        A new folder for the weights before training and after each epoch, to score with --from-checkpoints.
    """
    _require_new(output)
    if checkpoints is not None:
        _require_new(checkpoints)
    _require_data(data)
    if schedule == "cosine" and epochs is None:
        raise InputError("the cosine schedule needs --epochs")
    from prune_fe.models.networks import save, save_weights
    from prune_fe.training.loop import Epoch, best_epoch
    from prune_fe.training.loop import finetune as train

    network, splits, _ = _network_and_data(model, checkpoint, data, num_classes, size, device, seed)
    assert splits is not None

    if checkpoints is not None:
        save_weights(network, checkpoints / "epoch-000.pth")
    with reporter.showing():
        bar = reporter.progress("fine-tuning")

        def show(epoch: Epoch | None, done: int, total: int) -> None:
            bar(done, total)
            if epoch is not None:
                reporter.say(
                    f"epoch {epoch.number}: lr {epoch.learning_rate:.2g}, training loss {epoch.train_loss:.4f}, "
                    f"validation accuracy {epoch.validation_accuracy:.2%}, {epoch.seconds:.1f} s"
                )
                if checkpoints is not None:
                    save_weights(network, checkpoints / f"epoch-{epoch.number:03}.pth")

        history = train(
            network, splits.train, splits.validation, lr=lr, schedule=schedule, epochs=epochs, momentum=momentum,
            weight_decay=weight_decay, batch_size=batch_size, augment=augment, amp=amp, workers=workers, seed=seed,
            progress=show,
        )  # fmt: skip
    save(network, output, _about(model) | splits.about)
    reporter.say(f"epoch {best_epoch(history).number} is kept: {output}")
    _say_next("evaluate", "--model", output, "--data", data)


@app.command
def evaluate(
    *,
    model: ModelName,
    data: DataPath | None = None,
    checkpoint: Checkpoint = None,
    num_classes: Outputs = None,
    size: Size = None,
    batch_size: BatchSize = 64,
    workers: Workers = 0,
    device: Device = "auto",
    latency: bool = False,
    against: str | None = None,
    batch_sizes: Annotated[list[int] | None, Several, Parameter(validator=Counted)] = None,
    threads: Annotated[list[int] | None, Several, Parameter(validator=Counted)] = None,
    dtype: Annotated[list[Literal["float32", "bfloat16", "float16"]] | None, Several] = None,
    memory_format: Annotated[list[Literal["contiguous", "channels_last"]] | None, Several] = None,
    seconds: Annotated[float | None, Positive] = None,
) -> None:
    """Accuracy, loss and cost of a network on the images of val/; with --latency, whether pruning made it faster.

    Parameters
    ----------
    latency
        Time a pruned network and its original in turn; this needs no --data.
    against
        What it is compared with: a name or a folder; default, what the saved model was before pruning.
    batch_sizes
        One or more for --latency; default 1 and 32.
    threads
        One or more for --latency; default 1 and all.
    dtype
        One or more for --latency; default float32.
    memory_format
        One or more for --latency; default both.
    seconds
        How long each network is timed in each setting; default 0.5.
    """
    named = {
        "batch_sizes": batch_sizes, "threads": threads, "dtypes": dtype, "memory_formats": memory_format,
        "seconds": seconds,
    }  # fmt: skip
    asked = {key: value for key, value in named.items() if value is not None}
    if not latency and (asked or against is not None):
        raise InputError("--against, --batch-sizes, --threads, --dtype, --memory-format and --seconds need --latency")
    if not latency and data is None:
        raise InputError("evaluate needs images: pass --data PATH, or --latency for the time alone")
    if latency and against is None and not _is_saved(model):
        raise InputError(f"--latency: {model} is no saved model; say with --against what it is compared with")
    _require_data(data)
    network, splits, example = _network_and_data(model, checkpoint, data, num_classes, size, device, 0)
    original = _original(model, against, network, example) if latency else None
    if splits is not None:
        trained_on = _about(model).get("classes", splits.classes)
        if list(trained_on) != list(splits.classes):
            raise DataError(f"{data}: its classes are not those that {model} was trained on ({', '.join(trained_on)})")
        _say_quality(network, splits, example, batch_size, workers)
    if original is not None:
        _say_latency(original, network, example, asked)


def _say_quality(network: nn.Module, splits: Splits, example: Tensor, batch_size: int, workers: int) -> None:
    """Accuracy, loss and cost."""
    from prune_fe.measure.cost import cost, speed
    from prune_fe.measure.evaluate import evaluate as measure

    with reporter.showing():
        tick = reporter.progress("evaluating")
        result = measure(network, splits.test, batch_size=batch_size, workers=workers, progress=tick)
    price, pace = cost(network, example), speed(network, example, batch_size)
    reporter.say(
        f"accuracy {result.accuracy:.4%} ({result.images} images), balanced {result.balanced_accuracy:.4%}, "
        f"loss {result.loss:.4f}"
    )
    pixels = "×".join(map(str, example.shape[-2:]))
    reporter.say(f"parameters {price.parameters:,}, multiply-adds {price.macs:,} an image of {pixels}")
    reporter.say(
        f"images/s {pace.images_per_second:,.0f} (quartiles {pace.low:,.0f} to {pace.high:,.0f}, {pace.runs} runs; "
        f"{pace})"
    )


def _original(model: str, against: str | None, network: nn.Module, example: Tensor) -> nn.Module:
    """What `network` is compared with, on its device: --against, or what the folder `model` was before pruning."""
    import torch

    from prune_fe.models import networks as models

    images = example.to(next(network.parameters()).device)
    with torch.inference_mode():
        outputs = network.eval()(images)
    if not isinstance(outputs, torch.Tensor) or outputs.ndim != 2:
        raise InputError(f"--latency: {model} returns something else than (images, classes); it is no classifier")
    if against is None:
        original = models.original(model, outputs.shape[1], images.shape[1])
    elif _is_saved(against):
        original = models.load(against)
    else:
        original = models.build(against, outputs.shape[1], in_channels=images.shape[1])
    original = original.to(images.device)
    _require_forward(original, images, against or f"the original of {model}")
    return original


def _say_latency(original: nn.Module, network: nn.Module, example: Tensor, asked: Mapping[str, Any]) -> None:
    """A table, a line for every setting that cannot run, and what to think of it."""
    import torch

    from prune_fe.measure.cost import cost
    from prune_fe.measure.latency import CannotRun, Comparison, compare_latency, verdict

    # the fastest kernels, not the reproducible ones
    torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = False, True
    before, after = cost(original, example), cost(network, example)
    with reporter.showing():
        found = compare_latency(original, network, example, progress=reporter.progress("timing"), **asked)
    pixels = "×".join(map(str, example.shape[-2:]))
    reporter.say(
        f"original -> pruned: parameters {before.parameters:,} -> {after.parameters:,}, "
        f"multiply-adds {before.macs:,} -> {after.macs:,} an image of {pixels}"
    )
    if timed := [each for each in found if isinstance(each, Comparison)]:
        console.print(latency_table(timed))
    for each in found:
        if isinstance(each, CannotRun):
            reporter.say(str(each))
    reporter.say(verdict(found, before, after, network))


@app.command
def export(
    *,
    model: ModelName,
    checkpoint: Checkpoint = None,
    num_classes: Outputs = None,
    size: Size = None,
    format: Literal["onnx", "torch-export"] = "onnx",
    output: Path | None = None,
) -> None:
    """Write a network as one file that runs without prune_fe, for batches of any size, and check it.

    The file is read back and run beside the network on random images: what is printed is the largest difference.

    Parameters
    ----------
    format
        onnx: for onnxruntime and others (pip install 'prune-fe[export]'); torch-export: for torch.export.load.
    output
        A new file; default: the model's name with .onnx or .pt2, in this folder.
    """
    output = output or Path(Path(model).resolve().name + {"onnx": ".onnx", "torch-export": ".pt2"}[format])
    _require_new(output)
    from prune_fe.models.export import export as write

    network, _, example = _network_and_data(model, checkpoint, None, num_classes, size, "cpu", 0)
    done = write(network, output, example, format, about=_about(model) | {"size": example.shape[-1]})
    beside = f" (weights in {done.weights})" if done.weights else ""
    *few, most = done.batches
    reporter.say(
        f"{output}{beside}: {done.bytes / 2**20:.2f} MiB, batches of {', '.join(map(str, few))} and {most} images: "
        f"maximum difference {done.max_difference:.2g}, {done.relative_difference:.2g} of the largest logit"
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit code: 0, or 2 bad input, 3 data, 4 checkpoint, 5 environment, 130 interrupted; 1 is a bug."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in words
    words = [word for word in words if word != "--debug"]
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a run must not end because "×" cannot be printed
    previous = signal.signal(signal.SIGTERM, _interrupt)
    try:
        app(words, exit_on_error=False, print_error=False, result_action="return_value")
    except KeyboardInterrupt:
        again = {
            "run": "; `prune-fe run ... --resume auto` goes on behind the last finished step",
            "score": "; the same command goes on where it stopped",
            "compare": "; `prune-fe compare ... --resume auto` goes on behind the last finished cell",
            "ablate": "; `prune-fe ablate ... --resume auto` goes on behind the last finished curve",
            "study": "; with --resume auto a network that is trained is not trained again",
        }
        print(f"prune-fe: interrupted{again.get(words[0], '')}", file=sys.stderr)
        return 130
    except Exception as error:
        if debug:
            traceback.print_exc()
        code, text = _explain(error)
        print(f"prune-fe: {text}", file=sys.stderr)
        return code
    finally:
        signal.signal(signal.SIGTERM, previous)
    return 0


def _explain(error: Exception) -> tuple[int, str]:
    """Exit code and one line."""
    code, text = getattr(error, "exit_code", 1), str(error)
    if isinstance(error, cyclopts.CycloptsError):
        code = InputError.exit_code
    elif isinstance(error, PruneFEError):
        if "Original Traceback" in text:  # torch's, from a process that reads images; the last line is the error's own
            text = re.sub(r"^[\w.]+: ", "", text.strip().splitlines()[-1])
    elif isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        code, text = EnvironmentFault.exit_code, "out of memory; use a smaller batch size or smaller images"
    elif isinstance(error, OSError) and error.strerror:
        code, text = EnvironmentFault.exit_code, f"{error.filename or 'writing'}: {error.strerror}"
        if error.errno == errno.ENOSPC:
            place = next(p for p in [*Path(str(error.filename or ".")).absolute().parents, Path(".")] if p.exists())
            text += f" ({shutil.disk_usage(place).free >> 20} MiB free); what is finished is kept"
    else:
        text = f"{type(error).__name__}: {text} (unexpected; --debug shows where)"
    line = " ".join(text.split())
    return code, "".join(c if c.isprintable() else ascii(c)[1:-1] for c in line)


def _interrupt(signum: int, frame: Any) -> None:
    raise KeyboardInterrupt


def _say_next(*words: object) -> None:
    reporter.say("next: " + shlex.join(["prune-fe", *map(str, words)]))


def _assignments(words: Sequence[str] | None) -> dict[str, Any]:
    from prune_fe.experiment.recipe import parse_value

    found = {}
    for word in words or ():
        key, equals, value = word.partition("=")
        if not equals or not key:
            raise InputError(f"--set {word}: write KEY=VALUE")
        found[key] = parse_value(value)
    return found


def _shares(words: Sequence[str] | None) -> float | dict[str, float] | None:
    """--ratio: one share for all layers, or LAYER=SHARE for some."""
    found: dict[str, float] = {}
    for word in words or ():
        layer, _, share = word.rpartition("=")
        try:
            found[layer] = float(share)
        except ValueError:
            raise InputError(f"--ratio {word}: write a share such as 0.5, or LAYER=SHARE") from None
        if not 0 <= found[layer] < 1:
            raise InputError(f"--ratio {word}: the share removed must be in [0, 1)")
    if "" in found and (len(found) > 1 or len(words or ()) > 1):
        raise InputError("--ratio: one share for all layers, or LAYER=SHARE for each, not both")
    return found.get("", found or None)


def _require_new(output: Path) -> None:
    """What would fail when the work is done fails before it."""
    if output.exists():
        raise InputError(f"{output} exists already; choose another --output")
    parent = next(folder for folder in output.absolute().parents if folder.exists())
    if not (parent.is_dir() and os.access(parent, os.W_OK)):
        raise EnvironmentFault(f"{output}: {parent} is no folder that can be written to; choose another --output")


def _require_data(path: str | None) -> None:
    """A missing folder is said before torch is loaded and a run folder is made."""
    if path not in (None, "digits") and not Path(str(path)).exists():
        raise DataError(f"{path}: no such folder or tar file")


def _recipe_and_folder(
    recipe: Path, options: RecipeOptions, seeds: list[int] | None = None, shared: bool = False
) -> tuple[Recipe, RunFolder]:
    """The checked recipe, and a run folder of its own or the one to go on with, perhaps with other processes."""
    from prune_fe.experiment.recipe import load_recipe
    from prune_fe.experiment.run_folder import RunFolder

    named = {
        "data.path": options.data, "seeds": seeds, "device": options.device, "threads": options.threads,
        "workers": options.workers,
    }  # fmt: skip
    given = {key: value for key, value in named.items() if value is not None}
    checked = load_recipe(recipe, given | _assignments(options.set_))
    if checked.data.source != "digits" and checked.data.path is None:
        raise InputError(f"{recipe} reads a folder of images: pass --data PATH")
    if checked.data.source == "folder":
        _require_data(checked.data.path)
    content = checked.model_dump(mode="json")
    if options.resume is None:
        folder = RunFolder.create(options.output, checked.name, content, shared)
    else:
        path = _latest(options.output, checked.name, shared) if options.resume == "auto" else Path(options.resume)
        folder = RunFolder.resume(path, content, shared)
    reporter.say(f"run folder: {folder.path}")
    return checked, folder


@contextmanager
def _discarded_if_empty(folder: RunFolder, resume: str | None) -> Iterator[None]:
    """Inside, `folder` is used; a new one is taken away again when nothing could be done."""
    try:
        yield
    except PruneFEError:
        if resume is None:
            folder.discard()
        raise
    finally:
        folder.close()


def _require_scorers(names: Sequence[str]) -> None:
    """A misspelt one is said before torch is loaded."""
    from prune_fe.io import nearest

    if not names:
        raise InputError("--scorer: name at least one")
    for name in names:
        if name not in SCORERS:
            raise InputError(f"--scorer {name}: {nearest(name, SCORERS)}")
        if list(names).count(name) > 1:
            raise InputError(f"--scorer {name}: stands twice")


def _require_own(output: Path) -> None:
    """A folder of scores may be there already, nothing else."""
    if not (output / ABOUT_SCORES).is_file() and not (output.is_dir() and not any(output.iterdir())):
        _require_new(output)


@contextmanager
def _folder_of_scores(output: Path, asked: Mapping[str, Any], judges: Mapping[str, Scorer]) -> Iterator[None]:
    """Inside, `output` is there and nobody else's. It holds scores of one network on one choice of images, which
    score.json says; a new one is taken away again when nothing could be done."""
    from prune_fe.experiment.run_folder import environment, locked
    from prune_fe.io import write_json

    about, new = output / ABOUT_SCORES, not output.exists()
    asked = {key: str(value) if isinstance(value, Path) else value for key, value in asked.items()}
    output.mkdir(parents=True, exist_ok=True)
    with locked(output):
        known: dict[str, Any] = {"asked": asked, "scorers": {}}
        if any(output.glob("**/scores.npz")) and about.exists():  # what holds no scores yet may be begun anew
            known = _asked_before(about)
        if differing := [key for key in asked if known["asked"].get(key) != asked[key]]:
            changes = ", ".join(f"{key} {known['asked'].get(key)!r}, now {asked[key]!r}" for key in differing)
            raise InputError(f"{output} was begun with another choice of {changes}; choose another --output")
        if any(output.glob("**/.unfinished-*")):
            reporter.say(f"{output} holds an unfinished pass: it is gone on with if nothing has changed")
        write_json(about, known)
        try:
            yield
        except PruneFEError:
            left = [entry for entry in output.iterdir() if entry.name not in (about.name, ".lock")]
            if new and not left:
                shutil.rmtree(output)
            raise
        known["scorers"] |= {name: judge.settings for name, judge in judges.items()}
        write_json(about, known | {"environment": environment()})


def _asked_before(about: Path) -> dict[str, Any]:
    """What a folder of scores says of itself."""
    try:
        known = json.loads(about.read_text())
        if isinstance(known["asked"], dict) and isinstance(known["scorers"], dict):
            return dict(known)
        raise TypeError("not what score writes")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{about}: damaged ({error}); choose another --output") from error


def _checkpoints(folder: Path) -> dict[str, Path]:
    """Name -> file of every state dict in `folder`; numbers in the names count as numbers."""
    files = [path for path in folder.glob("*") if path.suffix in (".pth", ".pt", ".safetensors")]
    if not files:
        raise CheckpointError(f"{folder}: no .pth, .pt or .safetensors file there")
    parts = {path: re.split(r"(\d+)", path.stem) for path in files}
    ordered = sorted(files, key=lambda path: [(int(p), "") if p.isdigit() else (-1, p) for p in parts[path]])
    if len({path.stem for path in files}) < len(files):
        raise CheckpointError(f"{folder}: two files differ in their endings only; their scores would need one folder")
    return {path.stem: path for path in ordered}


def _listed(file: Path) -> list[str]:
    """The column "image" of a CSV file."""
    try:
        with file.open(newline="", encoding="utf-8") as content:
            rows = list(csv.DictReader(content))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{file}: no list of images that can be read ({error})") from error
    if not rows or any(row.get("image") is None for row in rows):
        raise DataError(f"{file}: a list of images has a column 'image', and at least one line")
    return [row["image"].removeprefix("'") for row in rows]  # the apostrophe is safe_cell's


def _settings_of(scorers: Sequence[str], assigned: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Scorer -> its settings, from KEY=VALUE for the only scorer and SCORER.KEY=VALUE for one of several."""
    found: dict[str, dict[str, Any]] = {name: {} for name in scorers}
    for key, value in assigned.items():
        name, dot, setting = key.rpartition(".")
        if not dot and len(found) > 1:
            raise InputError(f"--set {key}: there are several scorers, write SCORER.{key}=VALUE")
        if dot and name not in found:
            raise InputError(f"--set {key}: {name!r} is not among the scorers {', '.join(found)}")
        found[name or scorers[0]][setting] = value
    return found


def _chosen_classes(words: Sequence[str] | None, splits: Splits | None) -> int | list[int] | None:
    """How many classes, or the numbers of those named."""
    if words is None or splits is None:
        return None
    if len(words) == 1 and words[0].isdigit():
        return int(words[0])
    if unknown := [word for word in words if word not in splits.classes]:
        from prune_fe.io import nearest

        raise InputError(f"--classes {unknown[0]}: no such class; {nearest(unknown[0], splits.classes[:20])}")
    return [splits.classes.index(word) for word in words]


def _without(network: nn.Module, example: Tensor, layers: list[str] | None, patterns: Sequence[str]) -> list[str]:
    """The layers whose names match none of the patterns."""
    from prune_fe.tracing.feature_maps import find_layers

    place = next(network.parameters()).device
    found = [layer.name for layer in find_layers(network, example.to(place), layers)]
    for pattern in patterns:
        if not fnmatch.filter(found, pattern):
            raise InputError(f"--except {pattern}: no layer is called like that; there are {', '.join(found)}")
    kept = [name for name in found if not any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)]
    if not kept:
        raise InputError("--except: no layer is left")
    return kept


def _score_series(
    series: Mapping[str, Path],
    network: nn.Module,
    splits: Splits | None,
    output: Path,
    judges: Collection[str],
    scored: Callable[[Path], Mapping[str, Scores]],
) -> list[dict[str, Any]]:
    """A row for every checkpoint, scorer, layer and quantity, with the network's accuracy and loss on val/; in
    OUTPUT/training.csv as well, as far as it has come."""
    from prune_fe.io import write_csv
    from prune_fe.measure.evaluate import evaluate as measure
    from prune_fe.models.networks import load_weights

    for file in series.values():
        load_weights(network, file)  # one that does not fit is said before any is scored
    rows: list[dict[str, Any]] = []
    others = _rows_of_others(output / "training.csv", judges)
    for name, file in series.items():
        load_weights(network, file)
        result = measure(network, splits.test) if splits else None
        quality = {"accuracy": result and result.accuracy, "loss": result and result.loss}
        found = scored(output / name)
        _write_images(output, found)
        for scorer, scores in found.items():
            for layer in scores.keep:
                for quantity in scores.raw:
                    mean = scores.layer_mean(quantity, layer)
                    row = {"checkpoint": name, "scorer": scorer, "layer": layer, "quantity": quantity, "mean": mean}
                    rows.append(row | quality)
        write_csv(output / "training.csv", [*others, *rows])
    return rows


def _rows_of_others(table: Path, judges: Collection[str]) -> list[dict[str, Any]]:
    """What an earlier command for other scorers left in training.csv."""
    if not table.exists():
        return []
    with table.open(newline="", encoding="utf-8") as file:
        return [row for row in csv.DictReader(file) if row["scorer"] not in judges]


def _write_images(output: Path, found: Mapping[str, Scores]) -> None:
    """The list of the images that were read, for --images."""
    from prune_fe.io import write_csv

    if read := next((each.provenance["images"] for each in found.values() if each.images), None):
        write_csv(output / "images.csv", ({"image": name, "class": of} for name, of in read))


def _latest(output: Path, name: str, shared: bool) -> Path:
    """The folder of the last comparison of this name, or of the last run that is none."""
    from prune_fe.experiment.run_folder import is_comparison

    runs = [path for path in output.glob(f"{name}-*") if path.name.removeprefix(f"{name}-").isdigit()]
    runs = [path for path in runs if is_comparison(path) == shared]
    if not runs:
        raise InputError(f"{output}: no {'comparison' if shared else 'run'} of {name!r} to resume")
    return max(runs, key=lambda path: int(path.name.removeprefix(f"{name}-")))


def _network_and_data(
    model: str,
    checkpoint: Path | None,
    data: str | None,
    num_classes: int | None,
    size: int | None,
    device: str,
    seed: int,
) -> tuple[nn.Module, Splits | None, Tensor]:
    """The network on its device, the images if there are any, and one image (zeros without) that it runs on."""
    import torch

    from prune_fe.experiment.run import prepare
    from prune_fe.models import networks as models

    place, saved = prepare(device, None), _is_saved(model)
    if saved and num_classes is not None:
        raise InputError(f"--num-classes is for a model built by name; {model} is a saved one")
    if Path(model).is_file():
        raise InputError(f"{model} is a file: say which network it is of with --model, and --checkpoint {model}")
    size = size or int(_about(model).get("size", 32 if data == "digits" else 224))
    if saved:
        network = models.load(model)  # a damaged one is said before the images are read
    splits = _splits(data, size, seed) if data is not None else None
    if not saved:
        outputs = num_classes or (len(splits.classes) if splits else 1000)
        torch.manual_seed(seed)  # without a checkpoint, `score` and `prune` should see the same weights
        network = models.build(model, outputs, in_channels=splits.channels if splits else 3)
        if checkpoint is None:
            reporter.say(f"note: {model} starts with random weights; --checkpoint FILE reads trained ones")
    if checkpoint is not None:
        models.load_weights(network, checkpoint)
    network = network.to(place)
    example = splits.test[0][0][None] if splits else _blank(network, size)
    _require_forward(network, example.to(place), model)
    return network, splits, example


def _is_saved(model: str) -> bool:
    path = Path(model)
    return (path / "manifest.json").exists() or (path.is_dir() and len(path.parts) > 1)


def _about(model: str) -> dict[str, Any]:
    """What was written down when a model was saved; nothing of one that is built by name."""
    from prune_fe.models.networks import read_manifest

    about = read_manifest(model).get("about") if _is_saved(model) else None
    return about if isinstance(about, dict) else {}


def _splits(data: str, size: int, seed: int) -> Splits:
    from prune_fe.data import images

    if data == "digits":
        return images.digits(size, seed=seed)
    tick: Callable[[int, int], None] = reporter.progress("reading images")
    return images.folder(data, size, seed=seed, progress=tick)


def _blank(network: nn.Module, size: int) -> Tensor:
    """An input of zeros; the first convolution says how many channels it has."""
    import torch

    first = next((m for m in network.modules() if isinstance(m, torch.nn.Conv2d)), None)
    if first is None:
        raise InputError(f"{type(network).__name__} has no nn.Conv2d: there are no units to score or to prune")
    return torch.zeros(1, first.in_channels, size, size)


def _require_forward(network: nn.Module, example: Tensor, model: str) -> None:
    import torch

    from prune_fe.tracing.feature_maps import evaluating

    try:
        with evaluating(network), torch.no_grad():
            network(example)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # networks raise what they like at a wrong input
        shape = "×".join(map(str, example.shape[1:]))
        raise InputError(f"{model} does not run on images of {shape}: {error}") from error
