"""What a wheel holds."""

import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]
SETTINGS = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]


def test_every_package_and_the_recipes_are_listed() -> None:
    folders = {path.parent.relative_to(ROOT) for path in (ROOT / "prune_fe").rglob("*.py")}
    found = {".".join(folder.parts) for folder in folders}
    assert sorted(SETTINGS["packages"]) == sorted({*found, "prune_fe.recipes"})
    assert SETTINGS["package-dir"] == {"prune_fe.recipes": "recipes"}


def test_every_kind_of_file_that_is_not_python_is_listed() -> None:
    for package, folder in (("prune_fe.recipes", ROOT / "recipes"), ("prune_fe.report", ROOT / "prune_fe/report")):
        listed = {file for pattern in SETTINGS["package-data"][package] for file in folder.glob(pattern)}
        others = {file for file in folder.rglob("*") if file.is_file() and file.suffix not in (".py", ".pyc")}
        assert others == {file for file in listed if file.is_file()}
