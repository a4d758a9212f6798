"""Ablation: mask the units of a layer, one after the other or each alone, and measure the accuracy that remains.

Zhao & Zhang, ICLR 2022, figure 12 and table 11. Scores are computed on training images, ablation on test images.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypedDict, Unpack, get_args

import torch
from pydantic import StrictBool, StrictFloat, StrictStr
from torch import Tensor, nn

from prune_fe.ablation.curves import Ablation, UnitAblation, join
from prune_fe.ablation.trial import Run, Trial
from prune_fe.data.batches import Images, first_image
from prune_fe.data.labels import class_names
from prune_fe.data.sampling import select_batches
from prune_fe.errors import InputError
from prune_fe.io import nearest
from prune_fe.options import Count, Natural, validate_value
from prune_fe.scoring.collection import Progress
from prune_fe.scoring.fingerprint import hash_weights
from prune_fe.scoring.scores import Scores
from prune_fe.tracing.layers import Layer, find_layers
from prune_fe.tracing.weights import require_network

Order = Literal["ascending", "descending"]
SHARES = tuple(number / 20 for number in range(21))


class Options(TypedDict, total=False):
    """Options of ablation: how the images are read, and the classes for which results are returned.

    Attributes:
        classes: Indices of the classes; default: all that have images.
        batch_size: Images that are read together.
        workers: Processes that read images.
        memory_gib: Memory in GiB for the layer's maps of all images, which are kept if they fit, and for the masked
            copies that are run together.
        progress: Called after each batch with the numbers of images read and of all images (0 if unknown).
    """

    classes: Sequence[int] | None
    batch_size: int
    workers: int
    memory_gib: float
    progress: Progress | None


def ablate(
    model: nn.Module,
    data: Images,
    scores: Scores,
    layer: str,
    order: Order = "ascending",
    *,
    every: int = 1,
    per_class: bool | None = None,
    **options: Unpack[Options],
) -> Ablation:
    """Mask the units of a layer one after the other, and measure the network after each (cumulative ablation).

    Figure 12 of the paper orders the units of each class by the class's own scores. Where the scores hold those
    (`Scores.of_class`), this is done here too; the mean over the classes would be another order.

    Args:
        model: The network.
        data: Test images. The balanced accuracy of a class is against the images of all other classes.
        scores: Scores of the network's units.
        layer: Name of the layer.
        order: The order of feature entropy, as in the paper; feature entropy is low where a score is high, so that
            "ascending" removes the units with the highest scores first and "descending" those with the lowest.
        every: How many units are removed between two measurements.
        per_class: Whether each class has the order of its own scores, or all the order of the scores of all classes.
            The default is True for scores that hold those of each class, and otherwise False. With True, results are
            of the classes that were scored.
        options: See `Options`.

    Raises:
        InputError: The layer does not exist or has no scores, the scores are of another network, or an option is out
            of range.
        DataError: A class has no images.
    """
    every = validate_value(Count, every, "every")
    target = _find_layers(model, data, [layer])[0]
    units = _removal_orders(scores, model, [target], order)[0]
    counts = sorted({*range(0, target.units, every), target.units})
    trial, run_options = _trial_and_run_options(model, data, [target], options)
    if not (scores.has_classes if per_class is None else validate_value(StrictBool, per_class, "per_class")):
        return trial.run([masks_without_first(units, counts)], units=units, **run_options)
    step = -1 if order == "ascending" else 1
    runs = []
    for number, name in _scored_classes(scores, data, run_options.pop("classes", None)):
        own = scores.of_class(name).weakest(layer, target.units)[::step]
        runs.append(Run([masks_without_first(own, counts)], own, [number]))
    return join(trial.run_all(runs, **run_options))


def _scored_classes(scores: Scores, data: Images, wanted: Sequence[int] | None) -> list[tuple[int, str]]:
    """Return the number in the data and the name of each class that is ablated with its own scores.

    Args:
        scores: The scores.
        data: The test images.
        wanted: Numbers of classes; None for all that were scored.

    Raises:
        InputError: A class was not scored, or the classes of the data have other names.
    """
    names = class_names(data)
    # Without names, classes are called by their numbers.
    known = {name: number for number, name in enumerate(names)} or {n: int(n) for n in scores.classes if n.isdigit()}
    missing = [name for name in scores.classes if name not in known]
    if missing:
        raise InputError(
            f"the scores are of a class {missing[0]!r}, which the images do not have; per_class=False takes "
            "one order for all classes"
        )
    scored = {known[name]: name for name in scores.classes}
    for number in wanted or ():
        if number not in scored:
            raise InputError(f"classes: class {number} has no scores; scored are {', '.join(scores.classes)}")
    return [(number, scored[number]) for number in (scored if wanted is None else wanted)]


def ablate_each(model: nn.Module, data: Images, layer: str, **options: Unpack[Options]) -> UnitAblation:
    """Mask each unit of a layer alone, and measure the network without it.

    The rank correlation of scores with the increase of the loss shows how well they predict it.

    Args:
        model: The network.
        data: Test images.
        layer: Name of the layer.
        options: See `Options`.

    Raises:
        InputError: The layer does not exist, or an option is out of range.
        DataError: A class has no images.
    """
    trial, run_options = _trial_and_run_options(model, data, _find_layers(model, data, [layer]), options)
    return trial.run_single_units(**run_options)


def ablate_layers(
    model: nn.Module,
    data: Images,
    scores: Scores,
    layers: Sequence[str],
    shares: Sequence[float] = SHARES,
    order: Order = "ascending",
    **options: Unpack[Options],
) -> Ablation:
    """Mask the same share of the units of every layer, for increasing shares, and measure the network at each.

    Args:
        model: The network.
        data: Test images.
        scores: Scores of the network's units.
        layers: Names of the layers.
        shares: Shares of units, ascending; the number of units is rounded down.
        order: As in `ablate`.
        options: See `Options`.

    Raises:
        InputError: A layer does not exist or has no scores, the scores are of another network, or an option is out of
            range.
        DataError: A class has no images.
    """
    validate_value(tuple[StrictFloat, ...], shares, "shares")
    if wrong := [share for share in shares if not 0 <= share <= 1]:
        raise InputError(f"shares: {wrong[0]} is out of range; allowed: 0 to 1")
    if not shares or list(shares) != sorted(shares):
        raise InputError(f"shares is {list(shares)}; it must hold one or more, ascending")
    targets = _find_layers(model, data, layers)
    orders = _removal_orders(scores, model, targets, order)
    masks = [masks_without_first(units, share_counts(len(units), shares)) for units in orders]
    trial, run_options = _trial_and_run_options(model, data, targets, options)
    return trial.run(masks, **run_options)


def masks_without_first(units: Sequence[int], counts: Sequence[int]) -> Tensor:
    """Return masks that remove the first units of an order.

    Args:
        units: All units in the order in which they are removed.
        counts: How many of the first ones each mask removes.

    Returns:
        Masks of shape (counts, units), bool, True for a unit that is kept.
    """
    masks = torch.ones(len(counts), len(units), dtype=torch.bool)
    for mask, count in zip(masks, counts, strict=True):
        mask[list(units[:count])] = False
    return masks


def share_counts(units: int, shares: Sequence[float]) -> list[int]:
    """Return how many of `units` units each share is, rounded down."""
    # 0.15 * 20 is slightly less than 3 in floating point.
    return [int(share * units + 1e-9) for share in shares]


def _trial_and_run_options(
    model: nn.Module, data: Images, layers: Sequence[Layer], options: Mapping[str, Any]
) -> tuple[Trial, dict[str, Any]]:
    """Return a trial made with those of the options that concern reading, and the options of its run."""
    for name in options:
        if name not in Options.__annotations__:
            raise InputError(f"{name}: unknown key; {nearest(name, Options.__annotations__)}")
    if options.get("classes") is not None:
        validate_value(tuple[Natural, ...], options["classes"], "classes")
    run_options = {name: value for name, value in options.items() if name in ("classes", "progress")}
    return Trial(model, data, layers, **{n: v for n, v in options.items() if n not in run_options}), run_options


def _removal_orders(scores: Scores, model: nn.Module, layers: Sequence[Layer], order: Order) -> list[tuple[int, ...]]:
    """Return the units of each layer in the order in which they are removed.

    Raises:
        InputError: The order is unknown, or the scores are not of these layers and this network.
    """
    if not isinstance(scores, Scores):
        raise InputError(f"scores is a {type(scores).__name__}; it must be what prune_fe.score returns")
    if order not in get_args(Order):
        raise InputError(f"order is {order!r}; allowed: {', '.join(get_args(Order))}")
    for layer in layers:
        if layer.name not in scores.keep:
            raise InputError(f"layer {layer.name!r} has no scores; scored are {', '.join(scores.keep)}")
        n_scores = len(scores.keep[layer.name])
        if n_scores != layer.units:
            raise InputError(
                f"layer {layer.name!r} has {layer.units} units, its scores are of {n_scores}: of another network, "
                "or of this one before it was pruned"
            )
    scored = scores.provenance.get("model_sha256")
    if scored is not None and scored != hash_weights(model):
        raise InputError(f"the scores of layer {layers[0].name!r} are of a network with other weights")
    step = -1 if order == "ascending" else 1
    return [tuple(scores.weakest(layer.name, layer.units)[::step]) for layer in layers]


def _find_layers(model: nn.Module, data: Images, names: Sequence[str]) -> Sequence[Layer]:
    require_network(model)
    names = validate_value(tuple[StrictStr, ...], names, "layers")
    example = first_image(select_batches(data, batch_size=1))
    return find_layers(model, example.to(next(model.parameters()).device), names)
