"""The command `prune-fe compress`: one trained network, one scorer, one amount, from the check to the exported file.

It is a run of a recipe (`prune_fe.experiment.run`) with three more tasks: the pruned network is put into a folder of
its own, timed beside the unpruned one, and exported. What is finished is kept.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from prune_fe.errors import InputError
from prune_fe.experiment.experiment import Experiment
from prune_fe.experiment.recipe import TRAINED
from prune_fe.experiment.results import UNPRUNED, Result, load_result
from prune_fe.experiment.run import WithSeed, run_experiment
from prune_fe.experiment.run_folder import LATENCY, environment
from prune_fe.experiment.tasks import Task
from prune_fe.io import explain_disk_errors, new_folder
from prune_fe.measure.latency import CannotRun, Comparison, compare_latency, describe_processor, medians_agree
from prune_fe.measure.proportion import describe_change, describe_remainder, describe_speed_up, percent
from prune_fe.measure.statistics import Estimate, bootstrap
from prune_fe.models.export import SUFFIXES, export
from prune_fe.models.manifest import read_manifest
from prune_fe.models.saved import load
from prune_fe.records import read_record, write_record
from prune_fe.scoring.fingerprint import hash_weights

MODEL = "model"
"""The folder of the pruned network inside the run folder; an exported file has the same name and an ending."""

EXPORTED = "export.json"
"""File inside the run folder: the check of the exported file."""

TIMED_BATCHES = (1, 32)
"""Images of one forward pass; the summary names the first."""

Format = Literal["onnx", "torch-export"]


@dataclass(frozen=True)
class Compression:
    """A trained network that was pruned and fine-tuned, and what that cost and gained.

    Attributes:
        folder: The run folder.
        asked: The option that said how much, such as "target_macs", and its value.
        before: The unpruned network.
        after: The pruned network, after fine-tuning.
        latency: Times of both networks in each setting; see `prune_fe.measure.latency.Comparison`.
        exported: The check of the exported file: its path, format and largest difference; None without one.
        report: The page with the report; None if it could not be written.
    """

    folder: Path
    asked: tuple[str, Any]
    before: Result
    after: Result
    latency: list[dict[str, Any]]
    exported: dict[str, Any] | None
    report: Path | None = None

    @property
    def model(self) -> nn.Module:
        """The pruned network, on the CPU, in evaluation mode; one of your own class needs `prune_fe.load`."""
        return load(self.folder / MODEL)

    @property
    def macs_left(self) -> float:
        """Share of the multiply-adds that is left."""
        return self.after.row.macs / self.before.row.macs

    @property
    def parameters_left(self) -> float:
        """Share of the parameters that is left."""
        return self.after.row.parameters / self.before.row.parameters

    @property
    def accuracy_change(self) -> Estimate:
        """Accuracy of the pruned network minus that of the unpruned one, paired over the test images."""
        return bootstrap(self.after.correct.astype(float) - self.before.correct.astype(float))

    def numbers(self) -> dict[str, Any]:
        """Return the main numbers and paths, for a JSON file."""
        change = self.accuracy_change
        return {
            "folder": str(self.folder),
            "model": str(self.folder / MODEL),
            "report": None if self.report is None else str(self.report),
            "exported": None if self.exported is None else str(self.folder / self.exported["path"]),
            "asked": {self.asked[0]: self.asked[1]},
            "macs_left": self.macs_left,
            "parameters_left": self.parameters_left,
            "test_images": len(self.after.correct),
            "accuracy_before": self.before.row.accuracy,
            "accuracy_after": self.after.row.accuracy,
            "accuracy_change": {"mean": change.mean, "low": change.low, "high": change.high},
            "latency": self.latency,
        }

    def __str__(self) -> str:
        """Return three lines: the cost, the measured time, and the accuracy with the interval of its change."""
        return "\n".join((self._cost_line(), self._time_line(), self._accuracy_line()))

    def _cost_line(self) -> str:
        option, amount = self.asked
        left = {"target_macs": self.macs_left, "target_params": self.parameters_left}.get(option)
        is_missed = left is not None and abs(left - amount) > 0.01
        wanted = f" (asked for: {describe_remainder(amount)}, which the network's widths or --max-ratio do not allow)"
        texts = {
            "target_macs": f"{describe_remainder(self.macs_left)} of the multiply-adds",
            "target_params": f"{describe_remainder(self.parameters_left)} of the parameters",
        }
        first, second = list(texts)[:: -1 if option == "target_params" else 1]
        return f"{texts[first]}{wanted if is_missed else ''}, {texts[second]}"

    def _time_line(self) -> str:
        timed = next((each for each in self.latency if "ratio" in each), None)
        if timed is None:
            reasons = {str(each["reason"]) for each in self.latency}
            return f"not timed: {'; '.join(sorted(reasons))}"
        setting, ratio = timed["setting"], timed["ratio"]
        times = f"{timed['original']['median_ms']:.3g} → {timed['pruned']['median_ms']:.3g} ms, medians"
        if not medians_agree(timed):
            times = "median of pairs timed in turn, on a machine with other work"
        where = f"(batch {setting['batch_size']}, {describe_processor(setting)}; {times})"
        if not timed["steady"]:
            return f"times not comparable: this machine was busy with other work {where}"
        return f"{'' if timed['faster'] else 'not faster: '}{describe_speed_up(ratio)} as fast {where}"

    def _accuracy_line(self) -> str:
        n, before, after = len(self.after.correct), self.before.correct, self.after.correct
        return (
            f"accuracy {percent(before.mean(), n)} → {percent(after.mean(), n)} % "
            f"({describe_change(self.accuracy_change)}; 95 % interval, {n:,} test images)"
        )


def run_compression(experiment: Experiment, format: Format | None = None) -> Compression:
    """Score, prune, fine-tune, measure, time and export the network of an experiment.

    Args:
        experiment: The experiment, with a recipe of one scorer and one seed.
        format: Format of the exported file; None exports nothing.

    Returns:
        What came out. All files are in the run folder.

    Raises:
        InputError: A setting is wrong, a task failed, or the folder was begun with another network.
        DataError: There are too few images.
        CheckpointError: A file is damaged.
    """
    _require_same_start(experiment)
    label = experiment.recipe.scorers[0].label
    run_experiment(experiment, further=functools.partial(_further_tasks, experiment, label, format))
    folder = experiment.folder.path
    before, after = (load_result(experiment.result_path(scorer)) for scorer in (UNPRUNED, label))
    exported = read_record(folder / EXPORTED) if format is not None else None
    return Compression(
        folder, experiment.recipe.prune.amount, before, after, read_record(folder / LATENCY)["settings"], exported
    )


def _require_same_start(experiment: Experiment) -> None:
    """Refuse a run folder that was begun with other weights than those that are given now.

    Raises:
        InputError: It was.
    """
    trained, model = experiment.seed_folder / TRAINED, experiment.recipe.model
    if not trained.exists():
        return
    known = read_manifest(trained)["about"].get("checkpoint_sha256")
    if model.checkpoint is not None:
        with open(model.checkpoint, "rb") as file:
            is_same = hashlib.file_digest(file, "sha256").hexdigest() == known
    else:
        start = experiment.copy_start()
        saved = None if start is None else load(trained, experiment.build_any())
        is_same = start is None or saved is None or hash_weights(start) == hash_weights(saved)
    if not is_same:
        raise InputError(
            f"{experiment.folder.path} was begun with other weights of the network; choose another --output"
        )


def _further_tasks(experiment: Experiment, label: str, format: Format | None, with_seed: WithSeed) -> Iterator[Task]:
    """Yield the tasks that come after the pruned network is measured."""
    folder, pruned = experiment.folder.path, experiment.result_path(label)
    work = functools.partial(_place_model, experiment.pruned_folder(label), folder / MODEL)
    yield Task("model", folder / MODEL, (pruned,), work)
    yield Task("latency", folder / LATENCY, (pruned,), functools.partial(_time, with_seed, experiment.seed, label))
    if format is not None:
        work = functools.partial(_export, with_seed, experiment.seed, label, format)
        yield Task("export", folder / EXPORTED, (pruned,), work)


def _place_model(source: Path, target: Path) -> None:
    """Put the files of the pruned network into a folder that is easy to find; they take no space twice."""
    with explain_disk_errors(target), new_folder(target) as new:
        for file in source.iterdir():
            try:
                os.link(file, new / file.name)
            except OSError:  # a disk without hard links
                shutil.copyfile(file, new / file.name)


def _load_pruned(experiment: Experiment, label: str) -> nn.Module:
    path = experiment.pruned_folder(label)
    is_known = read_manifest(path)["factory"] is not None
    return load(path, None if is_known else experiment.build_any())


def _time(with_seed: WithSeed, seed: int, label: str) -> None:
    """Time the unpruned and the pruned network in turn."""
    experiment = with_seed(seed)
    experiment.reporter.say("timing the network before and after pruning, in turn")
    pruned = _load_pruned(experiment, label).to(experiment.device)
    cudnn = torch.backends.cudnn
    kept = cudnn.deterministic, cudnn.benchmark
    try:
        # The fastest kernels, not the reproducible ones.
        cudnn.deterministic, cudnn.benchmark = False, True
        results = compare_latency(
            experiment.network,
            pruned,
            experiment.example,
            batch_sizes=TIMED_BATCHES,
            threads=[torch.get_num_threads()],
            memory_formats=["contiguous"],
            progress=experiment.reporter.progress("timing"),
        )
    finally:
        cudnn.deterministic, cudnn.benchmark = kept
    settings = [_as_record(result) for result in results]
    write_record(experiment.folder.path / LATENCY, {"settings": settings, "environment": environment()})


def _as_record(result: Comparison | CannotRun) -> dict[str, Any]:
    values = dataclasses.asdict(result)
    return values | ({"faster": result.faster, "steady": result.steady} if isinstance(result, Comparison) else {})


def _export(with_seed: WithSeed, seed: int, label: str, format: Format) -> None:
    """Write the pruned network as one file, and check the file."""
    experiment = with_seed(seed)
    folder, suffix = experiment.folder.path, SUFFIXES[format]
    about = read_manifest(experiment.pruned_folder(label))["about"]
    # A file without its check is what an interrupted process has left.
    for leftover in folder.glob(f"{MODEL}{suffix}*"):
        leftover.unlink()
    exported = export(
        _load_pruned(experiment, label), folder / f"{MODEL}{suffix}", experiment.example, format, about=about
    )
    values = dataclasses.asdict(exported)
    named = {key: None if values[key] is None else Path(values[key]).name for key in ("path", "weights")}
    write_record(folder / EXPORTED, values | named | {"relative_difference": exported.relative_difference})
