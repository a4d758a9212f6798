"""The images through the network once, for any number of scorers: each map is measured as soon as it exists."""

from __future__ import annotations

import hashlib
import io
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import reduce
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from prune_fe.data.images import Batches, checked, images_in
from prune_fe.distributed import all_gather, rank
from prune_fe.errors import DataError, InputError
from prune_fe.measure.meter import Meter
from prune_fe.scorers.base import Rows, Scorer, Sums
from prune_fe.tracing.feature_maps import Layer, evaluating, observe

Progress = Callable[[int, int], None]
"""Called with (images done, images in all or 0 when unknown)."""

STATE_SECONDS = 60.0
"""How much work a kill may cost."""


class Collection:
    """What the scorers have measured so far: sums by scorer and layer, and the images of each class.

    layers: scorer -> the layers that it observes. Under torch.distributed each process has its own share.
    """

    def __init__(
        self,
        scorers: Mapping[str, Scorer],
        layers: Mapping[str, Sequence[Layer]],
        classes: Sequence[str],
        device: torch.device,
    ) -> None:
        self.scorers, self.layers, self.classes, self.device = scorers, layers, classes, device
        self.totals = {label: {layer.name: _Total() for layer in layers[label]} for label in scorers}
        self.counts = torch.zeros(len(classes), dtype=torch.int64)
        self.whole = True  # not while a batch is being added: an interrupt may come at any point
        self.seconds = 0.0  # of the whole pass, what the scorers take included
        self.meters = {label: Meter(device) for label in scorers}

    @property
    def images(self) -> int:
        return int(self.counts.sum())

    @property
    def network_seconds(self) -> float:
        """What the pass took without the scorers: reading the images and the network itself."""
        return self.seconds - sum(meter.seconds for meter in self.meters.values())

    def run(
        self,
        model: nn.Module,
        read: Callable[..., Batches],
        progress: Progress | None = None,
        state: State | None = None,
    ) -> None:
        """Add every batch. read(skip=n): the batches without their first n images.

        state: where to go on from; written now and then, and when this is interrupted.
        """
        batches = read(skip=self.images) if state is not None and state.read(self) else read()
        before, saved = self.images, time.monotonic()
        total = before + images_in(batches) if images_in(batches) else 0
        begun = time.perf_counter() - self.seconds
        try:
            for images, labels in checked(batches):
                self._add(model, images.to(self.device, non_blocking=True), labels)
                self.seconds = time.perf_counter() - begun
                if progress is not None:
                    progress(self.images, total)
                if state is not None and time.monotonic() - saved >= STATE_SECONDS:
                    state.write(self)
                    saved = time.monotonic()
        except BaseException:
            if state is not None and self.whole and self.images > before:
                state.write(self)
            raise
        if self.images == 0:
            raise DataError("no images to score with")
        if state is not None:
            state.write(self)  # a scorer may fail at what it makes of the sums

    def _add(self, model: nn.Module, images: Tensor, labels: Tensor) -> None:
        """One batch: measured by all scorers first, and then added."""
        classes = len(self.classes)
        if odd := [label for label in labels.tolist() if not 0 <= label < classes]:
            raise DataError(f"label {odd[0]}: the data has {classes} classes, labels are 0 to {classes - 1}")
        found: list[tuple[str, str, Sums]] = []
        readers: dict[Layer, list[str]] = {}
        for label, scorer in self.scorers.items():
            for layer in () if scorer.needs_gradients else self.layers[label]:
                readers.setdefault(layer, []).append(label)

        def read(layer: Layer, maps: Tensor) -> None:
            for label in readers[layer]:
                with self._charged(label, layer):
                    found.append((label, layer.name, self.scorers[label].measure(maps, labels, classes)))

        if readers:
            with evaluating(model), torch.no_grad(), observe(model, readers, read):
                model(images)
        for label, scorer in self.scorers.items():
            if scorer.needs_gradients:  # a forward pass of its own: no other scorer pays for the graph
                with self._charged(label):
                    gradients = gate_gradients(model, images, labels, self.layers[label])
                    found += [(label, name, scorer.measure_gradients(each)) for name, each in gradients.items()]
        self.whole = False
        for label, name, sums in found:
            self.totals[label][name].add(sums)
        self.counts += torch.bincount(labels, minlength=classes)
        self.whole = True

    @contextmanager
    def _charged(self, label: str, layer: Layer | None = None) -> Iterator[None]:
        """The scorer pays for what is done inside, and its errors say at which layer it was."""
        with self.meters[label].measuring():
            try:
                yield
            except InputError as error:
                raise InputError(f"layer {layer.name!r}: {error}" if layer else str(error)) from error

    def gathered(self) -> tuple[dict[str, dict[str, Sums]], Tensor]:
        """(scorer -> layer name -> sums, images of each class), over all processes of torch.distributed."""
        mine = {label: {name: total.sums() for name, total in layers.items()} for label, layers in self.totals.items()}
        for layers in mine.values():
            for name, sums in layers.items():
                if not sums:
                    raise InputError(f"layer {name!r}: its maps were not reached in any forward pass")
        shares = all_gather((mine, self.counts))
        every = {
            label: {name: reduce(add, (share[label][name] for share, _ in shares)) for name in layers}
            for label, layers in mine.items()
        }
        return every, torch.stack([count for _, count in shares]).sum(dim=0)


