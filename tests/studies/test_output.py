"""The files of a study: the numbers, the tables, and the chart where there is one."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import altair as alt
import pandas as pd
import pytest

from prune_fe.experiment.recipe import Recipe
from prune_fe.experiment.run_folder import RunFolder
from prune_fe.report.tables import Table
from prune_fe.studies.output import write_study


@pytest.mark.parametrize("has_chart", [False, True])
def test_a_study_leaves_its_numbers_tables_and_chart(
    has_chart: bool, tmp_path: Path, recipe_with: Any, read_rows: Any
) -> None:
    recipe: Recipe = recipe_with()
    folder, said = RunFolder(tmp_path, recipe.model_dump(mode="json")), list[str]()
    experiment: Any = SimpleNamespace(folder=folder, reporter=SimpleNamespace(say=said.append))
    tables = [Table(title, {"a": ".1f"}, {"one": {"a": [0.5]}}) for title in ("First", "Second")]
    chart = alt.Chart(pd.DataFrame({"x": [1]})).mark_point().encode(x="x") if has_chart else None
    write_study(experiment, "study-x", "x: seed 0", tables, [{"a": 0.5}], chart)
    folder.close()
    assert read_rows(tmp_path / "study-x.csv") == [{"a": "0.5"}]
    text = (tmp_path / "study-x.md").read_text()
    assert text.startswith("## x: seed 0\n\n### First\n")
    assert "\n### Second\n" in text
    assert (tmp_path / "study-x.svg").exists() == has_chart
    assert any("figure: " in line for line in said) == has_chart
    assert f"results: {tmp_path}/study-x.csv and .md" in said[0]
