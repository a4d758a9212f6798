"""The recipes that come with prune_fe: the folder recipes/ of the source, which is prune_fe/recipes in a wheel."""

from __future__ import annotations

from pathlib import Path

from prune_fe.errors import InputError
from prune_fe.io import nearest


def recipes_folder() -> Path:
    """Return the folder of the recipes."""
    package = Path(__file__).resolve().parents[1]
    installed, source = package / "recipes", package.parent / "recipes"
    return installed if installed.is_dir() else source


def bundled_recipes() -> dict[str, Path]:
    """Return name -> file, for each recipe that comes with prune_fe."""
    return {path.stem: path for path in sorted(recipes_folder().glob("*.yaml"))}


def find_recipe(path: Path) -> Path:
    """Return the file that a word of the command line means: a path, or the name of a recipe of prune_fe.

    Args:
        path: What was given. A file of this name is taken before a recipe that comes with prune_fe.

    Raises:
        InputError: There is no such file, and the word is a name without ending that no recipe has.
    """
    is_name = len(path.parts) == 1 and not path.suffix
    if not is_name or path.exists():
        return path
    recipes = bundled_recipes()
    if path.name not in recipes:
        raise InputError(f"{path}: no such file, and no recipe of prune_fe; {nearest(path.name, recipes)}")
    return recipes[path.name]