class State:
    """The file in which an unfinished collection lies, of this process and of nobody with another `key`.

    The whole file or none of it is written, and a digest in front tells a damaged one.
    """

    def __init__(self, folder: Path, key: str) -> None:
        self.path, self.key = folder / f".unfinished-{rank()}", key

    def write(self, collection: Collection) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        totals = {
            label: {name: {key: _packed(value) for key, value in total.sums().items()} for name, total in each.items()}
            for label, each in collection.totals.items()
        }
        content = {
            "key": self.key,
            "totals": totals,
            "counts": collection.counts,
            "seconds": collection.seconds,
            "meters": {label: (meter.seconds, meter.peak_bytes) for label, meter in collection.meters.items()},
        }
        buffer = io.BytesIO()
        torch.save(content, buffer)
        partial = self.path.with_name(f"{self.path.name}.new")
        with partial.open("wb") as file:
            file.write(hashlib.sha256(buffer.getbuffer()).digest() + buffer.getbuffer())
            file.flush()
            os.fsync(file.fileno())
        partial.replace(self.path)

    def read(self, collection: Collection) -> bool:
        """Whether there was one to go on with; a damaged one or one of other work is as good as none."""
        if not self.path.is_file():
            return False
        content = self.path.read_bytes()
        if hashlib.sha256(content[32:]).digest() != content[:32]:
            return False
        found = torch.load(io.BytesIO(content[32:]), weights_only=True)
        if found["key"] != self.key:
            return False
        collection.counts, collection.seconds = found["counts"], found["seconds"]
        for label, layers in found["totals"].items():
            collection.meters[label].seconds, collection.meters[label].peak_bytes = found["meters"][label]
            for name, sums in layers.items():
                collection.totals[label][name].add({key: _unpacked(value) for key, value in sums.items()})
        return True

    def remove(self) -> None:
        self.path.unlink(missing_ok=True)


def add(a: Mapping[str, Tensor | Rows], b: Mapping[str, Tensor | Rows]) -> Sums:
    """The only reduction there is."""
    total: Sums = {}
    for key in a:
        entry: Any = a[key] + b[key]  # type: ignore[operator]
        total[key] = entry.coalesce() if isinstance(entry, Tensor) and entry.is_sparse else entry
    return total


class _Total:
    """A running sum. What is dense is added at once, in the order of the batches. Sparse counts and rows, which grow,
    wait for parts of about equal age (a binary counter): a large one is rewritten O(log batches) times and not once
    a batch, and the order matters to neither."""

    def __init__(self) -> None:
        self.dense: Sums = {}
        self.parts: list[tuple[int, Sums]] = []

    def add(self, sums: Sums) -> None:
        dense: Sums = {key: value for key, value in sums.items() if isinstance(value, Tensor) and not value.is_sparse}
        growing = {key: value for key, value in sums.items() if key not in dense}
        self.dense = add(self.dense, dense) if self.dense else dense
        age = 0
        while growing and self.parts and self.parts[-1][0] == age:
            growing, age = add(self.parts.pop()[1], growing), age + 1
        if growing:
            self.parts.append((age, growing))

    def sums(self) -> Sums:
        return self.dense | (reduce(add, (sums for _, sums in self.parts)) if self.parts else {})


def gate_gradients(model: nn.Module, images: Tensor, labels: Tensor, layers: Sequence[Layer]) -> dict[str, Tensor]:
    """Layer name -> (images, units): of each image's own cross-entropy with respect to the gates on its maps.

    The parameters' gradients are not touched. InputError for maps or gradients that are not finite, and for layers
    that no gradient reaches.
    """
    gates: dict[str, Tensor] = {}

    def read(layer: Layer, maps: Tensor) -> None:
        if not maps.isfinite().all():
            raise InputError(f"layer {layer.name!r}: its maps hold NaN or infinite values")

    with torch.inference_mode(False), torch.enable_grad(), evaluating(model):
        with observe(model, layers, read, gates):
            output = model(images.clone() if images.is_inference() else images)
        if not isinstance(output, Tensor) or output.ndim != 2 or int(labels.max()) >= output.shape[1]:
            shape = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
            raise InputError(f"the model returns {shape}; gradients need logits (images, classes) for every label")
        # In half precision a probability near 1 rounds to 1, and its gradient to nothing.
        logits = output.float() if output.dtype != torch.float64 else output
        loss = torch.nn.functional.cross_entropy(logits, labels.to(output.device), reduction="sum")
        if missing := [layer.name for layer in layers if layer.name not in gates]:
            raise InputError(f"layer {missing[0]!r}: its maps were not reached in a forward pass")
        found = torch.autograd.grad(loss, [gates[layer.name] for layer in layers], allow_unused=True)
    gradients: dict[str, Tensor] = {}
    for layer, gradient in zip(layers, found, strict=True):
        if gradient is None or not gradient.isfinite().all():
            what = "no gradient reaches its maps" if gradient is None else "the gradient at its maps is not finite"
            raise InputError(f"layer {layer.name!r}: {what}")
        gradients[layer.name] = gradient
    return gradients


def _packed(value: Tensor | Rows) -> Any:
    """Dense parts: torch warns when it loads a sparse tensor."""
    if isinstance(value, Rows):
        return {"rows": value.values, "most": value.most}
    if value.is_sparse:
        return {"indices": value.indices(), "values": value.values(), "shape": tuple(value.shape)}
    return value


def _unpacked(value: Any) -> Tensor | Rows:
    if not isinstance(value, dict):
        return value
    if "rows" in value:
        return Rows(value["rows"], value["most"])
    return torch.sparse_coo_tensor(value["indices"], value["values"], value["shape"], check_invariants=True).coalesce()
