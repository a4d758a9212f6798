"""Points of figure 13: networks that are pruned and measured, each a task with a result in the run folder."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prune_fe.data.labels import image_labels
from prune_fe.errors import CheckpointError, InputError
from prune_fe.experiment.estimate import Kind
from prune_fe.experiment.experiment import Experiment
from prune_fe.experiment.recipe import Recipe, ScorerEntry
from prune_fe.experiment.results import ADVICE, UNPRUNED
from prune_fe.experiment.run import compress
from prune_fe.experiment.steps import score_units
from prune_fe.experiment.tasks import Executor, Grid, Task, network_task, raise_failures
from prune_fe.records import damaged, read_record, write_record
from prune_fe.scoring.scores import FILE_NAME as SCORES
from prune_fe.scoring.scores import Scores

if TYPE_CHECKING:
    import pandas as pd

CONTROL = "random"
"""The control: units in random order, named like the scorer."""

COLUMNS = {"after pruning": ".2%", "fine-tuned": ".2%", "parameters": ",d", "multiply-adds": ",d"}
"""Columns of the tables with their formats."""


@dataclass(frozen=True)
class Point:
    """One pruned network.

    Attributes:
        scorer: Label of the scorer.
        seed: Seed of the network.
        classes: Classes that the units were scored on; 0 for none.
        images: Images that the units were scored on; 0 for none.
        ratio: The pruning ratio as the recipe gives it.
        accuracy_pruned: On the test images before fine-tuning; None where the rounds of pruning were fine-tuned.
        accuracy_finetuned: On the test images after fine-tuning; None without fine-tuning.
        parameters: Parameters of the pruned network.
        macs: Multiply-adds of the pruned network for one image.
    """

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
        """The cells of a table's row; accuracies that were not measured are missing."""
        accuracies = {"after pruning": self.accuracy_pruned, "fine-tuned": self.accuracy_finetuned}
        measured: dict[str, list[Any]] = {column: [value] for column, value in accuracies.items() if value is not None}
        return measured | {"parameters": [self.parameters], "multiply-adds": [self.macs]}


def load_point(path: Path) -> Point:
    """Return the point that was saved to a file.

    Raises:
        CheckpointError: The file is damaged.
    """
    try:
        return Point(**read_record(path))
    except CheckpointError as error:
        raise CheckpointError(f"{error}; {ADVICE}") from error
    except TypeError as error:
        raise CheckpointError(f"{damaged(path, error)}; {ADVICE}") from error


def unpruned_point(experiment: Experiment) -> Point:
    """Return the network that every point starts from as a point."""
    row = experiment.unpruned
    return Point(
        scorer=UNPRUNED,
        seed=row.seed,
        classes=0,
        images=0,
        ratio=0.0,
        accuracy_pruned=row.accuracy,
        accuracy_finetuned=None,
        parameters=row.parameters,
        macs=row.macs,
    )


@dataclass(frozen=True, eq=False)
class PointGroup:
    """Points of one pruning ratio and one choice of images: one for each scorer of the experiment's recipe.

    Attributes:
        experiment: The network, and the recipe that says how it is scored and pruned.
        folder: Where the points are saved, as LABEL.json.
        scores_folder: Where the scores are saved.
    """

    experiment: Experiment
    folder: Path
    scores_folder: Path

    @property
    def entries(self) -> Sequence[ScorerEntry]:
        """The recipe's scorers."""
        return self.experiment.recipe.scorers

    def path(self, label: str) -> Path:
        """Return the file of a scorer's point."""
        return self.folder / f"{label}.json"

    @property
    def is_finished(self) -> bool:
        """Whether all points are on the disk."""
        return all(self.path(entry.label).exists() for entry in self.entries)

    @cached_property
    def scores(self) -> Mapping[str, Scores]:
        """Scores by label, from one pass over the images; read where they are finished."""
        return score_units(self.experiment, self.entries, folder=self.scores_folder)

    def points(self) -> dict[str, Point]:
        """Return the finished points by label."""
        return {entry.label: load_point(self.path(entry.label)) for entry in self.entries}

    def tasks(self) -> Iterator[Task]:
        """Yield one task for the scores, and one for each point."""
        # Groups of one call differ in their folders, which therefore make the names of tasks unique.
        name = self._task_name(self.folder)
        # The scores of a pass are saved in the order of their labels.
        scores = self.scores_folder / self.entries[-1].label / SCORES
        yield Task(f"{self._task_name(self.scores_folder)}.scores", scores, (), self._score)
        for entry in self.entries:
            work = partial(self._make_point, entry)
            yield Task(f"{name}.{entry.label}", self.path(entry.label), (scores,), work, kind=Kind("points"))

    def _task_name(self, folder: Path) -> str:
        return folder.relative_to(self.experiment.place).as_posix().replace("/", ".")

    def _score(self) -> None:
        _ = self.scores  # saved

    def _make_point(self, entry: ScorerEntry) -> None:
        """Prune a copy of the network by one scorer, fine-tune it and save its point."""
        experiment, scores = self.experiment, self.scores[entry.label]
        ratio = experiment.recipe.prune.ratio
        experiment.reporter.say(f"{entry.label}, {len(scores.classes)} classes, ratio {ratio}")
        row = compress(experiment, entry, scores).row
        point = Point(
            scorer=entry.label,
            seed=row.seed,
            classes=len(scores.classes),
            images=scores.images,
            ratio=ratio,
            accuracy_pruned=row.accuracy_pruned,
            accuracy_finetuned=row.accuracy_finetuned,
            parameters=row.parameters,
            macs=row.macs,
        )
        self.folder.mkdir(parents=True, exist_ok=True)
        write_record(self.path(entry.label), asdict(point))


