"""Write the list of the recipes and the table of all keys of a recipe into recipes/README.md."""

from __future__ import annotations

from prune_fe.experiment.bundled import recipes_folder
from prune_fe.experiment.recipe_table import with_tables
from prune_fe.io import write_text

if __name__ == "__main__":
    path = recipes_folder() / "README.md"
    write_text(path, with_tables(path.read_text()))
