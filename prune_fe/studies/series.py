"""Series of measurements on a recipe's network: how many images, how many classes, which ratio.

Figures 7, 8 and 13 of Zhao & Zhang, ICLR 2022. The tables are also in the run folder, as CSV and Markdown, with a
figure where matplotlib is installed.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset, Subset

from prune_fe.data.images import Splits, checked, choose, held_out, loader, targets_of
from prune_fe.errors import CheckpointError, DataError, InputError
from prune_fe.experiment import recipe as recipes
from prune_fe.experiment.recipe import Recipe
from prune_fe.experiment.recipe import Scorer as Entry
from prune_fe.experiment.results import UNPRUNED, Row
from prune_fe.experiment.run import (
    Reporter,
    compress,
    load_data,
    measured,
    placed,
    prepare,
    scored,
    trained,
    untrained,
    write_figure,
)
from prune_fe.experiment.run_folder import RunFolder
from prune_fe.io import safe_file_name, write_json
from prune_fe.measure.statistics import Estimate, spearman
from prune_fe.report.tables import Table
from prune_fe.scorers import resolve_scorer
from prune_fe.scorers.base import LayerScore
from prune_fe.scorers.feature_entropy import FeatureEntropy, mean_with_infinite
from prune_fe.scoring.scores import Array, Scores
from prune_fe.tracing.feature_maps import Layer, evaluating, find_layers, observe

ENTROPY, CONTROL = "feature-entropy", "random"
SIZES = (50, 100, 500)
"""Images of a class in figure 7."""

RATIOS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
GOALS = (0.9, 0.95)
"""Rank correlations of two draws for which the advice names the number of images."""

SAME, ANEW = "same classes", "classes drawn anew"


@dataclass(frozen=True)
class Births:
    """What feature entropy knows of a layer, image by image, so that any choice of images can be scored.

    values: (images, units), 0 = no hole. labels: (images,), the class of each.
    """

    judge: FeatureEntropy
    values: Array
    labels: Array

    @classmethod
    def of(
        cls, network: nn.Module, layer: Layer, images: Dataset[Any], judge: FeatureEntropy, batch_size: int = 64,
        workers: int = 0, progress: Callable[[int, int], None] = lambda done, total: None,
    ) -> Births:  # fmt: skip
        """From one pass of the images through the network."""
        device = next(network.parameters()).device
        values: list[Tensor] = []
        labels: list[int] = []
        total = len(targets_of(images))

        def read(layer: Layer, maps: Tensor) -> None:
            values.append(judge.characteristic(maps).cpu().long())

        with evaluating(network), torch.no_grad(), observe(network, [layer], read):
            for batch, of_batch in checked(loader(images, batch_size, workers)):
                network(batch.to(device, non_blocking=True))
                labels += of_batch.tolist()
                progress(len(labels), total)
        return cls(judge, torch.cat(values).numpy(), np.array(labels))

    @cached_property
    def members(self) -> list[Array]:
        """The numbers of each class's images."""
        return [np.flatnonzero(self.labels == label) for label in np.unique(self.labels)]

    @cached_property
    def codes(self) -> tuple[Array, int]:
        """(values numbered in their order (images, units), how many there are): H asks which are equal and which are
        zero, and an integral of a Betti curve can be too large to count up to."""
        known, codes = np.unique(np.append(self.values, 0), return_inverse=True)
        return codes[:-1].reshape(self.values.shape), len(known)

    def score(self, images: Array) -> LayerScore:
        """What prune_fe.score finds for the images of these numbers (n,)."""
        codes, n_values = self.codes
        present, classes = np.unique(self.labels[images], return_inverse=True)
        shape = (len(present), codes.shape[1], n_values)
        where = (classes[:, None] * shape[1] + np.arange(shape[1])) * n_values + codes[images]
        counts = np.bincount(where.ravel(), minlength=math.prod(shape)).reshape(shape)
        return self.judge.score_layer({"births": torch.from_numpy(counts)})

    def quantities(self, images: Array) -> tuple[Array, Array]:
        """(H in nats, H/ε), each (units,), of images of one class."""
        raw = self.score(images).raw
        return raw["feature_entropy_nats"][0].numpy(), raw["entropy_per_rate_nats"][0].numpy()


