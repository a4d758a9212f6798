"""The study of the ratio (figure 13 B): accuracy after pruning against the share of units that is removed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict

from prune_fe.charts import accuracy_against
from prune_fe.errors import InputError
from prune_fe.experiment.experiment import Experiment, Reporter, begin
from prune_fe.experiment.recipe import Recipe
from prune_fe.experiment.results import UNPRUNED
from prune_fe.experiment.run_folder import RunFolder
from prune_fe.experiment.tasks import Executor, Grid, LocalExecutor, Task
from prune_fe.report.tables import Table
from prune_fe.studies.output import write_study
from prune_fe.studies.points import (
    COLUMNS,
    PointGroup,
    accuracy_frame,
    describe_accuracy,
    finish_points,
    network_tasks,
    point_tasks,
    train_network,
    unpruned_point,
    with_ratio,
)

RATIOS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
PREFIX = "study-ratio-"
"""The name of a ratio's folder begins so."""


def ratio_study(
    recipe: Recipe,
    folder: RunFolder,
    reporter: Reporter,
    *,
    seed: int | None = None,
    ratios: Sequence[float] = RATIOS,
    executor: Executor | None = None,
) -> list[Table]:
    """Prune by each of the recipe's scorers at different ratios and measure the accuracy (figure 13 B).

    Files study-ratio-* are written to the run folder. The network and the points that are in the folder are not made
    again, and the tables show the points of earlier calls too. Scores are shared with the recipe's run in that folder.

    Args:
        recipe: Which network and images, and how it is scored, pruned and fine-tuned.
        folder: The run folder.
        reporter: Where messages and progress go.
        seed: Which of the recipe's networks; default that of its first seed.
        ratios: Shares of the units to remove, in [0, 1).
        executor: What runs the tasks; by default this process, one after the other.

    Returns:
        One table for each scorer.

    Raises:
        InputError: A ratio is out of range, or there is none.
    """
    if not ratios:
        raise InputError("ratios: none given, at least one is needed")
    for ratio in ratios:
        with_ratio(recipe, ratio)
    experiment = begin(recipe, folder, reporter, seed)
    experiment.log_environment()
    executor = executor or LocalExecutor(folder, reporter)
    train_network(experiment, Grid(_begin_network, recipe, (seed,)), executor)
    unpruned = unpruned_point(experiment)
    groups = {ratio: _point_group(experiment, ratio) for ratio in sorted({*map(float, ratios), *_known(experiment)})}
    finish_points(list(groups.values()), Grid(_begin_points, recipe, (seed, tuple(groups))), executor)
    points = {ratio: group.points() for ratio, group in groups.items()}
    by_scorer = {entry.label: {ratio: points[ratio][entry.label] for ratio in points} for entry in recipe.scorers}
    tables = [
        Table(
            f"Accuracy and the pruning ratio: {label} (figure 13 B)",
            COLUMNS,
            {UNPRUNED: unpruned.cells} | {f"{ratio:g}": point.cells for ratio, point in by_ratio.items()},
            describe_accuracy(experiment),
        )
        for label, by_ratio in by_scorer.items()
    ]
    every = [unpruned, *(point for by_ratio in by_scorer.values() for point in by_ratio.values())]
    name = f"study-ratio-seed-{experiment.seed}"
    experiment.log("study", name=name)
    x_title = "pruning ratio"
    frame = accuracy_frame(by_scorer)
    chart = accuracy_against(frame, experiment.unpruned.accuracy, x_title, f"Accuracy and {x_title}")
    write_study(experiment, name, f"ratio: seed {experiment.seed}", tables, map(asdict, every), chart)
    return tables


def _begin_network(recipe: Recipe, folder: RunFolder, reporter: Reporter, seed: int | None) -> list[Task]:
    return network_tasks(begin(recipe, folder, reporter, seed))


def _begin_points(
    recipe: Recipe, folder: RunFolder, reporter: Reporter, seed: int | None, ratios: Sequence[float]
) -> list[Task]:
    experiment = begin(recipe, folder, reporter, seed)
    _ = experiment.network, experiment.teacher  # loaded here, so that the groups share them
    return point_tasks([_point_group(experiment, ratio) for ratio in ratios])


def _point_group(experiment: Experiment, ratio: float) -> PointGroup:
    of_ratio = experiment.with_recipe(with_ratio(experiment.recipe, ratio))
    return PointGroup(of_ratio, experiment.seed_folder / f"{PREFIX}{ratio!r}", experiment.seed_folder)


def _known(experiment: Experiment) -> list[float]:
    """Return the ratios at which earlier calls have finished every scorer."""
    ratios = [float(path.name.removeprefix(PREFIX)) for path in experiment.seed_folder.glob(f"{PREFIX}*")]
    return [ratio for ratio in ratios if _point_group(experiment, ratio).is_finished]
