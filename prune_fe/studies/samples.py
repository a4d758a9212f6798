"""The study of samples (figures 7 and 8): how far feature entropy depends on which training images are drawn."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from torch.utils.data import Subset

from prune_fe.charts import sample_size
from prune_fe.data.labels import image_labels
from prune_fe.data.sampling import choose_images
from prune_fe.errors import DataError, InputError
from prune_fe.experiment.device import to_device
from prune_fe.experiment.experiment import Experiment, Reporter, begin
from prune_fe.experiment.recipe import Recipe, ScorerEntry
from prune_fe.experiment.run_folder import RunFolder
from prune_fe.io import safe_file_name
from prune_fe.measure.statistics import Estimate
from prune_fe.report.tables import Table
from prune_fe.scorers import resolve_scorer
from prune_fe.scorers.feature_entropy import FeatureEntropy
from prune_fe.scoring.scores import Array
from prune_fe.studies.draws import ANEW, SAME, BirthTimes, DrawComparison, compare_draws, recommend_sizes
from prune_fe.studies.last_layer import choose_layer
from prune_fe.studies.output import write_study
from prune_fe.tracing.layers import Layer

if TYPE_CHECKING:
    import pandas as pd

ENTROPY = "feature-entropy"
SIZES = (50, 100, 500)
"""Images of a class in figure 7."""


def samples_study(
    recipe: Recipe,
    folder: RunFolder,
    reporter: Reporter,
    *,
    seed: int | None = None,
    layer: str | None = None,
    sizes: Sequence[int] = SIZES,
    draws: int = 100,
) -> list[Table]:
    """Measure how far feature entropy depends on the drawn images, and how many are enough (figures 7 and 8).

    For each size, so many images of each of the recipe's scoring classes are drawn `draws` times without replacement,
    and every unit of the layer is scored on them. The network sees each image once. Files study-samples-* are written
    to the run folder; the network and the birth times that are in the folder are not made again.

    Args:
        recipe: Which network and images.
        folder: The run folder.
        reporter: Where messages and progress go.
        seed: Which of the recipe's networks; default that of its first seed.
        layer: Name of a module; default the last convolution.
        sizes: Images of a class in a draw. Sizes that the smallest class cannot fill are left out.
        draws: How many draws are made of each size.

    Returns:
        A table of the spread of H, and one of the agreement between two draws.

    Raises:
        InputError: An argument is out of range, or feature entropy cannot score the layer.
        DataError: The smallest class has fewer images than every size.
    """
    if draws < 2:
        raise InputError(f"draws={draws}: a spread needs at least 2")
    if not sizes or min(sizes) < 1:
        raise InputError(f"sizes={tuple(sizes)}: allowed are numbers of images, 1 or more")
    experiment = begin(recipe, folder, reporter, seed)
    splits, seed = experiment.splits, experiment.seed
    entry = recipe.first_entry(ENTROPY)
    scorer = resolve_scorer(ENTROPY, entry.settings)
    assert isinstance(scorer, FeatureEntropy)
    chosen = choose_images(splits.train, recipe.score.classes, None, seed)
    labels = np.array(image_labels(splits.train))[chosen]
    possible = _possible_sizes(sizes, labels, reporter)
    untrained = to_device(experiment.build_network(), experiment.device)
    target = choose_layer(experiment, untrained, layer, [scorer])
    scorer.check([target], len(chosen), labels.tolist())
    experiment.log_environment()
    births = BirthTimes.measure(
        _restrict(experiment, entry, target).network,
        target,
        Subset(splits.train, chosen),
        scorer,
        recipe.score.batch_size,
        recipe.workers,
        reporter.progress("birth times"),
        experiment.seed_folder / "study-samples" / f"{safe_file_name(target.name)}.npz",
    )
    comparisons = [compare_draws(births, size, draws, seed, reporter.progress(f"draws of {size}")) for size in possible]
    name = f"study-samples-seed-{seed}-{safe_file_name(target.name)}"
    experiment.log("study", name=name)
    folder.write_table(f"{name}-draws.csv", _draw_rows(comparisons))
    folder.write_table(f"{name}-units.csv", _unit_rows(comparisons))
    tables = [_spread_table(births, comparisons), _agreement_table(comparisons)]
    subject = f"layer {target.name!r} ({target.units} units), {len(births.images_by_class)} classes, {entry.label}"
    write_study(
        experiment,
        name,
        f"samples: seed {seed}, {subject}",
        tables,
        [row for table in tables for row in table.entries()],
        sample_size(
            _spread_frame(comparisons),
            _agreement_frame(comparisons),
            f"Feature entropy of {target.name}, {draws} draws",
        ),
    )
    return tables


def _restrict(experiment: Experiment, entry: ScorerEntry, layer: Layer) -> Experiment:
    """Return the experiment with a recipe that scores this layer by this scorer only, so that no other is checked."""
    recipe = experiment.recipe
    return experiment.with_recipe(
        recipe.with_options("score", exclude=(), layers=(layer.name,), samples=None).with_scorers([entry])
    )


def _possible_sizes(sizes: Sequence[int], labels: Array, reporter: Reporter) -> list[int]:
    """Return the sizes that the smallest class can fill, ascending.

    Raises:
        DataError: There are none.
    """
    available = int(np.unique(labels, return_counts=True)[1].min())
    possible = sorted({size for size in sizes if size <= available})
    if not possible:
        raise DataError(f"draws of {min(sizes)} images: the smallest class has {available} training images")
    for size in sorted(set(sizes) - set(possible)):
        reporter.say(f"draws of {size} images are left out: the smallest class has {available} training images")
    return possible


def _spread_table(births: BirthTimes, comparisons: Sequence[DrawComparison]) -> Table:
    all_images = np.array([births.entropies(members)[0] for members in births.images_by_class])
    rows = {
        f"{comparison.size} images": {
            "a unit's H": [float(comparison.mean.mean())],
            "away from all images": [float(abs(comparison.mean - all_images).mean())],
            "spread": [float(comparison.spread.mean())],
            "spread, worst unit": [float(comparison.spread.max())],
            "layer's mean H": comparison.layer_mean.mean(axis=1).tolist(),
            "its spread, one class": [float(comparison.layer_mean.std(axis=0, ddof=1).mean())],
        }
        for comparison in comparisons
    }
    least = min(map(len, births.images_by_class))
    note = (
        f"H in nats, of one class; {comparisons[0].draws} draws; means over units and classes. Spread: standard "
        "deviation over the draws; of the layer's mean over all classes it stands in brackets. Away: of the mean over "
        f"the draws from H of all images of the class, {least} or more; it falls to 0, as the spread does, where "
        "a draw takes them all."
    )
    forms = dict.fromkeys(rows[next(iter(rows))], ".3f")
    return Table("H and the number of images (figures 7, 8)", forms, rows, note)


def _agreement_table(comparisons: Sequence[DrawComparison]) -> Table:
    rows = {
        f"{comparison.size} × {k} {'class' if k == 1 else 'classes'}": {
            "images": [comparison.size * k],
            **{column: _percentiles(columns[column]) if column in columns else "–" for column in (SAME, ANEW)},
        }
        for comparison in comparisons
        for k, columns in comparison.agreement.items()
    }
    sharing = [str(comparison.size) for comparison in comparisons if not comparison.disjoint]
    common = f" (which share images in draws of {', '.join(sharing)} and agree the more: a class has too few for two)"
    note = (
        f"Spearman's ρ of the units' H/ε between two draws{common if sharing else ', which share no image'}, mean and "
        f"percentiles 2.5 and 97.5 over {comparisons[0].draws // 2} pairs of draws. {SAME}: only the images are drawn "
        f"again; {ANEW}: the second draw is of other classes, where there are as many. {recommend_sizes(comparisons)}"
    )
    return Table("Two draws: the order of the units", {"images": "d", SAME: ".3f", ANEW: ".3f"}, rows, note)


def _percentiles(values: Array) -> Estimate:
    """Return the mean of the values and the interval that holds 95 % of them."""
    low, high = np.percentile(values, [2.5, 97.5])
    return Estimate(float(values.mean()), float(low), float(high), len(values))


def _draw_rows(comparisons: Sequence[DrawComparison]) -> list[dict[str, Any]]:
    """Return one line for each draw."""
    return [
        {"size": comparison.size, "draw": draw, "layer_entropy_nats": float(value)}
        for comparison in comparisons
        for draw, value in enumerate(comparison.layer_mean.mean(axis=1))
    ]


def _unit_rows(comparisons: Sequence[DrawComparison]) -> list[dict[str, Any]]:
    """Return one line for each unit, with means over the classes."""
    rows = []
    for comparison in comparisons:
        means, spreads = comparison.mean.mean(axis=0), comparison.spread.mean(axis=0)
        rows += [
            {"size": comparison.size, "unit": unit, "entropy_nats": float(mean), "spread_nats": float(spread)}
            for unit, (mean, spread) in enumerate(zip(means, spreads, strict=True))
        ]
    return rows


def _spread_frame(comparisons: Sequence[DrawComparison]) -> pd.DataFrame:
    """Return the spread of every unit and class: columns images and spread_nats."""
    import pandas as pd

    return pd.concat(
        pd.DataFrame({"images": comparison.size, "spread_nats": comparison.spread.ravel()})
        for comparison in comparisons
    )


def _agreement_frame(comparisons: Sequence[DrawComparison]) -> pd.DataFrame:
    """Return the mean correlations of two draws: columns images (of a class), classes, draw (SAME or ANEW) and rho."""
    import pandas as pd

    return pd.DataFrame(
        {"images": comparison.size, "classes": k, "draw": column, "rho": rho}
        for comparison in comparisons
        for k, column, rho in comparison.mean_agreements()
    )
