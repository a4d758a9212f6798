"""prune-fe ablate: cumulative ablation of the networks of a recipe."""

from __future__ import annotations

from typing import Annotated

from cyclopts import Parameter

from prune_fe.cli.output import print_tables, reporter
from prune_fe.cli.parameters import RecipeFlags, RecipePath, Seeds, Several
from prune_fe.cli.run_folders import open_run, using


def ablate(
    recipe: RecipePath,
    *,
    flags: RecipeFlags = RecipeFlags(),
    layer: Annotated[list[str] | None, Several] = None,
    class_: Annotated[list[str] | None, Several, Parameter(name="--class")] = None,
    seed: Seeds = None,
) -> None:
    """Mask the units of a layer one after the other, by every scorer of a recipe, and watch the test images.

    Figure 12 and table 11 of the paper: both orders, each class by the scores of its own training images, random
    orders as the control. The tables also say how well each scorer agrees with what every unit alone is worth.
    Finished curves are kept.

    Args:
        layer: A convolution, or any other module with feature maps; default: the last convolution. Of several layers,
            also by patterns such as 'layer4.*', the same share of each is masked, with one run of the whole network
            for each mask.
        class_: Names of one or more classes; default: all.
    """
    checked, folder = open_run(recipe, flags, seed)
    from prune_fe.studies.cumulative_ablation import ablation_study

    with using(folder, flags.resume):
        tables = ablation_study(checked, folder, reporter, layer, class_)
    print_tables(tables)
