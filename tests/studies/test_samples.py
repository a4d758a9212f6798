"""The study of samples: its tables and files, and what it refuses before anything is trained."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from prune_fe.errors import DataError, InputError
from prune_fe.experiment.experiment import Experiment
from prune_fe.report.tables import Table
from prune_fe.studies.draws import ANEW
from prune_fe.studies.samples import samples_study

LAYER = "features.4"


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory, run_study: Any, recipe_with: Any) -> tuple[Path, list[Table], Any]:
    """A finished study: its folder, its tables and what was said."""
    folder = tmp_path_factory.mktemp("samples")
    tables, said = run_study(samples_study, folder, recipe_with(), layer=LAYER, sizes=(10, 500, 40), draws=6)
    return folder, tables, said


def test_the_files_hold_every_draw_and_unit(done: Any, read_rows: Any) -> None:
    folder, tables, said = done
    name = f"study-samples-seed-1-{LAYER}"
    assert any("draws of 500 images are left out: the smallest class has" in text for text in said)
    assert ANEW in tables[1].note
    assert "mean correlation of 0.95" in tables[1].note
    assert tables[1].rows["10 × 10 classes"][ANEW] == "–"
    assert list(tables[0].rows) == ["10 images", "40 images"]
    assert list(tables[1].rows)[:2] == ["10 × 1 class", "10 × 2 classes"]
    draws, units = read_rows(folder / f"{name}-draws.csv"), read_rows(folder / f"{name}-units.csv")
    assert (len(draws), len(units)) == (2 * 6, 2 * 8)
    first = [float(row["layer_entropy_nats"]) for row in draws[:6]]
    assert tables[0].rows["10 images"]["layer's mean H"] == pytest.approx(first)
    spread = np.mean([float(row["spread_nats"]) for row in units[:8]])
    assert tables[0].rows["10 images"]["spread"] == pytest.approx([spread])
    assert "10 × 10 classes" in {row["row"] for row in read_rows(folder / f"{name}.csv")}
    assert "Two draws" in (folder / f"{name}.md").read_text()
    assert "number of classes" in (folder / f"{name}.svg").read_text()


def test_only_the_classes_of_the_recipe_are_drawn(done: Any, tmp_path: Path, run_study: Any, recipe_with: Any) -> None:
    (tmp_path / "seed-1").symlink_to(done[0] / "seed-1")
    recipe = recipe_with(score={"classes": [3, 7]})
    tables, _ = run_study(samples_study, tmp_path, recipe, sizes=(10,), draws=2)
    assert list(tables[1].rows) == ["10 × 1 class", "10 × 2 classes"]


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"draws": 1}, InputError, "draws=1: a spread needs at least 2"),
        ({"sizes": (0, 5)}, InputError, r"sizes=\(0, 5\): allowed are numbers of images, 1 or more"),
        ({"sizes": ()}, InputError, r"sizes=\(\)"),
        ({"sizes": (500, 900)}, DataError, "draws of 500 images: the smallest class has 1.. training"),
        ({"layer": "features.9"}, InputError, "'features.9': the model has no such module"),
        ({"seed": 2}, InputError, "seed 2: the recipe has 1, 4"),
    ],
)
def test_bad_input_is_said_before_anything_is_trained(
    options: dict[str, Any],
    error: type[Exception],
    match: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    run_study: Any,
    recipe_with: Any,
) -> None:
    monkeypatch.setattr(Experiment, "network", property(lambda _: pytest.fail("trained")))
    with pytest.raises(error, match=match):
        run_study(samples_study, tmp_path, recipe_with(), **options)
