"""Cumulative ablation of the networks of a recipe, by every scorer: figure 12 and table 11 of Zhao & Zhang, ICLR 2022.

Every class has an order of its own: of the scores of its own training images. What is done is kept in the run folder,
curve by curve.
"""

from __future__ import annotations

import dataclasses
import json
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args
from zipfile import BadZipFile

import numpy as np
import torch
from torch import nn

from prune_fe.ablation import Ablation, Order, Trial, join, without_first
from prune_fe.data import Rescaled, Splits, held_out, targets_of
from prune_fe.errors import CheckpointError, DataError, InputError
from prune_fe.layers import Layer, find_layers
from prune_fe.models import build
from prune_fe.recipe import Recipe, nearest
from prune_fe.recipe import Scorer as Entry
from prune_fe.results import RunFolder, environment
from prune_fe.run import Reporter, load_data, placed, prepare, scorer_for, trained
from prune_fe.scorers.base import Scorer
from prune_fe.scorers.random import Random
from prune_fe.scores import Array, weakest
from prune_fe.scoring import score_all
from prune_fe.stats import Estimate, bootstrap, kendall, spearman
from prune_fe.tables import Table

ORDERS: tuple[Order, ...] = get_args(Order)
FIRST = {"ascending": "best units first", "descending": "worst units first"}
CONTROL = "random"
SAVE_SECONDS = 30.0
"""A curve of many classes is written down this often."""


@dataclass(frozen=True)
class Network:
    """One trained network: for every scorer its ablations in both orders, and what each unit alone is worth.

    ablations: label -> order -> the ablation, over all classes. keep: label -> (classes, units). each: every unit
    alone. The control's labels are random-0, random-1, …
    """

    seed: int
    ablations: Mapping[str, Mapping[str, Ablation]]
    keep: Mapping[str, Array]
    each: Ablation


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
    every = load_data(recipe, report)
    if unknown := [name for name in classes or () if name not in every.classes]:
        raise InputError(f"class {unknown[0]!r}: no such class; {nearest(unknown[0], every.classes[:20])}")
    numbers = [every.classes.index(name) for name in classes or every.classes]
    for number in numbers:
        if number not in targets_of(every.test):
            raise DataError(f"class {every.classes[number]!r}: there are no images of it to ablate on")
    about, example = recipe.model, every.test[0][0][None].to(device)
    untrained = placed(build(about.name, len(every.classes), in_channels=every.channels, **about.arguments), device)
    name = find_layers(untrained, example, [layer] if layer is not None else None)[-1].name
    # So that what is wrong with a scorer is said before a network is trained.
    narrow = recipe.model_copy(update={"score": recipe.score.model_copy(update={"layers": [name]})})
    here = environment()
    folder.log("environment", **here)
    if not (folder.path / "env.json").exists():
        folder.write_json("env.json", here)
    networks = []
    for seed in recipe.seeds:
        splits = held_out(every, recipe.data.validation, seed)
        network = trained(narrow, splits, seed, folder, report, device)
        found = find_layers(network, example, [name])[0]
        networks.append(_ablated(recipe, seed, network, found, splits, numbers, folder, report))
    file = f"ablation-{re.sub(r'[^A-Za-z0-9.]', '-', name)}"
    tables = tabled(networks)
    text = "\n".join([f"## Cumulative ablation\n\n{about_of(networks, recipe)}\n", *(t.markdown() for t in tables)])
    folder.log("ablation", layer=name, classes=[every.classes[number] for number in numbers], how=networks[0].each.how)
    folder.write_table(f"{file}.csv", _by_class(networks))
    folder.write_table(f"{file}-curves.csv", _curves(networks))
    folder.write_text(f"{file}.md", text)
    report.say(about_of(networks, recipe))
    report.say(f"results: {folder.path}/{file}.csv, -curves.csv and .md")
    try:
        plot(networks, folder.path / f"{file}.svg")
        report.say(f"figure: {folder.path}/{file}.svg")
    except ImportError:
        report.say("no figure: matplotlib is missing (pip install 'prune-fe[plot]'); --resume draws it later")
    return tables


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
    place = folder.path / f"seed-{seed}" / "ablation" / re.sub(r"[^A-Za-z0-9.]", "-", layer.name)
    keep = _scored(recipe, seed, network, layer, splits, classes, place / "scores", report)
    settings = recipe.ablate
    test = Rescaled.at_random(splits.test, *settings.rescale, seed) if settings.rescale else splits.test
    trial = Trial(network, test, [layer], workers=recipe.workers, memory_gib=settings.memory_gib)
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
    if each.how != "tail":
        report.say(f"seed {seed}: {each.how}")
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
    own = {label: judge(0) for label, judge in judges.items() if not _compares_classes(judge(0))}
    comparing = {f"{label}.{c}": judges[label](c) for label in judges.keys() - own.keys() for c in classes}
    options: dict[str, Any] = {
        "layers": [layer.name], "samples": recipe.score.samples, "seed": seed, "batch_size": recipe.score.batch_size,
        "workers": recipe.workers, "example": splits.test[0][0][None],
    }  # fmt: skip
    found: dict[str, list[Array]] = {label: [] for label in judges}
    bar = report.progress(f"seed {seed}: scoring class by class")
    if comparing:
        scores = score_all(
            network, splits.train, comparing, classes=recipe.score.classes, folder=place / "all",
            progress=report.progress(f"seed {seed}: scoring by comparing classes"), **options,
        )  # fmt: skip
        for label in judges.keys() - own.keys():
            found[label] = [scores[f"{label}.{c}"].keep[layer.name] for c in classes]
    for done, c in enumerate(classes, 1):
        if own:
            scores = score_all(network, splits.train, own, classes=[c], folder=place / f"class-{c:03}", **options)
            for label in own:
                found[label].append(scores[label].keep[layer.name])
        bar(done, len(classes))
    for number in range(recipe.ablate.control_seeds):
        control = Random(1000 * seed + number).score(network, [layer], {})[layer.name].keep.numpy()
        found[f"{CONTROL}-{number}"] = [control] * len(classes)
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


