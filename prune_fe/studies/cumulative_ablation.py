"""Cumulative ablation of a recipe's networks by every scorer: figure 12 and table 11 of Zhao & Zhang, ICLR 2022.

The units of each class are ordered by the scores of the class's own training images. Every order is a task, whose
curves are kept in the run folder.
"""

from __future__ import annotations

import fnmatch
import functools
import hashlib
import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import nn

from prune_fe.ablation.tally import require_images
from prune_fe.charts import ablation_curves, save_chart
from prune_fe.data.labels import image_labels
from prune_fe.errors import DataError, InputError
from prune_fe.experiment.device import to_device
from prune_fe.experiment.experiment import Experiment, Reporter, begin
from prune_fe.experiment.recipe import Recipe
from prune_fe.experiment.run_folder import RunFolder
from prune_fe.experiment.tasks import Executor, Grid, LocalExecutor, Task, raise_failures
from prune_fe.io import nearest, safe_file_name
from prune_fe.report.tables import Table
from prune_fe.scorers import resolve_scorer
from prune_fe.scoring.score import check_scorer
from prune_fe.studies.ablation_tables import (
    CONTROL,
    AblatedNetwork,
    ablation_tables,
    class_rows,
    curve_areas,
    curve_frame,
    curve_rows,
    curve_title,
    describe,
)
from prune_fe.studies.ablation_tasks import NetworkAblation, seed_tasks
from prune_fe.studies.last_layer import choose_last_layer
from prune_fe.tracing.layers import Layer, find_layers


def ablation_study(
    recipe: Recipe,
    folder: RunFolder,
    reporter: Reporter,
    layers: Sequence[str] | None = None,
    classes: Sequence[str] | None = None,
    executor: Executor | None = None,
) -> list[Table]:
    """Mask the units of a layer one after the other, in the order of each of the recipe's scorers (figure 12).

    This is done for each of the recipe's seeds, in ascending and descending order, and measured on the test images.
    Of several layers the same share of each is masked, in steps of 5 %. Files ablation-* are written to the run
    folder: a line for each network, scorer, order and class; the curves' means over the classes; the tables; and the
    figure. Networks, scores and curves that are in the folder are not made again.

    Args:
        recipe: Which networks, images and scorers.
        folder: The run folder.
        reporter: Where messages and progress go.
        layers: Names of modules, or patterns for convolutions such as "layer4.*"; default the last convolution.
        classes: Names of classes; default all.
        executor: What runs the tasks; by default this process, one after the other.

    Returns:
        Summaries of the curves in each order, table 11, and for one layer the agreement with single units.

    Raises:
        InputError: There is no such layer or class, no scorer can score the layer, or a task failed.
        DataError: A class has too few test images.
    """
    _check_labels(recipe, reporter)
    experiment = begin(recipe, folder, reporter)
    if experiment.recipe.ablate.rescale != recipe.ablate.rescale:
        reporter.say(
            f"note: this run was begun with ablate.rescale: {list(experiment.recipe.ablate.rescale or ())}, the "
            "default of earlier versions, and goes on with it; a new run leaves the images as they are"
        )
    numbers = _class_numbers(experiment, classes)
    untrained = to_device(experiment.build_network(), experiment.device)
    targets = find_targets(experiment, untrained, layers)
    recipe = _without_unable(experiment, untrained, targets)
    names = tuple(layer.name for layer in targets)
    del untrained  # large networks would otherwise be in memory twice
    experiment.log_environment()
    ablation_of, tasks = _ablations(experiment, recipe, names, numbers)
    executor = executor or LocalExecutor(folder, reporter)
    raise_failures(tasks, executor.execute(tasks, Grid(_begin_tasks, recipe, (names, numbers))))
    networks = [ablation_of(seed).load() for seed in recipe.seeds]
    return _write(experiment, networks, f"ablation-{layers_name(names)}")


def _begin_tasks(
    recipe: Recipe, folder: RunFolder, reporter: Reporter, names: Sequence[str], classes: Sequence[int]
) -> list[Task]:
    return _ablations(begin(recipe, folder, reporter), recipe, names, classes)[1]


def _ablations(
    experiment: Experiment, recipe: Recipe, names: Sequence[str], classes: Sequence[int]
) -> tuple[Callable[[int], NetworkAblation], list[Task]]:
    """Return a function from a seed to the ablation of its network, and the tasks of all seeds.

    Args:
        experiment: The experiment of any seed.
        recipe: The recipe, with the scorers that can score the layers.
        names: Names of the layers.
        classes: Numbers of the classes.
    """
    untrained = to_device(experiment.build_network(), experiment.device)
    layers = find_layers(untrained, experiment.example.to(experiment.device), names)
    # Only these layers are scored, so the check before training leaves the others out.
    of_layers = recipe.with_options("score", exclude=(), layers=tuple(names))

    # The cache holds one ablation, so that only the last seed's network and images stay in memory.
    @functools.lru_cache(maxsize=1)
    def ablation_of(seed: int) -> NetworkAblation:
        of_seed = experiment.with_seed(seed).with_recipe(of_layers)
        return NetworkAblation(of_seed, layers, tuple(classes), of_seed.seed_folder / "ablation" / layers_name(names))

    return ablation_of, seed_tasks(ablation_of, recipe.seeds)


