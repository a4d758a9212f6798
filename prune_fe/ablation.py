"""Ablation: what the units of a layer are worth, by taking them away one after the other, together or each alone.

Zhao & Zhang, ICLR 2022, figure 12 and table 11. Scores come from training images, ablation is watched on test images.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypedDict, Unpack, get_args

import numpy as np
import torch
from torch import Tensor, nn

from prune_fe.collecting import Progress
from prune_fe.data import Images, checked, class_names, first_images, images_in, select
from prune_fe.errors import DataError, InputError
from prune_fe.evaluation import class_logits
from prune_fe.layers import Layer, evaluating, find_layers, mask
from prune_fe.processes import world
from prune_fe.scores import Array, Scores
from prune_fe.scoring import weights_hash
from prune_fe.tails import NoTail, Tail, run_rest, split

Order = Literal["ascending", "descending"]
SHARES = tuple(number / 20 for number in range(21))

ROWS = 256
"""Images times masks that go through the tail together, if the memory allows."""


class Options(TypedDict, total=False):
    """How the images are read, and what is told of them.

    classes: which to tell of, by number; default all that have images. memory_gib: how much the masked copies of the
    maps that go through the tail together may take.
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

    @property
    def accuracy(self) -> Array:
        """(S, C): the share of the class's images that are called so."""
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
        """((C,), (C,)): the highest balanced accuracy, and at how many removed units it is first reached."""
        best = self.balanced_accuracy.argmax(axis=0)
        return np.take_along_axis(self.balanced_accuracy, best[None], axis=0)[0], self.removed[best]

    @property
    def units_until_chance(self) -> Array:
        """(C,): after how many units the accuracy is first at that of a guess or below; −1 if it never is."""
        low = self.accuracy <= 1 / self.outputs
        return np.where(low.any(axis=0), self.removed[low.argmax(axis=0)], -1)


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

    data: test images; those of other classes are what a class's balanced accuracy is against. order: of the scores,
    from the unit that goes first: "ascending" takes the worst first. every: how many units go between two looks.

    Raises InputError for a layer that there is not or that has no scores, and for scores of another network;
    DataError for a class without images.
    """
    if every < 1:
        raise InputError(f"every is {every}; allowed: 1 or more")
    found = _layers_of(model, data, [layer])[0]
    units = _orders(scores, model, [found], order)[0]
    keep = _without_first(units, sorted({*range(0, found.units, every), found.units}))
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
    found = _layers_of(model, data, layers)
    orders = _orders(scores, model, found, order)
    keeps = [_without_first(units, [int(share * len(units) + 1e-9) for share in shares]) for units in orders]
    return masked(model, data, found, keeps, **options)


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
    if scored is not None and scored != weights_hash(model):
        raise InputError(f"the scores of layer {layers[0].name!r} are of a network with other weights")
    direction = 1 if order == "ascending" else -1
    return [tuple(scores.weakest(layer.name, layer.units)[::direction]) for layer in layers]


def _without_first(units: Sequence[int], counts: Sequence[int]) -> Tensor:
    """(counts, units) bool: for each count which units are left when so many of the first are gone."""
    keep = torch.ones(len(counts), len(units), dtype=torch.bool)
    for row, count in zip(keep, counts, strict=True):
        row[list(units[:count])] = False
    return keep


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
    """What S networks make of the images: of each layer, network s keeps the units of keeps[layer][s] (S, units) bool.

    One layer of a network that can be traced: the network runs once an image up to there, and its tail once a mask.
    Otherwise the whole network runs for each mask.
    """
    if world() > 1:
        raise InputError("ablation runs in one process")
    if memory_gib <= 0:
        raise InputError(f"memory_gib is {memory_gib}; allowed: more than 0")
    device = next(model.parameters()).device
    batches = select(data, batch_size=batch_size, workers=workers)
    tally = _Tally(len(keeps[0]), class_names(data))
    total = 0
    tail: Tail | NoTail = NoTail("several layers")
    with evaluating(model), torch.no_grad():
        for images, labels in checked(batches):
            on_device = images.to(device, non_blocking=True)
            if total == 0 and len(layers) == 1:
                tail = split(model, layers[0], on_device[[0, -1]])
            if isinstance(tail, Tail):
                passes = _by_tail(tail, on_device, keeps[0].to(device), memory_gib)
            else:
                passes = _by_whole(model, on_device, layers, keeps)
            for which, output in passes:
                tally.add(which, output, labels)
            total += len(images)
            if progress is not None:
                progress(total, images_in(batches))
    if total == 0:
        raise DataError("no images to ablate on")
    removed = np.sum([(~keep).sum(dim=1).numpy() for keep in keeps], axis=0)
    how = "tail" if isinstance(tail, Tail) else f"the whole network for each mask: {tail.why}"
    return tally.ablation(tuple(layer.name for layer in layers), removed, tuple(units), how, classes)


Pass = tuple[tuple[slice, slice], Any]
"""((which masks, which images of the batch), what the network says of them: (masks · images, classes))."""


def _by_tail(tail: Tail, images: Tensor, keep: Tensor, memory_gib: float) -> Iterator[Pass]:
    values = tail.head(images)
    row_bytes = sum(
        value[0].numel() * value.element_size()
        for value, by_image in zip(values, tail.by_image, strict=True)
        if by_image
    )
    # What the tail makes of its input is about as large again, at each of a few steps.
    rows = max(1, min(ROWS, int(memory_gib * 2**30 / (4 * row_bytes))))
    n_images = min(len(images), rows)
    n_masks = max(1, rows // n_images)
    for image in range(0, len(images), n_images):
        part = slice(image, image + n_images)
        for first in range(0, len(keep), n_masks):
            which = slice(first, first + n_masks)
            some = [value[part] if by_image else value for value, by_image in zip(values, tail.by_image, strict=True)]
            yield (which, part), run_rest(tail, some, keep[which]).flatten(0, 1)


def _by_whole(model: nn.Module, images: Tensor, layers: Sequence[Layer], keeps: Sequence[Tensor]) -> Iterator[Pass]:
    for number in range(len(keeps[0])):
        units = {
            layer.name: (~keep[number]).nonzero()[:, 0].tolist() for layer, keep in zip(layers, keeps, strict=True)
        }
        with mask(model, layers, units):
            yield (slice(number, number + 1), slice(None)), model(images)


class _Tally:
    """Adds up what each mask's network says of the images."""

    def __init__(self, n_masks: int, names: tuple[str, ...]) -> None:
        self.n_masks, self.names = n_masks, names
        self.images = torch.zeros(0, dtype=torch.int64)

    def add(self, where: tuple[slice, slice], output: Any, labels: Tensor) -> None:
        masks, labels = where[0], labels[where[1]]
        every = labels.expand(len(range(self.n_masks)[masks]), -1)
        logits = class_logits(output, every.flatten())
        classes = logits.shape[1]
        if len(self.images) == 0:
            self.images = torch.zeros(classes, dtype=torch.int64)
            self.hits, self.called = torch.zeros(2, self.n_masks, classes, dtype=torch.int64)
            self.loss = torch.zeros(self.n_masks, classes, dtype=torch.float64)
        if masks.start == 0:
            self.images += torch.bincount(labels, minlength=classes)
        said = logits.argmax(dim=1).view_as(every)
        loss = torch.nn.functional.cross_entropy(logits, every.flatten(), reduction="none")
        self.called[masks].scatter_add_(1, said, torch.ones_like(said))
        self.hits[masks].scatter_add_(1, every, (said == every).long())
        self.loss[masks].scatter_add_(1, every, loss.view_as(every))

    def ablation(
        self, layers: tuple[str, ...], removed: Array, units: tuple[int, ...], how: str, classes: Sequence[int] | None
    ) -> Ablation:
        names = self.names or tuple(map(str, range(len(self.images))))
        every = [number for number, count in enumerate(self.images.tolist()) if count]
        for number in () if classes is None else classes:
            if number not in every:
                name = repr(names[number]) if 0 <= number < len(names) else number
                raise DataError(f"class {name}: there are no images of it to ablate on")
        told = every if classes is None else list(classes)
        hits, called, loss = self.hits, self.called, self.loss / self.images.clamp(min=1)
        return Ablation(
            layers=layers,
            removed=removed,
            classes=tuple(names[number] for number in told),
            images=self.images[told].numpy(),
            all_images=int(self.images.sum()),
            hits=hits[:, told].numpy(),
            called=called[:, told].numpy(),
            loss=loss[:, told].numpy(),
            outputs=len(self.images),
            units=units,
            how=how,
        )


def _layers_of(model: nn.Module, data: Images, names: Sequence[str]) -> Sequence[Layer]:
    example = first_images(select(data, batch_size=1))
    return find_layers(model, example.to(next(model.parameters()).device), names)
