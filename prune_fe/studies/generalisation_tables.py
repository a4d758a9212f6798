"""Networks that differ in their training, as tables, as lines of a CSV file and as the points of charts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING, Any

import numpy as np

from prune_fe.measure.statistics import simultaneous, spearman_over_groups
from prune_fe.report.tables import Table
from prune_fe.scoring.scores import Array, Scores
from prune_fe.studies.layer_tables import ENTROPY, QUANTITIES, RATE, unit_means
from prune_fe.tracing.layers import Layer

if TYPE_CHECKING:
    import pandas as pd

ACTIVATION = "class_mean_activation"

EXPECTED = {"H": -1, "ε": 1, "H/ε": -1, "mean activation": 1, "training loss": -1, "training accuracy": 1}
"""Quantity -> 1 where more of it should mean a higher test accuracy, -1 where less should."""


@dataclass(frozen=True)
class NetworkStatus:
    """The measurements of one network.

    Attributes:
        label: Label of the network.
        seed: Its seed.
        measured: What `prune_fe.studies.generalisation.measure_network` returns.
        entropy: Scores by feature entropy.
        activation: Scores with the mean activation of each class.
    """

    label: str
    seed: int
    measured: Mapping[str, Any]
    entropy: Scores
    activation: Scores

    def of_layer(self, layer: str) -> dict[str, Array]:
        """Return each of `EXPECTED` for each class, (classes,); means over the units of a layer where units have it."""
        entropy, rate = (self.entropy.raw[name][layer].mean(axis=1) for name in (ENTROPY, RATE))
        ratio = np.divide(entropy, rate, out=np.full_like(entropy, np.inf), where=rate > 0)
        return {
            "H": entropy,
            "ε": rate,
            "H/ε": ratio,
            "mean activation": self.activation.raw[ACTIVATION][layer].mean(axis=1),
            "training loss": np.array(self.measured["class_train_loss"]),
            "training accuracy": np.array(self.measured["class_train_accuracy"]),
        }

    @property
    def test_accuracies(self) -> Array:
        """Test accuracy of each class, (classes,)."""
        return np.array(self.measured["class_test_accuracy"])


@dataclass(frozen=True)
class SetComparison:
    """A set of networks that differ in their training.

    Attributes:
        name: Name of the set.
        layers: The scored layers, in the order in which they run.
        networks: The networks, each label with all seeds, in the order of the recipe.
        class_name: The class that is shown by itself.
    """

    name: str
    layers: Sequence[Layer]
    networks: Sequence[NetworkStatus]
    class_name: str

    @property
    def by_label(self) -> dict[str, list[NetworkStatus]]:
        """Label -> its networks, one for each seed."""
        labels: dict[str, list[NetworkStatus]] = {}
        for network in self.networks:
            labels.setdefault(network.label, []).append(network)
        return labels

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the scored classes."""
        return self.networks[0].entropy.classes

    def tables(self, notes: Sequence[str]) -> list[Table]:
        """Return the table of the networks, and that of how well each quantity ranks them.

        Args:
            notes: Sentences for the remark below the first table.
        """
        return [self._networks_table(notes), self._ranking_table()]

    def _networks_table(self, notes: Sequence[str]) -> Table:
        last, rows = self.layers[-1].name, dict[str, dict[str, Any]]()
        for label, networks in self.by_label.items():
            rows[label] = {
                "corrupted": [networks[0].measured["label_noise"]],
                "train acc.": [network.measured["train_accuracy"] for network in networks],
                "by true labels": [network.measured["true_train_accuracy"] for network in networks],
                "test acc.": [network.measured["test_accuracy"] for network in networks],
                "train loss": [network.measured["train_loss"] for network in networks],
            }
            for quantity in ("H", "ε", "H/ε", "mean activation"):
                rows[label][quantity] = [float(network.of_layer(last)[quantity].mean()) for network in networks]
        forms = {"corrupted": ".1f", "train acc.": ".3f", "by true labels": ".3f", "test acc.": ".3f"}
        forms |= {"train loss": ".4f", "H": ".3f", "ε": ".3f", "H/ε": ".2f", "mean activation": ".3f"}
        seeds = len(self.networks) // len(rows)
        note = (
            f"{'1 seed' if seeds == 1 else f'{seeds} seeds, mean (standard deviation)'}. Train acc. and train loss: "
            "on the training images by the labels that were trained on, in evaluation mode; by true labels: the same "
            f"images by their true ones. H in nats, ε and the mean activation: means over the units of {last!r} and "
            f"{len(self.classes)} classes; H/ε: the ratio of a class's mean H and mean ε."
        )
        return Table(f"Set {self.name} (tables 3, 4, 8)", forms, rows, " ".join([note, *notes]))

    def _ranking_table(self) -> Table:
        last = self.layers[-1].name
        test = np.stack([network.test_accuracies for network in self.networks], axis=1)  # (classes, networks)
        values = [network.of_layer(last) for network in self.networks]
        total = test.mean(axis=0)
        # Two seeds of one training have no order; of other pairs, the network with the higher test accuracy is first.
        pairs = [
            (i, j) if total[i] > total[j] else (j, i)
            for i, j in combinations(range(len(self.networks)), 2)
            if self.networks[i].label != self.networks[j].label and total[i] != total[j]
        ]
        rows = {}
        for quantity, sign in EXPECTED.items():
            by_class = np.stack([value[quantity] for value in values], axis=1)
            finite = np.nan_to_num(by_class, posinf=float(np.finfo(np.float32).max))
            differences = [sign * each.mean for each in simultaneous(finite, pairs)]
            apart = [each.not_zero for each in simultaneous(finite, pairs)]
            right = sum(is_apart and difference > 0 for is_apart, difference in zip(apart, differences, strict=True))
            wrong = sum(is_apart and difference < 0 for is_apart, difference in zip(apart, differences, strict=True))
            rows[quantity] = {
                "expected": "+" if sign > 0 else "−",
                "ρ": spearman_over_groups(finite, test),
                "in the order": str(right),
                "against it": str(wrong),
                "not told apart": str(len(pairs) - right - wrong),
            }
        note = (
            f"Spearman's ρ of the quantity and the test accuracy over the {len(self.networks)} networks, with the "
            f"interval over the classes: {len(self.classes)} classes are drawn with replacement, and both are means "
            "over those drawn. It does not say what networks of other seeds would do. The last columns count pairs of "
            "networks of different training: the quantity tells two apart if the interval of their difference over the "
            "classes leaves out 0 (95 % for all pairs at once), in the order of their test accuracies or against it."
        )
        forms = {"expected": "", "ρ": ".2f", "in the order": "", "against it": "", "not told apart": ""}
        return Table(f"Set {self.name}: what ranks the networks by test accuracy, {last!r}", forms, rows, note)

    def rows(self) -> Iterator[dict[str, Any]]:
        """Yield the lines of the CSV file: each layer of each network, for all classes and each class.

        The column scope says which of the two a line is of: "all classes" or "each class".
        """
        for network in self.networks:
            about = {"network": network.label, "seed": network.seed}
            about |= {
                name: network.measured[name]
                for name in ("label_noise", "train_accuracy", "true_train_accuracy", "train_loss", "test_accuracy")
            }
            for depth, layer in enumerate(self.layers, 1):
                place = {"depth": depth, "layer": layer.name, "units": layer.units, "map_size": layer.map_size[0]}
                values = network.of_layer(layer.name) | {"test": network.test_accuracies}
                for number, name in [(None, None), *enumerate(self.classes)]:
                    at = {key: float(each.mean() if number is None else each[number]) for key, each in values.items()}
                    yield (
                        about
                        | place
                        | {
                            "scope": "all classes" if number is None else "each class",
                            "class": name,
                            "entropy_nats": at["H"],
                            "selective_rate": at["ε"],
                            "entropy_per_rate_nats": at["H/ε"],
                            "mean_activation": at["mean activation"],
                            "class_train_loss": at["training loss"],
                            "class_train_accuracy": at["training accuracy"],
                            "class_test_accuracy": at["test"],
                        }
                    )

    def layer_points(self) -> pd.DataFrame:
        """Return the points of `layer_status`: a panel of the one class and one of all classes (figures 6 and 11)."""
        import pandas as pd

        panels = {f"class {self.class_name}": self.class_name, f"mean of {len(self.classes)} classes": None}
        rows = []
        for panel, class_name in panels.items():
            for label, networks in self.by_label.items():
                for layer in self.layers:
                    for quantity, name in QUANTITIES.items():
                        means = [
                            float(unit_means(network.entropy, quantity, layer.name, class_name).mean())
                            for network in networks
                        ]
                        point = {"panel": panel, "quantity": name, "network": label, "layer": layer.name}
                        rows.append(point | {"value": float(np.mean(means)), "low": min(means), "high": max(means)})
        return pd.DataFrame(rows)

    def scatter_points(self) -> pd.DataFrame:
        """Return the points of `class_scatter`: each class of each network, at the last layer (figures 6 and 11, 3)."""
        import pandas as pd

        last = self.layers[-1].name
        return pd.DataFrame(
            {"panel": f"seed {network.seed}", "network": network.label, "class": name, "entropy": entropy, "rate": rate}
            for network in self.networks
            for name, entropy, rate in zip(
                self.classes, network.of_layer(last)["H"], network.of_layer(last)["ε"], strict=True
            )
        )