def finish_points(groups: Sequence[PointGroup], grid: Grid, executor: Executor) -> None:
    """Make the points that are not on the disk yet.

    Args:
        groups: The points.
        grid: How another process makes the same tasks; its function returns what `point_tasks` does.
        executor: What runs the tasks.

    Raises:
        InputError: Points failed; it counts them and names the first.
        DataError: The same, where the first lacked images.
    """
    tasks = point_tasks(groups)
    raise_failures(tasks, executor.execute(tasks, grid))


def point_tasks(groups: Sequence[PointGroup]) -> list[Task]:
    """Return the tasks of groups of points, some of which may share their scores."""
    return list({task.name: task for group in groups for task in group.tasks()}.values())


def train_network(experiment: Experiment, grid: Grid, executor: Executor) -> None:
    """Train the network of an experiment, if it is not on the disk yet, and load it.

    Args:
        experiment: The experiment, which holds the network afterwards.
        grid: How another process makes the same task; its function returns what `network_tasks` does.
        executor: What runs the task.

    Raises:
        InputError: The network cannot be trained.
    """
    tasks = network_tasks(experiment)
    raise_failures(tasks, executor.execute(tasks, grid))
    _ = experiment.network, experiment.teacher


def network_tasks(experiment: Experiment) -> list[Task]:
    """Return the task that trains the network of all points, in a list."""
    return [network_task(experiment, teacher=True)]


def with_ratio(recipe: Recipe, ratio: float) -> Recipe:
    """Return the recipe with a pruning ratio in place of whatever says how much is pruned.

    Raises:
        InputError: The ratio is not in [0, 1).
    """
    if not 0 <= ratio < 1:
        raise InputError(f"ratio {ratio}: allowed are shares from 0 to less than 1")
    amount = {"ratio": float(ratio), "target_macs": None, "target_params": None}
    return recipe.with_options("prune", **amount)


def with_scorers(recipe: Recipe, entries: Sequence[ScorerEntry]) -> Recipe:
    """Return the recipe with other scorers."""
    return recipe.model_copy(update={"scorers": list(entries)})


def describe_accuracy(experiment: Experiment) -> str:
    """Return a text that says what the accuracies in the tables are and how large their error is."""
    images = len(image_labels(experiment.splits.test))
    error = f"its standard error at most {0.5 / math.sqrt(images):.2%}"
    return f"Accuracy on {images} test images, {error}; of one network, fine-tuned once."


def accuracy_frame(lines: Mapping[str, Mapping[Any, Point]]) -> pd.DataFrame:
    """Return the points of a chart.

    Args:
        lines: Scorer -> setting on the x axis -> point.

    Returns:
        Columns scorer, x, stage ("right after pruning" or "fine-tuned") and accuracy. Stages that no network was
        measured at are missing.
    """
    import pandas as pd

    stages = {"right after pruning": "accuracy_pruned", "fine-tuned": "accuracy_finetuned"}
    rows = [
        {"scorer": scorer, "x": x, "stage": stage, "accuracy": getattr(point, attribute)}
        for stage, attribute in stages.items()
        for scorer, points in lines.items()
        for x, point in points.items()
    ]
    return pd.DataFrame(rows).dropna(subset="accuracy")
