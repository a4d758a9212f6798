"""The command line. torch is imported inside the commands: help, a typo and a bad recipe answer at once."""

from __future__ import annotations

import errno
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import cyclopts
from cyclopts import App, Parameter
from rich.console import Console

from prune_fe.errors import EnvironmentFault, InputError, PruneFEError
from prune_fe.reporting import ConsoleReporter, results_table

if TYPE_CHECKING:
    from torch import nn

    from prune_fe.data import Splits

app = App(
    name="prune-fe",
    help="Compress CNNs, ablate their units and benchmark pruning criteria.",
    version=lambda: metadata.version("prune-fe"),
    default_parameter=Parameter(negative=()),
)

DataPath = Annotated[str | None, Parameter(name=["--data", "--data-dir", "--data-path"])]
Output = Annotated[Path, Parameter(name=["--output", "--output-dir"])]
Workers = Annotated[int, Parameter(name=["--workers", "-j"])]
BatchSize = Annotated[int, Parameter(name=["--batch-size", "-b"])]
Overrides = Annotated[list[str] | None, Parameter(name="--set", negative=())]

console = Console()
reporter = ConsoleReporter(console)


@app.command
def run(
    recipe: Annotated[Path, Parameter(name=["recipe", "--config", "-c"])],
    *,
    data: DataPath = None,
    output: Output = Path("runs"),
    resume: str | None = None,
    seed: Annotated[list[int] | None, Parameter(consume_multiple=True, negative=())] = None,
    device: str | None = None,
    threads: int | None = None,
    workers: Annotated[int | None, Parameter(name=["--workers", "-j"])] = None,
    set_: Overrides = None,
) -> None:
    """Train, score, prune and fine-tune as a recipe says, for each of its scorers, and print one table.

    Parameters
    ----------
    recipe
        A YAML file, such as recipes/quickstart.yaml.
    data
        A folder with train/<class>/* and val/<class>/*, or a tar file of one.
    output
        Where the run's own folder is made.
    resume
        A run folder to go on with, or "auto" for the recipe's latest one in --output.
    seed
        One or more seeds, instead of the recipe's.
    device
        auto, cpu, cuda, cuda:1.
    threads
        CPU threads.
    workers
        Processes that read images.
    set_
        KEY=VALUE, any other key of the recipe: --set finetune.lr=1e-3.
    """
    from prune_fe.recipe import load_recipe

    named = {"data.path": data, "seeds": seed, "device": device, "threads": threads, "workers": workers}
    overrides = {key: value for key, value in named.items() if value is not None} | _assignments(set_)
    checked = load_recipe(recipe, overrides)
    _require_path(checked.data.path)
    from prune_fe.results import RunFolder

    content = checked.model_dump(mode="json")
    if resume is None:
        folder = RunFolder.create(output, checked.name, content)
    else:
        folder = RunFolder.resume(_latest(output, checked.name) if resume == "auto" else Path(resume), content)
    reporter.say(f"run folder: {folder.path}")
    from prune_fe.run import run as run_recipe

    with reporter.showing():
        rows = run_recipe(checked, folder, reporter)
    console.print(results_table(rows))
    last = folder.path / f"seed-{checked.seeds[-1]}" / checked.scorers[0].label / "pruned"
    reporter.say(f"results: {folder.path}/summary.csv, log.jsonl, and scores by unit in {last.parent}/scores.csv")
    reporter.say(f"pruned model: {last}   (in Python: prune_fe.load({str(last)!r}))")
    where = "digits" if checked.data.source == "digits" else str(checked.data.path)
    reporter.say(f"next: prune-fe evaluate --model {last} --data {where}")
    reporter.say(
        f"      prune-fe run {recipe} " + (f"--data {where} " if data else "") + "--set prune.ratio=0.7 --seed 0 1 2"
    )


