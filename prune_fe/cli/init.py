"""prune-fe init: write a recipe for a network and its images."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from prune_fe.cli.compress import Assignments, CompressFlags, PruneFlags, recipe_content, require_trained
from prune_fe.cli.inputs import new_output, parse_assignments, require_data
from prune_fe.cli.networks import load
from prune_fe.cli.output import reporter, say_next
from prune_fe.cli.parameters import ModelFlags, RequiredDataFlags, Seed
from prune_fe.errors import InputError
from prune_fe.experiment.recipe import CompressOptions, PruneSection, resolve_recipe


def init(
    *,
    model: ModelFlags,
    data: RequiredDataFlags,
    options: CompressFlags = CompressOptions(),
    prune: PruneFlags = PruneSection(),
    output: Annotated[Path, Parameter(name=["--output", "--output-dir"], help="The new file.")] = Path("recipe.yaml"),
    seed: Seed = 0,
    set_: Assignments = None,
) -> None:
    """Write a recipe for a trained network and its images, with a comment for each key, and run nothing.

    It is the recipe that `prune-fe compress` would run with the same flags. `prune-fe run`, `compare`, `ablate` and
    `study` take it too.

    Args:
        seed: Seed of all draws.
    """
    if output.suffix not in (".yaml", ".yml"):
        raise InputError(f"--output {output}: a recipe is a file that ends in .yaml")
    require_data(data.data)
    require_trained(model)
    with new_output(output):
        from prune_fe.experiment.commented_recipe import commented_recipe
        from prune_fe.io import write_text

        loaded = load(model, data, "cpu", seed)
        content = recipe_content(model, loaded, options, prune, seed, {})
        for key, value in parse_assignments(set_).items():
            section, dot, name = key.rpartition(".")
            (content.setdefault(section, {}) if dot else content)[name] = value
        resolve_recipe(content, where="init")
        heading = (
            f"{model.model} on {data.data}, as `prune-fe compress` treats it. Each line of a key that begins with #",
            "can be switched on. All keys: recipes/README.md of prune_fe.",
        )
        write_text(output, commented_recipe(content, heading))
    reporter.say(f"recipe: {output}")
    say_next("run", output)
