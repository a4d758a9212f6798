"""How often networks are fine-tuned, and what the unpruned network has in common with the pruned ones."""

from pathlib import Path
from typing import Any

import pytest

from prune_fe.experiment.experiment import Experiment, begin
from prune_fe.experiment.recipe import Recipe
from prune_fe.experiment.results import TUNED
from prune_fe.experiment.run import compress
from prune_fe.experiment.run_folder import RunFolder
from prune_fe.experiment.tuning import count_tunings, has_tuned_control, tune_unpruned
from tests.experiment.helpers import CONTENT, Silent


def make(folder: Path, **changes: Any) -> Experiment:
    recipe = Recipe.model_validate(CONTENT | {"scorers": ["random"], "seeds": [0]} | changes)
    folder.mkdir(exist_ok=True)
    RunFolder(folder, recipe.model_dump(mode="json"), comparison=True).close()
    return begin(recipe, RunFolder.join(folder), Silent())


EACH_ROUND = CONTENT["finetune"] | {"when": "each_round"}


@pytest.mark.parametrize(
    ("changes", "count"),
    [
        ({}, 1),
        ({"prune": {"rounds": 3}, "finetune": EACH_ROUND}, 3),
        ({"prune": {"rounds": "layers"}, "finetune": EACH_ROUND}, 2),
        # The second layer keeps all units, and there is no fine-tuning after it.
        ({"prune": {"rounds": "layers", "ratio": {"features.0": 0.5}}, "finetune": EACH_ROUND}, 1),
        ({"prune": {"rounds": "layers", "ratio": 0.0}, "finetune": EACH_ROUND}, 0),
    ],
)
def test_the_unpruned_network_has_as_many_epochs_as_the_pruned_ones(
    tmp_path: Path, changes: dict[str, Any], count: int
) -> None:
    experiment = make(tmp_path / "run", **changes)
    assert count_tunings(experiment) == count
    entry = experiment.recipe.scorers[0]
    pruned = compress(experiment, entry, experiment.scores[entry.label])
    before = {name: value.clone() for name, value in experiment.network.state_dict().items()}
    tuned = tune_unpruned(experiment, count)
    assert [epoch.number for epoch in tuned.epochs] == [epoch.number for epoch in pruned.epochs]
    assert tuned.row.scorer == TUNED
    assert tuned.row.accuracy_before == experiment.unpruned.accuracy
    assert all(value.equal(before[name]) for name, value in experiment.network.state_dict().items())


def test_only_fine_tuning_has_a_control() -> None:
    assert has_tuned_control(Recipe.model_validate(CONTENT))
    assert not has_tuned_control(Recipe.model_validate(CONTENT | {"finetune": None}))
    assert not has_tuned_control(Recipe.model_validate(CONTENT | {"finetune": {"unpruned": False}}))


def test_with_the_ratio_auto_the_unpruned_network_has_the_most_epochs_that_a_pruned_one_can_have(
    tmp_path: Path,
) -> None:
    prune = {"rounds": "layers", "ratio": "auto", "target_macs": 0.4}
    assert count_tunings(make(tmp_path / "run", prune=prune, finetune=EACH_ROUND)) == 2  # each group loses units
