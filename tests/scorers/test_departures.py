"""Every criterion of another package says how it departs from its paper."""

from prune_fe.scorers import SCORERS
from prune_fe.scorers.departures import DEPARTURES


def test_every_criterion_of_torch_pruning_says_how_it_departs_from_its_paper() -> None:
    assert {*DEPARTURES} == {name for name in SCORERS if name.startswith("tp-")} - {"tp-random"}
    assert all(text.startswith("torch-pruning ") and not text.endswith(".") for text in DEPARTURES.values())
