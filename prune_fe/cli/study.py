"""prune-fe study NAME: the tables and figures of one of the paper's studies, for the network that a recipe trains."""

from __future__ import annotations

import contextlib
import importlib
from pathlib import Path
from typing import Annotated, Any

from cyclopts import App, Parameter, validators

from prune_fe.cli.output import print_tables, reporter
from prune_fe.cli.parameters import AtLeastOne, ExecutorFlags, NetworkFlags, RecipeFlags, RecipePath, Seed, Several
from prune_fe.cli.run_folders import open_run, using
from prune_fe.errors import InputError
from prune_fe.experiment.options import ExecutorOptions
from prune_fe.io import nearest
from prune_fe.studies.options import (
    ExplanationOptions,
    GeneralisationStudyOptions,
    LayersOptions,
    SubjectOptions,
    TrainingStudyOptions,
)

study = App(
    name="study",
    help="Print the tables of one of the paper's studies, for the network that a recipe trains, or for a trained one: "
    "--model NAME --checkpoint FILE --data PATH.",
)


@study.default
def refuse_unknown_study(*words: Annotated[str, Parameter(show=False)]) -> None:
    """Raise InputError where the first word is not the name of a study, or there is none."""
    names = sorted(name for name in study if not name.startswith("-"))
    if not words:
        raise InputError(f"study: name one of {', '.join(names)}")
    raise InputError(f"study {words[0]!r}: {nearest(words[0], names)}")


StudySeed = Annotated[
    Seed | None, Parameter(help="Seed of the network that is studied, one of the recipe's; default: the first.")
]
LayerName = Annotated[
    str | None,
    Parameter(
        help="A convolution, or any other module with feature maps such as a residual block (layer4.1 of a ResNet is "
        "the paper's conv5_3_out); default: the last convolution that can be "
        "studied."
    ),
]
UnitFlags = Annotated[SubjectOptions, Parameter(name="*")]
Share = validators.Number(gte=0, lt=1)


def _print_study(
    name: str,
    recipe: Path | None,
    flags: RecipeFlags,
    executor: ExecutorOptions | None = None,
    network: NetworkFlags = NetworkFlags(),
    **arguments: Any,
) -> None:
    """Run a study, and print its tables.

    Args:
        name: Name of the study; the module `prune_fe.studies.NAME` has a function `NAME_study`.
        recipe: The recipe's file; None for a network.
        flags: The flags that change the recipe.
        executor: What runs the study's tasks; None for a study without tasks.
        network: A trained network in the place of a recipe.
        arguments: Further arguments of the function; None takes its default.
    """
    checked, folder = open_run(recipe, flags, network=network)
    # The module loads torch, which takes a second, so it is imported when the recipe has been checked.
    run_study = getattr(importlib.import_module(f"prune_fe.studies.{name}"), f"{name}_study")
    keywords = {key: value for key, value in arguments.items() if value is not None}
    with using(folder, flags.resume), contextlib.ExitStack() as stack:
        if executor is not None:
            from prune_fe.experiment.executors import open_executor

            keywords["executor"] = stack.enter_context(open_executor(executor, checked, folder, reporter))
        tables = run_study(checked, folder, reporter, **keywords)
    print_tables(tables)


@study.command
def rescaling(
    recipe: RecipePath | None = None,
    *,
    network: NetworkFlags = NetworkFlags(),
    flags: RecipeFlags = RecipeFlags(),
    options: UnitFlags = SubjectOptions(),
) -> None:
    """Compare each indicator of one unit when images, filters or both are halved (tables 1, 6 and 9)."""
    _print_study("rescaling", recipe, flags, network=network, options=options)


@study.command
def randomness(
    recipe: RecipePath | None = None,
    *,
    network: NetworkFlags = NetworkFlags(),
    flags: RecipeFlags = RecipeFlags(),
    options: UnitFlags = SubjectOptions(),
) -> None:
    """Compare a trained unit with 100 units of networks that are not trained (tables 2, 7 and 10)."""
    _print_study("randomness", recipe, flags, network=network, options=options)


@study.command
def characterisation(
    recipe: RecipePath | None = None,
    *,
    network: NetworkFlags = NetworkFlags(),
    flags: RecipeFlags = RecipeFlags(),
    options: UnitFlags = SubjectOptions(),
) -> None:
    """Compare birth, maximum and integral of the Betti curve, and a cubical complex (table 5 and appendix A.2)."""
    _print_study("characterisation", recipe, flags, network=network, options=options)


