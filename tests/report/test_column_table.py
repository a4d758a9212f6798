"""The glossary of columns is complete, and the one in the folder of the recipes is current."""

import dataclasses

from prune_fe.experiment.bundled import recipes_folder
from prune_fe.experiment.recipe_table import put_between
from prune_fe.experiment.results import Row
from prune_fe.pruning.inspection import COLUMNS as INSPECTED
from prune_fe.pruning.loss_curves import CurvePoint
from prune_fe.report.column_table import BEGIN, END, columns_markdown, table_files
from prune_fe.report.findings import COLUMNS, Findings
from prune_fe.report.report import agreement_frame, class_frame
from prune_fe.training.custom import Epoch


def explained(name: str) -> set[str]:
    table = next(each for each in table_files() if any(name in file for file in each.names))
    assert all(meaning for meaning in table.columns.values())
    return {column for columns in table.columns for column in columns.split(", ")}


def test_the_glossary_in_the_folder_of_the_recipes_is_current() -> None:
    text = (recipes_folder() / "README.md").read_text()
    assert text == put_between(text, BEGIN, END, columns_markdown()), "run python scripts/recipes_readme.py"


def test_every_column_of_the_tables_is_explained(findings: Findings) -> None:
    assert explained("cells.csv") == set(COLUMNS) >= {entry.name for entry in dataclasses.fields(Row)}
    assert explained("epochs.csv") == {entry.name for entry in dataclasses.fields(Epoch)}
    assert explained("sensitivity.csv") > {entry.name for entry in dataclasses.fields(CurvePoint)}
    assert explained("inspect") == set(INSPECTED)
    assert explained("classes.csv (in a run folder)") > set(class_frame(findings).columns)
    agreed = {name for name in agreement_frame(findings).columns if not name.startswith("jaccard_")}
    assert explained("agreement.csv") == agreed | {"jaccard_…"}


def test_a_column_is_explained_once() -> None:
    lines = [line for line in columns_markdown().splitlines() if line.startswith("| `")]
    assert len(lines) == len(set(lines))
