"""Measure how much the loss rises when one group of layers alone loses units, for every group and several ratios."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any, get_args

from pydantic import TypeAdapter, ValidationError
from torch import nn

from prune_fe.data.batches import Batches, Images, first_image, hash_batches
from prune_fe.data.sampling import select_batches
from prune_fe.distributed import all_gather, from_rank_0, rank
from prune_fe.errors import InputError
from prune_fe.file_types import require_path
from prune_fe.io import explain_disk_errors, lock_folder
from prune_fe.measure.evaluate import Evaluation, evaluate
from prune_fe.options import validate_options
from prune_fe.pruning.analysis import Analysis, analyse
from prune_fe.pruning.arguments import linear_layers, require_scored
from prune_fe.pruning.budget import kept_count
from prune_fe.pruning.groups import GroupId
from prune_fe.pruning.loss_curves import (
    FILE_NAME,
    CurvePoint,
    LossCurve,
    Sensitivity,
    describe,
    find_differences,
    load_sensitivity,
)
from prune_fe.pruning.options import PruneOptions, SensitivityOptions
from prune_fe.pruning.plan import GroupState, Quota, start_plan
from prune_fe.pruning.remaining_cost import Resource
from prune_fe.pruning.weight_scores import find_other_layers, find_unseen_layers, score_by_weights
from prune_fe.records import damaged, read_record, write_record
from prune_fe.scoring.scores import Scores
from prune_fe.tracing.copying import copy_sharing_weights, copy_without_last_run
from prune_fe.tracing.dependency_graph import SetId
from prune_fe.tracing.nested import Inputs, Logits

UNFINISHED = "unfinished"
"""The folder of the results of single groups, which is removed when all are measured."""

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Recovery:
    """What is done to each network before it is measured, such as recomputing the statistics of its batch norms.

    Attributes:
        description: What it is, with all that it depends on. A measurement can only be continued with the same one.
        apply: Function that changes the buffers of a network, and not its weights, which the networks share.
    """

    description: str
    apply: Callable[[nn.Module], object]


def sensitivity(
    model: nn.Module,
    scores: Scores,
    data: Images,
    example: Inputs | None = None,
    *,
    options: SensitivityOptions | Mapping[str, Any] | None = None,
    logits: Logits | None = None,
    folder: str | Path | None = None,
    progress: Progress | None = None,
    batch_size: int = 256,
    workers: int = 0,
    recovery: Recovery | None = None,
    **settings: Any,
) -> Sensitivity:
    """Measure the accuracy and the loss of a network when one group of layers alone loses units, for each group.

    A group is one layer, or the layers that can only be pruned together. It loses the units that `prune` would remove,
    at several ratios, while all other groups keep theirs. The network is not changed, and nothing is trained. The
    result tells which groups can lose more than others. With the ratio "auto", `prune` spreads a target over the groups
    by it.

    Args:
        model: The network.
        scores: What prune_fe.score returned for it.
        data: Images and labels: a data set, a data loader or batches. Take images that were held out of the training
            images, such as `splits.validation`: nothing may be chosen on the test images, and the network was fitted to
            the training images.
        example: One input with which the network is analysed; by default the first image.
        options: The ratios, and how tied units are ranked.
        logits: Function that takes the logits (images, classes) out of what the model returns; None for a model that
            returns them.
        folder: Where the result is saved. A measurement that was interrupted goes on there after its last finished
            group, and a finished one is read. By default nothing is saved.
        progress: Called with the numbers of measured networks and of all that will be measured.
        batch_size: Images of one forward pass.
        workers: Processes that read images.
        recovery: What is done to each network, also to the whole one, before it is measured. With batch norms, take a
            recalibration on training images: without it, the curves show mostly damage that a recalibration repairs.
        settings: Fields of SensitivityOptions by name, such as `ratios=(0.25, 0.5)`; they replace those of `options`.

    Returns:
        The loss curve of each group.

    Raises:
        InputError: An argument is wrong, the network cannot be analysed, or the folder holds the measurement of another
            network, other weights, scores, images or options.
        DataError: There are no images, or a label has no output.
        CheckpointError: A file in the folder is damaged.
    """
    checked = validate_options(SensitivityOptions, options, "sensitivity()", **settings)
    for name, function in {"logits": logits, "progress": progress}.items():
        if function is not None and not callable(function):
            raise InputError(f"{name} is a {type(function).__name__}; it must be a function")
    if recovery is not None and not isinstance(recovery, Recovery):
        raise InputError(f"recovery is a {type(recovery).__name__}; it must be a Recovery(description, apply)")
    # One loader for all networks: its worker processes start once.
    batches = select_batches(data, batch_size=batch_size, workers=workers)
    if example is None:
        example = first_image(batches)
    model = require_scored(model, scores, example, "sensitivity()")
    about = describe(model, scores) | {
        "reduction": checked.reduction,
        "images_sha256": hash_batches(batches),
        "ratios": list(checked.ratios),
        "recovery": "" if recovery is None else recovery.description,
        "version": metadata.version("prune-fe"),
    }
    with _open_folder(folder, about) as store:
        if (finished := store.finished()) is not None:
            return finished
        source = copy_without_last_run(model, example)
        analysis = analyse(source, example, linear_layers(source, scores), scored=scores.keep)
        measurement = _Measurement(source, analysis, batches, logits, recovery)
        unseen = find_unseen_layers(analysis.groups, analysis.cutter, list(scores.keep), analysis.layers)
        weights = score_by_weights(source, unseen, analysis.cutter.all_channels(), analysis.widths)
        known, others = {**scores.keep, **weights}, find_other_layers(analysis.groups, scores, unseen)
        choice = PruneOptions(reduction=checked.reduction)
        states = start_plan(analysis.groups, analysis.all_widths, known, choice, others)
        curves, total = [], 1 + len(checked.ratios) * len(states.open_groups)
        count_done = _Counter(progress, total)
        unpruned = store.keep("network", dict, lambda: measurement.measure_whole(count_done))
        for number, state in enumerate(states.states):
            curve = LossCurve(state.group.layers, len(state.group.sets), reason=state.reason)
            if state.reason is None:
                measure = partial(measurement.measure_group, GroupId(number), state, checked.ratios, count_done)
                curve = store.keep(f"group-{number + 1:04}", LossCurve, measure)
                count_done.reach(1 + len(checked.ratios) * (1 + states.open_groups.index(GroupId(number))))
            curves.append(curve)
        result = Sensitivity(tuple(curves), unpruned["accuracy"], unpruned["loss"], unpruned["images"], about)
        store.finish(result)
    return result


class _Counter:
    """Counts the networks that are measured, and tells the caller."""

    def __init__(self, progress: Progress | None, total: int) -> None:
        self.progress, self.total, self.done = progress, total, 0

    def add(self) -> None:
        self.reach(self.done + 1)

    def reach(self, done: int) -> None:
        """Report a number, also one of networks that were measured in an earlier call."""
        self.done = done
        if self.progress is not None:
            self.progress(done, self.total)


@dataclass(frozen=True)
class _Measurement:
    """Cuts and evaluates networks.

    The units are cut and not masked, which gives the same outputs (each cut is verified): a cut network is the faster
    one, and the images are what takes the time. The network is traced once, in `analysis`; a cut copies only the
    tensors that shrink.

    Attributes:
        model: The network.
        analysis: Its groups and their tensors.
        batches: The images.
        logits: Function that takes the logits out of what the network returns.
        recovery: What is done to each network before it is measured.
    """

    model: nn.Module
    analysis: Analysis
    batches: Batches
    logits: Logits | None
    recovery: Recovery | None

    def _evaluate(self, model: nn.Module) -> Evaluation:
        if self.recovery is not None:
            self.recovery.apply(model)
        return evaluate(model, self.batches, logits=self.logits)

    def measure_whole(self, counter: _Counter) -> dict[str, Any]:
        """Return accuracy, loss and number of images of the whole network."""
        result = self._evaluate(copy_sharing_weights(self.model))
        counter.add()
        return {"accuracy": result.accuracy, "loss": result.loss, "images": result.images}

    def measure_group(
        self, number: GroupId, state: GroupState, ratios: Sequence[float], counter: _Counter
    ) -> LossCurve:
        """Return the curve of one group; it ends before the first ratio whose cut fails its verification.

        Args:
            number: The group.
            state: The group's units and their scores.
            ratios: The shares of the units that are removed, ascending.
            counter: Counts the measured networks.
        """
        units, step = len(state.group.sets), state.group.step
        most = state.capacity(1).feasible_counts[-1]
        points: dict[int, CurvePoint] = {}
        reason = None
        measured: list[CurvePoint] = []
        for ratio in ratios:
            count = min(units - kept_count(units, ratio, step), most)
            # Small groups lose the same number of units at several ratios.
            if count not in points:
                removed = _removed_sets(state, count)
                reason = self._find_fault(number, removed)
                if reason is not None:
                    break
                points[count] = self._measure_without(removed, ratio, count)
            measured.append(replace(points[count], ratio=ratio))
            counter.add()
        return LossCurve(state.group.layers, units, tuple(measured), reason)

    def _find_fault(self, number: GroupId, removed: Sequence[SetId]) -> str | None:
        if not removed:
            return None
        return self.analysis.verifier.find_failing_groups(self.analysis.cutter, {number: removed}).get(number)

    def _measure_without(self, removed: Sequence[SetId], ratio: float, count: int) -> CurvePoint:
        """Cut the units and measure the network."""
        cutter, model = self.analysis.cutter, copy_sharing_weights(self.model)
        if removed:
            cutter.cut(model, cutter.all_channels(), cutter.channels_without(removed))
        result = self._evaluate(model)
        macs, parameters = (self.analysis.cost.share(resource, removed) for resource in get_args(Resource))
        return CurvePoint(ratio, count, result.accuracy, result.loss, macs, parameters)


def _removed_sets(state: GroupState, count: int) -> list[SetId]:
    """Return the coupled sets of the units with the lowest scores, equally many of each block."""
    filled = replace(state, quota=Quota(count, count)).fill_quota()
    return [state.group.sets[position] for position in filled.removed]


@contextmanager
def _open_folder(folder: str | Path | None, about: Mapping[str, Any]) -> Iterator[_Store]:
    """Open the folder of a measurement, locked against other processes until the block ends.

    Args:
        folder: The folder; None for none.
        about: What is measured.

    Raises:
        InputError: The folder holds the measurement of something else.
        EnvironmentFault: Another process uses the folder.
    """
    if folder is None:
        yield _Store(None, about)
        return
    path = require_path(folder, "folder")
    lock = None
    if rank() == 0:
        with explain_disk_errors(path):
            (path / UNFINISHED).mkdir(parents=True, exist_ok=True)
        lock = lock_folder(path)
    try:
        store = _Store(path, about)
        from_rank_0(store.begin)
        yield store
    finally:
        if lock is not None:
            lock.close()


@dataclass(frozen=True)
class _Store:
    """The files of a measurement: one for each group, which one file replaces when all are finished.

    Attributes:
        folder: The folder; None keeps nothing.
        about: What is measured.
    """

    folder: Path | None
    about: Mapping[str, Any]

    def begin(self) -> None:
        """Write down what is measured, or check that the folder holds the same."""
        assert self.folder is not None
        finished, begun = self.folder / FILE_NAME, self.folder / UNFINISHED / "about.json"
        if finished.exists():
            known = load_sensitivity(self.folder).about
            shutil.rmtree(self.folder / UNFINISHED, ignore_errors=True)
        elif begun.exists():
            known = read_record(begun)
        else:
            write_record(begun, self.about)
            return
        if what := find_differences(known, self.about):
            raise InputError(f"{self.folder} holds a measurement with another choice of {what}; choose another folder")

    def finished(self) -> Sensitivity | None:
        """Return the finished measurement that the folder holds."""
        if self.folder is None or not from_rank_0((self.folder / FILE_NAME).exists):
            return None
        return load_sensitivity(self.folder)

    def keep(self, name: str, kind: Any, make: Callable[[], Any]) -> Any:
        """Return what an earlier call has measured, or measure it and write it down."""
        if self.folder is None:
            return make()
        path = self.folder / UNFINISHED / f"{name}.json"
        if from_rank_0(path.exists):
            try:
                return TypeAdapter(kind).validate_python(read_record(path))
            except ValidationError as error:
                raise damaged(path, error.errors()[0]["msg"]) from error
        result = make()
        if rank() == 0:
            write_record(path, result if isinstance(result, dict) else asdict(result))
        all_gather(None)  # a barrier: no process looks for the file before it is written
        return result

    def finish(self, result: Sensitivity) -> None:
        """Write the whole measurement, and remove the files of the groups."""
        if self.folder is not None and rank() == 0:
            result.save(self.folder)
            shutil.rmtree(self.folder / UNFINISHED, ignore_errors=True)
        all_gather(None)  # a barrier: no process looks for the file before it is written
