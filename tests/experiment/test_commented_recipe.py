"""A recipe as YAML with comments."""

import yaml

from prune_fe.experiment.commented_recipe import SUGGESTED, commented_recipe
from prune_fe.experiment.recipe import Recipe
from prune_fe.experiment.recipe_table import recipe_keys

CONTENT = {
    "name": "mine",
    "data": {"source": "folder", "path": "my photos: all", "size": 64},
    "model": {"name": "timm/resnet10t", "checkpoint": "a.pth", "arguments": {"layers": [1, 2]}},
    "score": {"samples": 7},
    "scorers": ["taylor"],
    "prune": {"target_macs": 0.5},
    "finetune": {"lr": 1e-5, "schedule": "cosine", "epochs": 3, "batch_size": 16},
    "seeds": [3],
}


def test_it_is_the_recipe_again_and_every_key_has_its_help_in_front() -> None:
    text = commented_recipe(CONTENT, ["one line", "another"])
    assert yaml.safe_load(text) == CONTENT
    Recipe.model_validate(yaml.safe_load(text))
    assert text.startswith("# one line\n# another\n")
    assert "  # Learning rate at the start, or behind the warm-up.\n  lr: 1.0e-05\n" in text
    assert max(map(len, text.splitlines())) <= 120


def test_a_key_that_is_switched_on_is_accepted() -> None:
    text = commented_recipe(CONTENT, ["a"])
    assert "  # max_ratio: null\n  #     Largest share" in text
    changed = text.replace("  # protect: []", '  protect: ["fc"]').replace("# threads: null", "threads: 2")
    recipe = Recipe.model_validate(yaml.safe_load(changed))
    assert (recipe.prune.protect, recipe.threads) == (("fc",), 2)


def test_every_suggested_key_exists() -> None:
    known = {key.name for key in recipe_keys()}
    assert {f"{section}.{key}" for section, keys in SUGGESTED.items() for key in keys} <= known
