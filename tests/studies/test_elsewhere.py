"""Studies whose tasks are made and done by others, as the workers of Ray do: the results are those of one process."""

import pickle
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from prune_fe.experiment.results import TIMED
from prune_fe.experiment.run import run
from prune_fe.experiment.run_folder import RunFolder
from prune_fe.experiment.tasks import Failures, Grid, Task
from prune_fe.studies.classes import classes_study
from prune_fe.studies.cumulative_ablation import ablation_study
from prune_fe.studies.explanation import explanation_study
from prune_fe.studies.generalisation import generalisation_study
from prune_fe.studies.layers import layers_study
from prune_fe.studies.options import ExplanationOptions, GeneralisationStudyOptions, LayersOptions
from prune_fe.studies.ratio import ratio_study


class Elsewhere:
    """An executor whose two workers take turns, and know nothing but the grid and the run folder."""

    def __init__(self, folder: Path, reporter: Any) -> None:
        self.folder, self.reporter, self.done = folder, reporter, list[str]()

    def execute(self, tasks: Sequence[Task], grid: Grid) -> Failures:
        workers = [self._worker(grid) for _ in range(2)]
        for number, task in enumerate(tasks):
            folder, made = workers[number % 2]
            same = made[task.name]
            assert (same.result, list(same.needs), type(same)) == (task.result, list(task.needs), type(task))
            assert all(need.exists() for need in task.needs)
            if not task.is_finished:
                with folder.working_on(task.name):
                    same.work()
                self.done.append(task.name)
                assert task.is_finished
            assert len(made) == len(tasks)
        return {}

    def _worker(self, grid: Grid) -> tuple[RunFolder, Mapping[str, Task]]:
        folder = RunFolder.join(self.folder)
        return folder, {task.name: task for task in pickle.loads(pickle.dumps(grid)).tasks(folder, self.reporter)}


SETS = {"noise": {"none": {}, "half": {"label_noise": 0.5}}}
CASES: dict[str, tuple[Callable[..., list[Any]], dict[str, Any], dict[str, Any]]] = {
    "run": (run, {"finetune": None}, {}),
    "ablate": (ablation_study, {"ablate": {"every": 4, "control_seeds": 1}}, {"classes": ["3"]}),
    "layers": (layers_study, {}, {"options": LayersOptions(random_seeds=1, seed=4)}),
    "explanation": (explanation_study, {}, {"options": ExplanationOptions(images_per_class=4)}),
    "generalisation": (
        generalisation_study,
        {"generalisation": {"sets": SETS}, "seeds": [1]},
        {"options": GeneralisationStudyOptions()},
    ),
    "classes": (classes_study, {"finetune": None}, {"counts": [2, 10], "ratio": 0.5}),
    "ratio": (ratio_study, {"finetune": None}, {"ratios": [0.25, 0.5], "seed": 4}),
}


@pytest.mark.parametrize("name", CASES)
def test_tasks_that_others_make_have_the_same_results(
    name: str, tmp_path: Path, run_study: Any, recipe_with: Any, listener: Any
) -> None:
    study, sections, options = CASES[name]
    recipe = recipe_with(**sections)
    alone, _ = run_study(study, tmp_path / "alone", recipe, **options)
    executor = Elsewhere(tmp_path / "elsewhere", listener())
    elsewhere, _ = run_study(study, tmp_path / "elsewhere", recipe, **options, executor=executor)
    assert len(executor.done) >= 2
    assert list(map(untimed, elsewhere)) == list(map(untimed, alone))


def untimed(table: Any) -> Any:
    """A table, or a row of a run without what was timed."""
    return repr(table) if hasattr(table, "rows") else {k: v for k, v in vars(table).items() if k not in TIMED}
