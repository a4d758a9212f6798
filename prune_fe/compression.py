"""Compress a trained network in one call: score, prune, recalibrate, fine-tune, measure, save, export, report."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import nn

from prune_fe.data.options import DataOptions
from prune_fe.data.registry import IN_MEMORY
from prune_fe.data.splits import Splits
from prune_fe.errors import InputError, PruneFEError
from prune_fe.experiment.compression import Compression, Format, run_compression
from prune_fe.experiment.device import prepare_device
from prune_fe.experiment.experiment import Experiment, Reporter, begin
from prune_fe.experiment.fitting import fit_recipe
from prune_fe.experiment.recipe import CompressOptions, ModelOptions, PruneSection, Recipe, resolve_recipe
from prune_fe.experiment.run_folder import RunFolder
from prune_fe.file_types import require_path
from prune_fe.io import explain_disk_errors, nearest
from prune_fe.options import option_names, validate_options
from prune_fe.report.report import write_report
from prune_fe.tracing.weights import require_network
from prune_fe.tracing.wrappers import unwrap


class _Silent:
    """Shows nothing."""

    def say(self, text: str) -> None:
        pass

    def progress(self, task: str) -> Callable[[int, int], None]:
        return lambda done, total: None


def compress(
    model: nn.Module,
    data: Splits,
    *,
    output: str | Path = "compressed",
    export: Format | None = None,
    device: str = "auto",
    workers: int = 0,
    seed: int = 0,
    reporter: Reporter | None = None,
    **settings: Any,
) -> Compression:
    """Compress a trained network, as `prune-fe compress` does. The same call continues where it was interrupted.

    Args:
        model: The trained network; it is not changed.
        data: The images, such as those of `prune_fe.folder`.
        output: A new folder for everything that is written, or one that the same call has begun.
        export: Also write the pruned network as a file that runs without prune_fe: "onnx" or "torch-export".
        device: "auto", "cpu", "cuda", "cuda:N" or "mps".
        workers: Processes that read images.
        seed: Seed of the images that are scored on, and of their order in fine-tuning.
        reporter: Where messages and progress go; None shows nothing.
        settings: Options of `prune_fe.experiment.recipe.CompressOptions`, such as scorer="taylor" and epochs=3, and of
            `PruneSection`, such as target_macs=0.5 (the default without another amount) and protect=("fc",).

    Returns:
        What came out: as text the cost, the measured time and the accuracy in three lines; `model` is the pruned
        network, `before` and `after` are the measurements, and `folder` holds report.html.

    Raises:
        InputError: A setting is unknown or wrong, or the folder was begun with other ones.
        DataError: There are too few images.
    """
    require_network(model)
    if not isinstance(data, Splits):
        raise InputError(f"data is a {type(data).__name__}; it must be what prune_fe.folder or prune_fe.digits returns")
    ours = option_names(CompressOptions)
    if unknown := [name for name in settings if name not in [*ours, *option_names(PruneSection)]]:
        raise InputError(f"{unknown[0]}: no such option; {nearest(unknown[0], [*ours, *option_names(PruneSection)])}")
    options = validate_options(CompressOptions, {name: settings[name] for name in settings if name in ours})
    prune = validate_options(PruneSection, {name: settings[name] for name in settings if name not in ours})
    machine = {"device": str(prepare_device(device, None)), "workers": workers}
    network, images = unwrap(model), DataOptions(source=IN_MEMORY, size=data.size)
    which = ModelOptions(name=type(network).__name__)
    recipe = resolve_recipe(fit_recipe(network, data, images, which, options, prune, seed=seed, machine=machine))
    folder = open_compression(require_path(output), recipe)
    try:
        experiment = begin(recipe, folder, reporter or _Silent(), splits=data, given=network)
        return compress_experiment(experiment, export)
    finally:
        folder.close()


def open_compression(path: Path, recipe: Recipe) -> RunFolder:
    """Return the run folder of a compression: a new one, or the one that was begun with the same recipe.

    Args:
        path: The folder.
        recipe: The recipe.

    Raises:
        InputError: The folder holds something else, or was begun with another recipe.
        EnvironmentFault: It cannot be made, or another process uses it.
    """
    content = recipe.model_dump(mode="json")
    if (path / "recipe.yaml").is_file():
        return RunFolder.resume(path, content)
    if path.exists() and not (path.is_dir() and not any(path.iterdir())):
        raise InputError(f"{path} exists already; choose another output")
    with explain_disk_errors(path):
        path.mkdir(parents=True, exist_ok=True)
    return RunFolder(path, content)


def compress_experiment(experiment: Experiment, format: Format | None) -> Compression:
    """Do what is not done yet of a compression, and write its report.

    Args:
        experiment: The experiment, with a recipe of one scorer and one seed.
        format: Format of the exported file; None exports nothing.
    """
    result = run_compression(experiment, format)
    try:
        page = write_report(experiment.folder.path)
    except PruneFEError as error:  # The network itself is finished.
        experiment.reporter.say(f"no report: {error}")
        return result
    return dataclasses.replace(result, report=page)
