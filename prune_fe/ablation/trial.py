"""Ablation: what the units of a layer are worth, by taking them away one after the other, together or each alone.

Zhao & Zhang, ICLR 2022, figure 12 and table 11. Scores come from training images, ablation is watched on test images.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Container, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal, TypedDict, Unpack, get_args

import numpy as np
import torch
from torch import Tensor, nn

from prune_fe.data.batches import Images, count_images, first_image, validate_batches
from prune_fe.data.labels import class_names, has_labels, image_labels
from prune_fe.data.sampling import select_batches
from prune_fe.distributed import world_size
from prune_fe.errors import DataError, InputError
from prune_fe.measure.evaluate import float64_logits
from prune_fe.scoring.collection import Progress
from prune_fe.scoring.fingerprint import hash_weights
from prune_fe.scoring.scores import Array, Scores
from prune_fe.tracing.feature_maps import mask
from prune_fe.tracing.layers import Layer, find_layers
from prune_fe.tracing.split import Given, NoTail, Tail, split
from prune_fe.tracing.watching import evaluating

Order = Literal["ascending", "descending"]
SHARES = tuple(number / 20 for number in range(21))

ROWS = 4096
"""Images times masks that go through the tail together, if the memory allows."""


class Options(TypedDict, total=False):
    """How the images are read, and what is told of them.

    classes: which to tell of, by number; default all that have images. memory_gib: how much the layer's maps of all
    images, which are kept if they fit, and the masked copies that go through the tail together may take.
    """

    classes: Sequence[int] | None
    batch_size: int
    workers: int
    memory_gib: float
    progress: Progress | None


@dataclass(frozen=True)
class Ablation:
    """What a network with masked units makes of the test images, for S masks and C classes.

    layers: the masked ones. removed: (S,) how many of their units are zero. classes: names. images: (C,) of each class,
    all_images: of these and others. hits: (S, C) images of the class that are called so; called: (S, C) images of
    whatever class that are called so; loss: (S, C) mean cross-entropy of the class's images, in nats.
    outputs: how many classes the network tells apart. units: in the order in which they went, if there is one.
    how: "tail", or why the whole network was run for each mask.
    halves: the same of every other image of each class, and of the rest: to choose on the one, and report on the other.
    """

    layers: tuple[str, ...]
    removed: Array
    classes: tuple[str, ...]
    images: Array
    all_images: int
    hits: Array
    called: Array
    loss: Array
    outputs: int
    units: tuple[int, ...] = ()
    how: str = "tail"
    halves: tuple[Ablation, ...] = ()

    @property
    def accuracy(self) -> Array:
        """(S, C): the share of the class's images that are called so; NaN without any."""
        with np.errstate(invalid="ignore"):
            return self.hits / self.images

    @property
    def balanced_accuracy(self) -> Array:
        """(S, C): of the class against the rest, the mean of both recalls; NaN without images of other classes."""
        others = self.all_images - self.images
        wrong = self.called - self.hits
        with np.errstate(invalid="ignore", divide="ignore"):
            return (self.accuracy + 1 - wrong / others) / 2

    @property
    def area(self) -> Array:
        """(C,): the mean height of the accuracy's curve over the share of removed units, by trapezoids."""
        return np.trapezoid(self.accuracy, self.removed / self.removed[-1], axis=0)

    @property
    def peak(self) -> tuple[Array, Array]:
        """((C,), (C,)): the highest accuracy, and after how many units it is first reached."""
        return self._at(self.accuracy, best := self.accuracy.argmax(axis=0)), self.removed[best]

    @property
    def peak_balanced(self) -> tuple[Array, Array]:
        """((C,), (C,)): the highest balanced accuracy, and after how many units it is first reached (table 11)."""
        return self._at(self.balanced_accuracy, best := self.balanced_accuracy.argmax(axis=0)), self.removed[best]

    @property
    def peak_held_out(self) -> Array:
        """(C,): the balanced accuracy after as many units as are best on the other half of the images, the mean of
        both ways. The peak itself is picked on the images that it is reported on, which flatters it. NaN for a class
        that has not an image in each half."""
        first, second = (half.balanced_accuracy for half in self.halves)
        ways = ((first, second), (second, first))
        return np.mean([self._at(reported, np.nan_to_num(chosen).argmax(axis=0)) for chosen, reported in ways], axis=0)

    @staticmethod
    def _at(values: Array, steps: Array) -> Array:
        """(C,): of values (S, C) those at the steps (C,)."""
        return np.take_along_axis(values, steps[None], axis=0)[0]

    @property
    def units_until_chance(self) -> Array:
        """(C,): after how many units the accuracy is first at that of a guess or below; −1 if it never is."""
        low = self.accuracy <= 1 / self.outputs
        return np.where(low.any(axis=0), self.removed[low.argmax(axis=0)], -1)


