"""Tables of cumulative ablation: summaries of the curves, table 11, agreement with single units, data of figure 12."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, get_args

import numpy as np

from prune_fe.ablation.ablate import Order
from prune_fe.ablation.curves import Ablation, UnitAblation
from prune_fe.experiment.recipe import Recipe
from prune_fe.measure.statistics import Estimate, bootstrap, kendall, spearman
from prune_fe.report.tables import Table
from prune_fe.scoring.scores import Array

if TYPE_CHECKING:
    import pandas as pd

ORDERS: tuple[Order, ...] = get_args(Order)
FIRST = {"ascending": "best units first", "descending": "worst units first"}
"""Which units each order removes first."""

CONTROL = "random"
"""The control: units in random order, named like the scorer."""


@dataclass(frozen=True)
class AblatedNetwork:
    """One trained network with the ablations of every scorer.

    Attributes:
        seed: Seed of the network.
        ablations: Label -> order -> the ablation, over all classes. The control's labels are random#0, random#1, …
        scores: Label -> scores, shape (classes, units of all layers one after the other); higher = keep.
        single_units: The ablation of every unit alone; None for several layers.
    """

    seed: int
    ablations: Mapping[str, Mapping[str, Ablation]]
    scores: Mapping[str, Array]
    single_units: UnitAblation | None

    @property
    def first(self) -> Ablation:
        """The first ablation; all are of the same layers, classes and images."""
        return next(iter(next(iter(self.ablations.values())).values()))

    @property
    def losses_by_unit(self) -> Array:
        """Increase of the loss of each class's images without each unit alone in nats, shape (units, classes)."""
        assert self.single_units is not None
        return self.single_units.loss_increase


@dataclass(frozen=True)
class _Column:
    """A column of numbers that are compared between scorers.

    Attributes:
        title: Heading of the column.
        values: Scorer -> value of each class, shape (classes,).
    """

    title: str
    values: Mapping[str, Array]

    def estimate(self, scorer: str) -> Estimate:
        """Return the mean over the classes with its interval."""
        return bootstrap(self.values[scorer])

    def difference(self, scorer: str) -> Estimate | str:
        """Return the mean difference to the control; the control's own cell is empty."""
        return "" if scorer == CONTROL else bootstrap(self.values[scorer] - self.values[CONTROL])


def control_label(number: int | str) -> str:
    """Return the label of one random order; "#" is not allowed in the labels of scorers."""
    return f"{CONTROL}#{number}"


def labels_by_scorer(networks: Sequence[AblatedNetwork]) -> dict[str, list[str]]:
    """Return the labels of each scorer: one, or for the control those of all its random orders."""
    labels = list(networks[0].scores)
    controls = [label for label in labels if label.startswith(control_label(""))]
    return {label: [label] for label in labels if label not in controls} | {CONTROL: controls}


def mean_by_class(
    networks: Sequence[AblatedNetwork], labels: Sequence[str], order: str, value: Callable[[Ablation], Array]
) -> Array:
    """Return the mean of a quantity over the networks and labels, shape (classes,).

    Args:
        networks: The networks.
        labels: Labels of one scorer.
        order: Which ablations.
        value: Function from an ablation to the quantity, shape (classes,).
    """
    return np.mean([value(network.ablations[label][order]) for network in networks for label in labels], axis=0)


def agreement(
    networks: Sequence[AblatedNetwork], labels: Sequence[str], correlation: Callable[[Array, Array], float]
) -> Array:
    """Return how well scores agree with single-unit ablation for each class, shape (classes,).

    Args:
        networks: The networks.
        labels: Labels of one scorer.
        correlation: Rank correlation of a class's scores and the increase of its loss without each unit alone.
    """
    values = [
        [correlation(*pair) for pair in zip(network.scores[label], network.losses_by_unit.T, strict=True)]
        for network in networks
        for label in labels
    ]
    return np.mean(values, axis=0)


def describe(networks: Sequence[AblatedNetwork], recipe: Recipe) -> str:
    """Return a text that describes the networks and images of the tables, and their intervals."""
    first, images = networks[0].first, networks[0].first.images
    controls = len(labels_by_scorer(networks)[CONTROL])
    seeds = ", ".join(str(network.seed) for network in networks)
    per_class = f"{images.min()}" if images.min() == images.max() else f"{images.min()} to {images.max()}"
    factors = recipe.ablate.rescale
    rescaled = f", each multiplied by a random factor from {factors} (ablate.rescale)" if factors else ""
    return (
        f"{describe_layers(first)} of {recipe.model.name}, {len(first.classes)} classes with {per_class} test images "
        f"each{rescaled}; networks of seed {seeds}; {CONTROL}: the mean of {controls} orders for each "
        f"network. Means over the classes with 95 % intervals (bootstrap over classes; differences are paired)."
    )


def describe_layers(ablation: Ablation) -> str:
    """Return the layers whose units were removed in words."""
    if len(ablation.layers) > 1:
        return f"The same share of each of {', '.join(ablation.layers)}"
    return f"Layer {ablation.layers[0]!r}"