@app.command
def score(
    *,
    model: str,
    data: DataPath = None,
    scorer: str = "feature-entropy",
    checkpoint: Path | None = None,
    num_classes: int | None = None,
    size: int | None = None,
    classes: int | None = None,
    samples: int | None = None,
    layers: Annotated[list[str] | None, Parameter(consume_multiple=True, negative=())] = None,
    output: Output = Path("scores"),
    batch_size: BatchSize = 64,
    workers: Workers = 0,
    device: str = "auto",
    seed: int = 0,
    set_: Overrides = None,
) -> None:
    """Score every unit of a network; writes scores.csv and scores.npz.

    Parameters
    ----------
    model
        vgg-small, a torchvision or timm name, or a folder that prune_fe saved.
    data
        A folder with train/ and val/, a tar file of one, or "digits"; not needed by scorers that read weights only.
    scorer
        feature-entropy, l1-filter, random.
    checkpoint
        A state dict for the model.
    num_classes
        Outputs of the model; default: the classes of the data, or 1000.
    size
        Images are resized to size × size; default: what the saved model was made for, or 224.
    classes
        How many classes to score on, drawn with the seed; default all.
    samples
        Training images of each class; default all.
    layers
        Names of modules; default every convolution with a map.
    output
        A new folder.
    set_
        KEY=VALUE, a setting of the scorer: --set rank=edges.
    """
    from prune_fe.scoring import score as score_units
    from prune_fe.scoring import scorer_of

    _check_new(output)
    judge = scorer_of(scorer, _assignments(set_))[1]
    if judge.needs_data and data is None:
        raise InputError(f"scorer {scorer!r} needs images: pass --data PATH")
    network, splits, size = _network_and_data(model, checkpoint, data, num_classes, size, device, seed)
    with reporter.showing():
        scores = score_units(
            network, splits.train if splits and judge.needs_data else None, judge, layers=layers, classes=classes,
            samples=samples, seed=seed, batch_size=batch_size, workers=workers,
            progress=reporter.progress("scoring"), example=_blank(network, size),
        )  # fmt: skip
    scores.save(output)
    units = sum(len(keep) for keep in scores.keep.values())
    reporter.say(
        f"{units} units in {len(scores.keep)} layers, {scores.images} images, {scores.seconds:.1f} s: "
        f"{output}/scores.csv"
    )
    reporter.say(f"next: prune-fe prune --model {model} --scores {output} --ratio 0.5 --size {size} --output pruned")


@app.command
def prune(
    *,
    model: str,
    scores: Path,
    ratio: Annotated[float, Parameter(name=["--ratio", "--pruning-ratio"])] = 0.5,
    coupled: Literal["mean", "leave"] = "mean",
    checkpoint: Path | None = None,
    num_classes: int | None = None,
    size: int | None = None,
    output: Output = Path("pruned"),
    device: str = "auto",
) -> None:
    """Remove the weakest units of every layer; writes a folder that prune_fe.load reads.

    Parameters
    ----------
    model
        vgg-small, a torchvision or timm name, or a folder that prune_fe saved.
    scores
        A folder that `prune-fe score` wrote.
    ratio
        The share of units removed from every layer, in [0, 1).
    coupled
        Units tied by residual sums go by the mean of their layers' scores, or are left alone.
    checkpoint
        A state dict for the model.
    num_classes
        Outputs of the model; default 1000.
    size
        Height and width of its input; default: what the saved model was made for, or 224.
    output
        A new folder.
    """
    from prune_fe.costs import cost
    from prune_fe.models import save
    from prune_fe.pruning import prune as prune_units
    from prune_fe.scores import load_scores

    _check_new(output)
    loaded = load_scores(scores)
    network, _, size = _network_and_data(model, checkpoint, None, num_classes, size, device, 0)
    example = _blank(network, size)
    pruned = prune_units(network, loaded, ratio, example, coupled=coupled)
    for step in pruned.steps:
        done = step.left or f"{step.asked} asked, {len(step.removed)} removed, {len(step.kept)} kept"
        reporter.say(f"{', '.join(step.layers)}: {step.units} units, {done}")
    save(pruned.model, output, {"scorer": loaded.scorer, "ratio": ratio, "size": size})
    before, after = cost(network, example), cost(pruned.model, example)
    reporter.say(
        f"parameters {before.parameters:,} -> {after.parameters:,}, multiply-adds {before.macs:,} -> {after.macs:,}"
    )
    reporter.say(f"pruned model: {output}\nnext: prune-fe finetune --model {output} --data PATH --output finetuned")


