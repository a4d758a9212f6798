"""prune-fe evaluate: accuracy and cost of a network, and whether pruning made it faster."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter, validators

from prune_fe.cli.inputs import require_data, require_new
from prune_fe.cli.networks import Loaded, is_saved, load, require_forward, use_threads
from prune_fe.cli.output import console, print_json, reporter, text_to_stderr
from prune_fe.cli.parameters import (
    AtLeastOne,
    BatchSize,
    DataFlags,
    Device,
    Json,
    ModelFlags,
    Several,
    ThreadNumber,
    Workers,
)
from prune_fe.errors import InputError
from prune_fe.report.console import WideTable, latency_table

if TYPE_CHECKING:
    from torch import nn


MOST_CLASSES = 20
"""Rows of the table of the classes."""


def evaluate(
    *,
    model: ModelFlags,
    data: DataFlags = DataFlags(),
    split: Literal["test", "train", "validation"] = "test",
    batch_size: BatchSize = 64,
    workers: Workers = 0,
    device: Device = "auto",
    latency: bool = False,
    against: str | None = None,
    batch_sizes: Annotated[list[int] | None, Several, Parameter(validator=AtLeastOne)] = None,
    threads: Annotated[list[int] | None, Several, Parameter(validator=ThreadNumber)] = None,
    dtype: Annotated[list[Literal["float32", "bfloat16", "float16"]] | None, Several] = None,
    memory_format: Annotated[list[Literal["contiguous", "channels_last"]] | None, Several] = None,
    seconds: Annotated[float | None, Parameter(validator=validators.Number(gt=0, lt=math.inf))] = None,
    output: Path | None = None,
    json: Json = False,
) -> None:
    """Print accuracy, loss and cost of a network on the images of val/; with --latency, whether pruning made it faster.

    Args:
        split: Which images: test (those of val/), or train or validation (the parts of train/ that `finetune` uses,
            and --validation).
        latency: Time a pruned network and its original in turn; this needs no --data.
        against: The network to compare with, a name or a folder; default: the saved model's network before pruning.
        batch_sizes: Images of one forward pass, one or more numbers for --latency; default: 1 and 32.
        threads: CPU threads; for --latency one or more numbers. Default: torch's choice, and for --latency 1 and all.
        dtype: Data types of weights and images, one or more for --latency; default: float32.
        memory_format: Memory formats of weights and images, one or more for --latency; default: both.
        seconds: How long each network is timed in each setting; default: 0.5.
        output: A new folder for the numbers, a table of the classes and the confusion matrix, as JSON, CSV and figure.
    """
    text_to_stderr(json)
    if not latency and threads is not None and len(threads) == 1:
        use_threads(threads[0])
        threads = None
    settings = {
        "batch_sizes": batch_sizes,
        "threads": threads,
        "dtypes": dtype,
        "memory_formats": memory_format,
        "seconds": seconds,
    }
    settings = {name: value for name, value in settings.items() if value is not None}
    if not latency and (settings or against is not None):
        raise InputError("--against, --batch-sizes, --threads, --dtype, --memory-format and --seconds need --latency")
    if not latency and data.data is None:
        raise InputError("evaluate needs images: pass --data PATH, or --latency for the time alone")
    if latency and against is None and not is_saved(model.model):
        raise InputError(f"--latency: {model.model} is not a saved model; say with --against what it is compared with")
    require_data(data.data)
    if output is not None:
        if data.data is None:
            raise InputError("--output holds what is measured on images: pass --data PATH")
        require_new(output)
    loaded = load(model, data, device, seed=0)
    original = _load_original(model.model, against, loaded) if latency else None
    quality: dict[str, Any] = {}
    if loaded.splits is not None:
        quality = _print_quality(loaded, split, batch_size, workers)
    if original is not None:
        quality |= {"latency": _print_latency(original, loaded, settings)}
    if output is not None:
        _write_quality(output, model.model, quality)
    if json:
        print_json({"model": model.model} | quality)


def _print_quality(loaded: Loaded, split: str, batch_size: int, workers: int) -> dict[str, Any]:
    """Print accuracy, loss and cost, and return them; the table of the classes and the confusion matrix too."""
    from prune_fe.measure.cost import cost, speed
    from prune_fe.measure.evaluate import evaluate as evaluate_network
    from prune_fe.measure.proportion import describe_share, percent, wilson_interval

    assert loaded.splits is not None
    with reporter.showing():
        result = evaluate_network(
            loaded.network,
            getattr(loaded.splits, split),
            batch_size=batch_size,
            workers=workers,
            progress=reporter.progress("evaluating"),
        )
    price, pace = cost(loaded.network, loaded.example), speed(loaded.network, loaded.example, batch_size)
    n, right, classes = result.images, int(result.correct.sum()), list(loaded.splits.classes)
    reporter.say(f"accuracy {describe_share(right, n, f'{split} images')}")
    top_5 = f"top-5 {percent(result.in_top_5 / n, n)} %, " if result.in_top_5 is not None and len(classes) > 5 else ""
    reporter.say(
        f"{top_5}balanced {percent(result.balanced_accuracy, n)} %, loss {result.loss:.4f}, expected calibration error "
        f"{100 * (result.calibration_error or 0):.1f} % (15 bins)"
    )
    rows = result.by_class(classes)
    console.print(_class_table(rows))
    pixels = "×".join(map(str, loaded.example.shape[-2:]))
    reporter.say(f"parameters {price.parameters:,}, multiply-adds {price.macs:,} an image of {pixels}")
    reporter.say(
        f"images/s {pace.images_per_second:,.0f} (quartiles {pace.low:,.0f} to {pace.high:,.0f}, {pace.runs} runs; "
        f"{pace}){' while this machine was busy with other work' if pace.is_disturbed else ''}"
    )
    low, high = wilson_interval(right, n)
    return {
        "split": split,
        "images": n,
        "accuracy": result.accuracy,
        "accuracy_low": low,
        "accuracy_high": high,
        "top_5_accuracy": result.top_5_accuracy,
        "balanced_accuracy": result.balanced_accuracy,
        "loss": result.loss,
        "calibration_error": result.calibration_error,
        "parameters": price.parameters,
        "macs": price.macs,
        "images_per_second": pace.images_per_second,
        "timed_with": str(pace),
        "timing_disturbed": pace.is_disturbed,
        "classes": rows,
        "confusion": result.confusion.tolist(),
    }


def _class_table(rows: Sequence[Mapping[str, Any]]) -> WideTable:
    """Return a row for each class or, of many, for those with the lowest recall."""
    ordered = sorted((row for row in rows if row["images"]), key=lambda row: row["recall"])
    shown = [row for row in rows if row["images"]] if len(ordered) <= MOST_CLASSES else ordered[:MOST_CLASSES]
    shares = {
        "images": [f"{row['images']:,}" for row in shown],
        "recall": [f"{row['recall']:.1%}" for row in shown],
        "precision": ["–" if row["precision"] is None else f"{row['precision']:.1%}" for row in shown],
        "most confused with": [
            "–" if row["confused_with"] is None else f"{row['confused_with']} ({row['confused']})" for row in shown
        ],
    }
    caption = "" if len(shown) == len(ordered) else f"the {MOST_CLASSES} lowest of {len(ordered)}; --output writes all"
    return WideTable("by class", caption, [str(row["class"]) for row in shown], shares, "class")


def _write_quality(output: Path, model: str, quality: Mapping[str, Any]) -> None:
    """Write the numbers, the classes and the confusion matrix into a new folder, whole or not at all."""
    import pandas as pd

    from prune_fe.charts import confusion_matrix, save_chart
    from prune_fe.io import new_folder, write_csv, write_json

    names = [row["class"] for row in quality["classes"]]
    cells = [
        {"true": true, "predicted": predicted, "images": count, "share": count / max(sum(row), 1)}
        for true, row in zip(names, quality["confusion"], strict=True)
        for predicted, count in zip(names, row, strict=True)
    ]
    with new_folder(output) as folder:
        write_json(folder / "evaluation.json", {"model": model} | dict(quality))
        write_csv(folder / "classes.csv", quality["classes"])
        write_csv(folder / "confusion.csv", cells)
        chart = confusion_matrix(pd.DataFrame(cells), f"{quality['images']:,} {quality['split']} images of each class")
        save_chart(chart, folder / "confusion.svg")
    reporter.say(f"results: {output}/evaluation.json, classes.csv, confusion.csv and confusion.svg")


def _load_original(model: str, against: str | None, loaded: Loaded) -> nn.Module:
    """Return the network to compare with, on the device of the other: --against, or the network before pruning."""
    import torch

    from prune_fe.models.build import build
    from prune_fe.models.saved import build_original
    from prune_fe.models.saved import load as load_saved

    network = loaded.network
    images = loaded.example.to(next(network.parameters()).device)
    with torch.inference_mode():
        outputs = network.eval()(images)
    if not isinstance(outputs, torch.Tensor) or outputs.ndim != 2:
        raise InputError(f"--latency: {model} does not return (images, classes); it is not a classifier")
    if against is None:
        original = build_original(model, outputs.shape[1], images.shape[1])
    elif is_saved(against):
        original = load_saved(against)
    else:
        original = build(against, outputs.shape[1], in_channels=images.shape[1])
    original = original.to(images.device)
    require_forward(original, images, against or f"the original of {model}")
    return original


def _print_latency(original: nn.Module, loaded: Loaded, settings: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Print a table, a line for every setting that cannot run, and a verdict; return the times."""
    import torch

    from prune_fe.measure.cost import cost
    from prune_fe.measure.latency import CannotRun, Comparison, compare_latency
    from prune_fe.measure.latency_verdict import latency_verdict

    # The fastest kernels, not the reproducible ones.
    torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = False, True
    network, example = loaded.network, loaded.example
    before, after = cost(original, example), cost(network, example)
    with reporter.showing():
        results = compare_latency(original, network, example, progress=reporter.progress("timing"), **settings)
    pixels = "×".join(map(str, example.shape[-2:]))
    reporter.say(
        f"original -> pruned: parameters {before.parameters:,} -> {after.parameters:,}, "
        f"multiply-adds {before.macs:,} -> {after.macs:,} an image of {pixels}"
    )
    if timed := [result for result in results if isinstance(result, Comparison)]:
        console.print(latency_table(timed))
    for result in results:
        if isinstance(result, CannotRun):
            reporter.say(str(result))
    reporter.say(latency_verdict(results, before, after, network))
    return [dataclasses.asdict(result) for result in results]
