"""Scorers by name."""

import subprocess
import sys
from dataclasses import dataclass
from typing import Any

import pytest

from prune_fe.errors import InputError
from prune_fe.scorers import SCORERS, resolve_scorer, scorer_name
from prune_fe.scorers.base import Scorer
from prune_fe.scorers.class_selectivity import ClassSelectivity
from prune_fe.scorers.random import Random
from prune_fe.scorers.taylor import Taylor


@dataclass(frozen=True)
class Custom(Scorer):
    """A user's own criterion, which no name stands for."""

    def score(self, *_: Any, **__: Any) -> Any:
        raise NotImplementedError


@pytest.mark.parametrize("name", SCORERS)
def test_every_name_resolves_to_its_scorer_and_back(name: str) -> None:
    scorer = resolve_scorer(name)
    assert type(scorer) is SCORERS[name]
    assert scorer_name(scorer) == name
    assert resolve_scorer(scorer) is scorer


def test_a_scorer_outside_the_registry_is_called_by_its_class() -> None:
    assert scorer_name(Custom()) == "Custom"
    assert resolve_scorer(Custom()) == Custom()


def test_settings_reach_the_scorer() -> None:
    assert resolve_scorer("taylor", {"square": "image"}) == Taylor(square="image")
    with pytest.raises(InputError, match="taylor: square is 'sum', allowed are total, image"):
        resolve_scorer("taylor", {"square": "sum"})


def test_the_seed_of_a_run_is_the_default_of_the_scorers_that_draw() -> None:
    assert resolve_scorer("random") == Random(0)
    assert resolve_scorer("random", seed=5) == Random(5)
    assert resolve_scorer("random", {"seed": 0}, seed=5) == Random(0)
    assert resolve_scorer("taylor", {"square": "image"}, seed=5) == Taylor(square="image")


@pytest.mark.parametrize("name", SCORERS)
def test_only_a_scorer_that_draws_has_a_seed_and_only_one_that_compares_classes_has_a_class(name: str) -> None:
    scorer = SCORERS[name]()
    assert scorer.for_seed(5) == (Random(5) if name == "random" else scorer)
    assert scorer.for_class(2) == (ClassSelectivity(of=2) if name == "class-selectivity" else scorer)
    assert scorer.compares_classes == (scorer.for_class(2) != scorer)


def test_an_unknown_name_is_refused_with_a_hint() -> None:
    with pytest.raises(InputError, match=f"unknown scorer 'l1'; allowed are {', '.join(SCORERS)}"):
        resolve_scorer("l1")
    with pytest.raises(InputError, match="unknown scorer 'l1-filtre'; did you mean 'l1-filter'"):
        resolve_scorer("l1-filtre")


def test_names_are_known_without_torch() -> None:
    code = (
        "import sys; from prune_fe.scorers import SCORERS; sys.exit('taylor' not in SCORERS or 'torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