def ablation_tables(networks: Sequence[AblatedNetwork]) -> list[Table]:
    """Return the summaries of the curves in each order, table 11, and the agreement with single units if measured."""
    tables = [_curve_table(networks, order) for order in ORDERS]
    tables.append(_table_11(networks))
    if networks[0].single_units is not None:
        tables.append(_agreement_table(networks))
    return tables


def _curve_table(networks: Sequence[AblatedNetwork], order: str) -> Table:
    scorers = labels_by_scorer(networks)
    area = _by_scorer("area under accuracy", networks, order, lambda ablation: ablation.area)
    peak = _by_scorer("peak accuracy", networks, order, lambda ablation: ablation.peak[0])
    after = _by_scorer("after units", networks, order, lambda ablation: ablation.peak[1])
    rows = {
        name: {
            area.title: area.estimate(name),
            f"difference to {CONTROL}": area.difference(name),
            peak.title: peak.estimate(name),
            after.title: after.estimate(name),
            "units until chance": _units_until_chance(networks, labels, order),
        }
        for name, labels in scorers.items()
    }
    forms = {
        area.title: ".3f",
        f"difference to {CONTROL}": "+.3f",
        peak.title: ".3f",
        after.title: ".0f",
        "units until chance": "",
    }
    lowest = order == "ascending"
    claim = "falls fastest (least area)" if lowest else "stays longest (most area)"
    return Table(f"Ablation, {order}: {FIRST[order]}", forms, rows, _verdict(area.values, claim, lowest))


def _table_11(networks: Sequence[AblatedNetwork]) -> Table:
    unchanged = _by_scorer("unchanged", networks, "descending", lambda ablation: ablation.balanced_accuracy[0])
    best = _by_scorer("best", networks, "descending", lambda ablation: ablation.peak_balanced[0])
    held_out = _by_scorer("chosen on the other half", networks, "descending", lambda ablation: ablation.peak_held_out)
    # A class without an image in each half has no value on the other half.
    known = np.isfinite(held_out.values[CONTROL])
    gains = {name: best.values[name] - unchanged.values[name] for name in best.values}
    held_out_gains = {name: (held_out.values[name] - unchanged.values[name])[known] for name in best.values}
    held_out = _Column(held_out.title, {name: values[known] for name, values in held_out.values.items()})
    rows = {
        name: {
            unchanged.title: unchanged.estimate(name),
            best.title: best.estimate(name),
            "enhanced by": bootstrap(gains[name]),
            held_out.title: held_out.estimate(name),
            "enhanced by, on the other half": bootstrap(held_out_gains[name]),
            f"difference to {CONTROL}": held_out.difference(name),
        }
        for name in best.values
    }
    forms = dict.fromkeys(rows[CONTROL], ".3f") | {f"difference to {CONTROL}": "+.3f"}
    verdict = _verdict(held_out.values, "peaks highest", lowest=False)
    note = (
        "Balanced accuracy of the class against the rest along the descending curve. 'best' picks the number of "
        "removed units on the images that it is reported on, which flatters it; 'chosen on the other half' does not."
    )
    return Table("Table 11: the best balanced accuracy", forms, rows, f"{verdict} {note}")


def _agreement_table(networks: Sequence[AblatedNetwork]) -> Table:
    scorers = labels_by_scorer(networks)
    rho = _Column("Spearman's ρ", {name: agreement(networks, labels, spearman) for name, labels in scorers.items()})
    tau = _Column("Kendall's τ", {name: agreement(networks, labels, kendall) for name, labels in scorers.items()})
    rows = {
        name: {
            rho.title: rho.estimate(name),
            tau.title: tau.estimate(name),
            f"ρ, difference to {CONTROL}": rho.difference(name),
        }
        for name in scorers
    }
    forms = dict.fromkeys(rows[CONTROL], ".3f") | {f"ρ, difference to {CONTROL}": "+.3f"}
    verdict = _verdict(rho.values, "agrees best", lowest=False)
    note = "Rank correlation of a class's scores with the loss that its test images suffer without each unit alone."
    return Table("Scores and single units", forms, rows, f"{verdict} {note}")


def _by_scorer(
    title: str, networks: Sequence[AblatedNetwork], order: str, value: Callable[[Ablation], Array]
) -> _Column:
    """Return the column of a quantity, of which `mean_by_class` gives each scorer's values."""
    scorers = labels_by_scorer(networks)
    return _Column(title, {name: mean_by_class(networks, labels, order, value) for name, labels in scorers.items()})


def _units_until_chance(networks: Sequence[AblatedNetwork], labels: Sequence[str], order: str) -> str:
    """Return the median over the classes whose accuracy falls to chance, and the share of classes that do."""
    counts = np.concatenate(
        [network.ablations[label][order].units_until_chance for network in networks for label in labels]
    )
    reached = counts[counts >= 0]
    if len(reached) == 0:
        return "never"
    share = f" ({len(reached) / len(counts):.0%} of classes)" if len(reached) < len(counts) else ""
    return f"{np.median(reached):.0f}{share}"