def scorers_of(networks: Sequence[Network]) -> dict[str, list[str]]:
    """Scorer -> its labels: of the control all its seeds."""
    labels = list(networks[0].keep)
    controls = [label for label in labels if re.fullmatch(rf"{CONTROL}-\d+", label)]
    return {label: [label] for label in labels if label not in controls} | {CONTROL: controls}


def per_class(
    networks: Sequence[Network], labels: Sequence[str], order: str, value: Callable[[Ablation], Array]
) -> Array:
    """(classes,): the mean over the networks and labels."""
    return np.mean([value(network.ablations[label][order]) for network in networks for label in labels], axis=0)


def agreement(networks: Sequence[Network], labels: Sequence[str], of: Callable[[Array, Array], float]) -> Array:
    """(classes,): how far a scorer ranks the units as the loss does that their class suffers without each of them."""
    found = []
    for network in networks:
        suffered = network.each.loss[1:] - network.each.loss[0]
        for label in labels:
            found.append([of(row, suffered[:, number]) for number, row in enumerate(network.keep[label])])
    return np.mean(found, axis=0)


def about_of(networks: Sequence[Network], recipe: Recipe) -> str:
    """What the tables are of, and how their intervals are made."""
    each, scorers = networks[0].each, scorers_of(networks)
    seeds, images = ", ".join(str(network.seed) for network in networks), each.images
    few = f"{images.min()}" if images.min() == images.max() else f"{images.min()} to {images.max()}"
    rescaled = recipe.ablate.rescale and f", each multiplied by a random factor from {recipe.ablate.rescale}"
    return (
        f"Layer {each.layers[0]!r} of {recipe.model.name}, {len(each.classes)} classes with {few} test images each"
        f"{rescaled or ''}; networks of seed {seeds}; {CONTROL}: the mean of {len(scorers[CONTROL])} orders for each "
        f"network. Means over the classes with 95 % intervals (bootstrap over classes; differences are paired)."
    )


