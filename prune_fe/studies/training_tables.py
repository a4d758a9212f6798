"""H and ε of a layer over the epochs of a training, as tables, as lines of a CSV file and as the points of a chart."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from prune_fe.measure.statistics import spearman
from prune_fe.report.tables import Table
from prune_fe.scoring.scores import Array
from prune_fe.studies.layer_tables import CLASS_PERCENTILES, deviation
from prune_fe.tracing.layers import Layer
from prune_fe.training.loop import Epoch

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class EpochStatus:
    """What was measured after an epoch.

    Attributes:
        epoch: Loss and accuracy; number 0 is the network before training.
        entropy: H of each class and unit in nats, (classes, units).
        rate: ε of each class and unit, (classes, units).
    """

    epoch: Epoch
    entropy: Array
    rate: Array

    def by_class(self) -> dict[str, Array]:
        """Return H, ε and H/ε of each class, (classes,): means over the units, and the ratio of the two means."""
        entropy, rate = self.entropy.mean(axis=1), self.rate.mean(axis=1)
        ratio = np.divide(entropy, rate, out=np.full_like(entropy, np.inf), where=rate > 0)
        return {"H": entropy, "ε": rate, "H/ε": ratio}


@dataclass(frozen=True)
class TrainingCourse:
    """The epochs of a training.

    Attributes:
        layer: The layer that was scored.
        classes: Names of the scored classes, in the order of the arrays.
        class_name: The class that is shown by itself.
        epochs: What was measured, beginning with the network before training.
    """

    layer: Layer
    classes: Sequence[str]
    class_name: str
    epochs: Sequence[EpochStatus]

    def course(self, quantity: str, class_name: str | None) -> Array:
        """Return H, ε or H/ε after each epoch, (epochs + 1,), of a class or as the mean over all of them."""
        by_class = np.stack([status.by_class()[quantity] for status in self.epochs])
        return by_class.mean(axis=1) if class_name is None else by_class[:, self.classes.index(class_name)]

    def of_epochs(self, value: Callable[[Epoch], float]) -> Array:
        """Return a value of each epoch, (epochs + 1,)."""
        return np.array([value(status.epoch) for status in self.epochs])

    def tables(self, notes: Sequence[str]) -> list[Table]:
        """Return the table of the epochs and that of the rank correlations.

        Args:
            notes: Sentences for the remark below the first table.
        """
        return [self._epochs_table(notes), self._correlations_table()]

    def _epochs_table(self, notes: Sequence[str]) -> Table:
        scopes = {"": None, f", {self.class_name}": self.class_name}
        columns = {
            f"{quantity}{scope}": self.course(quantity, name)
            for scope, name in scopes.items()
            for quantity in ("H", "ε", "H/ε")
        }
        rows: dict[str, dict[str, Any]] = {}
        for number, status in enumerate(self.epochs):
            epoch = status.epoch
            cells = {"train loss": [epoch.train_loss], "train acc.": [epoch.train_accuracy]} if number else {}
            cells["validation acc."] = [epoch.validation_accuracy]
            rows[str(number)] = cells | {name: [float(values[number])] for name, values in columns.items()}
        forms = {"train loss": ".4f", "train acc.": ".3f", "validation acc.": ".3f"}
        forms |= {name: ".2f" if "/" in name else ".3f" for name in columns}
        note = (
            f"Layer {self.layer.name!r}, {self.layer.units} units, maps of {self.layer.map_size[0]}×"
            f"{self.layer.map_size[1]}. H in nats and ε: means over the units and {len(self.classes)} classes, then of "
            "the one class; H/ε: the ratio of these two means. Epoch 0 is the network before training; loss and "
            "accuracy on the training images are those during the epoch."
        )
        return Table("Training (figures 5B, 10)", forms, rows, " ".join([note, *notes]))

    def _correlations_table(self) -> Table:
        loss = self.of_epochs(lambda epoch: epoch.train_loss)[1:]  # there is no loss before the first epoch
        rows: dict[str, dict[str, Any]] = {}
        for quantity in ("H", "ε", "H/ε"):
            for scope, name in (("mean of the classes", None), (f"class {self.class_name}", self.class_name)):
                values = self.course(quantity, name)
                after = values[1:]
                rows[f"{quantity}, {scope}"] = {
                    "before": [float(values[0])],
                    "after epoch 1": [float(values[1])],
                    "lowest": [float(values.min())],
                    "last": [float(values[-1])],
                    "ρ with the loss": [spearman(after, loss)],
                    "ρ of the changes": [spearman(np.diff(after), np.diff(loss))] if len(after) > 2 else [],
                }
        forms = {"before": ".3f", "after epoch 1": ".3f", "lowest": ".3f", "last": ".3f"}
        forms |= {"ρ with the loss": ".2f", "ρ of the changes": ".2f"}
        note = (
            f"Spearman's ρ with the training loss over the {len(loss)} epochs. Two courses that both fall have a high "
            "ρ whatever they have to do with each other; ρ of the changes compares how much they change from one epoch "
            "to the next."
        )
        return Table("Rank correlation with the training loss", forms, rows, note)

    def rows(self) -> Iterator[dict[str, Any]]:
        """Yield the lines of the CSV file: each epoch, for all classes and each class."""
        for status in self.epochs:
            values = status.by_class()
            for number, name in [(None, None), *enumerate(self.classes)]:
                at = {key: float(each.mean() if number is None else each[number]) for key, each in values.items()}
                entropy = status.entropy.mean(axis=0) if number is None else status.entropy[number]
                rate = status.rate.mean(axis=0) if number is None else status.rate[number]
                yield dataclasses.asdict(status.epoch) | {
                    "layer": self.layer.name,
                    "scope": "all classes" if number is None else "each class",
                    "class": name,
                    "entropy_nats": at["H"],
                    "entropy_deviation_nats": deviation(entropy),
                    "selective_rate": at["ε"],
                    "selective_rate_deviation": deviation(rate),
                    "entropy_per_rate_nats": at["H/ε"],
                    "units_without_hole": int((rate == 0).sum()),
                }

    def chart_points(self) -> pd.DataFrame:
        """Return the points of `training_course`: loss, accuracies, H and ε by epoch."""
        import pandas as pd

        rows: list[dict[str, Any]] = []
        everything = f"mean of {len(self.classes)} classes"

        def add(panel: str, series: str, number: int, value: float, ends: tuple[float, float] | None = None) -> None:
            low, high = ends or (value, value)
            rows.append({"panel": panel, "series": series, "epoch": number, "value": value, "low": low, "high": high})

        for number, status in enumerate(self.epochs):
            epoch = status.epoch
            if number:
                add("loss", "training images", number, epoch.train_loss)
                add("accuracy", "training images", number, epoch.train_accuracy)
            add("accuracy", "validation images", number, epoch.validation_accuracy)
            values = status.by_class()
            for panel, quantity in (("entropy", "H"), ("rate", "ε")):
                low, high = np.percentile(values[quantity], CLASS_PERCENTILES).tolist()
                add(panel, everything, number, float(values[quantity].mean()), (low, high))
                one = float(values[quantity][self.classes.index(self.class_name)])
                add(panel, f"class {self.class_name}", number, one)
        return pd.DataFrame(rows)
