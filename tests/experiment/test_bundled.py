"""The recipes that come with prune_fe."""

from pathlib import Path

import pytest

from prune_fe.errors import InputError
from prune_fe.experiment.bundled import bundled_recipes, find_recipe, recipes_folder
from prune_fe.experiment.recipe import load_recipe


def test_every_recipe_is_found_by_its_name_and_listed() -> None:
    listed = (recipes_folder() / "README.md").read_text()
    assert len(bundled_recipes()) >= 14
    for name, path in bundled_recipes().items():
        assert load_recipe(path).name == name
        assert find_recipe(Path(name)) == path
        assert f"`{name}`" in listed


def test_a_file_of_the_users_comes_before_a_recipe_of_the_same_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("quickstart").write_text("name: mine")
    assert find_recipe(Path("quickstart")) == Path("quickstart")
    assert find_recipe(Path("other.yaml")) == Path("other.yaml")


def test_an_unknown_name_is_refused_with_one_that_is_like_it() -> None:
    with pytest.raises(InputError, match="quickstrt: no such file, and no recipe of prune_fe; did you mean 'quickst"):
        find_recipe(Path("quickstrt"))
