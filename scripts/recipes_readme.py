"""Write the list of the recipes, the table of all keys and the glossary of columns into recipes/README.md."""

from __future__ import annotations

from prune_fe.experiment.bundled import recipes_folder
from prune_fe.experiment.recipe_table import put_between, with_tables
from prune_fe.io import write_text
from prune_fe.report.column_table import BEGIN, END, columns_markdown

if __name__ == "__main__":
    path = recipes_folder() / "README.md"
    write_text(path, put_between(with_tables(path.read_text()), BEGIN, END, columns_markdown()))