def _verdict(values: Mapping[str, Array], claim: str, lowest: bool) -> str:
    """Return which scorer is best, and which ones cannot be told apart from it.

    Args:
        values: Scorer -> value of each class, shape (classes,).
        claim: What is said of the best scorer.
        lowest: Whether the lowest mean is the best, instead of the highest.
    """
    if len(next(iter(values.values()))) < 2:
        return "One class: there is nothing that could tell the scorers apart."
    sign = -1 if lowest else 1
    best = max(values, key=lambda name: float(sign * values[name].mean()))
    equal = [name for name in values if name != best and not bootstrap(values[best] - values[name]).not_zero]
    if equal:
        return f"{best} {claim}; not told apart from it: {', '.join(equal)}."
    return f"{best} {claim}; the interval tells it apart from all others."


def class_rows(networks: Sequence[AblatedNetwork]) -> list[dict[str, Any]]:
    """Return the lines of ablation-*.csv: one for each network, label, order and class."""
    rows = []
    for network, label, order, ablation in _all_ablations(networks):
        (peak, peak_at), (best, best_at) = ablation.peak, ablation.peak_balanced
        columns = {
            "area": ablation.area,
            "accuracy": ablation.accuracy[0],
            "peak_accuracy": peak,
            "peak_after": peak_at,
            "units_until_chance": ablation.units_until_chance,
            "balanced_accuracy": ablation.balanced_accuracy[0],
            "best_balanced_accuracy": best,
            "best_after": best_at,
            "best_balanced_accuracy_held_out": ablation.peak_held_out,
            "loss": ablation.loss[0],
        }
        for number, name in enumerate(ablation.classes):
            row = {"seed": network.seed, "scorer": label, "order": order, "class": name}
            row |= {column: values[number].item() for column, values in columns.items()}
            if network.single_units is not None:
                losses = network.losses_by_unit[:, number]
                row["spearman_single_unit"] = spearman(network.scores[label][number], losses)
            rows.append(row)
    return rows


def curve_rows(networks: Sequence[AblatedNetwork]) -> list[dict[str, Any]]:
    """Return the lines of ablation-*-curves.csv: means over the classes.

    There is one line for each network, label, order and number of removed units.
    """
    return [
        {
            "seed": network.seed,
            "scorer": label,
            "order": order,
            "removed": int(removed),
            "accuracy": float(ablation.accuracy[step].mean()),
            "balanced_accuracy": float(ablation.balanced_accuracy[step].mean()),
            "loss": float(ablation.loss[step].mean()),
        }
        for network, label, order, ablation in _all_ablations(networks)
        for step, removed in enumerate(ablation.removed)
    ]


def _all_ablations(networks: Sequence[AblatedNetwork]) -> Iterator[tuple[AblatedNetwork, str, str, Ablation]]:
    """Yield every ablation with its network, label and order."""
    for network in networks:
        for label, orders in network.ablations.items():
            for order, ablation in orders.items():
                yield network, label, order, ablation


def curve_frame(networks: Sequence[AblatedNetwork]) -> pd.DataFrame:
    """Return the curves of figure 12.

    Returns:
        Columns scorer, order, removed, quantity ("accuracy", or "loss" in nats), mean, low and high: the mean over
        classes, networks and random orders, and the least and largest mean over the classes of one of the latter.
    """
    import pandas as pd

    rows = []
    for order in ORDERS:
        for quantity in ("accuracy", "loss"):
            for name, labels in labels_by_scorer(networks).items():
                ablations = [network.ablations[label][order] for network in networks for label in labels]
                curves = np.array([getattr(ablation, quantity).mean(axis=1) for ablation in ablations])
                rows += [
                    {
                        "scorer": name,
                        "order": order,
                        "removed": int(removed),
                        "quantity": quantity,
                        "mean": float(curve.mean()),
                        "low": float(curve.min()),
                        "high": float(curve.max()),
                    }
                    for removed, curve in zip(ablations[0].removed, curves.T, strict=True)
                ]
    return pd.DataFrame(rows)


def curve_areas(networks: Sequence[AblatedNetwork]) -> dict[tuple[str, str], float]:
    """Return the mean area under the accuracy for each (order, scorer)."""
    return {
        (order, name): float(mean_by_class(networks, labels, order, lambda ablation: ablation.area).mean())
        for order in ORDERS
        for name, labels in labels_by_scorer(networks).items()
    }


def curve_title(networks: Sequence[AblatedNetwork], recipe: Recipe) -> str:
    """Return the title of figure 12."""
    first, factors = networks[0].first, recipe.ablate.rescale
    layers = first.layers[0] if len(first.layers) == 1 else f"{len(first.layers)} layers"
    rescaled = f", images × {factors[0]:g} to {factors[1]:g} at random" if factors else ""
    return f"Cumulative ablation of {layers}, mean over {len(first.classes)} classes{rescaled}"
