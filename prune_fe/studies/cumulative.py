"""Cumulative ablation of the networks of a recipe, by every scorer: figure 12 and table 11 of Zhao & Zhang, ICLR 2022.

Every class has an order of its own: of the scores of its own training images. What is done is kept in the run folder,
curve by curve.
"""

from __future__ import annotations

import dataclasses
import fnmatch
import hashlib
import json
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import torch
from torch import Tensor, nn

from prune_fe.ablation.trial import SHARES, Ablation, Trial, counts_of, join, refuse_absent, without_first
from prune_fe.data.images import Rescaled, Splits, held_out, targets_of
from prune_fe.errors import CheckpointError, InputError
from prune_fe.experiment.recipe import Recipe
from prune_fe.experiment.recipe import Scorer as Entry
from prune_fe.experiment.run import Reporter, load_data, placed, prepare, scorer_for, trained, untrained, write_figure
from prune_fe.experiment.run_folder import RunFolder
from prune_fe.io import nearest, safe_file_name
from prune_fe.report.tables import Table
from prune_fe.scorers.base import Scorer
from prune_fe.scorers.random import Random
from prune_fe.scoring.score import check_judge, score_all
from prune_fe.scoring.scores import Array, Scores, weakest
from prune_fe.studies.cumulative_report import (
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
from prune_fe.tracing.feature_maps import Layer, find_layers

SAVE_SECONDS = 30.0
"""A curve of many classes is written down this often."""


def ablation_study(
    recipe: Recipe,
    folder: RunFolder,
    report: Reporter,
    layers: Sequence[str] | None = None,
    classes: Sequence[str] | None = None,
) -> list[Table]:
    """Take the units of a layer (default: the last convolution) away in the order of each of the recipe's scorers, for
    each of its seeds, and watch the test images of `classes` (names, default all). Of several layers (names, or
    patterns for convolutions such as 'layer4.*') the same share of each is taken, in steps of 5 %.

    Writes, for the layers, ablation-*.csv (a line a network, scorer, order and class), ablation-*-curves.csv (the means
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
    targets = _targets(fresh, example, layers)
    names, recipe = [layer.name for layer in targets], _able(recipe, fresh, targets, example, every, report)
    # So that what is wrong with the images is said before a network is trained.
    narrow = recipe.model_copy(update={"score": recipe.score.model_copy(update={"layers": names})})
    folder.log_environment()
    networks = []
    for seed in recipe.seeds:
        splits = held_out(every, recipe.data.validation, seed)
        network = trained(narrow, splits, seed, folder, report, device)
        found = find_layers(network, example, names)
        networks.append(_ablated(recipe, seed, network, found, splits, numbers, folder, report))
    file = f"ablation-{_name_of(names)}"
    tables = tabled(networks)
    text = "\n".join([f"## Cumulative ablation\n\n{about_of(networks, recipe)}\n", *(t.markdown() for t in tables)])
    told = [every.classes[number] for number in numbers]
    folder.log("ablation", layers=names, classes=told, how=networks[0].any.how)
    folder.write_table(f"{file}.csv", by_class(networks))
    folder.write_table(f"{file}-curves.csv", curves(networks))
    folder.write_text(f"{file}.md", text)
    report.say(about_of(networks, recipe))
    report.say(f"results: {folder.path}/{file}.csv, -curves.csv and .md")
    write_figure(folder, f"{file}.svg", lambda path: plot(networks, path), report)
    return tables


def _targets(network: nn.Module, example: Tensor, names: Sequence[str] | None) -> tuple[Layer, ...]:
    """The layers of these names and patterns, default the last convolution."""
    if names is None:
        return find_layers(network, example)[-1:]
    patterns = {name for name in names if "*" in name or "?" in name}
    there = [layer.name for layer in find_layers(network, example)] if patterns else []
    wanted: list[str] = []
    for name in names:
        if name in patterns:
            matching = fnmatch.filter(there, name)
            if not matching:
                raise InputError(f"layer {name!r}: no convolution is called so; there are {', '.join(there)}")
            wanted += matching
        else:
            wanted.append(name)
    found = find_layers(network, example, list(dict.fromkeys(wanted)))
    inside = [(a.name, b.name) for a in found for b in found if b.name.startswith(f"{a.name}.")]
    if inside:
        raise InputError("layer {!r} holds {!r}: of these only one".format(*inside[0]))
    return found


def _name_of(names: Sequence[str]) -> str:
    """For files: of several layers their number and a hash of their names, which the tables write out."""
    if len(names) == 1:
        return safe_file_name(names[0])
    return f"{len(names)}-layers-{hashlib.sha256(json.dumps(names).encode()).hexdigest()[:8]}"


def _able(
    recipe: Recipe, network: nn.Module, layers: Sequence[Layer], example: Tensor, splits: Splits, report: Reporter
) -> Recipe:
    """The recipe without the scorers that cannot judge the layers, such as those of filters where one is a block."""
    labels, left = targets_of(splits.train), []
    images = recipe.score.samples or min(Counter(labels).values())
    for entry in recipe.scorers:
        judge = scorer_for(entry, recipe.seeds[0])
        try:
            check_judge(judge, network, layers, example, images, set(labels))
        except InputError as error:
            if len(recipe.scorers) == 1:
                raise
            report.say(f"{entry.label} is left out: {error}")
        else:
            left.append(entry)
    if not left:
        raise InputError(f"layer {', '.join(layer.name for layer in layers)}: none of the scorers can judge it")
    return recipe.model_copy(update={"scorers": left})


def _ablated(
    recipe: Recipe,
    seed: int,
    network: nn.Module,
    layers: Sequence[Layer],
    splits: Splits,
    classes: Sequence[int],
    folder: RunFolder,
    report: Reporter,
) -> Network:
    """The ablations of one network, from the folder as far as they lie there."""
    place = folder.path / f"seed-{seed}" / "ablation" / _name_of([layer.name for layer in layers])
    keep = _scored(recipe, seed, network, layers, splits, classes, place / "scores", report)
    settings = recipe.ablate
    test = Rescaled.at_random(splits.test, *settings.rescale, seed) if settings.rescale else splits.test
    trial = Trial(network, test, layers, workers=recipe.workers, memory_gib=settings.memory_gib)
    if why := trial.slow:  # said before it takes hours
        report.say(f"seed {seed}: the whole network is run for each mask, which is slow: {why}")
    done, total = 0, (2 * len(keep) + (len(layers) == 1)) * len(classes)
    bar = report.progress(f"seed {seed}: ablating")

    def tick(n_classes: int) -> None:
        nonlocal done
        done += n_classes
        bar(done, total)

    names, bounds = [splits.classes[number] for number in classes], np.cumsum([layer.units for layer in layers])[:-1]
    each = None
    if len(layers) == 1:
        units = layers[0].units
        alone = torch.cat([torch.ones(1, units, dtype=torch.bool), ~torch.eye(units, dtype=torch.bool)])
        nothing = np.zeros((len(classes), 0), dtype=np.int64)
        each = _kept(place / "each.npz", names, nothing, lambda _: [alone], classes, trial, tick)
        counts = [sorted({*range(0, units, settings.every), units})]
    else:
        counts = [counts_of(layer.units, SHARES) for layer in layers]

    def masks(row: Array) -> list[Tensor]:
        parts = np.split(row, bounds)
        return [without_first(part.tolist(), of_layer) for part, of_layer in zip(parts, counts, strict=True)]

    ablations: dict[str, dict[str, Ablation]] = {}
    for label, values in keep.items():
        ablations[label] = {}
        for order in ORDERS:
            step = -1 if order == "ascending" else 1
            rows = [[weakest(part, len(part))[::step] for part in np.split(row, bounds)] for row in values]
            orders, path = np.array([np.concatenate(parts) for parts in rows]), place / f"{label}.{order}.npz"
            ablations[label][order] = _kept(path, names, orders, masks, classes, trial, tick)
    return Network(seed, ablations, keep, each)


def _scored(
    recipe: Recipe,
    seed: int,
    network: nn.Module,
    layers: Sequence[Layer],
    splits: Splits,
    classes: Sequence[int],
    place: Path,
    report: Reporter,
) -> dict[str, Array]:
    """Label -> keep (classes, units of all layers one after the other): by the class's own training images, where a
    scorer reads any."""
    of_layers = [layer.name for layer in layers]

    def keep(scores: Scores) -> Array:
        return np.concatenate([scores.keep[name] for name in of_layers])

    judges = {entry.label: _of_class(entry, seed) for entry in recipe.scorers if entry.name != CONTROL}
    plain = {label: judge(0) for label, judge in judges.items() if not judge(0).compares_classes}
    own = {label: judge for label, judge in plain.items() if judge.needs_data}
    of_weights = {label: judge for label, judge in plain.items() if not judge.needs_data}
    comparing = {f"{label}.{c}": judges[label](c) for label in judges.keys() - plain.keys() for c in classes}
    options: dict[str, Any] = {
        "layers": of_layers, "samples": recipe.score.samples, "seed": seed, "batch_size": recipe.score.batch_size,
        "workers": recipe.workers, "example": splits.test[0][0][None],
    }  # fmt: skip
    found: dict[str, list[Array]] = {label: [] for label in judges}
    bar = report.progress(f"seed {seed}: scoring class by class")
    if of_weights:
        scores = score_all(network, None, of_weights, folder=place / "weights", **options)
        found |= {label: [keep(scores[label])] * len(classes) for label in of_weights}
    if comparing:
        tick = report.progress(f"seed {seed}: scoring by comparing classes")
        scores = score_all(network, splits.train, comparing, folder=place / "all", progress=tick, **options)
        for label in judges.keys() - plain.keys():
            found[label] = [keep(scores[f"{label}.{c}"]) for c in classes]
    for done, c in enumerate(classes, 1):
        if own:
            scores = score_all(network, splits.train, own, classes=[c], folder=place / f"class-{c:03}", **options)
            for label in own:
                found[label].append(keep(scores[label]))
        bar(done, len(classes))
    for number in range(recipe.ablate.control_seeds):
        control = Random(1000 * seed + number).score(network, layers, {})
        values = np.concatenate([control[name].keep.numpy() for name in of_layers])
        found[control_label(number)] = [values] * len(classes)
    return {label: np.array(rows) for label, rows in found.items()}


def _of_class(entry: Entry, seed: int) -> Callable[[int], Scorer]:
    """Class -> the recipe's scorer for a study of it."""
    return scorer_for(entry, seed).for_class


def _kept(
    path: Path,
    names: Sequence[str],
    orders: Array,
    masks: Callable[[Array], list[Tensor]],
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
        whole = trial.run(masks(orders[0]), units=orders[0].tolist(), classes=classes)
        _save(path, [whole], np.tile(orders[0], (len(names), 1)))
        tick(len(names))
        return whole
    saved = time.monotonic()
    for name, order, number in zip(names, orders, classes, strict=True):
        if name in parts:
            continue
        known[name] = parts[name] = trial.run(masks(order), units=order.tolist(), classes=[number])
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
