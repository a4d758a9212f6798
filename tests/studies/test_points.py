"""Points: one that fails is named and stops no other; a point without an accuracy is missing in the chart."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from prune_fe.errors import DataError
from prune_fe.studies.points import Point, PointGroup, accuracy_frame, load_point
from prune_fe.studies.ratio import ratio_study


def point(pruned: float | None, finetuned: float | None) -> Point:
    return Point("l1-filter", 0, 10, 200, 0.5, pruned, finetuned, 1000, 2000)


def test_the_stages_that_were_not_measured_are_missing() -> None:
    frame = accuracy_frame({"a": {0.5: point(None, 0.75)}, "b": {0.5: point(None, 0.5)}})
    assert frame.to_dict("records") == [
        {"scorer": "a", "x": 0.5, "stage": "fine-tuned", "accuracy": 0.75},
        {"scorer": "b", "x": 0.5, "stage": "fine-tuned", "accuracy": 0.5},
    ]
    assert point(None, 0.75).cells == {"fine-tuned": [0.75], "parameters": [1000], "multiply-adds": [2000]}
    both = accuracy_frame({"a": {0.5: point(0.25, 0.75)}})
    assert np.array_equal(both["stage"], ["right after pruning", "fine-tuned"])


def test_a_point_that_fails_is_named_and_stops_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run_study: Any, recipe_with: Any
) -> None:
    make_point = PointGroup._make_point

    def fails(self: PointGroup, entry: Any) -> None:
        if entry.label == "feature-entropy":
            raise DataError("no images")
        make_point(self, entry)

    monkeypatch.setattr(PointGroup, "_make_point", fails)
    with pytest.raises(DataError, match=r"1 task failed; the first is .*study-ratio-0.5.feature-entropy: no images"):
        run_study(ratio_study, tmp_path, recipe_with(finetune=None), ratios=[0.5])
    place = tmp_path / "seed-1/study-ratio-0.5"
    assert not (place / "feature-entropy.json").exists()
    assert load_point(place / "l1-filter.json").scorer == "l1-filter"
    monkeypatch.undo()
    tables, _ = run_study(ratio_study, tmp_path, recipe_with(finetune=None), ratios=[0.5])
    assert len(tables) == 2