@dataclass(frozen=True)
class Sample:
    """What draws of `size` images of each class differ by.

    mean, spread: (classes, units), mean and standard deviation of H over the draws, in nats. layer: (draws, classes),
    the mean of H over the units. agreement: number of classes -> column -> (pairs of draws,), rank correlations of the
    units' H/ε; of classes drawn anew only where there are as many others. disjoint: no image is in both draws of a
    pair.
    """

    size: int
    disjoint: bool
    mean: Array
    spread: Array
    layer: Array
    agreement: Mapping[int, Mapping[str, Array]]


def samples_study(
    recipe: Recipe,
    folder: RunFolder,
    report: Reporter,
    seed: int | None = None,
    layer: str | None = None,
    sizes: Sequence[int] = SIZES,
    draws: int = 100,
) -> list[Table]:
    """Figures 7 and 8: how far feature entropy depends on which training images are drawn, and how many are enough.

    For each of `sizes`, `draws` times as many images of each of the recipe's scoring classes are drawn, without
    replacement; of `layer` (default: the last convolution) every unit is scored on them. The network sees each image
    once.
    """
    if draws < 2:
        raise InputError(f"draws={draws}: a spread needs at least 2")
    if not sizes or min(sizes) < 1:
        raise InputError(f"sizes={tuple(sizes)}: allowed are numbers of images, 1 or more")
    seed, device, splits = _begun(recipe, report, seed)
    entry = next((entry for entry in recipe.scorers if entry.name == ENTROPY), Entry.model_validate(ENTROPY))
    judge = resolve_scorer(ENTROPY, entry.settings)
    assert isinstance(judge, FeatureEntropy)
    chosen = choose(splits.train, recipe.score.classes, None, seed)
    labels = np.array(targets_of(splits.train))[chosen]
    possible = _possible(sizes, labels, report)
    example, fresh = splits.test[0][0][None].to(device), placed(untrained(recipe.model, splits), device)
    found = find_layers(fresh, example, [layer] if layer is not None else None)[-1]
    judge.check([found], len(chosen), labels.tolist())
    # Only this layer and scorer are to be judged, so that the faults of the others are none.
    narrow = recipe.model_copy(
        update={"scorers": [entry], "score": recipe.score.model_copy(update={"layers": [found.name], "samples": None})}
    )
    folder.log_environment()
    network = trained(narrow, splits, seed, folder, report, device)
    births = Births.of(
        network, found, Subset(splits.train, chosen), judge, recipe.score.batch_size, recipe.workers,
        report.progress("birth times"),
    )  # fmt: skip
    samples = [drawn(births, size, draws, seed, report.progress(f"draws of {size}")) for size in possible]
    name = f"study-samples-seed-{seed}-{safe_file_name(found.name)}"
    folder.write_table(f"{name}-draws.csv", _of_draws(samples))
    folder.write_table(f"{name}-units.csv", _of_units(samples))
    tables = [_table_of_spread(births, samples), _table_of_agreement(samples)]
    what = f"layer {found.name!r} ({found.units} units), {len(births.members)} classes, {entry.label}"
    _write(
        folder, report, name, f"samples: seed {seed}, {what}", tables,
        [row for table in tables for row in table.entries()],
        lambda path: _plot_samples(samples, found.name, path),
    )  # fmt: skip
    return tables


