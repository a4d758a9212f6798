"""The steps of an experiment: what is saved, and what is said."""

from pathlib import Path
from typing import Any

import pytest

from prune_fe.experiment.experiment import Experiment
from prune_fe.experiment.results import BY_LAYER, load_result
from prune_fe.experiment.steps import measure, save_result, score_units
from tests.experiment.helpers import Silent


@pytest.mark.parametrize(
    ("options", "saved"),
    [
        ({}, ("ratio", 0.5)),
        ({"ratio": 0.25}, ("ratio", 0.25)),
        ({"target_macs": 0.75}, ("target_macs", 0.75)),
        ({"ratio": {"features.0": 0.5}}, (BY_LAYER, 0.0)),
    ],
)
def test_a_result_says_how_much_was_to_be_removed(
    experiment: Experiment, options: dict[str, Any], saved: tuple[str, float]
) -> None:
    variant = experiment.with_recipe(experiment.recipe.with_options("prune", **options))
    outcome, path = measure(variant, variant.build_network(), "random"), variant.result_path("random")
    save_result(variant, outcome, path, began=0.0)
    result = load_result(path)
    assert (result.goal, result.point) == saved


def test_a_damaged_unfinished_pass_is_said_and_begins_again(experiment: Experiment, tmp_path: Path) -> None:
    folder = tmp_path / "scores"
    folder.mkdir()
    (folder / ".unfinished-0").write_bytes(b"damaged")
    entries, network = experiment.recipe.scorers[:1], experiment.build_network()
    scores = score_units(experiment, entries, folder=folder, network=network)
    assert isinstance(experiment.reporter, Silent)
    [said] = [text for text in experiment.reporter.said if "unfinished" in text]
    assert said.endswith(".unfinished-0: damaged (its SHA-256 is another one); this pass begins again")
    assert list(scores) == [entries[0].label]