def join(parts: Sequence[Ablation]) -> Ablation:
    """Of several classes what there is of each, all with the same numbers of removed units."""
    first = parts[0]
    if any(not np.array_equal(part.removed, first.removed) for part in parts):
        raise InputError("ablations with different numbers of removed units cannot be joined")
    arrays: dict[str, Any] = {
        name: np.concatenate([getattr(part, name) for part in parts], axis=1) for name in ("hits", "called", "loss")
    }
    return replace(
        first,
        classes=tuple(name for part in parts for name in part.classes),
        images=np.concatenate([part.images for part in parts]),
        units=first.units if all(part.units == first.units for part in parts) else (),
        halves=tuple(join(halves) for halves in zip(*(part.halves for part in parts), strict=True)),
        **arrays,
    )


def ablate(
    model: nn.Module,
    data: Images,
    scores: Scores,
    layer: str,
    order: Order = "ascending",
    *,
    every: int = 1,
    **options: Unpack[Options],
) -> Ablation:
    """Take the units of `layer` away one after the other: cumulative ablation.

    data: test images; those of other classes are what a class's balanced accuracy is against. order: of feature entropy
    as in the paper, so of any score "ascending" takes the best units first and "descending" the worst. every: how many
    units go between two looks.

    Raises InputError for a layer that there is not or that has no scores, and for scores of another network;
    DataError for a class without images.
    """
    if every < 1:
        raise InputError(f"every is {every}; allowed: 1 or more")
    found = _layers_of(model, data, [layer])[0]
    units = _orders(scores, model, [found], order)[0]
    keep = without_first(units, sorted({*range(0, found.units, every), found.units}))
    return masked(model, data, [found], [keep], units=units, **options)


def ablate_each(model: nn.Module, data: Images, layer: str, **options: Unpack[Options]) -> Ablation:
    """Take each unit of `layer` away alone: mask 0 leaves all, mask i + 1 takes unit i. The options are ablate's.

    Its losses are what a score can be rank-correlated with.
    """
    found = _layers_of(model, data, [layer])[0]
    every = torch.ones(1, found.units, dtype=torch.bool)
    keep = torch.cat([every, ~torch.eye(found.units, dtype=torch.bool)])
    return masked(model, data, [found], [keep], **options)


def ablate_layers(
    model: nn.Module,
    data: Images,
    scores: Scores,
    layers: Sequence[str],
    shares: Sequence[float] = SHARES,
    order: Order = "ascending",
    **options: Unpack[Options],
) -> Ablation:
    """Take the same share of every layer's units away, rounded down. The options are ablate's."""
    if odd := [share for share in shares if not 0 <= share <= 1]:
        raise InputError(f"shares: {odd[0]} is no share; allowed: 0 to 1")
    if not shares or list(shares) != sorted(shares):
        raise InputError(f"shares is {list(shares)}; it must hold one or more, ascending")
    found = _layers_of(model, data, layers)
    orders = _orders(scores, model, found, order)
    return masked(
        model, data, found, [without_first(units, counts_of(len(units), shares)) for units in orders], **options
    )


def _orders(scores: Scores, model: nn.Module, layers: Sequence[Layer], order: Order) -> list[tuple[int, ...]]:
    """Each layer's units in the order in which they go; InputError for scores of something else."""
    if order not in get_args(Order):
        raise InputError(f"order is {order!r}; allowed: {', '.join(get_args(Order))}")
    for layer in layers:
        if layer.name not in scores.keep:
            raise InputError(f"layer {layer.name!r} has no scores; scored are {', '.join(scores.keep)}")
        there = len(scores.keep[layer.name])
        if there != layer.units:
            raise InputError(
                f"layer {layer.name!r} has {layer.units} units, its scores are of {there}: of another network, "
                "or of this one before it was pruned"
            )
    scored = scores.provenance.get("model_sha256")
    if scored is not None and scored != hash_weights(model):
        raise InputError(f"the scores of layer {layers[0].name!r} are of a network with other weights")
    direction = -1 if order == "ascending" else 1
    return [tuple(scores.weakest(layer.name, layer.units)[::direction]) for layer in layers]


def without_first(units: Sequence[int], counts: Sequence[int]) -> Tensor:
    """(counts, units) bool: for each count which units are left when so many of the first are gone."""
    keep = torch.ones(len(counts), len(units), dtype=torch.bool)
    for row, count in zip(keep, counts, strict=True):
        row[list(units[:count])] = False
    return keep


def counts_of(units: int, shares: Sequence[float]) -> list[int]:
    """How many units each share of them is, rounded down."""
    return [int(share * units + 1e-9) for share in shares]


