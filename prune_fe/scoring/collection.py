"""Run the images through a network once for any number of scorers, which measure each map as soon as it exists."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import reduce

import torch
from torch import Tensor, nn

from prune_fe.data.batches import Batches, count_images, validate_batches
from prune_fe.distributed import all_gather
from prune_fe.errors import DataError, InputError
from prune_fe.io import shorten
from prune_fe.measure.meter import Meter
from prune_fe.scorers.base import Scorer, Sums, explain_faults, is_built_in
from prune_fe.scoring.gradients import gate_gradients
from prune_fe.scoring.layer_scores import check_sums
from prune_fe.scoring.snapshot import Snapshot
from prune_fe.scoring.sums import RunningSum, add_sums
from prune_fe.tracing.feature_maps import observe
from prune_fe.tracing.layers import Layer
from prune_fe.tracing.nested import Inputs, Logits, move, run
from prune_fe.tracing.watching import evaluating

Progress = Callable[[int, int], None]
"""Called with (images done, images in all or 0 when unknown)."""

SNAPSHOT_SECONDS = 60.0
"""Time between two snapshots, which is the most work that a killed process loses."""

Measurement = tuple[str, str, Sums]
"""Label of the scorer, name of the layer, and what the scorer measured there in one batch."""


class Collection:
    """The measurements of several scorers so far. Under torch.distributed each process collects its share of images.

    Args:
        scorers: Label -> scorer; each reads images.
        layers: Label -> the layers that the scorer observes.
        classes: Names of the classes; labels are indices into it.
        device: Device of the network.
        logits: Function from what the network returns to its logits; None for a network that returns logits.

    Attributes:
        totals: Label -> layer name -> sum of the measurements.
        counts: (classes,) int64, images of each class.
        seconds: Duration of the pass so far, including the scorers.
        meters: Label -> time and memory of the scorer alone.
        is_consistent: False while a batch is being added, when an interruption leaves some sums without it.
    """

    def __init__(
        self,
        scorers: Mapping[str, Scorer],
        layers: Mapping[str, Sequence[Layer]],
        classes: Sequence[str],
        device: torch.device,
        logits: Logits | None = None,
    ) -> None:
        self.scorers, self.layers, self.classes, self.device = scorers, layers, classes, device
        self.logits = logits
        self.totals = {label: {layer.name: RunningSum() for layer in layers[label]} for label in scorers}
        self.counts = torch.zeros(len(classes), dtype=torch.int64)
        self.is_consistent = True
        self.seconds = 0.0
        self.meters = {label: Meter(device) for label in scorers}

    @property
    def images(self) -> int:
        """The number of images that were measured."""
        return int(self.counts.sum())

    @property
    def network_seconds(self) -> float:
        """The duration of the pass without the scorers: of reading the images and of the network itself."""
        return self.seconds - sum(meter.seconds for meter in self.meters.values())

    def run(
        self,
        model: nn.Module,
        read: Callable[..., Batches],
        progress: Progress | None = None,
        snapshot: Snapshot | None = None,
    ) -> None:
        """Measure and add every batch.

        Args:
            model: The network.
            read: read(skip=n) returns the batches without their first n images.
            progress: Called after each batch.
            snapshot: File from which an interrupted pass continues. It is written every `SNAPSHOT_SECONDS`, at the end
                and when the pass is interrupted.

        Raises:
            DataError: There is no image, or a label is not the index of a class.
            InputError: A scorer cannot measure a layer.
        """
        batches = read(skip=self.images) if snapshot is not None and snapshot.restore(self) else read()
        images_before, last_written = self.images, time.monotonic()
        total = images_before + count_images(batches) if count_images(batches) else 0
        start = time.perf_counter() - self.seconds
        try:
            for images, labels in validate_batches(batches, self.device):
                self._add_batch(model, move(images, self.device), labels)
                self.seconds = time.perf_counter() - start
                if progress is not None:
                    progress(self.images, total)
                if snapshot is not None and time.monotonic() - last_written >= SNAPSHOT_SECONDS:
                    snapshot.write(self)
                    last_written = time.monotonic()
        except BaseException:
            if snapshot is not None and self.is_consistent and self.images > images_before:
                snapshot.write(self)
            raise
        if self.images == 0:
            raise DataError("no images to score with")
        if snapshot is not None:
            snapshot.write(self)  # a scorer may still fail when it turns the sums into scores

    def gather_sums(self) -> tuple[dict[str, dict[str, Sums]], Tensor]:
        """Return label -> layer name -> sums, and the images of each class, over all processes of torch.distributed.

        Raises:
            InputError: A layer did not run in any forward pass.
        """
        own = {label: {name: total.total() for name, total in layers.items()} for label, layers in self.totals.items()}
        for layers in own.values():
            for name, sums in layers.items():
                if not sums:
                    raise InputError(f"layer {name!r}: its maps were not reached in any forward pass")
        shares = all_gather((own, self.counts))
        merged = {
            label: {name: reduce(add_sums, (share[label][name] for share, _ in shares)) for name in layers}
            for label, layers in own.items()
        }
        return merged, torch.stack([counts for _, counts in shares]).sum(dim=0)

    def _add_batch(self, model: nn.Module, images: Inputs, labels: Tensor) -> None:
        """Measure one batch with all scorers, and add the measurements when all have succeeded."""
        classes = len(self.classes)
        if odd := [label for label in labels.tolist() if not 0 <= label < classes]:
            raise DataError(f"label {odd[0]}: the data has {classes} classes, labels are 0 to {classes - 1}")
        try:
            measurements = [*self._measure_maps(model, images, labels), *self._measure_gradients(model, images, labels)]
        except InputError as error:
            first, names = self.images, [str(self.classes[label]) for label in dict.fromkeys(labels.tolist())]
            where = f"the batch has images {first} to {first + len(labels) - 1}, of class {shorten(names)}"
            raise InputError(f"{error}; {where}") from error
        for label, name, sums in measurements:
            if not is_built_in(self.scorers[label]):
                check_sums(self.scorers[label], name, sums)
        self.is_consistent = False
        for label, name, sums in measurements:
            with self._metered(label, name):
                self.totals[label][name].add(sums)
        self.counts += torch.bincount(labels, minlength=classes)
        self.is_consistent = True

    def _measure_maps(self, model: nn.Module, images: Inputs, labels: Tensor) -> list[Measurement]:
        """Return what the scorers of feature maps measure, from one forward pass."""
        measurements: list[Measurement] = []
        readers: dict[Layer, list[str]] = {}
        for label, scorer in self.scorers.items():
            for layer in () if scorer.needs_gradients else self.layers[label]:
                readers.setdefault(layer, []).append(label)

        def measure(layer: Layer, maps: Tensor) -> None:
            _require_images(layer.name, len(maps), len(labels))
            for label in readers[layer]:
                with self._metered(label, layer.name):
                    sums = self.scorers[label].measure(maps, labels, len(self.classes))
                    measurements.append((label, layer.name, sums))

        if readers:
            with evaluating(model), torch.no_grad(), observe(model, readers, measure):
                run(model, images)
        return measurements

    def _measure_gradients(self, model: nn.Module, images: Inputs, labels: Tensor) -> list[Measurement]:
        """Return what the scorers of gradients measure, each in a pass of its own that counts as the scorer's time."""
        measurements: list[Measurement] = []
        for label, scorer in self.scorers.items():
            if scorer.needs_gradients:
                with self._metered(label):
                    gradients = gate_gradients(model, images, labels, self.layers[label], self.logits)
                    for name, each in gradients.items():
                        _require_images(name, len(each), len(labels))
                        measurements.append((label, name, scorer.measure_gradients(each)))
        return measurements

    @contextmanager
    def _metered(self, label: str, name: str | None = None) -> Iterator[None]:
        """Add time and memory of the block to a scorer's, and name the layer in its errors."""
        with self.meters[label].measuring(name), explain_faults(self.scorers[label], name):
            try:
                yield
            except InputError as error:
                raise InputError(f"layer {name!r}: {error}" if name is not None else str(error)) from error


def _require_images(layer: str, rows: int, images: int) -> None:
    """Raise InputError unless the output of a layer has maps of as many images as the batch."""
    if rows != images:
        raise InputError(f"layer {layer!r}: its output is of {rows} images, the batch is of {images}; leave it out")
