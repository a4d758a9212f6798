"""What cumulative ablation has shown: the curves' summaries, table 11, agreement with single units, and figure 12."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np

from prune_fe.ablation.trial import Ablation, Order
from prune_fe.errors import DataError
from prune_fe.experiment.recipe import Recipe
from prune_fe.measure.statistics import Estimate, bootstrap, kendall, spearman
from prune_fe.report.tables import Table
from prune_fe.scoring.scores import Array

ORDERS: tuple[Order, ...] = get_args(Order)
FIRST = {"ascending": "best units first", "descending": "worst units first"}
CONTROL = "random"


@dataclass(frozen=True)
class Network:
    """One trained network: for every scorer its ablations in both orders, and what each unit alone is worth.

    ablations: label -> order -> the ablation, over all classes. keep: label -> (classes, units). each: every unit
    alone; None for several layers. The control's labels are random#0, random#1, …
    """

    seed: int
    ablations: Mapping[str, Mapping[str, Ablation]]
    keep: Mapping[str, Array]
    each: Ablation | None

    @property
    def any(self) -> Ablation:
        """One of the ablations: all are of the same layers, classes and images."""
        return next(iter(next(iter(self.ablations.values())).values()))

    @property
    def suffered(self) -> Array:
        """(units, classes): what the loss of each class's images rises by without each unit alone."""
        assert self.each is not None
        return self.each.loss[1:] - self.each.loss[0]


def scorers_of(networks: Sequence[Network]) -> dict[str, list[str]]:
    """Scorer -> its labels: of the control all its seeds."""
    labels = list(networks[0].keep)
    controls = [label for label in labels if label.startswith(control_label(""))]
    return {label: [label] for label in labels if label not in controls} | {CONTROL: controls}


def control_label(number: int | str) -> str:
    """No scorer's label: these hold no such sign."""
    return f"{CONTROL}#{number}"


def per_class(
    networks: Sequence[Network], labels: Sequence[str], order: str, value: Callable[[Ablation], Array]
) -> Array:
    """(classes,): the mean over the networks and labels."""
    return np.mean([value(network.ablations[label][order]) for network in networks for label in labels], axis=0)


def agreement(networks: Sequence[Network], labels: Sequence[str], of: Callable[[Array, Array], float]) -> Array:
    """(classes,): how far a scorer ranks the units as the loss does that their class suffers without each of them."""
    found = []
    for network in networks:
        suffered = network.suffered.T
        for label in labels:
            found.append([of(*pair) for pair in zip(network.keep[label], suffered, strict=True)])
    return np.mean(found, axis=0)


def about_of(networks: Sequence[Network], recipe: Recipe) -> str:
    """What the tables are of, and how their intervals are made."""
    found, scorers = networks[0].any, scorers_of(networks)
    seeds, images = ", ".join(str(network.seed) for network in networks), found.images
    few = f"{images.min()}" if images.min() == images.max() else f"{images.min()} to {images.max()}"
    rescaled = recipe.ablate.rescale and f", each multiplied by a random factor from {recipe.ablate.rescale}"
    return (
        f"{place_of(found)} of {recipe.model.name}, {len(found.classes)} classes with {few} test images each"
        f"{rescaled or ''}; networks of seed {seeds}; {CONTROL}: the mean of {len(scorers[CONTROL])} orders for each "
        f"network. Means over the classes with 95 % intervals (bootstrap over classes; differences are paired)."
    )


def place_of(found: Ablation) -> str:
    """Where the units were taken away."""
    first, *others = found.layers
    return f"The same share of each of {', '.join(found.layers)}" if others else f"Layer {first!r}"