def drawn(
    births: Births,
    size: int,
    draws: int,
    seed: int,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Sample:
    """Draw `size` images of each class `draws` times, in pairs, and compare."""
    generator = np.random.default_rng([seed, size])
    shape = (draws, len(births.members), births.values.shape[1])
    entropy, ratio = np.empty(shape), np.empty(shape)
    for first in range(0, draws, 2):
        for c, members in enumerate(births.members):
            pair = _pair(members, size, generator)
            for draw, images in zip(range(first, min(first + 2, draws)), pair, strict=False):
                entropy[draw, c], ratio[draw, c] = births.quantities(images)
        progress(min(first + 2, draws), draws)
    return Sample(
        size, 2 * size <= min(map(len, births.members)), entropy.mean(axis=0), entropy.std(axis=0, ddof=1),
        entropy.mean(axis=2), {k: _agreement(ratio, k, size, generator) for k in ladder(shape[1])},
    )  # fmt: skip


def _pair(members: Array, size: int, generator: np.random.Generator) -> tuple[Array, Array]:
    """Two draws of `size` out of members (n,), without common images where there are enough."""
    order = generator.permutation(members)
    rest = order[size:] if 2 * size <= len(members) else generator.permutation(members)
    return order[:size], rest[:size]


def _agreement(ratio: Array, k: int, size: int, generator: np.random.Generator) -> dict[str, Array]:
    """Column -> Spearman's ρ of the units' H/ε over `k` classes, for each pair of draws. ratio: (draws, classes,
    units)."""

    def ranked(draw: int, classes: Array) -> Array:
        return mean_with_infinite(torch.from_numpy(ratio[draw, classes]), size).numpy()

    found: dict[str, list[float]] = {SAME: []}
    for first in range(0, len(ratio) - 1, 2):
        order = generator.permutation(ratio.shape[1])
        classes, others = order[:k], order[k : 2 * k]
        one = ranked(first, classes)
        found[SAME].append(spearman(one, ranked(first + 1, classes)))
        if len(others) == k:
            found.setdefault(ANEW, []).append(spearman(one, ranked(first + 1, others)))
    return {column: np.array(values) for column, values in found.items()}


def ladder(most: int) -> list[int]:
    """1, 2, 5, 10, 20, 50, … and `most`.

    >>> ladder(30)
    [1, 2, 5, 10, 20, 30]
    """
    steps = (digit * 10**power for power in range(len(str(most))) for digit in (1, 2, 5))
    return sorted({step for step in steps if step < most} | {most})


def advice(samples: Sequence[Sample]) -> str:
    """The least number of images for which two draws agree, for each goal and column."""
    means = {
        column: {
            (sample.size, k): float(found[column].mean())
            for sample in samples
            for k, found in sample.agreement.items()
            if column in found
        }
        for column in (SAME, ANEW)
    }
    shared, said = {sample.size for sample in samples if not sample.disjoint}, []
    for column, known in means.items():
        if not known:
            said.append(f"{column}: there are no other classes")
        for goal in GOALS if known else ():
            if enough := [pair for pair, mean in known.items() if mean >= goal]:
                own = [pair for pair in enough if pair[0] not in shared]  # sharing images, two draws agree anyhow
                size, k = min(own or enough, key=lambda pair: (math.prod(pair), -known[pair]))
                each = f"{size} of {'one class' if k == 1 else f'each of {k} classes'}"
                where = ", where two draws share images" if size in shared else ""
                said.append(f"{column}: a mean correlation of {goal} takes {size * k} images, {each}{where}")
            else:
                said.append(
                    f"{column}: none reaches a mean correlation of {goal}, the best is {max(known.values()):.2f}"
                )
    return "; ".join(said) + "."


def _possible(sizes: Sequence[int], labels: Array, report: Reporter) -> list[int]:
    """The sizes, ascending, that the smallest class has."""
    have = int(np.unique(labels, return_counts=True)[1].min())
    possible = sorted({size for size in sizes if size <= have})
    if not possible:
        raise DataError(f"draws of {min(sizes)} images: the smallest class has {have} training images")
    for size in sorted(set(sizes) - set(possible)):
        report.say(f"draws of {size} images are left out: the smallest class has {have} training images")
    return possible


def _table_of_spread(births: Births, samples: Sequence[Sample]) -> Table:
    whole = np.array([births.quantities(members)[0] for members in births.members])
    rows = {
        f"{sample.size} images": {
            "a unit's H": [float(sample.mean.mean())],
            "away from all images": [float(abs(sample.mean - whole).mean())],
            "spread": [float(sample.spread.mean())],
            "spread, worst unit": [float(sample.spread.max())],
            "layer's mean H": sample.layer.mean(axis=1).tolist(),
            "its spread, one class": [float(sample.layer.std(axis=0, ddof=1).mean())],
        }
        for sample in samples
    }
    least = min(map(len, births.members))
    note = (
        f"H in nats, of one class; {len(samples[0].layer)} draws; means over units and classes. Spread: standard "
        "deviation over the draws; of the layer's mean over all classes it stands in brackets. Away: of the mean over "
        f"the draws from H of all images of the class, {least} or more; it falls to 0, as the spread does, where "
        "a draw takes them all."
    )
    return Table("H and the number of images (figures 7, 8)", dict.fromkeys(rows[next(iter(rows))], ".3f"), rows, note)


def _table_of_agreement(samples: Sequence[Sample]) -> Table:
    rows = {
        f"{sample.size} × {k} {'class' if k == 1 else 'classes'}": {
            "images": [sample.size * k],
            **{column: _percentiles(found[column]) if column in found else "–" for column in (SAME, ANEW)},
        }
        for sample in samples
        for k, found in sample.agreement.items()
    }
    shared = [str(sample.size) for sample in samples if not sample.disjoint]
    common = f" (which share images in draws of {', '.join(shared)} and agree the more: a class has too few for two)"
    note = (
        f"Spearman's ρ of the units' H/ε between two draws{common if shared else ', which share no image'}, mean and "
        f"percentiles 2.5 and 97.5 over {len(samples[0].layer) // 2} pairs of draws. {SAME}: only the images are drawn "
        f"again; {ANEW}: the second draw is of other classes, where there are as many. {advice(samples)}"
    )
    return Table("Two draws: the order of the units", {"images": "d", SAME: ".3f", ANEW: ".3f"}, rows, note)


def _percentiles(values: Array) -> Estimate:
    low, high = np.percentile(values, [2.5, 97.5])
    return Estimate(float(values.mean()), float(low), float(high), len(values))


def _of_draws(samples: Sequence[Sample]) -> list[dict[str, Any]]:
    """A line a draw."""
    return [
        {"size": sample.size, "draw": draw, "layer_entropy_nats": float(value)}
        for sample in samples
        for draw, value in enumerate(sample.layer.mean(axis=1))
    ]


def _of_units(samples: Sequence[Sample]) -> list[dict[str, Any]]:
    """A line a unit, means over the classes."""
    return [
        {"size": sample.size, "unit": unit, "entropy_nats": float(mean), "spread_nats": float(spread)}
        for sample in samples
        for unit, (mean, spread) in enumerate(zip(sample.mean.mean(axis=0), sample.spread.mean(axis=0), strict=True))
    ]


@dataclass(frozen=True)
class Point:
    """One pruned network. classes, images: what it was scored on, 0 = none. ratio: as the recipe has it. Accuracies on
    the test images; accuracy_pruned is None where the rounds of pruning were fine-tuned."""

    scorer: str
    seed: int
    classes: int
    images: int
    ratio: Any
    accuracy_pruned: float | None
    accuracy_finetuned: float | None
    parameters: int
    macs: int

    @property
    def cells(self) -> dict[str, list[Any]]:
        accuracies = {"after pruning": self.accuracy_pruned, "fine-tuned": self.accuracy_finetuned}
        known: dict[str, list[Any]] = {column: [value] for column, value in accuracies.items() if value is not None}
        return known | {"parameters": [self.parameters], "multiply-adds": [self.macs]}


@dataclass(frozen=True)
class Start:
    """What every point starts from."""

    network: nn.Module
    splits: Splits
    unpruned: Row
    folder: RunFolder

    @property
    def point(self) -> Point:
        row = self.unpruned
        return Point(UNPRUNED, row.seed, 0, 0, 0.0, row.accuracy, None, row.parameters, row.macs)


CELLS = {"after pruning": ".2%", "fine-tuned": ".2%", "parameters": ",d", "multiply-adds": ",d"}


def classes_study(
    recipe: Recipe,
    folder: RunFolder,
    report: Reporter,
    seed: int | None = None,
    counts: Sequence[int] | None = None,
    ratio: float | None = None,
) -> list[Table]:
    """Figure 13 A: accuracy after pruning by feature entropy against the number of classes that it is scored on.

    counts: numbers of classes, drawn with the seed; default 1, 2, 5, 10, … and all. ratio: default what the recipe
    prunes. Units in random order are the control. A point that lies in the folder is not measured again.
    """
    entries = [entry for entry in recipe.scorers if entry.name == ENTROPY]
    if not entries:
        have = ", ".join(entry.label for entry in recipe.scorers)
        raise InputError(f"scorers: {have}; a study of the number of classes needs {ENTROPY}")
    if any(entry.label == CONTROL for entry in entries):
        raise InputError(f"scorers: the label {CONTROL!r} is the control's, give {ENTROPY!r} another one")
    if ratio is not None:
        recipe = _with_ratio(recipe, ratio)
    seed, device, splits = _begun(recipe, report, seed)
    there = len(splits.classes)
    if counts is not None and (not counts or min(counts) < 1 or max(counts) > there):
        raise InputError(f"counts={tuple(counts)}: the data has {there} classes, allowed are numbers from 1 to {there}")
    variants = {k: _with_classes(recipe, k) for k in (sorted(set(counts)) if counts else ladder(there))}
    control = Entry.model_validate(CONTROL)
    folder.log_environment()
    hardest = _with_scorers(variants[max(variants)], [*entries, control])
    network = trained(hardest, splits, seed, folder, report, device)
    place = folder.path / f"seed-{seed}" / f"study-classes-{'recipe' if ratio is None else repr(float(ratio))}"
    start = _start(network, splits, recipe, seed, folder)
    points = _points(_with_scorers(recipe, [control]), start, report, place, place / "scores")
    by_count: dict[str, dict[int, Point]] = {entry.label: {} for entry in entries}
    for k, variant in variants.items():
        where = place / f"classes-{k}"
        found = _points(_with_scorers(variant, entries), start, report, where, where / "scores")
        for point in found:
            by_count[point.scorer][k] = point
    unpruned, goal = start.point, _goal(recipe)
    tables = [
        Table(
            f"Accuracy and the number of classes: {label} (figure 13 A)", {"images": ",d"} | CELLS,
            {UNPRUNED: unpruned.cells, CONTROL: points[0].cells}
            | {f"K = {k}": {"images": [point.images]} | point.cells for k, point in of_label.items()},
            f"{_about(splits)} {goal}; {CONTROL}: units in one random order.",
        )
        for label, of_label in by_count.items()
    ]  # fmt: skip
    every = [unpruned, *points, *(point for of_label in by_count.values() for point in of_label.values())]
    name = f"study-classes-seed-{seed}" + ("" if ratio is None else f"-ratio-{float(ratio)!r}")
    lines = by_count | {CONTROL: dict.fromkeys(variants, points[0])}
    _write(
        folder, report, name, f"classes: seed {seed}, {goal}", tables, map(asdict, every),
        lambda path: _plot_points(lines, unpruned, "number of classes K", path, log=True),
    )  # fmt: skip
    return tables


def ratio_study(
    recipe: Recipe,
    folder: RunFolder,
    report: Reporter,
    seed: int | None = None,
    ratios: Sequence[float] = RATIOS,
) -> list[Table]:
    """Figure 13 B: accuracy after pruning by each of the recipe's scorers against the pruning ratio.

    A point that lies in the folder is not measured again, and is told of as well; scores are those of the recipe's run
    in the same folder.
    """
    if not ratios:
        raise InputError("ratios: none given, at least one is needed")
    seed, device, splits = _begun(recipe, report, seed)
    known = _finished_ratios(folder.path / f"seed-{seed}", recipe)
    variants = {float(ratio): _with_ratio(recipe, ratio) for ratio in sorted({*ratios, *known})}
    folder.log_environment()
    network = trained(recipe, splits, seed, folder, report, device)
    start, kept = _start(network, splits, recipe, seed, folder), folder.path / f"seed-{seed}"
    by_ratio: dict[str, dict[float, Point]] = {entry.label: {} for entry in recipe.scorers}
    for ratio, variant in variants.items():
        place = kept / f"study-ratio-{ratio!r}"
        for point in _points(variant, start, report, place, kept):
            by_ratio[point.scorer][ratio] = point
    unpruned = start.point
    tables = [
        Table(
            f"Accuracy and the pruning ratio: {label} (figure 13 B)", CELLS,
            {UNPRUNED: unpruned.cells} | {f"{ratio:g}": point.cells for ratio, point in of_label.items()},
            _about(splits),
        )
        for label, of_label in by_ratio.items()
    ]  # fmt: skip
    every = [unpruned, *(point for of_label in by_ratio.values() for point in of_label.values())]
    _write(
        folder, report, f"study-ratio-seed-{seed}", f"ratio: seed {seed}", tables, map(asdict, every),
        lambda path: _plot_points(by_ratio, unpruned, "pruning ratio", path),
    )  # fmt: skip
    return tables


def _finished_ratios(place: Path, recipe: Recipe) -> list[float]:
    """Those that all of the recipe's scorers have been measured at, by an earlier call: its table tells of all."""
    return [
        float(path.name.removeprefix("study-ratio-"))
        for path in place.glob("study-ratio-*")
        if all((path / f"{entry.label}.json").exists() for entry in recipe.scorers)
    ]


def _points(recipe: Recipe, start: Start, report: Reporter, place: Path, scores: Path) -> list[Point]:
    """One for each of the recipe's scorers, in `place` as far as they lie there. scores: where these are kept."""
    paths = {entry.label: place / f"{entry.label}.json" for entry in recipe.scorers}
    if pending := [entry for entry in recipe.scorers if not paths[entry.label].exists()]:
        example, seed = start.splits.test[0][0][None], start.unpruned.seed
        found = scored(recipe, pending, start.network, start.splits, example, seed, report, scores)
        place.mkdir(parents=True, exist_ok=True)
        for entry in pending:
            point = _point(recipe, entry, found[entry.label], start, report)
            write_json(paths[entry.label], asdict(point))
    return [_read(path) for path in paths.values()]


def _read(path: Path) -> Point:
    try:
        return Point(**json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise CheckpointError(f"{path}: damaged ({error}); delete it, and it is made again") from error


def _point(recipe: Recipe, entry: Entry, scores: Scores, start: Start, report: Reporter) -> Point:
    """Prune a copy of the network as the recipe says and fine-tune it."""
    report.say(f"{entry.label}, {len(scores.classes)} classes, ratio {recipe.prune.ratio}")
    example = start.splits.test[0][0][None]
    row = compress(
        recipe, entry, scores, start.network, start.splits, example, start.unpruned, start.folder, report
    ).row
    return Point(
        entry.label, row.seed, len(scores.classes), scores.images, recipe.prune.ratio, row.accuracy_pruned,
        row.accuracy_finetuned, row.parameters, row.macs,
    )  # fmt: skip


def _start(network: nn.Module, splits: Splits, recipe: Recipe, seed: int, folder: RunFolder) -> Start:
    row = measured(UNPRUNED, seed, network, splits, splits.test[0][0][None], recipe).row
    return Start(network, splits, row, folder)


def _with_ratio(recipe: Recipe, ratio: float) -> Recipe:
    """The recipe with another goal of pruning."""
    if not 0 <= ratio < 1:
        raise InputError(f"ratio {ratio}: allowed are shares from 0 to less than 1")
    goal = {"ratio": float(ratio), "target_macs": None, "target_params": None}
    return recipe.model_copy(update={"prune": recipe.prune.model_copy(update=goal)})


def _goal(recipe: Recipe) -> str:
    given = {name: value for name in recipes.GOALS if (value := getattr(recipe.prune, name)) is not None}
    return ", ".join(f"{name} {value}" for name, value in (given or {"ratio": 0.5}).items())


def _with_classes(recipe: Recipe, classes: int) -> Recipe:
    return recipe.model_copy(update={"score": recipe.score.model_copy(update={"classes": classes})})


def _with_scorers(recipe: Recipe, entries: Sequence[Entry]) -> Recipe:
    return recipe.model_copy(update={"scorers": list(entries)})


def _begun(recipe: Recipe, report: Reporter, seed: int | None) -> tuple[int, torch.device, Splits]:
    """(the seed, default the recipe's first; the device; the images, split as for the seed's network)."""
    device = prepare(recipe.device, recipe.threads)
    seed = recipe.seeds[0] if seed is None else seed
    if seed not in recipe.seeds:
        raise InputError(f"seed {seed}: the recipe has {', '.join(map(str, recipe.seeds))}")
    return seed, device, held_out(load_data(recipe, report), recipe.data.validation, seed)


def _about(splits: Splits) -> str:
    images = len(targets_of(splits.test))
    error = f"its standard error at most {0.5 / math.sqrt(images):.2%}"
    return f"Accuracy on {images} test images, {error}; of one network, fine-tuned once."


def _write(
    folder: RunFolder,
    report: Reporter,
    name: str,
    heading: str,
    tables: Sequence[Table],
    rows: Iterable[Mapping[str, Any]],
    plot: Callable[[Path], None],
) -> None:
    """NAME.csv with the rows, NAME.md with the tables, and NAME.svg if matplotlib is there."""
    folder.log("study", name=name)
    folder.write_table(f"{name}.csv", rows)
    folder.write_text(f"{name}.md", f"## {heading}\n\n" + "\n".join(table.markdown() for table in tables))
    report.say(f"results: {folder.path}/{name}.csv and .md, and the trained network for --resume {folder.path}")
    write_figure(folder, f"{name}.svg", plot, report)


def _plot_samples(samples: Sequence[Sample], layer: str, path: Path) -> None:
    """Left: the spread of H of a unit against the number of images. Right: how two draws agree."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.5), layout="constrained")
    left, right = figure.subplots(1, 2)
    left.boxplot([sample.spread.ravel() for sample in samples], showfliers=False, whis=(2.5, 97.5))
    left.set_xticks(range(1, len(samples) + 1), [str(sample.size) for sample in samples])
    left.set_title("boxes: half of the units, whiskers: 95 %", fontsize="medium")
    left.set(xlabel="images of a class", ylabel="spread of a unit's H (nats)", ylim=(0, None))
    for number, sample in enumerate(samples):
        for column, style in ((ANEW, "-"), (SAME, ":")):
            means = {k: found[column].mean() for k, found in sample.agreement.items() if column in found}
            label = f"{sample.size} images, {column}"
            right.plot(list(means), list(means.values()), f"o{style}", color=f"C{number}", label=label, markersize=4)
    for goal in GOALS:
        right.axhline(goal, color="0.8", linewidth=0.8, zorder=0)
    counts = list(samples[0].agreement)
    right.set(xlabel="number of classes K", ylabel="Spearman's ρ of two draws", xscale="log")
    right.set_xticks(counts, map(str, counts))
    right.set_xticks([], minor=True)
    right.legend(loc="upper center", bbox_to_anchor=(0.5, -0.14), ncols=2, fontsize="small", frameon=False)
    _save(figure, f"Feature entropy of {layer}, {len(samples[0].layer)} draws", path)


def _plot_points(
    lines: Mapping[str, Mapping[Any, Point]], unpruned: Point, what: str, path: Path, log: bool = False
) -> None:
    """Accuracy right after pruning and fine-tuned, a line a scorer."""
    from matplotlib.figure import Figure

    parts = {"right after pruning": "accuracy_pruned", "fine-tuned": "accuracy_finetuned"}
    known = {title: name for title, name in parts.items() if _values(next(iter(lines.values())), name)}
    figure = Figure(figsize=(5.5 * len(known), 4.5), layout="constrained")
    for axes, (title, name) in zip(figure.subplots(1, len(known), squeeze=False)[0], known.items(), strict=True):
        axes.axhline(unpruned.accuracy_pruned, color="0.6", linewidth=0.8, label=UNPRUNED)
        for number, (label, points) in enumerate(lines.items()):
            style = {"color": "0.3", "linestyle": "--"} if label == CONTROL else {"color": f"C{number % 10}"}
            axes.plot(list(points), _values(points, name), marker="o", markersize=4, label=label, **style)
        axes.set(xlabel=what, ylabel="test accuracy", title=title)
        if log:
            counts = list(next(iter(lines.values())))
            axes.set_xscale("log")
            axes.set_xticks(counts, map(str, counts))
            axes.set_xticks([], minor=True)
    figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=6, frameon=False)
    _save(figure, f"Accuracy and {what}", path)


def _values(points: Mapping[Any, Point], name: str) -> list[float]:
    return [value for point in points.values() if (value := getattr(point, name)) is not None]


def _save(figure: Any, title: str, path: Path) -> None:
    for axes in figure.axes:
        axes.spines[["top", "right"]].set_visible(False)
    figure.suptitle(title)
    figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)
