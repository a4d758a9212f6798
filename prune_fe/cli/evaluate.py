"""prune-fe evaluate: accuracy and cost of a network, and whether pruning made it faster."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter, validators

from prune_fe.cli.inputs import require_data
from prune_fe.cli.networks import Loaded, is_saved, load, require_forward
from prune_fe.cli.output import console, reporter
from prune_fe.cli.parameters import AtLeastOne, BatchSize, DataFlags, Device, ModelFlags, Several, ThreadNumber, Workers
from prune_fe.errors import InputError
from prune_fe.report.console import latency_table

if TYPE_CHECKING:
    from torch import nn


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
) -> None:
    """Print accuracy, loss and cost of a network on the images of val/; with --latency, whether pruning made it faster.

    Args:
        split: Which images: test (those of val/), or train or validation (the parts of train/ that `finetune` uses).
        latency: Time a pruned network and its original in turn; this needs no --data.
        against: The network to compare with, a name or a folder; default: the saved model's network before pruning.
        batch_sizes: Images of one forward pass, one or more numbers for --latency; default: 1 and 32.
        threads: CPU threads, one or more numbers for --latency; default: 1 and all.
        dtype: Data types of weights and images, one or more for --latency; default: float32.
        memory_format: Memory formats of weights and images, one or more for --latency; default: both.
        seconds: How long each network is timed in each setting; default: 0.5.
    """
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
    loaded = load(model, data, device, seed=0)
    original = _load_original(model.model, against, loaded) if latency else None
    if loaded.splits is not None:
        _print_quality(loaded, split, batch_size, workers)
    if original is not None:
        _print_latency(original, loaded, settings)


def _print_quality(loaded: Loaded, split: str, batch_size: int, workers: int) -> None:
    """Print accuracy, loss and cost."""
    from prune_fe.measure.cost import cost, speed
    from prune_fe.measure.evaluate import evaluate as evaluate_network

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
    reporter.say(
        f"accuracy {result.accuracy:.4%} ({result.images} {split} images), balanced {result.balanced_accuracy:.4%}, "
        f"loss {result.loss:.4f}"
    )
    pixels = "×".join(map(str, loaded.example.shape[-2:]))
    reporter.say(f"parameters {price.parameters:,}, multiply-adds {price.macs:,} an image of {pixels}")
    reporter.say(
        f"images/s {pace.images_per_second:,.0f} (quartiles {pace.low:,.0f} to {pace.high:,.0f}, {pace.runs} runs; "
        f"{pace})"
    )


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


def _print_latency(original: nn.Module, loaded: Loaded, settings: Mapping[str, Any]) -> None:
    """Print a table, a line for every setting that cannot run, and a verdict."""
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
