"""Scorers by name."""

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from torch import nn

from prune_fe import score
from prune_fe.errors import InputError, PruneFEError
from prune_fe.scorers import SCORERS, resolve_scorer, scorer_name
from prune_fe.scorers.base import Scorer
from prune_fe.scorers.class_selectivity import ClassSelectivity
from prune_fe.scorers.random import Random
from prune_fe.scorers.taylor import Taylor
from prune_fe.scorers.tp_criteria import TPRandom
from tests.scorers.installed import POINTS, install


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
    drawing = {"random": Random(5), "tp-random": TPRandom(5)}
    assert scorer.for_seed(5) == drawing.get(name, scorer)
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


def test_an_installed_package_adds_a_function_and_a_class(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    before = list(SCORERS)
    install(monkeypatch, tmp_path, POINTS)
    assert list(SCORERS) == [*before, "largest", "smallest"]
    assert len(SCORERS) == len(before) + 2
    net = nn.Conv2d(1, 2, 1, bias=False)
    nn.init.constant_(net.weight, -3.0)
    for name, settings, scores in (("largest", {"power": 2}, [9.0, 9.0]), ("smallest", {"offset": 1.0}, [4.0, 4.0])):
        scorer = resolve_scorer(name, settings, seed=1)
        assert (scorer_name(scorer), scorer.settings, type(scorer)) == (name, settings, SCORERS[name])
        assert score(nn.Sequential(net), scorer=scorer).keep["0"].tolist() == scores
    with pytest.raises(InputError, match="scorer 'smallest' has no setting 'power'; it has offset"):
        resolve_scorer("smallest", {"power": 1})
    with pytest.raises(InputError, match="unknown scorer 'bigest'; did you mean 'largest'"):
        resolve_scorer("bigest")


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("no_such_module:x", r"of package 'my-criteria' \(no_such_module:x\) cannot be loaded: ModuleNotFoundError"),
        ("my_criteria:x", r"scorer 'mine' of package 'my-criteria' \(my_criteria:x\) cannot be loaded: AttributeError"),
        ("my_criteria:number", "scorer 'mine' is a int; allowed are a class that derives from"),
    ],
)
def test_an_entry_point_that_is_no_scorer_is_refused_when_it_is_used(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, value: str, message: str
) -> None:
    install(monkeypatch, tmp_path, {"mine": value})
    assert "mine" in SCORERS
    assert scorer_name(resolve_scorer("random")) == "random"
    with pytest.raises(PruneFEError, match=message):
        resolve_scorer("mine")


def test_two_packages_with_one_name_are_refused_by_both_names(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    install(monkeypatch, tmp_path / "one", {"mine": "my_criteria:largest"}, "one")
    install(monkeypatch, tmp_path / "two", {"mine": "my_criteria:Smallest"}, "two")
    with pytest.raises(InputError, match="scorer 'mine' of package 'two' .* is also 'mine' of package 'one'"):
        resolve_scorer("mine")


def test_a_name_of_prune_fe_s_own_stays_its_own(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    install(monkeypatch, tmp_path, {"random": "my_criteria:largest"})
    assert resolve_scorer("random") == Random(0)
    with pytest.warns(UserWarning, match="'random' of package 'my-criteria' .* is ignored: prune_fe has one of this"):
        assert list(SCORERS).count("random") == 1