def masked(
    model: nn.Module,
    data: Images,
    layers: Sequence[Layer],
    keeps: Sequence[Tensor],
    *,
    units: Sequence[int] = (),
    classes: Sequence[int] | None = None,
    batch_size: int = 64,
    workers: int = 0,
    memory_gib: float = 1.0,
    progress: Progress | None = None,
) -> Ablation:
    """What S networks make of the images; keeps: of each layer (S, units) bool, which units network s keeps."""
    trial = Trial(model, data, layers, batch_size=batch_size, workers=workers, memory_gib=memory_gib)
    return trial.run(keeps, units=units, classes=classes, progress=progress)


class Trial:
    """A network, and the test images that it is tried on with units of `layers` masked.

    One layer of a network that can be traced: the network runs once an image up to there, and its tail once a mask;
    what stands before the tail is kept for further runs if it takes less than half of the memory. Otherwise the whole
    network runs for each mask.
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
        if world_size() > 1:
            raise InputError("ablation runs in one process")
        if memory_gib <= 0:
            raise InputError(f"memory_gib is {memory_gib}; allowed: more than 0")
        self.model, self.layers, self.memory = model, layers, memory_gib * 2**30
        self.batches = select_batches(data, batch_size=batch_size, workers=workers)
        self.names = class_names(data)
        self.read: list[_Batch] | None = None
        """All images, as far as the tail; None as long as they are not kept."""

    @cached_property
    def tail(self) -> Tail | NoTail:
        """The network, parted behind the layer: tried out on two images."""
        if len(self.layers) > 1:
            return NoTail("several layers")
        device = next(self.model.parameters()).device
        for images, _ in validate_batches(self.batches):
            return split(self.model, self.layers[0], images[[0, -1]].to(device))
        return NoTail("no images")

    @property
    def slow(self) -> str:
        """Why the whole network is run for each mask; empty if it is not."""
        return self.tail.why if isinstance(self.tail, NoTail) else ""

    def run(
        self,
        keeps: Sequence[Tensor],
        *,
        units: Sequence[int] = (),
        classes: Sequence[int] | None = None,
        progress: Progress | None = None,
    ) -> Ablation:
        """keeps: of each layer (S, units) bool, which units network s keeps. units, classes: as in an Ablation."""
        self._check(classes)
        tally = _Tally(len(keeps[0]), self.names, classes)
        done, keeping = 0, []
        with evaluating(self.model), torch.no_grad():
            for batch in self.read or self._batches():
                if isinstance(self.tail, Tail):
                    assert batch.given is not None
                    passes = self._by_tail(self.tail, batch.given, keeps[0])
                else:
                    assert batch.images is not None
                    passes = self._by_whole(batch.images, keeps)
                numbers = range(done, done + len(batch.labels))
                for (masks, part), output in passes:
                    tally.add(masks, output, batch.labels[part], batch.halves[part], numbers[part])
                done += len(batch.labels)
                if self._fits(batch):
                    keeping.append(batch)
                if progress is not None:
                    progress(done, count_images(self.batches))
        if done == 0:
            raise DataError("no images to ablate on")
        self.read = keeping if sum(len(batch.labels) for batch in keeping) == done else None
        removed = np.sum([(~keep).sum(dim=1).numpy() for keep in keeps], axis=0)
        how = f"the whole network for each mask: {self.slow}" if self.slow else "tail"
        return tally.ablation(tuple(layer.name for layer in self.layers), removed, tuple(units), how)

    def _check(self, classes: Sequence[int] | None) -> None:
        """Before anything is run: labels that are written down say whether there are images of each class."""
        if classes is not None and len(set(classes)) < len(classes):
            raise InputError(f"classes is {list(classes)}: one of them stands twice")
        data = getattr(self.batches, "dataset", None)
        if classes is not None and data is not None and has_labels(data):
            refuse_absent(classes, set(image_labels(data)), self.names)

    def _batches(self) -> Iterator[_Batch]:
        device = next(self.model.parameters()).device
        seen: Counter[int] = Counter()
        for images, labels in validate_batches(self.batches):
            on_device = images.to(device, non_blocking=True)
            halves = []
            for label in labels.tolist():
                halves.append(seen[label] % 2)
                seen[label] += 1
            given = self.tail.given(on_device) if isinstance(self.tail, Tail) else None
            yield _Batch(labels, torch.tensor(halves), on_device if given is None else None, given)

    def _fits(self, batch: _Batch) -> bool:
        """Whether what is given of all images may be kept: 0 images are not known to be few."""
        images = count_images(self.batches)
        return batch.given is not None and 0 < images * batch.given.image_bytes < self.memory / 2

    def _by_tail(self, tail: Tail, given: Given, keep: Tensor) -> Iterator[_Pass]:
        # What the tail makes of its input is about as large again, at each of a few steps.
        rows = max(1, min(ROWS, int(self.memory / (8 * given.image_bytes))))
        n_images = min(len(given), rows)
        n_masks = max(1, rows // n_images)
        keep = keep.to(given.kept.device)
        for image in range(0, len(given), n_images):
            part = slice(image, image + n_images)
            some = given.part(part)
            for first in range(0, len(keep), n_masks):
                masks = slice(first, first + n_masks)
                yield (masks, part), tail.logits(some, keep[masks]).flatten(0, 1)

    def _by_whole(self, images: Tensor, keeps: Sequence[Tensor]) -> Iterator[_Pass]:
        for number in range(len(keeps[0])):
            units = {
                layer.name: (~keep[number]).nonzero()[:, 0].tolist()
                for layer, keep in zip(self.layers, keeps, strict=True)
            }
            with mask(self.model, self.layers, units):
                yield (slice(number, number + 1), slice(None)), self.model(images)


_Pass = tuple[tuple[slice, slice], Any]
"""((which masks, which images of the batch), what the network says of them: (masks · images, classes))."""


@dataclass(frozen=True)
class _Batch:
    """halves: (images,) 0 or 1; images, or what the tail is given of them."""

    labels: Tensor
    halves: Tensor
    images: Tensor | None
    given: Given | None


class _Tally:
    """Adds up what each mask's network says of the images of either half."""

    def __init__(self, n_masks: int, names: tuple[str, ...], told: Sequence[int] | None) -> None:
        self.n_masks, self.names, self.told = n_masks, names, told
        self.images = torch.zeros(2, 0, dtype=torch.int64)

    def add(self, masks: slice, output: Any, labels: Tensor, halves: Tensor, numbers: range) -> None:
        every = labels.expand(len(range(self.n_masks)[masks]), -1)
        logits = float64_logits(output, every.flatten(), numbers)
        classes = logits.shape[1]
        if self.images.shape[1] == 0:
            self.images = torch.zeros(2, classes, dtype=torch.int64)
            self.hits, self.called = torch.zeros(2, self.n_masks, 2 * classes, dtype=torch.int64)
            self.loss = torch.zeros(self.n_masks, 2 * classes, dtype=torch.float64)
        logits = logits.view(*every.shape, classes)
        said = logits.argmax(dim=2)
        place, called = halves * classes + labels, halves * classes + said
        if masks.start == 0:
            self.images.view(-1).scatter_add_(0, place, torch.ones_like(place))
        self.called[masks].scatter_add_(1, called, torch.ones_like(said))
        self.hits[masks].scatter_add_(1, place.expand_as(said), (said == every).long())
        wanted = slice(None) if self.told is None else torch.isin(labels, torch.tensor(self.told))
        rows, of = logits[:, wanted].flatten(0, 1), every[:, wanted]
        loss = torch.nn.functional.cross_entropy(rows, of.flatten(), reduction="none").view_as(of)
        self.loss[masks].scatter_add_(1, place[wanted].expand_as(of), loss)

    def ablation(self, layers: tuple[str, ...], removed: Array, units: tuple[int, ...], how: str) -> Ablation:
        outputs = self.images.shape[1]
        names = self.names or tuple(map(str, range(outputs)))
        every = self.images.sum(dim=0).nonzero()[:, 0].tolist()
        told = every if self.told is None else list(self.told)
        refuse_absent(told, every, names)

        def of(images: Tensor, counts: Sequence[Tensor], halves: tuple[Ablation, ...] = ()) -> Ablation:
            hits, called, loss = (count[:, told].numpy() for count in counts)
            return Ablation(
                layers=layers, removed=removed, classes=tuple(names[number] for number in told),
                images=images[told].numpy(), all_images=int(images.sum()), hits=hits, called=called,
                loss=loss / images[told].clamp(min=1).numpy(), outputs=outputs, units=units, how=how, halves=halves,
            )  # fmt: skip

        # A class has places in both halves: one after the other.
        counts = [count.view(-1, 2, outputs) for count in (self.hits, self.called, self.loss)]
        halves = tuple(of(self.images[half], [count[:, half] for count in counts]) for half in (0, 1))
        return of(self.images.sum(dim=0), [count.sum(dim=1) for count in counts], halves)


def refuse_absent(classes: Iterable[int], there: Container[int], names: Sequence[str]) -> None:
    """DataError for a class without images."""
    for number in classes:
        if number not in there:
            name = repr(names[number]) if 0 <= number < len(names) else number
            raise DataError(f"class {name}: there are no images of it to ablate on")


def _layers_of(model: nn.Module, data: Images, names: Sequence[str]) -> Sequence[Layer]:
    example = first_image(select_batches(data, batch_size=1))
    return find_layers(model, example.to(next(model.parameters()).device), names)
