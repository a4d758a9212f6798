"""Which criterion for which network: every scorer at every operating point, for every network and seed.

The grid is made of cells, each kept when it is finished and never made again. Processes, also on other machines, that
are given the same folder share the cells among them. Random units, filter L1 and the pruned architecture trained from
scratch are always among what is compared.
"""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from prune_fe.data.splits import Splits, hold_out
from prune_fe.distributed import all_gather, from_rank_0, rank, world_size
from prune_fe.errors import DataError, InputError, PruneFEError
from prune_fe.experiment.claims import Claims
from prune_fe.experiment.experiment import Reporter, prepare_device, to_device
from prune_fe.experiment.recipe import CONTROLS, GOALS, Recipe, Train, with_controls
from prune_fe.experiment.results import SCRATCH, UNPRUNED, Result, Row, load_result
from prune_fe.experiment.run import (
    Compressed,
    check,
    compress,
    fit,
    load_data,
    measured,
    scored,
    trained,
    untrained,
    write_test,
)
from prune_fe.experiment.run_folder import NETWORKS, RunFolder
from prune_fe.io import write_json
from prune_fe.pruning.prune import prune
from prune_fe.scoring.score import score
from prune_fe.scoring.scores import Scores
from prune_fe.training.loop import epochs_of

FRESH = 1_000_003
"""Between the seed of a network and that of the one that is trained from scratch: it has other first weights."""

POLL_SECONDS = 5.0
"""How often a process that has nothing to do looks whether the others have finished."""


@dataclass(frozen=True)
class Task:
    """Something that one process does: `result` is there when it is done, and it begins when all of `after` are.

    name: of its own among all tasks.
    """

    name: str
    result: Path
    after: Sequence[Path]
    do: Callable[[], None]

    @property
    def ready(self) -> bool:
        return not self.result.exists() and all(path.exists() for path in self.after)


@dataclass(frozen=True)
class Place:
    """The part of a run folder that is one network's."""

    folder: RunFolder
    path: Path

    def log(self, event: str, **values: object) -> None:
        self.folder.log(event, network=self.path.name, **values)


@dataclass
class Start:
    """What all cells of one network and seed start from."""

    recipe: Recipe
    seed: int
    splits: Splits
    place: Place
    network: nn.Module
    report: Reporter

    @property
    def example(self) -> Tensor:
        return self.splits.test[0][0][None]

    @functools.cached_property
    def scores(self) -> dict[str, Scores]:
        """Of all scorers, computed once and then read."""
        folder = self.place.path / f"seed-{self.seed}" / "scores"
        return scored(
            self.recipe, self.recipe.scorers, self.network, self.splits, self.example, self.seed, self.report, folder
        )


def compare(recipe: Recipe, folder: RunFolder, report: Reporter) -> None:
    """Fill the grid of `recipe` in `folder`, with whoever else is at it, until nothing is left to do."""
    recipe = with_controls(recipe)
    if recipe.prune.ranking != "layer":
        raise InputError(
            "prune.ranking: a comparison takes the same share of every layer (ranking: layer), so that all criteria "
            "and controls have the same widths"
        )
    grid = Grid(recipe, folder, report)
    claims, failed = Claims(folder.path / "claims"), dict[int, str]()
    bar, waiting = report.progress("cells of the comparison"), False
    while True:
        with ExitStack() as claim:
            # What to do is the first process's to say: others may see another state of the folder.
            number, left = from_rank_0(lambda: _next(grid.tasks, failed, claims, claim))
            bar(len(grid.tasks) - left, len(grid.tasks))
            if number is not None:
                waiting = False
                try:
                    grid.tasks[number].do()
                except (InputError, DataError) as error:  # of this cell; the others can be done
                    task = grid.tasks[number]
                    if world_size() > 1:  # a fault of one process would leave the others waiting for it
                        raise type(error)(f"{task.name}: {error}") from error
                    failed[number] = str(error)
                    result = task.result.relative_to(folder.path).as_posix()
                    folder.log("failed", task=task.name, result=result, error=str(error))
                    report.say(f"{task.name}: failed ({error})")
        if left == 0:
            break
        if number is None:
            if not waiting:
                report.say(f"cells that are left, and others are at them: {left}; waiting")
            waiting = True
            time.sleep(POLL_SECONDS)
    if failed:
        first, more = min(failed), len(_dead(grid.tasks, failed)) - len(failed)
        lost = f"{len(failed)}, and {more} that wait for them" if more else f"{len(failed)}"
        raise InputError(f"cells that failed: {lost}; the first is {grid.tasks[first].name}: {failed[first]}")


