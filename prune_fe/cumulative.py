"""Cumulative ablation of the networks of a recipe, by every scorer: figure 12 and table 11 of Zhao & Zhang, ICLR 2022.

Every class has an order of its own: of the scores of its own training images. What is done is kept in the run folder,
curve by curve.
"""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import torch
from torch import Tensor, nn

from prune_fe.ablation import Ablation, Trial, join, refuse_absent, without_first
from prune_fe.cumulative_report import (
    CONTROL,
    ORDERS,
    Network,
    about_of,
    by_class,
    control_label,
    curves,
    plot,
    tabled,
)
from prune_fe.data import Rescaled, Splits, held_out, targets_of
from prune_fe.errors import CheckpointError, InputError
from prune_fe.layers import Layer, find_layers
from prune_fe.recipe import Recipe, nearest
from prune_fe.recipe import Scorer as Entry
from prune_fe.results import RunFolder, file_name
from prune_fe.run import Reporter, load_data, placed, prepare, scorer_for, trained, untrained
from prune_fe.scorers.base import Scorer
from prune_fe.scorers.random import Random
from prune_fe.scores import Array, weakest
from prune_fe.scoring import score_all
from prune_fe.tables import Table
from prune_fe.tails import NoTail, split

SAVE_SECONDS = 30.0
"""A curve of many classes is written down this often."""


def ablation_study(
    recipe: Recipe,
    folder: RunFolder,
    report: Reporter,
    layer: str | None = None,
    classes: Sequence[str] | None = None,
) -> list[Table]:
    """Take the units of a layer (default: the last convolution) away in the order of each of the recipe's scorers, for
    each of its seeds, and watch the test images of `classes` (names, default all).

    Writes, for the layer, ablation-*.csv (a line a network, scorer, order and class), ablation-*-curves.csv (the means
    over the classes), ablation-*.md with the tables that are returned, and ablation-*.svg. What lies in the folder of
    an earlier call is not done again.
    """
    device = prepare(recipe.device, recipe.threads)
    for entry in recipe.scorers:
        if entry.name != CONTROL and entry.label == CONTROL:
            raise InputError(f"scorers: the label {CONTROL!r} is the control's, give {entry.name!r} another one")
        if entry.name == CONTROL:
            report.say(f"{entry.label} is left out: the control is {recipe.ablate.control_seeds} random orders")
    every = load_data(recipe, report)
    if unknown := [name for name in classes or () if name not in every.classes]:
        raise InputError(f"class {unknown[0]!r}: no such class; {nearest(unknown[0], every.classes[:20])}")
    numbers = [every.classes.index(name) for name in classes or every.classes]
    if len(set(numbers)) < len(numbers):
        raise InputError("classes: one of them stands twice")
    refuse_absent(numbers, set(targets_of(every.test)), every.classes)
    example, fresh = every.test[0][0][None].to(device), placed(untrained(recipe.model, every), device)
    target = find_layers(fresh, example, [layer] if layer is not None else None)[-1]
    name, recipe = target.name, _able(recipe, fresh, target, example, every, report)
    # So that what is wrong with the images is said before a network is trained.
    narrow = recipe.model_copy(update={"score": recipe.score.model_copy(update={"layers": [name]})})
    folder.log_environment()
    networks = []
    for seed in recipe.seeds:
        splits = held_out(every, recipe.data.validation, seed)
        network = trained(narrow, splits, seed, folder, report, device)
        found = find_layers(network, example, [name])[0]
        networks.append(_ablated(recipe, seed, network, found, splits, numbers, folder, report))
    file = f"ablation-{file_name(name)}"
    tables = tabled(networks)
    text = "\n".join([f"## Cumulative ablation\n\n{about_of(networks, recipe)}\n", *(t.markdown() for t in tables)])
    folder.log("ablation", layer=name, classes=[every.classes[number] for number in numbers], how=networks[0].each.how)
    folder.write_table(f"{file}.csv", by_class(networks))
    folder.write_table(f"{file}-curves.csv", curves(networks))
    folder.write_text(f"{file}.md", text)
    report.say(about_of(networks, recipe))
    report.say(f"results: {folder.path}/{file}.csv, -curves.csv and .md")
    try:
        plot(networks, folder.path / f"{file}.svg")
        report.say(f"figure: {folder.path}/{file}.svg")
    except ImportError:
        report.say("no figure: matplotlib is missing (pip install 'prune-fe[plot]'); --resume draws it later")
    return tables