def tabled(networks: Sequence[Network]) -> list[Table]:
    """The curves' summaries by order, table 11, and how far the scores agree with what each unit alone is worth."""
    scorers = scorers_of(networks)
    tables = []
    for order in ORDERS:
        areas = {name: per_class(networks, labels, order, lambda a: a.area) for name, labels in scorers.items()}
        rows = {
            name: {
                "area under accuracy": bootstrap(areas[name]),
                f"difference to {CONTROL}": _difference(areas[name], areas[CONTROL], name),
                "peak accuracy": bootstrap(per_class(networks, labels, order, lambda a: a.peak[0])),
                "after units": bootstrap(per_class(networks, labels, order, lambda a: a.peak[1])),
                "units until chance": _until_chance(networks, labels, order),
            }
            for name, labels in scorers.items()
        }
        forms = {"area under accuracy": ".3f", f"difference to {CONTROL}": "+.3f", "peak accuracy": ".3f"}
        forms |= {"after units": ".0f", "units until chance": ""}
        lowest = order == "ascending"
        verdict = _verdict(areas, "falls fastest (least area)" if lowest else "stays longest (most area)", lowest)
        tables.append(Table(f"Ablation, {order}: {FIRST[order]}", forms, rows, verdict))
    return [*tables, _table_11(networks, scorers), _table_of_agreement(networks, scorers)]


def _table_11(networks: Sequence[Network], scorers: Mapping[str, Sequence[str]]) -> Table:
    plain, best, held = (
        {name: per_class(networks, labels, "descending", value) for name, labels in scorers.items()}
        for value in (lambda a: a.balanced_accuracy[0], lambda a: a.peak_balanced[0], lambda a: a.peak_held_out)
    )
    told = np.isfinite(held[CONTROL])
    if not told.any():
        raise DataError("table 11 needs at least two test images of a class, one for each half")
    rows = {
        name: {
            "unchanged": bootstrap(plain[name]),
            "best": bootstrap(best[name]),
            "enhanced by": bootstrap(best[name] - plain[name]),
            "chosen on the other half": bootstrap(held[name][told]),
            "enhanced by, on the other half": bootstrap((held[name] - plain[name])[told]),
            f"difference to {CONTROL}": _difference(held[name][told], held[CONTROL][told], name),
        }
        for name in scorers
    }
    forms = dict.fromkeys(next(iter(rows.values())), ".3f") | {f"difference to {CONTROL}": "+.3f"}
    verdict = _verdict({name: values[told] for name, values in held.items()}, "peaks highest", lowest=False)
    why = (
        "Balanced accuracy of the class against the rest along the descending curve. 'best' picks the number of "
        "removed units on the images that it is reported on, which flatters it; 'chosen on the other half' does not."
    )
    return Table("Table 11: the best balanced accuracy", forms, rows, f"{verdict} {why}")


def _table_of_agreement(networks: Sequence[Network], scorers: Mapping[str, Sequence[str]]) -> Table:
    found = {name: agreement(networks, labels, spearman) for name, labels in scorers.items()}
    rows = {
        name: {
            "Spearman's ρ": bootstrap(found[name]),
            "Kendall's τ": bootstrap(agreement(networks, labels, kendall)),
            f"ρ, difference to {CONTROL}": _difference(found[name], found[CONTROL], name),
        }
        for name, labels in scorers.items()
    }
    forms = dict.fromkeys(next(iter(rows.values())), ".3f") | {f"ρ, difference to {CONTROL}": "+.3f"}
    verdict = _verdict(found, "agrees best", lowest=False)
    why = "Rank correlation of a class's scores with the loss that its test images suffer without each unit alone."
    return Table("Scores and single units", forms, rows, f"{verdict} {why}")


def _difference(values: Array, control: Array, name: str) -> Estimate | str:
    return "" if name == CONTROL else bootstrap(values - control)


def _until_chance(networks: Sequence[Network], labels: Sequence[str], order: str) -> str:
    """The median over the classes that come down to chance, and how many do."""
    found = np.concatenate(
        [network.ablations[label][order].units_until_chance for network in networks for label in labels]
    )
    reached = found[found >= 0]
    share = f" ({len(reached) / len(found):.0%} of classes)" if len(reached) < len(found) else ""
    return f"{np.median(reached):.0f}{share}" if len(reached) else "never"