@study.command
def explanation(
    recipe: RecipePath | None = None,
    *,
    network: NetworkFlags = NetworkFlags(),
    flags: RecipeFlags = RecipeFlags(),
    options: Annotated[ExplanationOptions, Parameter(name="*")] = ExplanationOptions(),
    executor: ExecutorFlags = ExecutorOptions(),
) -> None:
    """Measure how well H/ε predicts the damage without each unit, and how much of that ε alone explains."""
    _print_study("explanation", recipe, flags, executor, network, options=options)


@study.command
def layers(
    recipe: RecipePath | None = None,
    *,
    network: NetworkFlags = NetworkFlags(),
    flags: RecipeFlags = RecipeFlags(),
    options: Annotated[LayersOptions, Parameter(name="*")] = LayersOptions(),
    executor: ExecutorFlags = ExecutorOptions(),
) -> None:
    """Compare H and ε of each layer of the trained network with random-initialised networks (figures 5A and 9)."""
    _print_study("layers", recipe, flags, executor, network, options=options)


@study.command
def training(
    recipe: RecipePath,
    *,
    flags: RecipeFlags = RecipeFlags(),
    options: Annotated[TrainingStudyOptions, Parameter(name="*")] = TrainingStudyOptions(),
) -> None:
    """Measure H and ε of a layer after each epoch of training, beside loss and accuracy (figures 5B and 10)."""
    _print_study("training", recipe, flags, options=options)


@study.command
def generalisation(
    recipe: RecipePath,
    *,
    flags: RecipeFlags = RecipeFlags(),
    options: Annotated[GeneralisationStudyOptions, Parameter(name="*")] = GeneralisationStudyOptions(),
    executor: ExecutorFlags = ExecutorOptions(),
) -> None:
    """Compare H and ε of networks that differ in their training only (figures 6 and 11, tables 3, 4 and 8)."""
    _print_study("generalisation", recipe, flags, executor, options=options)


@study.command
def samples(
    recipe: RecipePath | None = None,
    *,
    network: NetworkFlags = NetworkFlags(),
    flags: RecipeFlags = RecipeFlags(),
    layer: LayerName = None,
    samples: Annotated[list[int] | None, Several, Parameter(validator=AtLeastOne)] = None,
    draws: Annotated[int, Parameter(validator=validators.Number(gte=2))] = 100,
    seed: StudySeed = None,
) -> None:
    """Measure how much H depends on which images are drawn, and how many are enough (figures 7 and 8).

    Args:
        samples: Numbers of training images of each class; default: 50, 100 and 500.
        draws: Number of samples of each size that are drawn and compared.
    """
    _print_study("samples", recipe, flags, network=network, seed=seed, layer=layer, sizes=samples or None, draws=draws)


@study.command
def classes(
    recipe: RecipePath | None = None,
    *,
    network: NetworkFlags = NetworkFlags(),
    flags: RecipeFlags = RecipeFlags(),
    counts: Annotated[list[int] | None, Several, Parameter(validator=AtLeastOne)] = None,
    ratio: Annotated[float | None, Parameter(validator=Share)] = None,
    seed: StudySeed = None,
    executor: ExecutorFlags = ExecutorOptions(),
) -> None:
    """Measure accuracy after pruning against the number of classes that units are scored on (figure 13 A).

    Args:
        counts: Numbers of classes; default: 1, 2, 5, 10, … and all.
        ratio: Share of the units that is removed; default: the recipe's.
    """
    _print_study("classes", recipe, flags, executor, network, seed=seed, counts=counts, ratio=ratio)


@study.command
def ratio(
    recipe: RecipePath | None = None,
    *,
    network: NetworkFlags = NetworkFlags(),
    flags: RecipeFlags = RecipeFlags(),
    ratio: Annotated[list[float] | None, Several, Parameter(validator=Share)] = None,
    seed: StudySeed = None,
    executor: ExecutorFlags = ExecutorOptions(),
) -> None:
    """Measure accuracy after pruning by each scorer of the recipe against the pruning ratio (figure 13 B).

    Args:
        ratio: Shares of the units that are removed; default: 0.1, 0.2, … 0.9.
    """
    _print_study("ratio", recipe, flags, executor, network, seed=seed, ratios=ratio or None)