def _dead(tasks: Sequence[Task], failed: Mapping[int, str]) -> set[Path]:
    """What will not be there: of tasks that have failed, or wait for one that has."""
    dead = {tasks[number].result for number in failed}
    for task in tasks:  # in the order in which they wait for each other
        if not dead.isdisjoint(task.after):
            dead.add(task.result)
    return dead


def _next(tasks: Sequence[Task], failed: Mapping[int, str], claims: Claims, claim: ExitStack) -> tuple[int | None, int]:
    """(the number of a task that is this process's own until `claim` is closed, None while others are at all that can
    be done; how many are still to be done, without those that have failed or wait for one that has)."""
    dead = _dead(tasks, failed)
    left = [number for number, task in enumerate(tasks) if task.result not in dead and not task.result.exists()]
    for number in left:
        task = tasks[number]
        if task.ready:
            mine = claim.enter_context(claims.claimed(task.name))
            if mine and not task.result.exists():  # it may have been finished in between
                return number, len(left)
            claim.close()
    return None, len(left)


class Grid:
    """The tasks of a comparison, in the order in which a single process does them."""

    def __init__(self, recipe: Recipe, folder: RunFolder, report: Reporter) -> None:
        self.recipe, self.folder, self.report = recipe, folder, report
        self.device = prepare_device(recipe.device, recipe.threads)
        self.data = load_data(recipe, report)
        self._start: Start | None = None
        self._check()
        if changed := folder.log_environment():
            report.say(
                f"note: {', '.join(changed)} differ from where this comparison began; every cell says where it was made"
            )
        if rank() == 0:
            write_test(self.data, folder)
        self.tasks = list(self._tasks())

    def _check(self) -> None:
        """Say what would go wrong with a network, a scorer or the pruning, before any network is trained."""
        splits = hold_out(self.data, self.recipe.data.validation, self.recipe.seeds[0])
        example = splits.test[0][0][None]
        for label in self.recipe.compare.networks:
            try:
                network = to_device(self.build(label), self.device)
                check(self.recipe, network, splits, self.recipe.seeds[0])
                scores = score(network, None, CONTROLS[0], layers=self.recipe.score.layers, example=example)
                prune(network, scores, example=example, **self._pruning(self.recipe.compare.points[1][0]))
            except PruneFEError as error:
                raise type(error)(f"network {label!r}: {error}") from error

    def build(self, network: str) -> nn.Module:
        """One that has not been trained."""
        return untrained(self.recipe.compare.networks[network], self.data)

    def cell(self, network: str, seed: int, scorer: str, point: float | None = None) -> Path:
        """Where a cell lies when it is finished."""
        of = "" if point is None else f".{self.recipe.compare.points[0]}-{point!r}"
        return self.folder.path / "cells" / f"{network}.seed-{seed}.{scorer}{of}.json"

    def _tasks(self) -> Iterator[Task]:
        scratch = [f"{SCRATCH}{budget}" for budget in self.recipe.compare.scratch]
        if scratch and self.recipe.train is None and self.recipe.finetune is None:
            self.report.say(
                "no training from scratch: the recipe has neither train nor finetune, which would be its budget"
            )
            scratch = []
        points = self.recipe.compare.points[1]
        labels = [entry.label for entry in self.recipe.scorers]
        late = []
        for seed in self.recipe.seeds:
            for network in self.recipe.compare.networks:
                of = (network, seed)
                unpruned = self.cell(*of, "unpruned")
                yield self._task(unpruned, (), self._train, *of)
                known = self.folder.path / NETWORKS / network / f"seed-{seed}" / "scores.json"
                yield self._task(known, (unpruned,), self._score, *of)
                for point in points:
                    for label in labels:
                        yield self._task(self.cell(*of, label, point), (known,), self._prune, *of, label, point)
                    control = self.cell(*of, self._control, point)
                    for label in scratch:
                        path = self.cell(*of, label, point)
                        late.append(self._task(path, (control,), self._from_scratch, *of, label, point))
        yield from late

    def _task(self, result: Path, after: Sequence[Path], do: Callable[..., None], *about: Any) -> Task:
        name = ".".join(result.relative_to(self.folder.path).with_suffix("").parts)
        return Task(name, result, after, functools.partial(do, *about, result))

    @property
    def _control(self) -> str:
        """The label of random units."""
        return next(entry.label for entry in self.recipe.scorers if entry.name == CONTROLS[0])

    def start(self, network: str, seed: int) -> Start:
        """What the cells of a network and seed start from: the one that was used last is kept."""
        held = self._start
        if held is None or (held.place.path.name, held.seed) != (network, seed):
            recipe = self.recipe.model_copy(update={"model": self.recipe.compare.networks[network]})
            splits = hold_out(self.data, recipe.data.validation, seed)
            place = Place(self.folder, self.folder.path / NETWORKS / network)
            model = trained(recipe, splits, seed, place, self.report, self.device)
            held = self._start = Start(recipe, seed, splits, place, model, self.report)
        return held

    def at(self, start: Start, point: float) -> Recipe:
        """The recipe of one operating point."""
        update = self._goal(point)
        return start.recipe.model_copy(update={"prune": start.recipe.prune.model_copy(update=update)})

    def _goal(self, point: float) -> dict[str, Any]:
        return dict.fromkeys(GOALS) | {self.recipe.compare.points[0]: point}

    def _pruning(self, point: float) -> dict[str, Any]:
        """Options of prune() at one operating point."""
        return self.recipe.prune.model_dump(exclude={"rescore", "recalibrate", "rounds"}) | self._goal(point)

    def _train(self, network: str, seed: int, path: Path) -> None:
        begun, start = time.perf_counter(), self.start(network, seed)
        found = measured(UNPRUNED, seed, start.network, start.splits, start.example, start.recipe)
        self._keep(found, network, start.recipe, path, begun)

    def _score(self, network: str, seed: int, path: Path) -> None:
        start = self.start(network, seed)
        self.report.say(f"{network}, seed {seed}: scoring")
        known = {
            label: {
                "scorer": each.scorer, "settings": each.settings, "images": each.images, "seconds": each.seconds,
                "own_seconds": each.own_seconds, "peak_bytes": each.peak_bytes,
            }
            for label, each in start.scores.items()
        }  # fmt: skip
        if rank() == 0:
            write_json(path, known)
        all_gather(None)

    def _prune(self, network: str, seed: int, label: str, point: float, path: Path) -> None:
        begun, start = time.perf_counter(), self.start(network, seed)
        entry = next(each for each in self.recipe.scorers if each.label == label)
        recipe, scores = self.at(start, point), start.scores[label]
        before = self._before(network, seed)
        found = compress(
            recipe, entry, scores, start.network, start.splits, start.example, before, start.place, self.report
        )
        self._keep(found, network, recipe, path, begun)

    def _from_scratch(self, network: str, seed: int, label: str, point: float, path: Path) -> None:
        """The architecture of this point: a new network, cut as the random control is, with the whole budget."""
        begun, start = time.perf_counter(), self.start(network, seed)
        recipe = self.at(start, point)
        torch.manual_seed(seed + FRESH)
        fresh = to_device(self.build(network), self.device)
        pruned = prune(fresh, start.scores[self._control], example=start.example, **self._pruning(point))
        model = to_device(pruned.model, self.device)
        settings = recipe.train or recipe.finetune
        assert settings is not None  # else there are no such tasks
        control = load_result(self.cell(network, seed, self._control, point))
        epochs = int(label.removeprefix(SCRATCH)) * budget_of(recipe, control)
        # A step an epoch, the other schedule, ends before such a budget does.
        kept = settings.model_dump(exclude={"when", "epochs", "schedule"})
        settings = Train(**kept, epochs=epochs, schedule="cosine")
        what = f"{network} from scratch, {recipe.compare.points[0]} {point:g}, {epochs} epochs"
        history = fit(model, start.splits, settings, recipe.workers, seed, self.report, what)
        found = measured(label, seed, model, start.splits, start.example, recipe)
        before = self._before(network, seed)
        row = dataclasses.replace(
            found.row, accuracy_before=before.accuracy_before, accuracy_finetuned=found.row.accuracy_before
        )
        found = dataclasses.replace(found, row=row, steps=pruned.steps, epochs=history)
        self._keep(found, network, recipe, path, begun)

    def _before(self, network: str, seed: int) -> Row:
        return load_result(self.cell(network, seed, "unpruned")).row

    def _keep(self, found: Compressed, network: str, recipe: Recipe, path: Path, begun: float) -> None:
        row = found.row
        if rank() == 0:
            found.cell(network, recipe, time.perf_counter() - begun).save(path)
            of = "" if row.accuracy_pruned is None else f", {row.accuracy_pruned:.2%} right after pruning"
            self.report.say(f"{path.stem}: {row.accuracy:.2%} of the test images{of}")
        all_gather(None)  # nobody looks for the cell before it is there


def budget_of(recipe: Recipe, control: Result) -> int:
    """The epochs that the control's network was trained for, before the cut and after it. What a pretrained network was
    trained for elsewhere is not known."""
    tuned = sum(1 for epoch in control.epochs if epoch["number"] > 0)
    if (train := recipe.train) is None:
        return max(tuned, 1)
    return epochs_of(train.schedule, train.lr, train.final_lr, train.epochs) + tuned