@app.command
def finetune(
    *,
    model: str,
    data: DataPath,
    checkpoint: Path | None = None,
    num_classes: int | None = None,
    size: int | None = None,
    epochs: int | None = None,
    lr: float = 1e-3,
    schedule: Literal["step", "cosine"] = "step",
    momentum: float = 0.9,
    weight_decay: Annotated[float, Parameter(name=["--weight-decay", "--wd"])] = 5e-4,
    batch_size: BatchSize = 512,
    augment: bool = False,
    amp: bool = False,
    workers: Workers = 0,
    device: str = "auto",
    seed: int = 0,
    output: Output = Path("finetuned"),
) -> None:
    """Train a network on train/ and keep its best epoch on images held out from train/.

    Parameters
    ----------
    model
        vgg-small, a torchvision or timm name, or a folder that prune_fe saved.
    data
        A folder with train/ and val/, a tar file of one, or "digits".
    epochs
        Default: the paper's three (step schedule, 1e-3 to 1e-5).
    schedule
        step: lr / 10 after each epoch; cosine: to zero over --epochs.
    augment
        Random flips and shifts.
    amp
        bfloat16 on CUDA.
    output
        A new folder.
    """
    from prune_fe.models import save
    from prune_fe.training import Epoch, best_epoch
    from prune_fe.training import finetune as train

    _check_new(output)
    network, splits, size = _network_and_data(model, checkpoint, data, num_classes, size, device, seed)
    assert splits is not None
    tick = reporter.progress

    with reporter.showing():
        bar = tick("fine-tuning")

        def show(epoch: Epoch | None, done: int, total: int) -> None:
            bar(done, total)
            if epoch is not None:
                reporter.say(
                    f"epoch {epoch.number}: lr {epoch.learning_rate:.2g}, training loss {epoch.train_loss:.4f}, "
                    f"validation accuracy {epoch.validation_accuracy:.2%}, {epoch.seconds:.1f} s"
                )

        history = train(
            network, splits.train, splits.validation, lr=lr, schedule=schedule, epochs=epochs, momentum=momentum,
            weight_decay=weight_decay, batch_size=batch_size, augment=augment, amp=amp, workers=workers, seed=seed,
            progress=show,
        )  # fmt: skip
    save(network, output, {"size": size, "classes": splits.classes})
    reporter.say(f"epoch {best_epoch(history).number} is kept: {output}")


@app.command
def evaluate(
    *,
    model: str,
    data: DataPath,
    checkpoint: Path | None = None,
    num_classes: int | None = None,
    size: int | None = None,
    batch_size: BatchSize = 64,
    workers: Workers = 0,
    device: str = "auto",
) -> None:
    """Accuracy, loss and cost of a network on the images of val/.

    Parameters
    ----------
    model
        vgg-small, a torchvision or timm name, or a folder that prune_fe saved.
    data
        A folder with train/ and val/, a tar file of one, or "digits".
    """
    from prune_fe.costs import cost, speed
    from prune_fe.evaluation import evaluate as measure

    network, splits, size = _network_and_data(model, checkpoint, data, num_classes, size, device, 0)
    assert splits is not None
    with reporter.showing():
        result = measure(
            network,
            splits.test,
            batch_size=batch_size,
            workers=workers,
            progress=reporter.progress("evaluating"),
        )
    example = _blank(network, size)
    price, pace = cost(network, example), speed(network, example, batch_size)
    reporter.say(
        f"accuracy {result.accuracy:.4%} ({result.images} images), balanced {result.balanced_accuracy:.4%}, "
        f"loss {result.loss:.4f}"
    )
    reporter.say(f"parameters {price.parameters:,}, multiply-adds {price.macs:,} an image of {size}×{size}")
    reporter.say(
        f"images/s {pace.images_per_second:,.0f} (quartiles {pace.low:,.0f} to {pace.high:,.0f}, {pace.runs} runs; "
        f"batch {pace.batch_size}, {pace.dtype}, {pace.device}, {pace.threads} threads)"
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit code: 0, or 2 bad input, 3 data, 4 checkpoint, 5 environment, 130 interrupted."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in words
    words = [word for word in words if word != "--debug"]
    previous = signal.signal(signal.SIGTERM, _interrupt)
    try:
        app(words, exit_on_error=False, result_action="return_value")
    except cyclopts.CycloptsError:
        return InputError.exit_code  # cyclopts has printed it
    except KeyboardInterrupt:
        print(
            "prune-fe: interrupted; `prune-fe run ... --resume auto` goes on behind the last finished step",
            file=sys.stderr,
        )
        return 130
    except Exception as error:
        fault = _known(error)
        if fault is None or debug:
            traceback.print_exc()
        if fault is None:
            return 1
        print(f"prune-fe: {fault}", file=sys.stderr)
        return fault.exit_code
    finally:
        signal.signal(signal.SIGTERM, previous)
    return 0


def _known(error: Exception) -> PruneFEError | None:
    """The error as one that the user can mend, if it is one."""
    if isinstance(error, PruneFEError):
        return error
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS):
        return EnvironmentFault(f"{error.filename or 'writing'}: {error.strerror}")
    if type(error).__name__ == "OutOfMemoryError" or isinstance(error, MemoryError):
        return EnvironmentFault("out of memory; use a smaller batch size or smaller images")
    return None


