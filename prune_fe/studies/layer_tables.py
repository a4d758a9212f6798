"""H and ε of the layers of several networks, as tables, as lines of a CSV file and as the points of a chart."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from prune_fe.measure.statistics import spearman
from prune_fe.report.tables import Table
from prune_fe.scoring.scores import Array, Scores
from prune_fe.tracing.layers import Layer

if TYPE_CHECKING:
    import pandas as pd

RANDOM = "random-initialised"
"""How a chart and a table call the networks that are not trained."""

ENTROPY, RATE = "feature_entropy_nats", "selective_rate"
QUANTITIES = {ENTROPY: "entropy", RATE: "rate"}
"""Quantity of the scores -> its name in the chart."""

CLASS_PERCENTILES = (2.5, 97.5)
"""The ends of the band over the classes."""


@dataclass(frozen=True)
class LayerComparison:
    """The scores of the layers of a trained network and of networks of the same architecture with random weights.

    Attributes:
        layers: The layers, in the order in which they run.
        readings: Layer name -> what its maps are, such as "activated".
        trained: Scores of the trained network by feature entropy.
        random: Scores of the random-initialised networks, on all classes of the trained one or on some of them.
        class_name: The class that is shown by itself; all networks are scored on it.
    """

    layers: Sequence[Layer]
    readings: Mapping[str, str]
    trained: Scores
    random: Sequence[Scores]
    class_name: str

    @property
    def networks(self) -> dict[str, Scores]:
        """Name of each network -> its scores; the trained one is the first."""
        return {"trained": self.trained} | {f"random {number}": scores for number, scores in enumerate(self.random)}

    @property
    def has_several_classes(self) -> bool:
        """Whether the mean over all classes differs from the one class."""
        return len(self.trained.classes) > 1

    def tables(self, notes: Sequence[str]) -> list[Table]:
        """Return the table of the one class and, unless there is no other, that of all classes.

        Args:
            notes: Sentences for the remark below the tables.
        """
        first = self._table(f"Layers: class {self.class_name} (figure 5A 1, 2)", self.class_name, notes)
        if not self.has_several_classes:
            return [first]
        title = f"Layers: mean of {len(self.trained.classes)} classes (figure 5A 3)"
        return [first, self._table(title, None, notes)]

    def _table(self, title: str, class_name: str | None, notes: Sequence[str]) -> Table:
        rows = {layer.name: self._cells(layer, class_name) for layer in self.layers}
        forms = {"maps": "", "H": ".3f", "H random": ".3f", "H networks": ""}
        forms |= {"ε": ".3f", "ε random": ".3f", "ε networks": "", "no hole": ""}
        return Table(title, forms, rows, " ".join([self._describe(class_name), *notes]))

    def _cells(self, layer: Layer, class_name: str | None) -> dict[str, Any]:
        cells: dict[str, Any] = {"maps": f"{'×'.join(map(str, layer.map_size))}, {self.readings[layer.name]}"}
        for quantity, heading in ((ENTROPY, "H"), (RATE, "ε")):
            cells[heading] = unit_means(self.trained, quantity, layer.name, class_name).tolist()
            random = [unit_means(scores, quantity, layer.name, class_name) for scores in self.random]
            cells[f"{heading} random"] = np.concatenate(random).tolist()
            means = [float(values.mean()) for values in random]
            cells[f"{heading} networks"] = f"{min(means):.3f}–{max(means):.3f}"
        counts = [str(count_without_hole(scores, layer.name, class_name)) for scores in self.networks.values()]
        cells["no hole"] = f"{counts[0]}; {', '.join(counts[1:])}"
        return cells

    def _describe(self, class_name: str | None) -> str:
        """Return what the columns are and how the networks differ, in words."""
        below = above = 0
        depth, trained, random = np.arange(len(self.layers)), [], []
        for layer in self.layers:
            entropy, rate = (
                [float(unit_means(scores, name, layer.name, class_name).mean()) for scores in self.networks.values()]
                for name in QUANTITIES
            )
            below += entropy[0] < min(entropy[1:])
            above += rate[0] > max(rate[1:])
            trained.append(entropy[0])
            random.append(float(np.mean(entropy[1:])))
        n_layers, n_random = len(self.layers), len(self.random)
        networks = "the random-initialised network" if n_random == 1 else f"all {n_random} random-initialised networks"
        text = (
            f"H in nats and ε: mean over the units (standard deviation over the units), of the trained network and of "
            f"the units of {networks}; networks: the lowest and the highest mean of a random-initialised network. "
            "A unit with a hole in too few images of a class (ε < p, 0.1 by default) counts H = (1 − ε) ln N. "
            "No hole: units without a hole in any image, of the trained network; of each random-initialised one. "
            f"H is lower than in {networks} in {below} of {n_layers} layers, ε is higher in {above}."
        )
        if n_layers > 2:
            text += (
                f" Spearman's ρ of H and depth: {spearman(depth, np.array(trained)):.2f} trained, "
                f"{spearman(depth, np.array(random)):.2f} random-initialised (mean of the networks)."
            )
        if class_name is None and (n_classes := len(self.random[0].classes)) < len(self.trained.classes):
            text += f" The random-initialised networks were scored on {n_classes} of the classes."
        return text

    def rows(self) -> Iterator[dict[str, Any]]:
        """Yield the lines of the CSV file: each layer of each network, for all classes, the one class and each class.

        The column scope says which of the three a line is of: "all classes", "one class" or "each class".
        """
        for network, scores in self.networks.items():
            scopes = [("all classes", None), ("one class", self.class_name)]
            scopes += [("each class", name) for name in scores.classes]
            for depth, layer in enumerate(self.layers, 1):
                for scope, class_name in scopes:
                    entropy, rate = (unit_means(scores, name, layer.name, class_name) for name in QUANTITIES)
                    yield {
                        "network": network,
                        "depth": depth,
                        "layer": layer.name,
                        "units": layer.units,
                        "map_size": layer.map_size[0],
                        "maps": self.readings[layer.name],
                        "scope": scope,
                        "class": class_name,
                        "classes": len(scores.classes) if class_name is None else 1,
                        "entropy_nats": float(entropy.mean()),
                        "entropy_deviation_nats": deviation(entropy),
                        "selective_rate": float(rate.mean()),
                        "selective_rate_deviation": deviation(rate),
                        "units_without_hole": count_without_hole(scores, layer.name, class_name),
                    }

    def chart_points(self) -> pd.DataFrame:
        """Return the points of `layer_status`.

        Blocks that were chosen with modules inside them have a panel each, for all classes (figure 9B). Otherwise
        there is a panel of the one class and one of all classes (figure 5A).
        """
        import pandas as pd

        blocks = blocks_of([layer.name for layer in self.layers])
        everything = None if self.has_several_classes else self.class_name
        rows: list[dict[str, Any]] = []
        if blocks:
            for block in dict.fromkeys(blocks.get(layer.name, "") for layer in self.layers):
                inside = [layer for layer in self.layers if blocks.get(layer.name, "") == block]
                rows += self._panel(block or "other layers", inside, everything, block)
        else:
            rows += self._panel(f"class {self.class_name}", self.layers, self.class_name)
            if self.has_several_classes:
                n_classes, n_random = len(self.trained.classes), len(self.random[0].classes)
                some = "" if n_random == n_classes else f" ({RANDOM}: {n_random})"
                rows += self._panel(f"mean of {n_classes} classes{some}", self.layers, None)
        return pd.DataFrame(rows)

    def _panel(
        self, panel: str, layers: Sequence[Layer], class_name: str | None, block: str = ""
    ) -> Iterator[dict[str, Any]]:
        """Yield the points of a panel; layers inside a block are called by their names in it."""
        for quantity, quantity_name in QUANTITIES.items():
            for layer in layers:
                label = layer.name.removeprefix(f"{block}.") if layer.name != block else "output"
                point = {"panel": panel, "quantity": quantity_name, "layer": label}
                value = float(unit_means(self.trained, quantity, layer.name, class_name).mean())
                low = high = value
                if class_name is None:
                    by_class = self.trained.raw[quantity][layer.name].mean(axis=1)
                    low, high = np.percentile(by_class, CLASS_PERCENTILES).tolist()
                yield point | {"network": "trained", "value": value, "low": low, "high": high}
                means = [float(unit_means(each, quantity, layer.name, class_name).mean()) for each in self.random]
                ends = {"low": min(means), "high": max(means)}
                yield point | {"network": RANDOM, "value": float(np.mean(means))} | ends


def unit_means(scores: Scores, quantity: str, layer: str, class_name: str | None) -> Array:
    """Return a quantity of each unit of a layer, shape (units,).

    Args:
        scores: Scores by feature entropy.
        quantity: A quantity that is known for each class.
        layer: Name of the layer.
        class_name: Name of a class; None takes the mean over all classes.
    """
    by_class: Array = scores.raw[quantity][layer]
    return by_class.mean(axis=0) if class_name is None else by_class[scores.classes.index(class_name)]


def count_without_hole(scores: Scores, layer: str, class_name: str | None) -> int:
    """Return how many units of a layer have no hole in any image of a class, or of all classes where it is None."""
    return int((unit_means(scores, RATE, layer, class_name) == 0).sum())


def deviation(values: Array) -> float | None:
    """Return the standard deviation of some values; None of a single one."""
    return float(values.std(ddof=1)) if len(values) > 1 else None


def blocks_of(names: Sequence[str]) -> dict[str, str]:
    """Return the outermost block of each layer that is a block with other layers inside it, or is inside one.

    >>> blocks_of(["conv1", "layer1.0.conv1", "layer1.0", "layer2"])
    {'layer1.0.conv1': 'layer1.0', 'layer1.0': 'layer1.0'}
    """
    blocks: dict[str, str] = {}
    for name in names:
        around = [block for block in names if name.startswith(f"{block}.")]
        if around:
            block = min(around, key=len)
            blocks |= {name: block, block: block}
    return blocks
