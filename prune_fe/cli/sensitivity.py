"""prune-fe sensitivity: how much a network suffers when each group of layers alone loses units."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter, validators

from prune_fe.cli.inputs import require_data, require_new
from prune_fe.cli.networks import is_saved, load, recalibration_words, use_threads
from prune_fe.cli.output import console, print_json, reporter, say_next, text_to_stderr
from prune_fe.cli.parameters import BatchSize, Device, Json, ModelFlags, RequiredDataFlags, Seed, Threads, Workers
from prune_fe.errors import DataError
from prune_fe.pruning.options import SensitivityOptions


def sensitivity(
    *,
    model: ModelFlags,
    data: RequiredDataFlags,
    scores: Path,
    options: Annotated[SensitivityOptions, Parameter(name="*")] = SensitivityOptions(),
    recalibrate: Annotated[int | None, Parameter(validator=validators.Number(gte=2))] = None,
    output: Annotated[Path, Parameter(name=["--output", "--output-dir"])] = Path("sensitivity"),
    batch_size: BatchSize = 64,
    workers: Workers = 0,
    device: Device = "auto",
    threads: Threads = None,
    seed: Seed = 0,
    json: Json = False,
) -> None:
    """Measure accuracy and loss with one group of layers pruned and all others whole, for each group and each ratio.

    The images are those that are held out from train/, or those of --validation PATH; the test images decide nothing.
    Writes OUTPUT/sensitivity.json (read by prune_fe.load_sensitivity, and by `prune-fe prune --ratio auto --sensitivity
    OUTPUT`), sensitivity.csv and a chart, sensitivity.svg. The same command continues where it was interrupted.

    Args:
        scores: A folder that `prune-fe score` wrote.
        recalibrate: Recompute the statistics of batch norms on this many training images before each network is
            measured, as `prune-fe prune --recalibrate` does. Otherwise, if the network has batch norms, the curves show
            mostly damage that a recalibration repairs.
        output: A new folder, or one to continue.
        seed: Seed with which the held-out images are drawn; take the one of `finetune`, so that the network was not
            trained on them.
    """
    text_to_stderr(json)
    require_data(data.data)
    _require_own_folder(output)
    from prune_fe.charts import save_chart, sensitivity_map
    from prune_fe.data.labels import image_labels
    from prune_fe.experiment.run_folder import environment
    from prune_fe.io import write_csv
    from prune_fe.pruning.sensitivity import sensitivity as measure
    from prune_fe.records import write_record
    from prune_fe.report.console import sensitivity_table
    from prune_fe.scoring.scores import load_scores
    from prune_fe.training.recalibration import RAW_CURVES, has_batch_norms, recalibrating

    loaded_scores = load_scores(scores)
    use_threads(threads)
    loaded = load(model, data, device, seed)
    assert loaded.splits is not None
    train = loaded.splits.train
    if recalibrate is not None and recalibrate > len(image_labels(train)):
        raise DataError(f"--recalibrate {recalibrate}: there are {len(image_labels(train))} training images")
    if recalibrate is None and has_batch_norms(loaded.network):
        reporter.say(f"{RAW_CURVES}; --recalibrate 500 recalibrates on 500 training images")
    if output.exists():
        reporter.say(f"{output} exists already; it is used again if nothing has changed")
    with reporter.showing():
        curves = measure(
            loaded.network,
            loaded_scores,
            loaded.splits.validation,
            loaded.example,
            options=options,
            folder=output,
            progress=reporter.progress("measuring groups"),
            batch_size=batch_size,
            workers=workers,
            recovery=None if recalibrate is None else recalibrating(train, recalibrate, seed, workers),
        )
    write_csv(output / "sensitivity.csv", curves.rows())
    points = curves.table().dropna(subset="ratio")
    if len(points):
        title = f"Each group of layers alone: {Path(model.model).name}, {loaded_scores.scorer}"
        save_chart(sensitivity_map(points, curves.accuracy, title), output / "sensitivity.svg")
    validation = Path(data.validation).name if isinstance(data.validation, str) else data.validation
    asked = {"model": Path(model.model).name, "validation": validation, "seed": seed, "recalibrate": recalibrate}
    write_record(output / "env.json", environment() | {"asked": asked, "scores": loaded_scores.about})
    console.print(sensitivity_table(curves))
    reporter.say(f"{output}/sensitivity.csv and .svg   (in Python: prune_fe.load_sensitivity({str(output)!r}))")
    outputs = None if is_saved(model.model) else model.num_classes or len(loaded.splits.classes)
    flags = {"--checkpoint": model.checkpoint, "--num-classes": outputs, "--size": loaded.example.shape[-1]}
    words = [word for flag, value in flags.items() if value is not None for word in (flag, value)]
    words += recalibration_words(loaded, data)
    target = ["--ratio", "auto", "--target-macs", 0.5, "--sensitivity", output]
    say_next("prune", "--model", model.model, *words, "--scores", scores, *target, "--output", "pruned")
    if json:
        whole = {"images": curves.images, "accuracy": curves.accuracy, "loss": curves.loss}
        print_json({"model": model.model, "output": str(output)} | whole | {"groups": list(curves.rows())})


def _require_own_folder(output: Path) -> None:
    """Raise an error unless `output` is new, empty, or a folder that this command has begun or finished."""
    names = {path.name for path in output.iterdir()} if output.is_dir() else None
    if names is None or (names - {".lock"} and names.isdisjoint({"unfinished", "sensitivity.json"})):
        require_new(output)