def _able(
    recipe: Recipe, network: nn.Module, layer: Layer, example: Tensor, splits: Splits, report: Reporter
) -> Recipe:
    """The recipe without the scorers that cannot judge the layer, such as those of filters where it is a block."""
    labels, left = targets_of(splits.train), []
    images = recipe.score.samples or min(labels.count(label) for label in set(labels))
    for entry in recipe.scorers:
        judge = scorer_for(entry, recipe.seeds[0])
        try:
            judge.check([layer], images, set(labels))
            if judge.needs_data:
                judge.observed(network, [layer], example)
            else:
                judge.score(network, [layer], {}, example)
        except InputError as error:
            if len(recipe.scorers) == 1:
                raise
            report.say(f"{entry.label} is left out: {error}")
        else:
            left.append(entry)
    if not left:
        raise InputError(f"layer {layer.name!r}: none of the scorers can judge it")
    return recipe.model_copy(update={"scorers": left})


def _ablated(
    recipe: Recipe,
    seed: int,
    network: nn.Module,
    layer: Layer,
    splits: Splits,
    classes: Sequence[int],
    folder: RunFolder,
    report: Reporter,
) -> Network:
    """The ablations of one network, from the folder as far as they lie there."""
    place = folder.path / f"seed-{seed}" / "ablation" / file_name(layer.name)
    keep = _scored(recipe, seed, network, layer, splits, classes, place / "scores", report)
    settings = recipe.ablate
    test = Rescaled.at_random(splits.test, *settings.rescale, seed) if settings.rescale else splits.test
    trial = Trial(network, test, [layer], workers=recipe.workers, memory_gib=settings.memory_gib)
    device = next(network.parameters()).device
    parted = split(network, layer, torch.stack([test[0][0], test[len(targets_of(test)) - 1][0]]).to(device))
    if isinstance(parted, NoTail):  # said before it takes hours
        report.say(f"seed {seed}: the whole network is run for each mask, which is slow: {parted.why}")
    done, total = 0, (2 * len(keep) + 1) * len(classes)
    bar = report.progress(f"seed {seed}: ablating")

    def tick(n_classes: int) -> None:
        nonlocal done
        done += n_classes
        bar(done, total)

    names = [splits.classes[number] for number in classes]
    alone = torch.cat([torch.ones(1, layer.units, dtype=torch.bool), ~torch.eye(layer.units, dtype=torch.bool)])
    nothing = np.zeros((len(classes), 0), dtype=np.int64)
    each = _kept(place / "each.npz", names, nothing, lambda _: alone, classes, trial, tick)
    counts = sorted({*range(0, layer.units, settings.every), layer.units})
    ablations: dict[str, dict[str, Ablation]] = {}
    for label, values in keep.items():
        ablations[label] = {}
        for order in ORDERS:
            units = np.array([weakest(row, layer.units) for row in values])
            units = units[:, ::-1] if order == "ascending" else units
            path = place / f"{label}.{order}.npz"
            ablations[label][order] = _kept(
                path, names, units, lambda row: without_first(row, counts), classes, trial, tick
            )
    return Network(seed, ablations, keep, each)


def _scored(
    recipe: Recipe,
    seed: int,
    network: nn.Module,
    layer: Layer,
    splits: Splits,
    classes: Sequence[int],
    place: Path,
    report: Reporter,
) -> dict[str, Array]:
    """Label -> keep (classes, units): by the class's own training images, where a scorer reads any."""
    judges = {entry.label: _of_class(entry, seed) for entry in recipe.scorers if entry.name != CONTROL}
    plain = {label: judge(0) for label, judge in judges.items() if not _compares_classes(judge(0))}
    own = {label: judge for label, judge in plain.items() if judge.needs_data}
    of_weights = {label: judge for label, judge in plain.items() if not judge.needs_data}
    comparing = {f"{label}.{c}": judges[label](c) for label in judges.keys() - plain.keys() for c in classes}
    options: dict[str, Any] = {
        "layers": [layer.name], "samples": recipe.score.samples, "seed": seed, "batch_size": recipe.score.batch_size,
        "workers": recipe.workers, "example": splits.test[0][0][None],
    }  # fmt: skip
    found: dict[str, list[Array]] = {label: [] for label in judges}
    bar = report.progress(f"seed {seed}: scoring class by class")
    if of_weights:
        scores = score_all(network, None, of_weights, folder=place / "weights", **options)
        found |= {label: [scores[label].keep[layer.name]] * len(classes) for label in of_weights}
    if comparing:
        tick = report.progress(f"seed {seed}: scoring by comparing classes")
        scores = score_all(network, splits.train, comparing, folder=place / "all", progress=tick, **options)
        for label in judges.keys() - plain.keys():
            found[label] = [scores[f"{label}.{c}"].keep[layer.name] for c in classes]
    for done, c in enumerate(classes, 1):
        if own:
            scores = score_all(network, splits.train, own, classes=[c], folder=place / f"class-{c:03}", **options)
            for label in own:
                found[label].append(scores[label].keep[layer.name])
        bar(done, len(classes))
    for number in range(recipe.ablate.control_seeds):
        control = Random(1000 * seed + number).score(network, [layer], {})[layer.name].keep.numpy()
        found[control_label(number)] = [control] * len(classes)
    return {label: np.array(rows) for label, rows in found.items()}


