"""prune-fe ablate: cumulative ablation of the networks of a recipe."""

from __future__ import annotations

from typing import Annotated

from cyclopts import Parameter

from prune_fe.cli.output import print_json, print_tables, reporter, text_to_stderr
from prune_fe.cli.parameters import ExecutorFlags, Json, NetworkFlags, RecipeFlags, RecipePath, Seeds, Several
from prune_fe.cli.run_folders import open_run, using
from prune_fe.experiment.options import ExecutorOptions


def ablate(
    recipe: RecipePath | None = None,
    *,
    network: NetworkFlags = NetworkFlags(),
    flags: RecipeFlags = RecipeFlags(),
    layer: Annotated[list[str] | None, Several] = None,
    class_: Annotated[list[str] | None, Several, Parameter(name="--class")] = None,
    seed: Seeds = None,
    executor: ExecutorFlags = ExecutorOptions(),
    json: Json = False,
) -> None:
    """Mask the units of a layer one after the other, ordered by every scorer, and measure test accuracy.

    The network is that of a recipe, or a trained one: --model NAME --checkpoint FILE --data PATH.

    Prints figure 12 and table 11 of the paper. Units are masked best first and worst first, for each class in the order
    of the scores of its own training images; random orders are the control. The tables also say how well each scorer
    agrees with the increase of the loss when a unit is masked alone. Finished curves are kept. For figure 12 the paper
    multiplies each image by a random factor: --set 'ablate.rescale=[0.5, 1.5]'.

    Args:
        layer: A convolution, or any other module with feature maps; default: the last convolution on a main path that
            all scorers can score. Several names, or a pattern such as 'layer4.*', mask the same share of each layer,
            with one run of the whole network for each mask.
        class_: Names of one or more classes; default: all.
    """
    text_to_stderr(json)
    checked, folder = open_run(recipe, flags, seed, network=network)
    from prune_fe.experiment.executors import open_executor
    from prune_fe.studies.cumulative_ablation import ablation_study

    with using(folder, flags.resume), open_executor(executor, checked, folder, reporter) as chosen:
        tables = ablation_study(checked, folder, reporter, layer, class_, chosen)
    print_tables(tables)
    if json:
        print_json({"folder": str(folder.path), "numbers": [entry for table in tables for entry in table.entries()]})
