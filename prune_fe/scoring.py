"""Score the units of a network: the images through the model once, each map measured as soon as it exists."""

from __future__ import annotations

import difflib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import reduce
from typing import Any

import torch
from torch import Tensor, nn

from prune_fe.data import Batches, Images, checked, class_names, first_images, images_in, select
from prune_fe.errors import DataError, InputError
from prune_fe.layers import Layer, convolutions, evaluating, find_layers, observe
from prune_fe.processes import gather
from prune_fe.scorers import SCORERS
from prune_fe.scorers.base import Scorer, Sums
from prune_fe.scores import Scores

Progress = Callable[[int, int], None]
"""Called with (images done, images in all or 0 when unknown)."""


def score(
    model: nn.Module,
    data: Images | None = None,
    scorer: str | Scorer = "feature-entropy",
    *,
    layers: Sequence[str] | None = None,
    classes: int | Sequence[int] | None = None,
    samples: int | None = None,
    seed: int = 0,
    batch_size: int = 64,
    workers: int = 0,
    example: Tensor | None = None,
    progress: Progress | None = None,
) -> Scores:
    """Score every unit of `model` (any nn.Module) with one scorer.

    data: a data set of (image, label), or an iterable of batches (images, labels) such as a DataLoader; None for a
    scorer that reads weights only. From a data set, `samples` images of each class are drawn with `seed`, of
    `classes` (how many, or which; default all). layers: names of modules; default every convolution with a map.

    The model is left as it was: weights, mode, hooks and gradients. Under torch.distributed each process measures
    its share of the images, and every process returns the same scores.
    """
    label, judge = scorer_of(scorer)
    if not isinstance(model, nn.Module):
        raise InputError(f"model is {model!r}; it must be an nn.Module")
    device = next(model.parameters()).device
    batches: Batches = []
    if judge.needs_data:
        if data is None:
            raise InputError(f"scorer {label!r} needs images: pass data=")
        batches = select(data, classes, samples, seed, batch_size, workers)
        example = first_images(batches) if example is None else example
    found = find_layers(model, example.to(device), layers) if example is not None else convolutions(model, layers)
    judge.check(found)

    start = time.perf_counter()
    names: tuple[str, ...] = ()
    sums: dict[str, Sums] = {layer.name: {} for layer in found}
    counts = torch.zeros(0, dtype=torch.int64)
    if judge.needs_data:
        names = class_names(data) or tuple(map(str, range(_outputs(model, batches))))
        sums, counts = collect(model, found, judge, batches, len(names), progress)
    results = judge.score(model, found, sums)
    return Scores(
        scorer=label,
        keep={name: result.keep.cpu().numpy() for name, result in results.items()},
        raw=_by_quantity({name: result.raw for name, result in results.items()}),
        classes=tuple(name for name, count in zip(names, counts.tolist(), strict=True) if count),
        images=int(counts.sum()),
        seconds=time.perf_counter() - start,
        settings=asdict(judge),  # type: ignore[call-overload]
    )


def collect(
    model: nn.Module,
    layers: Sequence[Layer],
    scorer: Scorer,
    batches: Batches,
    classes: int,
    progress: Progress | None = None,
) -> tuple[dict[str, Sums], Tensor]:
    """(layer name -> sums over all images, images of each class), over all processes of torch.distributed."""
    device = next(model.parameters()).device
    totals = {layer.name: _Total() for layer in layers}
    counts = torch.zeros(classes, dtype=torch.int64)
    labels = torch.empty(0)

    def read(layer: Layer, maps: Tensor) -> None:
        try:
            totals[layer.name].add(scorer.measure(maps, labels, classes))
        except InputError as error:
            raise InputError(f"layer {layer.name!r}: {error}") from error

    done = 0
    with evaluating(model), torch.no_grad(), observe(model, layers, read):
        for images, labels in checked(batches):
            if odd := [label for label in labels.tolist() if not 0 <= label < classes]:
                raise DataError(f"label {odd[0]}: the data has {classes} classes, labels are 0 to {classes - 1}")
            model(images.to(device, non_blocking=True))
            counts += torch.bincount(labels, minlength=classes)
            done += len(labels)
            if progress is not None:
                progress(done, images_in(batches))
    if done == 0:
        raise DataError("no images to score with")
    for name, total in totals.items():
        if not total.parts:
            raise InputError(f"layer {name!r}: its maps were not reached in any forward pass")
    shares = gather(({name: total.sums() for name, total in totals.items()}, counts))
    sums = {name: reduce(add, (share[name] for share, _ in shares)) for name in totals}
    return sums, torch.stack([count for _, count in shares]).sum(dim=0)


def scorer_of(scorer: str | Scorer, settings: Mapping[str, Any] | None = None) -> tuple[str, Scorer]:
    """(name, scorer) of a scorer or its name; InputError with the nearest names for an unknown one."""
    if isinstance(scorer, Scorer):
        names = [name for name in SCORERS if SCORERS[name] is type(scorer)]
        return (names[0] if names else type(scorer).__name__), scorer
    if scorer not in SCORERS:
        close = difflib.get_close_matches(str(scorer), SCORERS, n=1)
        hint = f"did you mean {close[0]!r}? " if close else ""
        raise InputError(f"unknown scorer {scorer!r}; {hint}there are {', '.join(SCORERS)}")
    return scorer, SCORERS[scorer].with_settings(scorer, settings or {})


def add(a: Sums, b: Sums) -> Sums:
    """The only reduction there is."""
    return {key: (a[key] + b[key]).coalesce() if a[key].is_sparse else a[key] + b[key] for key in a}


class _Total:
    """A running sum. Parts of about equal age are added first (a binary counter), so that a large sparse total is
    rewritten O(log batches) times and not once a batch."""

    def __init__(self) -> None:
        self.parts: list[tuple[int, Sums]] = []

    def add(self, sums: Sums) -> None:
        age = 0
        while self.parts and self.parts[-1][0] == age:
            sums, age = add(self.parts.pop()[1], sums), age + 1
        self.parts.append((age, sums))

    def sums(self) -> Sums:
        return reduce(add, (sums for _, sums in reversed(self.parts)))


def _outputs(model: nn.Module, batches: Batches) -> int:
    """How many classes the model tells apart."""
    with evaluating(model), torch.no_grad():
        output = model(first_images(batches).to(next(model.parameters()).device))
    if not isinstance(output, Tensor) or output.ndim != 2:
        raise InputError("the model does not return logits (images, classes): pass a data set that has `classes`")
    return output.shape[1]


def _by_quantity(raw: Mapping[str, Mapping[str, Tensor]]) -> dict[str, dict[str, Any]]:
    quantities: dict[str, dict[str, Any]] = {}
    for layer, values in raw.items():
        for quantity, value in values.items():
            quantities.setdefault(quantity, {})[layer] = value.cpu().numpy()
    return quantities
