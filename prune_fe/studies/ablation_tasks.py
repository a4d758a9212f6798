"""Cumulative ablation of one network as tasks: scores, single units, and the curves of each scorer and order."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path

import numpy as np
from torch import Tensor

from prune_fe.ablation.ablate import SHARES, masks_without_first, share_counts
from prune_fe.ablation.curves import Ablation, join
from prune_fe.ablation.trial import Run, Trial
from prune_fe.data.datasets import Rescaled
from prune_fe.errors import InputError
from prune_fe.experiment.estimate import Kind
from prune_fe.experiment.experiment import Experiment
from prune_fe.experiment.tasks import Task, network_task
from prune_fe.scoring.scores import Array, weakest
from prune_fe.studies.ablation_files import finished_classes, load_ablations, load_unit_ablations, save_ablations
from prune_fe.studies.ablation_scores import ClassScores
from prune_fe.studies.ablation_tables import ORDERS, AblatedNetwork
from prune_fe.tracing.layers import Layer

CURVE_STEP = 4
"""The option that shortens the curves, `ablate.every`, is proposed this many times as large as it is."""

SAVE_SECONDS = 30.0
"""Time between two saves of the curves of a task with many classes, if one class does not take longer."""


@dataclass(frozen=True)
class AblationTask(Task):
    """A task whose result holds the ablations of several classes.

    Attributes:
        classes: Names of the classes that must be in the result.
    """

    classes: Sequence[str]

    @property
    def is_finished(self) -> bool:
        """Whether all classes are in the file; an earlier call may have written others."""
        return set(self.classes) <= finished_classes(self.result)


@dataclass(frozen=True, eq=False)
class NetworkAblation:
    """The ablation of some layers of one network, on the test images of some classes.

    Attributes:
        experiment: The network, and the recipe with the scorers.
        layers: The layers whose units are masked; of several the same share of each.
        classes: Numbers of the classes.
        folder: Where scores and ablations are saved.
    """

    experiment: Experiment
    layers: Sequence[Layer]
    classes: Sequence[int]
    folder: Path

    @property
    def class_names(self) -> list[str]:
        """The names of the classes."""
        return [self.experiment.splits.classes[number] for number in self.classes]

    @cached_property
    def scores(self) -> ClassScores:
        """The scores of every scorer for each class."""
        return ClassScores(self.experiment, self.layers, self.classes, self.folder / "scores")

    @cached_property
    def trial(self) -> Trial:
        """The network with its test images, whose values are multiplied by random factors as the recipe says."""
        recipe, seed, images = self.experiment.recipe, self.experiment.seed, self.experiment.splits.test
        options = recipe.ablate
        if options.rescale:
            images = Rescaled.at_random(images, *options.rescale, seed)
        trial = Trial(
            self.experiment.network, images, self.layers, workers=recipe.workers, memory_gib=options.memory_gib
        )
        if trial.slow_reason:
            reason = f"the whole network is run for each mask, which is slow: {trial.slow_reason}"
            self.experiment.reporter.say(f"seed {seed}: {reason}")
        return trial

    def tasks(self) -> Iterator[Task]:
        """Yield the tasks: scoring, single units of one layer, and the curves of each scorer and order."""
        yield from self.scores.tasks()
        seed = f"seed-{self.experiment.seed}"
        if len(self.layers) == 1:
            path = self._single_units_path
            yield AblationTask(f"{seed}.single-units", path, (), self._make_single_units, self.class_names)
        every = CURVE_STEP * self.experiment.recipe.ablate.every
        curves = Kind("curves")
        if len(self.layers) == 1 and every < self.layers[0].units:  # of several layers, the number of masks is fixed
            curves = Kind("curves", f"ablate.every={every}", 1 / CURVE_STEP)
        for label in self.scores.labels:
            for order in ORDERS:
                path, work = self._curve_path(label, order), partial(self._make_curves, label, order)
                needs = self.scores.needs(label)
                yield AblationTask(f"{seed}.{label}.{order}", path, needs, work, self.class_names, kind=curves)

    def load(self) -> AblatedNetwork:
        """Return the finished ablations."""
        single_units = None
        if len(self.layers) == 1:
            known = load_unit_ablations(self._single_units_path)
            single_units = join([known[name] for name in self.class_names])
        ablations: dict[str, dict[str, Ablation]] = {
            label: {order: self._read(self._curve_path(label, order), self._orders(label, order)) for order in ORDERS}
            for label in self.scores.labels
        }
        scores = {label: self.scores.by_class(label) for label in self.scores.labels}
        return AblatedNetwork(self.experiment.seed, ablations, scores, single_units)

    @property
    def _single_units_path(self) -> Path:
        return self.folder / "each.npz"

    def _curve_path(self, label: str, order: str) -> Path:
        return self.folder / f"{label}.{order}.npz"

    @property
    def _bounds(self) -> Array:
        """Where the units of each layer but the first begin, in an array of the units of all layers."""
        return np.cumsum([layer.units for layer in self.layers])[:-1]

    def _orders(self, label: str, order: str) -> Array:
        """Return the order in which the units of each layer are masked for each class, shape (classes, units)."""
        # "ascending" is the order of feature entropy, which is low where a score is high: the best units go first.
        step = -1 if order == "ascending" else 1
        rows = [
            [weakest(part, len(part))[::step] for part in np.split(row, self._bounds)]
            for row in self.scores.by_class(label)
        ]
        return np.array([np.concatenate(parts) for parts in rows])

    def _make_single_units(self) -> None:
        known = load_unit_ablations(self._single_units_path)
        missing = [n for n, name in zip(self.classes, self.class_names, strict=True) if name not in known]
        progress = self.experiment.reporter.progress(f"seed {self.experiment.seed}: ablating (each)")
        unfinished = self.experiment.folder.next_unfinished("ablation")
        ablation = self.trial.run_single_units(classes=missing, unfinished=unfinished)
        progress(len(missing), len(missing))
        save_ablations(self._single_units_path, [*known.values(), ablation])

    def _make_curves(self, label: str, order: str) -> None:
        """Run the classes that the file does not have yet, and save them with the others."""
        path, orders = self._curve_path(label, order), self._orders(label, order)
        known = self._load(path, orders)
        missing = [n for n, name in enumerate(self.class_names) if name not in known]
        # Classes with one order, such as those of a scorer of weights, share their masks.
        is_shared = bool((orders[missing] == orders[missing[0]]).all())
        waiting = [missing] if is_shared else [[number] for number in missing]
        parts = list(known.values())
        progress = self.experiment.reporter.progress(f"seed {self.experiment.seed}: ablating ({path.stem})")
        n_runs, n_done, unfinished = 1, 0, self.experiment.folder.next_unfinished("ablation")
        while waiting:
            # Several runs read the images once. As many are made together as take the time between two saves.
            started, together = time.monotonic(), waiting[:n_runs]
            runs = [self._run_of(orders, numbers) for numbers in together]
            parts += self.trial.run_all(runs, unfinished=unfinished)
            seconds = (time.monotonic() - started) / len(together)
            n_runs, waiting = max(1, int(SAVE_SECONDS / max(seconds, 1e-3))), waiting[n_runs:]
            n_done += sum(map(len, together))
            progress(n_done, len(missing))
            save_ablations(path, parts)

    def _run_of(self, orders: Array, numbers: Sequence[int]) -> Run:
        """Return the run of classes with one order, the first one's."""
        units = orders[numbers[0]]
        return Run(self._curve_masks(units), units.tolist(), [self.classes[number] for number in numbers])

    def _curve_masks(self, units: Array) -> list[Tensor]:
        """Return the masks of each layer, shape (steps, units), in which more and more of `units` are removed."""
        if len(self.layers) == 1:
            n_units = self.layers[0].units
            counts = [sorted({*range(0, n_units, self.experiment.recipe.ablate.every), n_units})]
        else:
            counts = [share_counts(layer.units, SHARES) for layer in self.layers]
        parts = np.split(units, self._bounds)
        return [masks_without_first(part.tolist(), steps) for part, steps in zip(parts, counts, strict=True)]

    def _load(self, path: Path, orders: Array) -> dict[str, Ablation]:
        """Return the ablations in a file by class.

        Raises:
            InputError: The order of one of this study's classes is another one.
        """
        known = load_ablations(path, orders.shape[1])
        for name, order in zip(self.class_names, orders.tolist(), strict=True):
            if name in known and known[name].units != tuple(order):
                raise InputError(f"{path}: is of other scores than these; choose another run folder")
        return known

    def _read(self, path: Path, orders: Array) -> Ablation:
        """Return the finished ablation of all classes."""
        known = self._load(path, orders)
        return join([known[name] for name in self.class_names])


def seed_tasks(ablation_of: Callable[[int], NetworkAblation], seeds: Sequence[int]) -> list[Task]:
    """Return the tasks of several networks: to train each of them, to score it and to mask its units.

    Args:
        ablation_of: Function from a seed to the ablation of its network, called again when a task begins.
        seeds: The seeds.
    """
    tasks: list[Task] = []
    for seed in seeds:
        ablation = ablation_of(seed)
        network = network_task(ablation.experiment)
        for task in (network, *ablation.tasks()):
            needs = () if task is network else (network.result, *task.needs)
            tasks.append(dataclasses.replace(task, needs=needs, work=partial(_work_on, ablation_of, seed, task.name)))
    return tasks


def _work_on(ablation_of: Callable[[int], NetworkAblation], seed: int, name: str) -> None:
    ablation = ablation_of(seed)
    next(task for task in (network_task(ablation.experiment), *ablation.tasks()) if task.name == name).work()