def tabled(networks: Sequence[Network]) -> list[Table]:
    """The curves' summaries by order, table 11, and how far the scores agree with what each unit alone is worth."""
    scorers = scorers_of(networks)
    tables = []
    for order in ORDERS:
        areas = {name: per_class(networks, labels, order, lambda a: a.area) for name, labels in scorers.items()}
        rows = {
            name: {
                "area under accuracy": bootstrap(areas[name]),
                f"difference to {CONTROL}": _difference(areas[name], areas[CONTROL], name),
                "peak accuracy": bootstrap(per_class(networks, labels, order, lambda a: a.peak[0])),
                "after units": bootstrap(per_class(networks, labels, order, lambda a: a.peak[1])),
                "units until chance": _until_chance(networks, labels, order),
            }
            for name, labels in scorers.items()
        }
        forms = {"area under accuracy": ".3f", f"difference to {CONTROL}": "+.3f", "peak accuracy": ".3f"}
        forms |= {"after units": ".0f", "units until chance": ""}
        lowest = order == "ascending"
        verdict = _verdict(areas, "falls fastest (least area)" if lowest else "stays longest (most area)", lowest)
        tables.append(Table(f"Ablation, {order}: {FIRST[order]}", forms, rows, verdict))
    tables.append(_table_11(networks, scorers))
    return tables if networks[0].each is None else [*tables, _table_of_agreement(networks, scorers)]


def _table_11(networks: Sequence[Network], scorers: Mapping[str, Sequence[str]]) -> Table:
    plain, best, held = (
        {name: per_class(networks, labels, "descending", value) for name, labels in scorers.items()}
        for value in (lambda a: a.balanced_accuracy[0], lambda a: a.peak_balanced[0], lambda a: a.peak_held_out)
    )
    told = np.isfinite(held[CONTROL])
    if not told.any():
        raise DataError("table 11 needs at least two test images of a class, one for each half")
    rows = {
        name: {
            "unchanged": bootstrap(plain[name]),
            "best": bootstrap(best[name]),
            "enhanced by": bootstrap(best[name] - plain[name]),
            "chosen on the other half": bootstrap(held[name][told]),
            "enhanced by, on the other half": bootstrap((held[name] - plain[name])[told]),
            f"difference to {CONTROL}": _difference(held[name][told], held[CONTROL][told], name),
        }
        for name in scorers
    }
    forms = dict.fromkeys(next(iter(rows.values())), ".3f") | {f"difference to {CONTROL}": "+.3f"}
    verdict = _verdict({name: values[told] for name, values in held.items()}, "peaks highest", lowest=False)
    why = (
        "Balanced accuracy of the class against the rest along the descending curve. 'best' picks the number of "
        "removed units on the images that it is reported on, which flatters it; 'chosen on the other half' does not."
    )
    return Table("Table 11: the best balanced accuracy", forms, rows, f"{verdict} {why}")


def _table_of_agreement(networks: Sequence[Network], scorers: Mapping[str, Sequence[str]]) -> Table:
    found = {name: agreement(networks, labels, spearman) for name, labels in scorers.items()}
    rows = {
        name: {
            "Spearman's ρ": bootstrap(found[name]),
            "Kendall's τ": bootstrap(agreement(networks, labels, kendall)),
            f"ρ, difference to {CONTROL}": _difference(found[name], found[CONTROL], name),
        }
        for name, labels in scorers.items()
    }
    forms = dict.fromkeys(next(iter(rows.values())), ".3f") | {f"ρ, difference to {CONTROL}": "+.3f"}
    verdict = _verdict(found, "agrees best", lowest=False)
    why = "Rank correlation of a class's scores with the loss that its test images suffer without each unit alone."
    return Table("Scores and single units", forms, rows, f"{verdict} {why}")


def _difference(values: Array, control: Array, name: str) -> Estimate | str:
    return "" if name == CONTROL else bootstrap(values - control)


def _until_chance(networks: Sequence[Network], labels: Sequence[str], order: str) -> str:
    """The median over the classes that come down to chance, and how many do."""
    found = np.concatenate(
        [network.ablations[label][order].units_until_chance for network in networks for label in labels]
    )
    reached = found[found >= 0]
    share = f" ({len(reached) / len(found):.0%} of classes)" if len(reached) < len(found) else ""
    return f"{np.median(reached):.0f}{share}" if len(reached) else "never"


def _verdict(values: Mapping[str, Array], does: str, lowest: bool) -> str:
    """Who is best, and who cannot be told apart from it."""
    if len(next(iter(values.values()))) < 2:
        return "One class: there is nothing that could tell the scorers apart."
    sign = -1 if lowest else 1
    best = max(values, key=lambda name: float(sign * values[name].mean()))
    even = [name for name in values if name != best and not bootstrap(values[best] - values[name]).not_zero]
    apart = (
        f"; not told apart from it: {', '.join(even)}." if even else "; the interval tells it apart from all others."
    )
    return f"{best} {does}{apart}"


