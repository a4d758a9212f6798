"""The recipe and the run folder of a command that carries out a recipe."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prune_fe.cli.images import validation_keys
from prune_fe.cli.inputs import parse_assignments, require_data, require_scorers
from prune_fe.cli.output import reporter
from prune_fe.cli.parameters import ModelFlags, NetworkFlags, RecipeFlags, RequiredDataFlags
from prune_fe.data.registry import PATH_SOURCE, find_source
from prune_fe.errors import InputError, PruneFEError

if TYPE_CHECKING:
    from prune_fe.experiment.recipe import Recipe
    from prune_fe.experiment.run_folder import RunFolder


def open_run(
    path: Path | None,
    flags: RecipeFlags,
    seeds: list[int] | None = None,
    comparison: bool = False,
    network: NetworkFlags = NetworkFlags(),
) -> tuple[Recipe, RunFolder]:
    """Read and check a recipe, and create its run folder or open the one to resume.

    Args:
        path: The recipe; None for the network that `network` names.
        flags: Flags of the command, which replace keys of the recipe.
        seeds: Seeds that replace the recipe's.
        comparison: Whether it is the folder of a comparison.
        network: A trained network in the place of a recipe.

    Raises:
        InputError: There is neither a recipe nor a network, or both.
    """
    from prune_fe.experiment.run_folder import RunFolder

    recipe = _read_recipe(path, flags, seeds, network)
    content = recipe.model_dump(mode="json")
    if flags.resume is None:
        folder = RunFolder.create(flags.output, recipe.name, content, comparison)
    else:
        latest = flags.resume == "auto"
        folder = RunFolder.resume(
            latest_run(flags.output, recipe.name, comparison) if latest else Path(flags.resume), content, comparison
        )
    reporter.say(f"run folder: {folder.path}")
    return recipe, folder


def join_run(path: Path, flags: RecipeFlags, seeds: list[int] | None = None) -> tuple[Recipe, RunFolder]:
    """Read a recipe, and open the run folder that another rank has opened.

    Args:
        path: The recipe.
        flags: Flags of the command; `resume` is the folder.
        seeds: Seeds that replace the recipe's.
    """
    from prune_fe.experiment.run_folder import RunFolder

    return _read_recipe(path, flags, seeds), RunFolder.join(Path(str(flags.resume)))


def _read_recipe(
    path: Path | None, flags: RecipeFlags, seeds: list[int] | None, network: NetworkFlags = NetworkFlags()
) -> Recipe:
    """Read a recipe, or make that of a network, replace keys by flags, and check it."""
    from prune_fe.experiment.bundled import find_recipe
    from prune_fe.experiment.recipe import resolve_recipe
    from prune_fe.experiment.strict_yaml import read_mapping

    if (path is None) == (network.model is None):
        raise InputError("name a recipe, or a trained network with --model and --data; not both")
    if path is not None:
        path = find_recipe(path)
        where, content = str(path), read_mapping(path)
    else:
        where, content = str(network.model), _content_of(network, flags.data)
    replaced = {
        "data.path": None if path is None else flags.data,
        "data.skip_bad": flags.skip_bad,
        "seeds": seeds,
        "device": flags.device,
        "threads": flags.threads,
        "workers": flags.workers,
    }
    overrides = {key: value for key, value in replaced.items() if value is not None}
    if flags.validation is not None:
        overrides |= {f"data.{key}": value for key, value in validation_keys(flags.validation).items()}
    recipe = resolve_recipe(content, overrides | parse_assignments(flags.set_), where, reporter.say)
    if find_source(recipe.data.source).needs_path and recipe.data.path is None:
        raise InputError(f"{where} reads a folder of images: pass --data PATH")
    if recipe.data.source == PATH_SOURCE:
        require_data(recipe.data.path)
    return recipe


def _content_of(network: NetworkFlags, data: str | None) -> dict[str, Any]:
    """Return the content of a recipe that studies a trained network.

    Raises:
        InputError: There are no images, or nobody has trained the network.
    """
    from prune_fe.cli.compress import require_trained
    from prune_fe.cli.images import choose_images
    from prune_fe.cli.networks import read_notes
    from prune_fe.experiment.fitting import differing
    from prune_fe.models.preprocessing import known_preprocessing

    if data is None:
        raise InputError("--model needs images: pass --data PATH")
    name = str(network.model)
    require_trained(ModelFlags(model=name, checkpoint=network.checkpoint, pretrained=network.pretrained))
    require_scorers(network.scorer)
    flags = ModelFlags(model=name, pretrained=network.pretrained, size=network.size)
    known = known_preprocessing(name, pretrained=network.pretrained)
    images = choose_images(flags, RequiredDataFlags(data=data, source=network.source), read_notes(name), known)
    model: dict[str, Any] = {"name": name, "pretrained": network.pretrained}
    if network.checkpoint is not None:
        model["checkpoint"] = str(network.checkpoint)
    return {
        "name": re.sub(r"[^A-Za-z0-9_.-]+", "-", name).strip("-._") or "network",
        "data": differing(images),
        "model": model,
        "score": {} if network.samples is None else {"samples": network.samples},
        "scorers": list(network.scorer),
    }


def latest_run(output: Path, name: str, comparison: bool) -> Path:
    """Return the latest run folder of a recipe: the one with the highest number.

    A run that was killed before its first result does not stand before one with results.

    Args:
        output: The folder that holds run folders.
        name: Name of the recipe.
        comparison: Whether the run is a comparison; other runs are ignored then, and comparisons otherwise.

    Raises:
        InputError: There is none.
    """
    from prune_fe.experiment.run_folder import has_results, is_comparison

    runs = [path for path in output.glob(f"{name}-*") if path.name.removeprefix(f"{name}-").isdigit()]
    runs = [path for path in runs if is_comparison(path) == comparison and (path / "recipe.yaml").is_file()]
    if not runs:
        raise InputError(f"{output}: no {'comparison' if comparison else 'run'} of {name!r} to resume")
    return max(runs, key=lambda path: (has_results(path), int(path.name.removeprefix(f"{name}-"))))


@contextmanager
def using(folder: RunFolder, resume: str | None) -> Iterator[None]:
    """Show progress while the folder is used, and close it; a new one is removed if an error left it empty."""
    try:
        with reporter.showing():
            yield
    except (PruneFEError, OSError, MemoryError):
        if resume is None:
            folder.discard()
        raise
    finally:
        folder.close()
