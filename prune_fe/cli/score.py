"""prune-fe score: score the units of a network."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from prune_fe.cli.inputs import parse_assignments, require_data, require_new, require_scorers, scorer_settings
from prune_fe.cli.networks import (
    Loaded,
    is_saved,
    layers_except,
    load,
    put_weights,
    recalibration_words,
    use_threads,
)
from prune_fe.cli.output import console, print_json, reporter, say_next, text_to_stderr
from prune_fe.cli.parameters import (
    AtLeastOne,
    BatchSize,
    DataFlags,
    Device,
    Json,
    ModelFlags,
    Seed,
    Several,
    Threads,
    Workers,
)
from prune_fe.errors import DataError, InputError
from prune_fe.io import nearest
from prune_fe.report.console import layer_table, training_table
from prune_fe.scorers.registry import BUILT_IN, SCORERS

if TYPE_CHECKING:
    from torch.utils.data import Dataset

    from prune_fe.data.splits import Splits
    from prune_fe.scoring.scores import Scores

# Those of installed packages are not listed: every command would wait while they are looked for.
SCORER_HELP = f"One or more of {', '.join(BUILT_IN)}, and of the scorers that installed packages add."


def score(
    *,
    model: ModelFlags,
    data: DataFlags = DataFlags(),
    scorer: Annotated[tuple[str, ...], Several, Parameter(help=SCORER_HELP)] = ("feature-entropy",),
    from_checkpoints: Path | None = None,
    classes: Annotated[list[str] | None, Several] = None,
    samples: Annotated[int | None, Parameter(validator=AtLeastOne)] = None,
    images: Path | None = None,
    layers: Annotated[list[str] | None, Several] = None,
    except_: Annotated[list[str] | None, Several, Parameter(name=["--except", "--exclude"])] = None,
    linear: bool = False,
    linear_scorer: str | None = None,
    strict: bool = False,
    output: Annotated[Path, Parameter(name=["--output", "--output-dir"])] = Path("scores"),
    batch_size: BatchSize = 64,
    workers: Workers = 0,
    device: Device = "auto",
    threads: Threads = None,
    seed: Seed = 0,
    set_: Annotated[list[str] | None, Parameter(name="--set")] = None,
    json: Json = False,
) -> None:
    """Score every unit of a network; several scorers share one pass over the images.

    Writes OUTPUT/SCORER/scores.csv (a row for each unit), classes.csv (a row for each unit and class), layers.csv and
    scores.npz (read by prune_fe.load_scores). The same command continues where it was interrupted, and reuses finished
    scores. Scorers that read weights only need no --data.

    Args:
        from_checkpoints: A folder of state dicts. Each is scored, in the order of their names, and its scores are
            written to OUTPUT/CHECKPOINT/SCORER.
        classes: How many classes to score on, drawn with the seed, or the names of two or more; default: all.
        samples: Training images of each class; default: all.
        images: Score on exactly the training images that this CSV file names in its column "image"; score itself writes
            one, OUTPUT/images.csv.
        layers: Names of modules, or patterns such as 'layer[12].*'; default: every convolution, and with --linear every
            linear layer.
        except_: Patterns of layers that are not scored: --except 'layer4.*'.
        linear: Score linear layers too, and the convolutions in the gates of squeeze-and-excite blocks. Scorers that
            need feature maps leave them out, and say so.
        linear_scorer: A scorer, such as taylor, for the layers that the scorers leave out: for feature-entropy, those
            without feature maps and those that run several times. Where such a layer is tied to others, the scores of
            the others decide. Needs --linear.
        strict: Refuse to leave a layer out for a scorer that cannot score it, such as one with maps that are too small.
            By default it is left out for that scorer alone, with a line that names it.
        output: A new folder, or one to continue.
        seed: Seed with which the classes and the images are drawn.
        set_: KEY=VALUE, a setting of the scorer: --set rank=edges. With several scorers: --set
            feature-entropy.rank=edges.
    """
    text_to_stderr(json)
    require_scorers(scorer)
    if from_checkpoints is not None and model.checkpoint is not None:
        raise InputError("--checkpoint and --from-checkpoints: give one of them")
    if images is not None and (classes is not None or samples is not None):
        raise InputError("--images lists the images; --classes and --samples cannot be used with it")
    _check_linear_scorer(linear, linear_scorer)
    require_data(data.data)
    _require_score_folder(output)
    settings = scorer_settings(scorer, parse_assignments(set_))
    from prune_fe.data.sampling import read_image_list
    from prune_fe.experiment.run_folder import environment
    from prune_fe.models.checkpoints import list_checkpoints
    from prune_fe.scorers import resolve_scorer
    from prune_fe.scoring.checkpoint_series import score_checkpoints
    from prune_fe.scoring.score import score_all
    from prune_fe.scoring.score_folder import open_score_folder, write_image_list

    listed = read_image_list(images) if images is not None else None
    checkpoints = list_checkpoints(from_checkpoints) if from_checkpoints is not None else {}
    scorers = {name: resolve_scorer(name, settings[name]) for name in scorer}
    all_scorers = scorers if linear_scorer is None else scorers | {linear_scorer: resolve_scorer(linear_scorer)}
    if data.data is None and (readers := [name for name, each in all_scorers.items() if each.needs_data]):
        raise InputError(f"scorer {readers[0]!r} needs images: pass --data PATH")
    use_threads(threads)
    loaded = load(_with_first_checkpoint(model, checkpoints), data, device, seed)
    network, example = loaded.network, loaded.example
    train = _training_images(loaded, listed)
    request = {
        "model": model.model,
        "checkpoint": model.checkpoint or from_checkpoints,
        "data": Path(data.data) if data.data else None,
        "size": example.shape[-1],
        "classes": classes,
        "samples": samples,
        "images": images,
        "seed": seed,
        "layers": layers_except(loaded, layers, except_, linear=linear) if except_ else layers,
    } | loaded.transform
    # Folders of earlier versions have no such entries.
    later = {"linear": linear, "linear_scorer": linear_scorer, "strict": strict}
    request |= {key: value for key, value in later.items() if value}

    def score_into(folder: Path) -> dict[str, Scores]:
        for name in scorers:
            if (folder / name / "scores.npz").exists():
                reporter.say(f"{folder / name} exists already; it is used again if nothing has changed")
        return score_all(
            network,
            train,
            scorers,
            layers=layers,
            exclude=tuple(except_ or ()),
            linear=linear,
            linear_scorer=linear_scorer,
            strict=strict,
            classes=_choose_classes(classes, loaded.splits),
            samples=samples,
            batch_size=batch_size,
            seed=seed,
            workers=workers,
            example=example,
            progress=reporter.progress(f"scoring {folder}"),
            folder=folder,
        )

    with open_score_folder(output, request, scorers, environment, reporter.say), reporter.showing():
        if checkpoints:
            loads = {
                name: functools.partial(put_weights, network, file, model, loaded.splits)
                for name, file in checkpoints.items()
            }
            rows = score_checkpoints(loads, network, loaded.splits, output, scorers, score_into)
        else:
            scores_by_name = score_into(output)
            write_image_list(output, scores_by_name)
    if checkpoints:
        console.print(training_table(rows))
        reporter.say(f"every layer and quantity at every checkpoint: {output}/training.csv")
    else:
        _print_scores(scores_by_name, output, model, loaded, data)
    if json:
        numbers = {"rows": rows} if checkpoints else {"scorers": _numbers(scores_by_name, output)}
        print_json({"model": model.model, "output": str(output)} | numbers)


def _training_images(loaded: Loaded, listed: Sequence[str] | None) -> Dataset[Any] | None:
    """Return the training images, or those of them that are listed by name; None without --data."""
    from prune_fe.data.sampling import select_by_name

    if loaded.splits is None or listed is None:
        return loaded.splits.train if loaded.splits else None
    try:
        return select_by_name(loaded.splits.train, listed)
    except DataError as error:
        raise DataError(f"{error} (which training images are held out depends on --seed)") from error


def _numbers(scores_by_name: Mapping[str, Scores], output: Path) -> dict[str, Any]:
    """Return for each scorer its folder, its images and the means of each layer, for --json."""
    return {
        name: {
            "folder": str(output / name),
            "images": scores.images,
            "seconds": scores.seconds,
            "layers": {
                layer: {"units": len(keep)}
                | {q: scores.layer_mean(q, layer) for q, layers in scores.raw.items() if layer in layers}
                for layer, keep in scores.keep.items()
            },
        }
        for name, scores in scores_by_name.items()
    }


def _print_scores(
    scores_by_name: Mapping[str, Scores], output: Path, model: ModelFlags, loaded: Loaded, data: DataFlags
) -> None:
    """Print a table for each scorer, and the command that prunes by the first of them."""
    for name, scores in scores_by_name.items():
        console.print(layer_table(name, scores))
        reporter.say(f"{output}/{name}/scores.csv   (in Python: prune_fe.load_scores({str(output / name)!r}))\n")
    outputs = model.num_classes or (len(loaded.splits.classes) if loaded.splits else None)
    flags = {
        "--checkpoint": model.checkpoint,
        "--num-classes": None if is_saved(model.model) else outputs,
        "--size": loaded.example.shape[-1],
    }
    words = [word for flag, value in flags.items() if value is not None for word in (flag, value)]
    words += recalibration_words(loaded, data)
    folder = output / next(iter(scores_by_name))
    say_next("prune", "--model", model.model, *words, "--scores", folder, "--ratio", 0.5, "--output", "pruned")


def _check_linear_scorer(linear: bool, linear_scorer: str | None) -> None:
    """Raise an error unless --linear-scorer names a scorer, and --linear is given with it."""
    if linear_scorer is None:
        return
    if linear_scorer not in SCORERS:
        raise InputError(f"--linear-scorer {linear_scorer}: {nearest(linear_scorer, SCORERS)}")
    if not linear:
        raise InputError(f"--linear-scorer {linear_scorer} scores linear layers, pass --linear too")


def _require_score_folder(output: Path) -> None:
    """Raise an error unless `output` is new, empty or a folder of scores."""
    if not (output / "score.json").is_file() and not (output.is_dir() and not any(output.iterdir())):
        require_new(output)


def _with_first_checkpoint(model: ModelFlags, checkpoints: Mapping[str, Path]) -> ModelFlags:
    first = next(iter(checkpoints.values()), model.checkpoint)
    return dataclasses.replace(model, checkpoint=first)


def _choose_classes(words: Sequence[str] | None, splits: Splits | None) -> int | list[int] | None:
    """Return how many classes --classes asks for, or the indices of those that it names."""
    if words is None or splits is None:
        return None
    if len(words) == 1 and words[0].isdigit():
        return int(words[0])
    if unknown := [word for word in words if word not in splits.classes]:
        raise InputError(f"--classes {unknown[0]}: no such class; {nearest(unknown[0], splits.classes[:20])}")
    return [splits.classes.index(word) for word in words]
