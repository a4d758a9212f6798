"""The study of classes (figure 13 A): accuracy after pruning against the number of classes that are scored on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict

from prune_fe.charts import accuracy_against
from prune_fe.errors import InputError
from prune_fe.experiment.experiment import Experiment, Reporter, begin
from prune_fe.experiment.recipe import Recipe, ScorerEntry
from prune_fe.experiment.results import UNPRUNED
from prune_fe.experiment.run_folder import RunFolder
from prune_fe.experiment.tasks import Executor, Grid, LocalExecutor, Task
from prune_fe.pruning.options import AMOUNTS, DEFAULT_RATIO
from prune_fe.report.tables import Table
from prune_fe.studies.draws import ladder
from prune_fe.studies.output import write_study
from prune_fe.studies.points import (
    COLUMNS,
    CONTROL,
    Point,
    PointGroup,
    accuracy_frame,
    describe_accuracy,
    finish_points,
    network_tasks,
    point_tasks,
    train_network,
    unpruned_point,
    with_ratio,
    with_scorers,
)

ENTROPY = "feature-entropy"


def classes_study(
    recipe: Recipe,
    folder: RunFolder,
    reporter: Reporter,
    *,
    seed: int | None = None,
    counts: Sequence[int] | None = None,
    ratio: float | None = None,
    executor: Executor | None = None,
) -> list[Table]:
    """Prune by feature entropy on different numbers of classes and measure the accuracy (figure 13 A).

    Units in random order are the control. Files study-classes-* are written to the run folder; the network and the
    points that are in the folder are not made again.

    Args:
        recipe: Which network and images, and how it is scored, pruned and fine-tuned.
        folder: The run folder.
        reporter: Where messages and progress go.
        seed: Which of the recipe's networks; default that of its first seed.
        counts: Numbers of classes, drawn with the seed; default 1, 2, 5, 10, … and all.
        ratio: Share of the units to remove, in [0, 1); default what the recipe removes.
        executor: What runs the tasks; by default this process, one after the other.

    Returns:
        One table for each of the recipe's settings of feature entropy.

    Raises:
        InputError: An argument is out of range, the recipe has no feature entropy, or one is labelled as the control.
    """
    entries = _entropy_entries(recipe)
    if ratio is None and recipe.prune.is_auto:
        raise InputError("prune.ratio: auto would give each number of classes other widths; pass a ratio")
    if ratio is not None:
        recipe = with_ratio(recipe, ratio)
    experiment = begin(recipe, folder, reporter, seed)
    n_classes = len(experiment.splits.classes)
    if counts is not None and (not counts or min(counts) < 1 or max(counts) > n_classes):
        allowed = f"the data has {n_classes} classes, allowed are numbers from 1 to {n_classes}"
        raise InputError(f"counts={tuple(counts)}: {allowed}")
    numbers = tuple(sorted(set(counts)) if counts else ladder(n_classes))
    experiment.log_environment()
    experiment = _with_most_classes(experiment, numbers)
    executor = executor or LocalExecutor(folder, reporter)
    train_network(experiment, Grid(_begin_network, recipe, (seed, numbers)), executor)
    unpruned = unpruned_point(experiment)
    folder_name = f"study-classes-{'recipe' if ratio is None else repr(float(ratio))}"
    control_group, groups = _point_groups(experiment, recipe, numbers, folder_name)
    grid = Grid(_begin_points, recipe, (seed, numbers, folder_name))
    finish_points([control_group, *groups.values()], grid, executor)
    random = control_group.points()[CONTROL]
    points = {k: group.points() for k, group in groups.items()}
    by_scorer = {entry.label: {k: points[k][entry.label] for k in points} for entry in entries}
    amount = _describe_amount(recipe)
    note = f"{describe_accuracy(experiment)} {amount}; {CONTROL}: units in one random order."
    tables = [
        Table(
            f"Accuracy and the number of classes: {label} (figure 13 A)",
            {"images": ",d"} | COLUMNS,
            {UNPRUNED: unpruned.cells, CONTROL: random.cells} | _rows(by_count),
            note,
        )
        for label, by_count in by_scorer.items()
    ]
    every = [unpruned, random, *(point for by_count in by_scorer.values() for point in by_count.values())]
    name = f"study-classes-seed-{experiment.seed}" + ("" if ratio is None else f"-ratio-{float(ratio)!r}")
    experiment.log("study", name=name)
    frame = accuracy_frame(by_scorer | {CONTROL: dict.fromkeys(numbers, random)})
    x_title = "number of classes K"
    chart = accuracy_against(frame, experiment.unpruned.accuracy, x_title, f"Accuracy and {x_title}", log_x=True)
    heading = f"classes: seed {experiment.seed}, {amount}"
    write_study(experiment, name, heading, tables, map(asdict, every), chart)
    return tables


def _begin_network(
    recipe: Recipe, folder: RunFolder, reporter: Reporter, seed: int | None, numbers: Sequence[int]
) -> list[Task]:
    return network_tasks(_with_most_classes(begin(recipe, folder, reporter, seed), numbers))


def _begin_points(
    recipe: Recipe,
    folder: RunFolder,
    reporter: Reporter,
    seed: int | None,
    numbers: Sequence[int],
    folder_name: str,
) -> list[Task]:
    experiment = _with_most_classes(begin(recipe, folder, reporter, seed), numbers)
    _ = experiment.network, experiment.teacher  # loaded here, so that the groups share them
    control_group, groups = _point_groups(experiment, recipe, numbers, folder_name)
    return point_tasks([control_group, *groups.values()])


def _with_most_classes(experiment: Experiment, numbers: Sequence[int]) -> Experiment:
    """Return the experiment with the largest number of classes, which has the most demands on the images.

    Its recipe is the one that is checked before training.
    """
    recipe = experiment.recipe.with_options("score", classes=max(numbers))
    return experiment.with_recipe(with_scorers(recipe, [*_entropy_entries(recipe), _control()]))


def _point_groups(
    experiment: Experiment, recipe: Recipe, numbers: Sequence[int], folder_name: str
) -> tuple[PointGroup, dict[int, PointGroup]]:
    """Return the control, and number of classes -> the points of feature entropy."""
    folder = experiment.seed_folder / folder_name
    control = PointGroup(experiment.with_recipe(with_scorers(recipe, [_control()])), folder, folder / "scores")
    groups = {}
    for number in numbers:
        variant = with_scorers(recipe.with_options("score", classes=number), _entropy_entries(recipe))
        path = folder / f"classes-{number}"
        groups[number] = PointGroup(experiment.with_recipe(variant), path, path / "scores")
    return control, groups


def _control() -> ScorerEntry:
    return ScorerEntry.model_validate(CONTROL)


def _entropy_entries(recipe: Recipe) -> list[ScorerEntry]:
    """Return the recipe's settings of feature entropy."""
    entries = [entry for entry in recipe.scorers if entry.name == ENTROPY]
    if not entries:
        labels = ", ".join(entry.label for entry in recipe.scorers)
        raise InputError(f"scorers: {labels}; a study of the number of classes needs {ENTROPY}")
    if any(entry.label == CONTROL for entry in entries):
        raise InputError(f"scorers: the label {CONTROL!r} is the control's, give {ENTROPY!r} another one")
    return entries


def _rows(by_count: Mapping[int, Point]) -> dict[str, dict[str, list[object]]]:
    return {f"K = {k}": {"images": [point.images]} | point.cells for k, point in by_count.items()}


def _describe_amount(recipe: Recipe) -> str:
    """Return a text that says how much the recipe prunes."""
    given = {name: value for name in AMOUNTS if (value := getattr(recipe.prune, name)) is not None}
    return ", ".join(f"{name} {value}" for name, value in (given or {"ratio": DEFAULT_RATIO}).items())