def _write(experiment: Experiment, networks: Sequence[AblatedNetwork], name: str) -> list[Table]:
    """Write the files of a study to the run folder and return its tables."""
    folder, reporter, first = experiment.folder, experiment.reporter, networks[0].first
    experiment.log("ablation", layers=list(first.layers), classes=list(first.classes), how=first.how)
    # The numbers come first: whatever goes wrong with a table or the figure, they are on the disk.
    folder.write_table(f"{name}.csv", class_rows(networks))
    folder.write_table(f"{name}-curves.csv", curve_rows(networks))
    tables, description = ablation_tables(networks), describe(networks, experiment.recipe)
    text = [f"## Cumulative ablation\n\n{description}\n", *(table.markdown() for table in tables)]
    folder.write_text(f"{name}.md", "\n".join(text))
    reporter.say(description)
    reporter.say(f"results: {folder.path}/{name}.csv, -curves.csv and .md")
    chart = ablation_curves(curve_frame(networks), curve_areas(networks), curve_title(networks, experiment.recipe))
    save_chart(chart, folder.path / f"{name}.svg")
    reporter.say(f"figure: {folder.path}/{name}.svg")
    return tables


def layers_name(names: Sequence[str]) -> str:
    """Return the layers' part of file names: the name of one layer, the number of several and a hash of their names."""
    if len(names) == 1:
        return safe_file_name(names[0])
    return f"{len(names)}-layers-{hashlib.sha256(json.dumps(names).encode()).hexdigest()[:8]}"


def _check_labels(recipe: Recipe, reporter: Reporter) -> None:
    """Say that random scorers are left out, and refuse another scorer with the control's label.

    Raises:
        InputError: A scorer has that label.
    """
    for entry in recipe.scorers:
        if entry.name != CONTROL and entry.label == CONTROL:
            raise InputError(f"scorers: the label {CONTROL!r} is the control's, give {entry.name!r} another one")
        if entry.name == CONTROL:
            reporter.say(f"{entry.label} is left out: the control is {recipe.ablate.control_seeds} random orders")


def _class_numbers(experiment: Experiment, names: Sequence[str] | None) -> list[int]:
    """Return the numbers of the classes, default all, once their test images are known to be enough.

    Raises:
        InputError: There is no such class, or one is named twice.
        DataError: A class has no test images, or no class has enough for table 11.
    """
    classes = experiment.splits.classes
    for name in names or ():
        if name not in classes:
            raise InputError(f"class {name!r}: no such class; {nearest(name, classes[:20])}")
    numbers = [classes.index(name) for name in names or classes]
    if len(set(numbers)) < len(numbers):
        raise InputError("classes: one of them is given twice")
    counts = Counter(image_labels(experiment.splits.test))
    require_images(numbers, counts, classes)
    _check_table_11(counts, numbers)
    return numbers


def _check_table_11(counts: Mapping[int, int], classes: Sequence[int]) -> None:
    """Refuse test images from which table 11 cannot be made.

    A class is compared with the others, and on each half of the images: both must have at least one in each half.

    Args:
        counts: Class -> test images.
        classes: The classes that are studied.

    Raises:
        DataError: There are no other classes, or none of the classes has two test images.
    """
    halved = [label for label, count in counts.items() if count > 1]
    if len(counts) < 2:
        raise DataError("table 11 compares each class with the others: the test images are of one class")
    if len(halved) < 2 or set(halved).isdisjoint(classes):
        raise DataError("table 11 needs at least two test images of a class and of another one, one for each half")


def find_targets(experiment: Experiment, network: nn.Module, names: Sequence[str] | None) -> tuple[Layer, ...]:
    """Return the layers of these names and patterns, default the last convolution that all scorers can score.

    Raises:
        InputError: There is no such layer, or one is inside another.
    """
    example = experiment.example.to(experiment.device)
    if names is None:
        entries = [entry for entry in experiment.recipe.scorers if entry.name != CONTROL]
        scorers = [resolve_scorer(entry.name, entry.settings, experiment.seed) for entry in entries]
        layer, reason = choose_last_layer(network, example, scorers)
        experiment.reporter.say(reason)
        return (layer,)
    wanted: list[str] = []
    for name in names:
        wanted += _matching(network, example, name) if "*" in name or "?" in name else [name]
    layers = find_layers(network, example, list(dict.fromkeys(wanted)))
    for outer in layers:
        for inner in layers:
            if inner.name.startswith(f"{outer.name}."):
                raise InputError(f"layer {outer.name!r} holds {inner.name!r}: of these only one")
    return layers


def _matching(network: nn.Module, example: torch.Tensor, pattern: str) -> list[str]:
    """Return the names of the convolutions that a pattern matches."""
    convolutions = [layer.name for layer in find_layers(network, example)]
    matching = fnmatch.filter(convolutions, pattern)
    if not matching:
        raise InputError(f"layer {pattern!r}: no convolution is called so; there are {', '.join(convolutions)}")
    return matching


def _without_unable(experiment: Experiment, network: nn.Module, layers: Sequence[Layer]) -> Recipe:
    """Return the recipe without the scorers that cannot score the layers, such as those of filters for a block.

    Raises:
        InputError: The recipe has one scorer, which cannot, or none of several can.
    """
    recipe, labels = experiment.recipe, image_labels(experiment.splits.train)
    images = recipe.score.samples or min(Counter(labels).values())
    example, able = experiment.example.to(experiment.device), []
    for entry in recipe.scorers:
        scorer = resolve_scorer(entry.name, entry.settings, experiment.seed)
        try:
            check_scorer(scorer, network, layers, example, images, set(labels))
        except InputError as error:
            if len(recipe.scorers) == 1:
                raise
            experiment.reporter.say(f"{entry.label} is left out: {error}")
        else:
            able.append(entry)
    if not able:
        raise InputError(f"layer {', '.join(layer.name for layer in layers)}: none of the scorers can score it")
    return recipe.model_copy(update={"scorers": able})