def _verdict(values: Mapping[str, Array], does: str, lowest: bool) -> str:
    """Who is best, and who cannot be told apart from it."""
    sign = -1 if lowest else 1
    best = max(values, key=lambda name: float(sign * values[name].mean()))
    even = [name for name in values if name != best and not bootstrap(values[best] - values[name]).not_zero]
    apart = (
        f"; not told apart from it: {', '.join(even)}." if even else "; the interval tells it apart from all others."
    )
    return f"{best} {does}{apart}"


def _by_class(networks: Sequence[Network]) -> list[dict[str, Any]]:
    """A line a network, label, order and class."""
    rows = []
    for network in networks:
        suffered = network.each.loss[1:] - network.each.loss[0]
        for label, orders in network.ablations.items():
            for order, found in orders.items():
                (peak, peak_at), (best, best_at) = found.peak, found.peak_balanced
                columns = {
                    "area": found.area, "accuracy": found.accuracy[0], "peak_accuracy": peak, "peak_after": peak_at,
                    "units_until_chance": found.units_until_chance, "balanced_accuracy": found.balanced_accuracy[0],
                    "best_balanced_accuracy": best, "best_after": best_at,
                    "best_balanced_accuracy_held_out": found.peak_held_out, "loss": found.loss[0],
                }  # fmt: skip
                for number, name in enumerate(found.classes):
                    row = {"seed": network.seed, "scorer": label, "order": order, "class": name}
                    row |= {column: values[number].item() for column, values in columns.items()}
                    row["spearman_single_unit"] = spearman(network.keep[label][number], suffered[:, number])
                    rows.append(row)
    return rows


def _curves(networks: Sequence[Network]) -> list[dict[str, Any]]:
    """A line a network, label, order and number of removed units: the means over the classes."""
    return [
        {
            "seed": network.seed, "scorer": label, "order": order, "removed": int(removed),
            "accuracy": float(found.accuracy[step].mean()),
            "balanced_accuracy": float(found.balanced_accuracy[step].mean()), "loss": float(found.loss[step].mean()),
        }
        for network in networks
        for label, orders in network.ablations.items()
        for order, found in orders.items()
        for step, removed in enumerate(found.removed)
    ]  # fmt: skip


def plot(networks: Sequence[Network], path: Path) -> None:
    """Figure 12: accuracy and loss against the number of removed units, in both orders, by every scorer; means over the
    classes, bands from the least to the largest over networks and control seeds, the area under accuracy in the legend.
    """
    from matplotlib.figure import Figure

    scorers = scorers_of(networks)
    figure = Figure(figsize=(12, 9), layout="constrained")
    panels = figure.subplots(2, 2, sharex=True)
    for column, order in enumerate(ORDERS):
        for row, quantity in enumerate(("accuracy", "loss")):
            axes = panels[row][column]
            for number, (name, labels) in enumerate(scorers.items()):
                found = [network.ablations[label][order] for network in networks for label in labels]
                curves = np.array([getattr(each, quantity).mean(axis=1) for each in found])
                area = per_class(networks, labels, order, lambda a: a.area).mean()
                style = {"color": "0.3", "linestyle": "--"} if name == CONTROL else {"color": f"C{number % 10}"}
                if number >= 10:
                    style["linestyle"] = ":"
                width = 2.4 if name == "feature-entropy" else 1.4
                axes.plot(found[0].removed, curves.mean(axis=0), linewidth=width, label=f"{name}  {area:.3f}", **style)
                if len(curves) > 1:
                    low, high = curves.min(axis=0), curves.max(axis=0)
                    axes.fill_between(found[0].removed, low, high, color=style["color"], alpha=0.15, linewidth=0)
            axes.spines[["top", "right"]].set_visible(False)
            axes.set_ylabel(f"test {quantity}" + (" (nats)" if quantity == "loss" else ""))
            if row == 0:
                axes.set_title(f"{order}: {FIRST[order]}")
                axes.set_ylim(bottom=0)
            else:
                axes.set_xlabel("units removed")
                place = {"loc": "upper center", "bbox_to_anchor": (0.5, -0.13), "ncols": 3, "frameon": False}
                axes.legend(title="area under accuracy", fontsize="small", title_fontsize="small", **place)
    figure.suptitle(
        f"Cumulative ablation of {networks[0].each.layers[0]}, mean over {len(networks[0].each.classes)} classes"
    )
    figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)