def by_class(networks: Sequence[Network]) -> list[dict[str, Any]]:
    """A line a network, label, order and class."""
    rows = []
    for network in networks:
        for label, orders in network.ablations.items():
            for order, found in orders.items():
                (peak, peak_at), (best, best_at) = found.peak, found.peak_balanced
                columns = {
                    "area": found.area, "accuracy": found.accuracy[0], "peak_accuracy": peak, "peak_after": peak_at,
                    "units_until_chance": found.units_until_chance, "balanced_accuracy": found.balanced_accuracy[0],
                    "best_balanced_accuracy": best, "best_after": best_at,
                    "best_balanced_accuracy_held_out": found.peak_held_out, "loss": found.loss[0],
                }  # fmt: skip
                for number, name in enumerate(found.classes):
                    row = {"seed": network.seed, "scorer": label, "order": order, "class": name}
                    row |= {column: values[number].item() for column, values in columns.items()}
                    if network.each is not None:
                        row["spearman_single_unit"] = spearman(network.keep[label][number], network.suffered[:, number])
                    rows.append(row)
    return rows


def curves(networks: Sequence[Network]) -> list[dict[str, Any]]:
    """A line a network, label, order and number of removed units: the means over the classes."""
    return [
        {
            "seed": network.seed, "scorer": label, "order": order, "removed": int(removed),
            "accuracy": float(found.accuracy[step].mean()),
            "balanced_accuracy": float(found.balanced_accuracy[step].mean()), "loss": float(found.loss[step].mean()),
        }
        for network in networks
        for label, orders in network.ablations.items()
        for order, found in orders.items()
        for step, removed in enumerate(found.removed)
    ]  # fmt: skip


def plot(networks: Sequence[Network], path: Path) -> None:
    """Figure 12: accuracy and loss against the number of removed units, in both orders, by every scorer; means over the
    classes, bands from the least to the largest over networks and control seeds, the area under accuracy in the legend.
    """
    from matplotlib.figure import Figure

    scorers = scorers_of(networks)
    figure = Figure(figsize=(12, 9), layout="constrained")
    panels = figure.subplots(2, 2, sharex=True)
    for column, order in enumerate(ORDERS):
        for row, quantity in enumerate(("accuracy", "loss")):
            axes = panels[row][column]
            for number, (name, labels) in enumerate(scorers.items()):
                found = [network.ablations[label][order] for network in networks for label in labels]
                curves = np.array([getattr(each, quantity).mean(axis=1) for each in found])
                area = per_class(networks, labels, order, lambda a: a.area).mean()
                style = {"color": "0.3", "linestyle": "--"} if name == CONTROL else {"color": f"C{number % 10}"}
                if number >= 10 and name != CONTROL:
                    style["linestyle"] = ":"
                width = 2.4 if name == "feature-entropy" else 1.4
                axes.plot(found[0].removed, curves.mean(axis=0), linewidth=width, label=f"{name}  {area:.3f}", **style)
                if len(curves) > 1:
                    low, high = curves.min(axis=0), curves.max(axis=0)
                    axes.fill_between(found[0].removed, low, high, color=style["color"], alpha=0.15, linewidth=0)
            axes.spines[["top", "right"]].set_visible(False)
            axes.set_ylabel(f"test {quantity}" + (" (nats)" if quantity == "loss" else ""))
            if row == 0:
                axes.set_title(f"{order}: {FIRST[order]}")
                axes.set_ylim(bottom=0)
            else:
                axes.set_xlabel("units removed")
                place = {"loc": "upper center", "bbox_to_anchor": (0.5, -0.13), "ncols": 3, "frameon": False}
                axes.legend(title="area under accuracy", fontsize="small", title_fontsize="small", **place)
    layers, classes = networks[0].any.layers, networks[0].any.classes
    of = layers[0] if len(layers) == 1 else f"{len(layers)} layers"
    figure.suptitle(f"Cumulative ablation of {of}, mean over {len(classes)} classes")
    figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)