def _of_class(entry: Entry, seed: int) -> Callable[[int], Scorer]:
    """Class -> the recipe's scorer for a study of it."""

    def judge(label: int) -> Scorer:
        scorer = scorer_for(entry, seed)
        return dataclasses.replace(scorer, of=label) if _compares_classes(scorer) else scorer  # type: ignore[type-var]

    return judge


def _compares_classes(scorer: Scorer) -> bool:
    return hasattr(scorer, "of")


def _kept(
    path: Path,
    names: Sequence[str],
    orders: Array,
    masks: Callable[[Sequence[int]], torch.Tensor],
    classes: Sequence[int],
    trial: Trial,
    tick: Callable[[int], None],
) -> Ablation:
    """The ablation of all classes, each with its own order of the units, from `path` as far as it lies there."""
    known = _load(path, orders.shape[1])
    parts: dict[str, Ablation] = {}
    for name, order in zip(names, orders.tolist(), strict=True):
        if name in known and known[name].units != tuple(order):
            raise InputError(f"{path}: is of other scores than these; choose another run folder")
        if name in known:
            parts[name] = known[name]
    tick(len(parts))
    if not parts and (orders == orders[0]).all():
        whole = trial.run([masks(orders[0].tolist())], units=orders[0].tolist(), classes=classes)
        _save(path, [whole], np.tile(orders[0], (len(names), 1)))
        tick(len(names))
        return whole
    saved = time.monotonic()
    for number, (name, order) in enumerate(zip(names, orders.tolist(), strict=True)):
        if name in parts:
            continue
        known[name] = parts[name] = trial.run([masks(order)], units=order, classes=[classes[number]])
        tick(1)
        if time.monotonic() - saved > SAVE_SECONDS or len(parts) == len(names):
            _save(path, list(known.values()), np.array([part.units for part in known.values()]))
            saved = time.monotonic()
    return join([parts[name] for name in names])


def _save(path: Path, parts: Sequence[Ablation], units: Array) -> None:
    """One file, whole or not at all."""
    joined = join(parts)
    arrays = {
        f"{half}/{name}": getattr(joined.halves[half], name)
        for half in (0, 1)
        for name in ("images", "hits", "called", "loss")
    }
    about = {
        "layers": joined.layers, "classes": joined.classes, "outputs": joined.outputs, "how": joined.how,
        "all_images": [half.all_images for half in joined.halves],
    }  # fmt: skip
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}")
    with partial.open("wb") as file:
        np.savez_compressed(
            file, allow_pickle=False, about=np.array(json.dumps(about)), units=units, removed=joined.removed, **arrays
        )
    partial.replace(path)


def _load(path: Path, n_units: int) -> dict[str, Ablation]:
    """Class -> its ablation, of what lies at `path`."""
    if not path.exists():
        return {}
    try:
        with path.open("rb") as content, np.load(content, allow_pickle=False) as file:
            about, arrays = json.loads(str(file["about"])), {name: file[name] for name in file.files}
        found = {}
        for number, name in enumerate(about["classes"]):
            at = slice(number, number + 1)
            common = {
                "layers": tuple(about["layers"]), "removed": arrays["removed"], "classes": (name,),
                "outputs": about["outputs"], "how": about["how"],
                "units": tuple(arrays["units"].reshape(len(about["classes"]), n_units)[number].tolist()),
            }  # fmt: skip
            halves = [
                Ablation(
                    images=arrays[f"{half}/images"][at], all_images=about["all_images"][half],
                    **{key: arrays[f"{half}/{key}"][:, at] for key in ("hits", "called", "loss")}, **common,
                )
                for half in (0, 1)
            ]  # fmt: skip
            found[name] = _whole(halves)
        return found
    except (OSError, ValueError, KeyError, TypeError, EOFError, BadZipFile) as error:
        raise CheckpointError(f"{path}: damaged ({error}); delete it, and it is made again") from error


def _whole(halves: Sequence[Ablation]) -> Ablation:
    """What two halves of the images are together."""
    first, second = halves
    images = first.images + second.images
    return dataclasses.replace(
        first, images=images, all_images=first.all_images + second.all_images, hits=first.hits + second.hits,
        called=first.called + second.called, halves=tuple(halves),
        loss=sum(half.loss * half.images for half in halves) / images,
    )  # fmt: skip
