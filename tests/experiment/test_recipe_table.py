"""The table of all keys of a recipe."""

import dataclasses
import typing
from typing import Any

from prune_fe.experiment.bundled import recipes_folder
from prune_fe.experiment.recipe import ModelOptions, Recipe, keys_at
from prune_fe.experiment.recipe_table import option_helps, recipe_keys, with_tables

MINIMAL = {
    "name": "a",
    "data": {"source": "digits", "size": 8},
    "model": {"name": "vgg-small"},
    "scorers": ["random"],
    "train": {},
}


def test_the_tables_in_the_folder_of_the_recipes_are_current() -> None:
    text = (recipes_folder() / "README.md").read_text()
    assert text == with_tables(text), "run python scripts/recipes_readme.py"


def test_the_table_has_every_key_of_every_section_with_its_help() -> None:
    names = {key.name for key in recipe_keys()}
    assert all(key.help and key.allowed for key in recipe_keys())
    for section in ("data", "model", "train", "score", "prune", "finetune", "ablate", "compare"):
        for key in keys_at((section,)):
            assert any(name == f"{section}.{key}" or name.startswith(f"{section}.{key}.") for name in names), key
    assert {name for name in names if "." not in name} >= {"name", "scorers", "seeds", "device", "threads", "workers"}


def test_a_default_of_the_table_is_the_recipes() -> None:
    known = {key.name: key.default for key in recipe_keys()}
    section: Any = type(Recipe.model_validate(MINIMAL).train)
    for field in dataclasses.fields(section):
        if isinstance(field.default, int | float | str):
            assert known[f"train.{field.name}"].strip('"') in (str(field.default), str(field.default).lower())
    assert known["name"] == ""
    assert known["seeds"] == "[0]"


def test_the_help_of_an_option_is_the_text_below_it_or_its_line_among_the_attributes() -> None:
    assert option_helps(ModelOptions)["pretrained"].startswith("Start from the library's trained weights.")
    assert option_helps(Recipe)["seeds"] == "A network is trained for each of them."
    assert option_helps(Recipe).keys() >= typing.get_type_hints(Recipe).keys() - {"model_config"}
