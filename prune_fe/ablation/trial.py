"""Run a network with masked units on test images, and count what it predicts."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from math import ceil
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from prune_fe.ablation.curves import Ablation, Result, UnitAblation
from prune_fe.ablation.tally import Tally, require_images
from prune_fe.ablation.unfinished import UnfinishedRuns
from prune_fe.data.batches import Images, count_images, validate_batches
from prune_fe.data.labels import class_names, has_labels, image_labels
from prune_fe.data.sampling import select_batches
from prune_fe.distributed import world_size
from prune_fe.errors import DataError, InputError
from prune_fe.options import Positive, validate_value
from prune_fe.scoring.collection import Progress
from prune_fe.scoring.fingerprint import hash_tensors, hash_weights
from prune_fe.tracing.feature_maps import mask
from prune_fe.tracing.layers import Layer
from prune_fe.tracing.split import NotSplit, SplitNetwork, TailInputs, split
from prune_fe.tracing.unit_sums import LinearTail, find_linear_tail
from prune_fe.tracing.watching import evaluating

ROWS = 4096
"""Number of images times masks that go through the tail together, if the memory suffices."""


@dataclass(frozen=True)
class Run:
    """Masks for some classes, in each of which more units are removed.

    Attributes:
        masks: For each layer the masks, shape (S, units), bool, True for a unit that is kept.
        units: The order in which units are removed, for the result.
        classes: Indices of the classes that the result is for; default: all that have images.
    """

    masks: Sequence[Tensor]
    units: Sequence[int] = ()
    classes: Sequence[int] | None = None


class Trial:
    """A network and the test images on which it is run with units of some layers masked.

    For one layer of a network that can be traced, the network runs once for each image up to the layer, and the rest,
    its tail, runs once for each mask. A linear layer with which the tail begins runs once for each image too: a mask
    leaves out terms of its sums. The inputs of the tail are kept for further runs if they take less than half of the
    memory. Otherwise the whole network runs for each mask.

    Attributes:
        model: The network.
        layers: The layers whose units are masked.
        cached: The inputs of the tail for all images after a run; None if they take too much memory.
    """

    def __init__(
        self,
        model: nn.Module,
        data: Images,
        layers: Sequence[Layer],
        *,
        batch_size: int = 64,
        workers: int = 0,
        memory_gib: float = 1.0,
    ) -> None:
        """Prepare the network and the images.

        Args:
            model: The network.
            data: Test images.
            layers: The layers whose units are masked.
            batch_size: Images that are read together.
            workers: Processes that read images.
            memory_gib: Memory in GiB for inputs of the tail, and for masked copies that are run together.

        Raises:
            InputError: There are several processes, or `memory_gib` is not positive.
        """
        if world_size() > 1:
            raise InputError("ablation runs in one process")
        validate_value(Positive, memory_gib, "memory_gib")
        self.model, self.layers = model, layers
        self.cached: list[_Batch] | None = None
        self._memory = memory_gib * 2**30
        self._batches = select_batches(data, batch_size=batch_size, workers=workers)
        self._names = class_names(data)

    @cached_property
    def split_network(self) -> SplitNetwork | NotSplit:
        """The network split behind its only layer, tested on two images; or why it cannot be split."""
        if len(self.layers) > 1:
            return NotSplit("several layers")
        images = self._two_images
        return NotSplit("no images") if images is None else split(self.model, self.layers[0], images)

    @cached_property
    def linear_tail(self) -> LinearTail | None:
        """The tail as sums over the units and what follows, if it begins with a linear layer."""
        network, images = self.split_network, self._two_images
        if images is None or isinstance(network, NotSplit):
            return None
        return find_linear_tail(network, images)

    @cached_property
    def _two_images(self) -> Tensor | None:
        """The first and the last image of the first batch."""
        device = next(self.model.parameters()).device
        for images, _ in validate_batches(self._batches):
            return images[[0, -1]].to(device)
        return None

    @property
    def slow_reason(self) -> str:
        """Why the whole network is run for each mask; empty if only its tail is."""
        return self.split_network.reason if isinstance(self.split_network, NotSplit) else ""

    def run(
        self,
        masks: Sequence[Tensor],
        *,
        units: Sequence[int] = (),
        classes: Sequence[int] | None = None,
        progress: Progress | None = None,
    ) -> Ablation:
        """Run the network with each of S masks, in which more and more units are removed.

        Args:
            masks: For each layer the masks, shape (S, units), bool, True for a unit that is kept.
            units: The order in which units are removed, for the result.
            classes: Indices of the classes that the result is for; default: all that have images.
            progress: Called after each batch with the numbers of images read and of all images (0 if unknown).

        Raises:
            InputError: A class is named twice, or the network's outputs are not finite.
            DataError: There are no images, or none of a class, or a label has no output.
        """
        return self.run_all([Run(masks, units, classes)], progress=progress)[0]

    def run_all(
        self, runs: Sequence[Run], *, progress: Progress | None = None, unfinished: Path | None = None
    ) -> list[Ablation]:
        """Run the network with the masks of several runs, and read the images only once.

        Args:
            runs: The masks and classes of each result.
            progress: As in `run`; the errors are those of `run` too.
            unfinished: File that is written now and then. If the call is interrupted, the same call for the same images
                goes on from it, to the same bits. The caller removes it when the results are saved.

        Raises:
            CheckpointError: `unfinished` is damaged.
            EnvironmentFault: `unfinished` cannot be written.
        """
        return self._run(runs, [partial(Ablation, units=tuple(run.units)) for run in runs], progress, unfinished)

    def run_single_units(
        self,
        *,
        classes: Sequence[int] | None = None,
        progress: Progress | None = None,
        unfinished: Path | None = None,
    ) -> UnitAblation:
        """Run the network with all units, and without each unit of its only layer; the rest is as in `run_all`."""
        n_units = self.layers[0].units
        # The first mask keeps all units: the losses of the others are compared with it.
        masks = torch.cat([torch.ones(1, n_units, dtype=torch.bool), ~torch.eye(n_units, dtype=torch.bool)])
        return self._run([Run([masks], (), classes)], [UnitAblation], progress, unfinished)[0]

    def _run(
        self,
        runs: Sequence[Run],
        kinds: Sequence[Callable[..., Result]],
        progress: Progress | None,
        unfinished: Path | None,
    ) -> list[Result]:
        """Run the network with all masks and return a result of each kind."""
        for run in runs:
            self._validate_classes(run.classes)
        tallies = [Tally(len(run.masks[0]), self._names, run.classes) for run in runs]
        file = UnfinishedRuns(unfinished, self._identify(runs) if unfinished else "")
        n_finished = file.restore(tallies)
        n_parts, n_images, kept = 0, 0, []
        with evaluating(self.model), torch.no_grad():
            # Images are read, and the head is run, once; later runs use the cached inputs of the tail.
            for batch in self.cached or self._prepared_batches():
                indices = range(n_images, n_images + len(batch.labels))
                for number, masks_part, images_part, compute in self._outputs(batch, runs):
                    n_parts += 1
                    if n_parts <= n_finished:
                        continue
                    part = batch.labels[images_part], batch.halves[images_part]
                    tallies[number].add(masks_part, compute(), *part, indices[images_part])
                    file.write_if_due(n_parts, tallies)
                n_images += len(batch.labels)
                if self._fits(batch):
                    kept.append(batch)
                if progress is not None:
                    progress(n_images, count_images(self._batches))
        if n_images == 0:
            raise DataError("no images to ablate on")
        # A batch with fewer images may seem to need less memory for each, so that only some batches fit.
        self.cached = kept if sum(len(batch.labels) for batch in kept) == n_images else None
        return [
            tally.result(
                kind,
                layers=tuple(layer.name for layer in self.layers),
                removed=np.sum([(~layer_masks).sum(dim=1).numpy() for layer_masks in run.masks], axis=0),
                how=self._how,
            )
            for tally, kind, run in zip(tallies, kinds, runs, strict=True)
        ]

    def _identify(self, runs: Sequence[Run]) -> str:
        """Return a text that identifies everything that the results depend on, but the images."""
        masks = {f"{number}/{place}": part for number, run in enumerate(runs) for place, part in enumerate(run.masks)}
        # The memory decides how many images and masks are run together, which changes the last bits.
        classes = [run.classes and [int(number) for number in run.classes] for run in runs]
        layers = [layer.name for layer in self.layers]
        return json.dumps([hash_weights(self.model), hash_tensors(masks), layers, classes, self._memory])

    @property
    def _how(self) -> str:
        """What is run for each mask."""
        if self.slow_reason:
            return f"the whole network for each mask: {self.slow_reason}"
        return "tail" if self.linear_tail is None else "tail, its first layer as sums over the units"

    def _validate_classes(self, classes: Sequence[int] | None) -> None:
        """Raise an error before anything is run, if the labels are known, for a class that has no images."""
        if classes is not None and len(set(classes)) < len(classes):
            raise InputError(f"classes is {list(classes)}: one of them is given twice")
        data = getattr(self._batches, "dataset", None)
        if classes is not None and data is not None and has_labels(data):
            require_images(classes, set(image_labels(data)), self._names)

    def _prepared_batches(self) -> Iterator[_Batch]:
        """Yield every batch with the inputs of the tail, or with its images if there is no tail."""
        device = next(self.model.parameters()).device
        # Every other image of a class goes to the second half, so that both halves have all classes.
        seen: Counter[int] = Counter()
        for images, labels in validate_batches(self._batches):
            on_device = images.to(device, non_blocking=True)
            halves = []
            for label in labels.tolist():
                halves.append(seen[label] % 2)
                seen[label] += 1
            if isinstance(self.split_network, SplitNetwork):
                yield _Batch(labels, torch.tensor(halves), None, self.split_network.tail_inputs(on_device))
            else:
                yield _Batch(labels, torch.tensor(halves), on_device, None)

    def _fits(self, batch: _Batch) -> bool:
        """Return whether the inputs of the tail for all images fit in memory, estimated from this batch's size."""
        n_images = count_images(self._batches)
        # A data set of unknown length counts 0 images, and may be large.
        return batch.tail_inputs is not None and 0 < n_images * batch.tail_inputs.image_bytes < self._memory / 2

    def _outputs(self, batch: _Batch, runs: Sequence[Run]) -> Iterator[_Outputs]:
        """Yield a run's number, some of its masks, some images of the batch, and what computes the outputs for them."""
        if isinstance(self.split_network, SplitNetwork):
            assert batch.tail_inputs is not None
            if self.linear_tail is None:
                yield from self._tail_outputs(self.split_network, batch.tail_inputs, runs)
            else:
                yield from self._summed_outputs(self.linear_tail, batch.tail_inputs, runs)
        else:
            assert batch.images is not None
            for number, run in enumerate(runs):
                yield from ((number, *output) for output in self._network_outputs(batch.images, run.masks))

    def _tail_outputs(self, tail: SplitNetwork, inputs: TailInputs, runs: Sequence[Run]) -> Iterator[_Outputs]:
        # The values inside the tail are about as large as its inputs, and several of them exist at once.
        rows = max(1, min(ROWS, int(self._memory / (8 * inputs.image_bytes))))
        n_images = min(len(inputs), rows)
        for images_part in _parts(len(inputs), n_images):
            some = inputs.select(images_part)
            for number, run in enumerate(runs):
                masks = run.masks[0].to(inputs.unmasked.device)
                for masks_part in _parts(len(masks), max(1, rows // n_images)):
                    yield number, masks_part, images_part, partial(_flat_logits, tail, some, masks[masks_part])

    def _summed_outputs(self, tail: LinearTail, inputs: TailInputs, runs: Sequence[Run]) -> Iterator[_Outputs]:
        rows = max(1, min(ROWS, int(self._memory / (8 * tail.row_bytes))))
        n_masks = min(rows, max(len(run.masks[0]) for run in runs))
        # The terms of an image take much more memory than its outputs for one mask.
        n_images = max(1, min(rows // n_masks, int(self._memory / (4 * tail.image_bytes))))
        # Equal parts: a part of few images has little work for each mask.
        for images_part in _parts(len(inputs), ceil(len(inputs) / ceil(len(inputs) / n_images))):
            sums = tail.unit_sums(inputs.select(images_part))
            for number, run in enumerate(runs):
                for masks_part in _parts(len(run.masks[0]), n_masks):
                    keep = run.masks[0][masks_part].to(sums.terms.device)
                    yield number, masks_part, images_part, partial(_flat_logits, tail, sums, keep)

    def _network_outputs(
        self, images: Tensor, masks: Sequence[Tensor]
    ) -> Iterator[tuple[slice, slice, Callable[[], Any]]]:
        for number in range(len(masks[0])):
            units = {
                layer.name: (~layer_masks[number]).nonzero()[:, 0].tolist()
                for layer, layer_masks in zip(self.layers, masks, strict=True)
            }
            yield slice(number, number + 1), slice(None), partial(self._masked_output, images, units)

    def _masked_output(self, images: Tensor, units: Mapping[str, Sequence[int]]) -> Any:
        with mask(self.model, self.layers, units):
            return self.model(images)


def _flat_logits(tail: SplitNetwork | LinearTail, inputs: Any, masks: Tensor) -> Tensor:
    return tail.logits(inputs, masks).flatten(0, 1)


_Outputs = tuple[int, slice, slice, Callable[[], Any]]
"""The number of a run, some of its masks, some images, and a function that returns the network's outputs for them,
shape (masks · images, classes). What an unfinished run has counted already is not computed."""


def _parts(length: int, size: int) -> Iterator[slice]:
    """Yield slices of `size` that cover `length` items; the last one may be shorter."""
    return (slice(first, first + size) for first in range(0, length, size))


@dataclass(frozen=True)
class _Batch:
    """A batch as it is run with each mask.

    Attributes:
        labels: Labels, shape (images,).
        halves: Half that each image belongs to, 0 or 1, shape (images,).
        images: The images, if the whole network is run.
        tail_inputs: The inputs of the tail, if only that is run.
    """

    labels: Tensor
    halves: Tensor
    images: Tensor | None
    tail_inputs: TailInputs | None
