"""The study of randomness on a small trained network: tables 2, 7 and 10."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch import nn

from prune_fe.errors import InputError
from prune_fe.scoring.collection import Collection
from prune_fe.studies.randomness import compare_with_random, units_per_network
from prune_fe.studies.subject import Subject
from prune_fe.tracing.layers import Layer


@pytest.fixture(scope="module")
def columns(subject: Subject, initialise: Any) -> Callable[[str], tuple[list[float], list[float]]]:
    """Column -> (the trained units, the 100 random units)."""
    tables = compare_with_random(subject, initialise)

    def column(name: str) -> tuple[list[float], list[float]]:
        _, trained, random = next(table for table in tables if name in table.forms).rows.values()
        return list(trained[name]), list(random[name])

    return column


def test_random_units_have_a_higher_entropy_and_no_selectivity(
    columns: Callable[[str], tuple[list[float], list[float]]], subject: Subject
) -> None:
    trained, random = columns("H")
    assert (len(trained), len(random)) == (subject.layer.units, 100)
    assert np.mean(random) > np.mean(trained)
    trained, random = columns("class selectivity, μ_c − μ_rest")
    assert np.std(random) < np.std(trained) / 10
    # tables 2 and 7: APoZ cannot tell them apart, its deviation is as large as the difference
    trained, random = columns("APoZ")
    assert abs(np.mean(trained) - np.mean(random)) < np.std(random)


def test_random_units_are_shared_out_evenly_and_a_layer_must_have_enough() -> None:
    layer = Layer("conv", 12, (8, 8))
    assert units_per_network(layer, 95, 10) == [10] * 5 + [9] * 5
    assert units_per_network(layer, 3, 10) == [1] * 3 + [0] * 7
    with pytest.raises(InputError, match="layer 'conv' has 12 units, 13 of each network are drawn"):
        units_per_network(layer, 130, 10)


def test_every_random_unit_is_drawn_once_and_the_same_again(subject: Subject, initialise: Any) -> None:
    small = replace(subject, unit=5, samples=5)
    one, again = (compare_with_random(small, initialise, units=6, networks=2) for _ in range(2))
    assert [table.rows for table in one] == [table.rows for table in again]
    random = one[0].rows["6 random-initialised units"]["L1-norm"]
    assert len(set(random)) == 6


def test_a_study_that_was_killed_goes_on_with_the_network_it_was_killed_in(
    subject: Subject, initialise: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = replace(subject, unit=5, samples=5)
    whole = compare_with_random(small, initialise, units=6, networks=3)
    saving, measured = replace(small, folder=tmp_path), []
    run = Collection.run

    def killed(collection: Collection, model: nn.Module, *arguments: Any) -> None:
        measured.append(model)
        if len(measured) == 6:  # the trained network and two random ones have two passes each
            raise KeyboardInterrupt
        run(collection, model, *arguments)

    monkeypatch.setattr(Collection, "run", killed)
    with pytest.raises(KeyboardInterrupt):
        compare_with_random(saving, initialise, units=6, networks=3)
    again = compare_with_random(saving, initialise, units=6, networks=3)
    assert len(measured) == 6 + 3
    assert [table.rows for table in again] == [table.rows for table in whole]