def _interrupt(signum: int, frame: Any) -> None:
    raise KeyboardInterrupt


def _assignments(words: Sequence[str] | None) -> dict[str, Any]:
    from prune_fe.recipe import parse_value

    found = {}
    for word in words or ():
        key, equals, value = word.partition("=")
        if not equals or not key:
            raise InputError(f"--set {word}: write KEY=VALUE")
        found[key] = parse_value(value)
    return found


def _check_new(output: Path) -> None:
    if output.exists():
        raise InputError(f"{output} exists already; choose another --output")


def _require_path(path: str | None) -> None:
    """A missing folder is said before torch is loaded and a run folder is made."""
    if path is not None and not Path(path).exists():
        from prune_fe.errors import DataError

        raise DataError(f"{path}: no such folder or tar file")


def _latest(output: Path, name: str) -> Path:
    runs = [path for path in output.glob(f"{name}-*") if path.name.removeprefix(f"{name}-").isdigit()]
    if not runs:
        raise InputError(f"{output}: no run of {name!r} to resume")
    return max(runs, key=lambda path: int(path.name.removeprefix(f"{name}-")))


def _network_and_data(
    model: str,
    checkpoint: Path | None,
    data: str | None,
    num_classes: int | None,
    size: int | None,
    device: str,
    seed: int,
) -> tuple[nn.Module, Splits | None, int]:
    """The network on its device, the images if there are any, and their size."""
    _require_path(None if data == "digits" else data)
    from prune_fe import models
    from prune_fe.run import prepare

    saved = (Path(model) / "manifest.json").exists()
    if size is None:
        size = int(models.read_manifest(model).get("about", {}).get("size", 224)) if saved else 224
    place = prepare(device, None)
    splits = _splits(data, size, seed) if data is not None else None
    if saved:
        network = models.load(model)
    else:
        outputs = num_classes or (len(splits.classes) if splits else 1000)
        network = models.build(model, outputs, channels=splits.channels if splits else 3)
    if checkpoint is not None:
        models.load_weights(network, checkpoint)
    return network.to(place), splits, size


def _splits(data: str, size: int, seed: int) -> Splits:
    from prune_fe import data as images

    if data == "digits":
        return images.digits(size, seed=seed)
    tick: Callable[[int, int], None] = reporter.progress("reading images")
    return images.folder(data, size, seed=seed, progress=tick)


def _blank(network: nn.Module, size: int) -> Any:
    """An input of zeros; the first convolution says how many channels it has."""
    import torch

    first = next((m for m in network.modules() if isinstance(m, torch.nn.Conv2d)), None)
    if first is None:
        raise InputError(f"{type(network).__name__} has no nn.Conv2d: there are no units to score or to prune")
    return torch.zeros(1, first.in_channels, size, size)
