"""Curves never fall, are written and read as they are, and belong to one network."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from prune_fe.errors import InputError
from prune_fe.pruning.groups import Group
from prune_fe.pruning.loss_curves import (
    CurvePoint,
    LossCurve,
    Sensitivity,
    check_sensitivity,
    describe,
    load_sensitivity,
)
from prune_fe.pruning.options import PruneOptions
from prune_fe.scoring.score import score
from prune_fe.tracing.dependency_graph import SetId

AUTO = PruneOptions(ratio="auto", target_macs=0.5)


def curve(losses: dict[int, float], units: int = 10) -> LossCurve:
    points = [CurvePoint(count / units, count, 0.5, loss, 0.9, 0.8) for count, loss in losses.items()]
    return LossCurve(("a", "b"), units, tuple(points))


def test_a_curve_is_interpolated_and_never_falls() -> None:
    rising = curve({2: 1.25, 4: 2.0, 8: 5.0})
    assert rising.most_removed == 8
    assert rising.predict_increases(1.0, range(9)).tolist() == [0, 0.125, 0.25, 0.625, 1, 1.75, 2.5, 3.25, 4]
    # 1.5 and 0.5 above the whole network's: the best curve that does not fall is 1 for both.
    assert curve({2: 2.5, 4: 1.5, 8: 5.0}).predict_increases(1.0, [0, 1, 2, 4, 8]).tolist() == [0, 0.5, 1, 1, 4]
    # Less loss than the whole network's is no gain to count on.
    assert curve({2: 0.5, 4: 1.5}).predict_increases(1.0, [0, 2, 3, 4]).tolist() == [0, 0, 0.25, 0.5]
    assert curve({}).predict_increases(1.0, [0]).tolist() == [0]
    assert curve({0: 1.0, 3: 2.0}).predict_increases(1.0, [0, 3]).tolist() == [0, 1]


@given(st.lists(st.floats(0, 10), min_size=1, max_size=9), st.floats(0, 10))
def test_increases_are_monotone_and_not_below_zero(losses: list[float], unpruned: float) -> None:
    increases = curve(dict(enumerate(losses, 1))).predict_increases(unpruned, range(len(losses) + 1))
    assert increases[0] == 0
    assert (np.diff(increases) >= -1e-12).all()


def test_a_sensitivity_is_read_as_it_was_written(tmp_path: Path) -> None:
    found = Sensitivity((curve({2: 1.25}), LossCurve(("c",), 3, reason="not scored")), 0.75, 1.0, 40, {"ratios": [0.2]})
    found.save(tmp_path / "new")
    assert load_sensitivity(tmp_path / "new") == found
    table = found.table()
    assert table["group"].tolist() == [1, 2]
    assert table["layers"].tolist() == ["a, b", "c"]
    assert table["loss_increase"].tolist()[0] == 0.25
    assert table["reason"].tolist() == ["", "not scored"]


def test_the_groups_of_another_network_are_refused() -> None:
    def group(layer: str, units: int) -> Group:
        return Group({layer: tuple((n,) for n in range(units))}, (0,) * units, tuple(map(SetId, range(units))))

    found = Sensitivity((LossCurve(("c",), 3),), 0.75, 1.0, 40)
    assert found.curves_of([group("c", 3)]) == {0: found.curves[0]}
    for groups in ([group("d", 3)], [group("c", 4)], []):
        with pytest.raises(InputError, match=r"it has curves of 1 groups, the network has \d groups, and their"):
            found.curves_of(groups)


def test_curves_are_for_one_network_its_scores_and_the_ratio_auto() -> None:
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten(), nn.Linear(16, 2))
    scores = score(net, scorer="l1-filter")
    found = Sensitivity((), 0.5, 1.0, 4, describe(net, scores) | {"reduction": "mean", "images_sha256": "x"})
    check_sensitivity(found, net, scores, AUTO)
    check_sensitivity(None, net, scores, PruneOptions())

    def refused(message: str, **changed: Any) -> None:
        arguments: dict[str, Any] = {"sensitivity": found, "model": net, "scores": scores, "options": AUTO} | changed
        with pytest.raises(InputError, match=message):
            check_sensitivity(**arguments)

    refused("ratio: auto needs sensitivity=", sensitivity=None)
    refused("sensitivity has no effect without ratio: auto", options=PruneOptions(target_macs=0.5))
    refused("sensitivity is a int", sensitivity=3)
    refused("another choice of scores;", scores=score(net, scorer="random"))
    refused("another choice of reduction;", options=dataclasses.replace(AUTO, reduction="max"))
    with torch.no_grad():
        net[0].weight.mul_(2)  # type: ignore[operator]
    refused("another choice of weights;")
