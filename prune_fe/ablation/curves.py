"""The results of ablation: predictions of a network with masked units, and summaries of their curves."""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Self, TypeVar

import numpy as np

from prune_fe.errors import InputError
from prune_fe.scoring.scores import Array

if TYPE_CHECKING:
    import altair as alt
    import pandas as pd


@dataclass(frozen=True)
class MaskedPredictions:
    """What a network predicts for the test images of C classes under each of S masks of its units.

    Attributes:
        layers: Names of the layers whose units are masked.
        removed: Number of masked units of each mask, shape (S,).
        classes: Names of the classes.
        images: Number of images of each class, shape (C,).
        all_images: Number of images of these and of all other classes.
        hits: Images of the class that are predicted as the class, shape (S, C).
        called: Images of any class that are predicted as this class, shape (S, C).
        loss: Mean cross-entropy of the class's images in nats, shape (S, C).
        outputs: Number of classes of the network.
        how: "tail" if only the part of the network behind the layer was run for each mask; otherwise why the whole
            network was.
        halves: The same of every other image of each class, and of the remaining images, so that something can be
            chosen on one half and reported on the other. The halves have none themselves.
    """

    layers: tuple[str, ...]
    removed: Array
    classes: tuple[str, ...]
    images: Array
    all_images: int
    hits: Array
    called: Array
    loss: Array
    outputs: int
    how: str = field(default="tail", kw_only=True)
    halves: tuple[Self, ...] = field(default=(), kw_only=True)

    @property
    def accuracy(self) -> Array:
        """Share of the class's images that are predicted as the class, shape (S, C); NaN without images."""
        with np.errstate(invalid="ignore"):
            return self.hits / self.images

    @property
    def balanced_accuracy(self) -> Array:
        """Mean of the recalls of the class and of all others, shape (S, C); NaN without images of either."""
        others = self.all_images - self.images
        wrong = self.called - self.hits
        with np.errstate(invalid="ignore", divide="ignore"):
            return (self.accuracy + 1 - wrong / others) / 2


@dataclass(frozen=True)
class Ablation(MaskedPredictions):
    """Cumulative ablation: from mask to mask, more and more units are removed (Zhao & Zhang, ICLR 2022, figure 12).

    Attributes:
        units: Units of the layer in the order in which they are removed; empty for several layers, and for classes
            with different orders.
    """

    units: tuple[int, ...] = ()

    def __repr__(self) -> str:
        most = f"{len(self.classes)} classes, {int(self.images.sum()):,} images, up to {int(self.removed[-1])} units"
        return f"Ablation({', '.join(self.layers)}: {most}, mean area {np.nanmean(self.area):.3f})"

    def _repr_html_(self) -> str:
        """Return a row for each class, for notebooks."""
        import pandas as pd

        peak, units = self.peak
        rows = {"images": self.images, "area": self.area, "peak accuracy": peak, "after units": units}
        rows["units until chance"] = self.units_until_chance
        return f"<p>{html.escape(repr(self))}</p>" + str(pd.DataFrame(rows, index=list(self.classes)).to_html())

    def to_pandas(self) -> pd.DataFrame:
        """Return accuracy, balanced accuracy and loss with a row for each number of removed units and each class."""
        import pandas as pd

        n_steps, n_classes = self.hits.shape
        columns = {
            "removed": np.repeat(self.removed, n_classes),
            "class": list(self.classes) * n_steps,
            "accuracy": self.accuracy.ravel(),
            "balanced_accuracy": self.balanced_accuracy.ravel(),
            "loss": self.loss.ravel(),
        }
        return pd.DataFrame(columns)

    def plot(self) -> alt.HConcatChart:
        """Return a chart of accuracy and loss against the number of removed units, means of the classes."""
        import pandas as pd

        from prune_fe.charts import ablation_curves, standalone

        label, order = ", ".join(self.layers), f"mean of {len(self.classes)} classes"
        frames = []
        for quantity in ("accuracy", "loss"):
            # A class without images has NaN.
            mean = np.nanmean(getattr(self, quantity), axis=1)
            columns = {"scorer": label, "order": order, "quantity": quantity, "removed": self.removed}
            frames.append(pd.DataFrame(columns | dict.fromkeys(("mean", "low", "high"), mean)))
        areas = {(order, label): float(np.nanmean(self.area))}
        return standalone(ablation_curves(pd.concat(frames, ignore_index=True), areas, "Cumulative ablation"))

    @property
    def area(self) -> Array:
        """Mean accuracy over the share of removed units, by the trapezoidal rule, shape (C,)."""
        return np.trapezoid(self.accuracy, self.removed / self.removed[-1], axis=0)

    @property
    def peak(self) -> tuple[Array, Array]:
        """Highest accuracy, and the number of removed units at which it is first reached, each of shape (C,)."""
        return self._peak_of(self.accuracy)

    @property
    def peak_balanced(self) -> tuple[Array, Array]:
        """Highest balanced accuracy, and the number of removed units at which it is first reached (table 11)."""
        return self._peak_of(self.balanced_accuracy)

    @property
    def peak_held_out(self) -> Array:
        """Balanced accuracy after as many units as are best on the other half of the images, shape (C,).

        It is the mean of both directions. A peak that is chosen on the images that it is reported on is biased
        upwards. NaN for a class without an image in each half.
        """
        first, second = (half.balanced_accuracy for half in self.halves)
        directions = ((first, second), (second, first))
        # NaN would be the maximum; as 0 it is chosen only where all values are NaN.
        values = [_take(reported, np.nan_to_num(chosen).argmax(axis=0)) for chosen, reported in directions]
        return np.mean(values, axis=0)

    @property
    def units_until_chance(self) -> Array:
        """Number of removed units at which the accuracy first is at most that of guessing, shape (C,); −1 if never."""
        low = self.accuracy <= 1 / self.outputs
        return np.where(low.any(axis=0), self.removed[low.argmax(axis=0)], -1)

    def _peak_of(self, values: Array) -> tuple[Array, Array]:
        best = values.argmax(axis=0)
        return _take(values, best), self.removed[best]


@dataclass(frozen=True)
class UnitAblation(MaskedPredictions):
    """Ablation of each unit of one layer alone: mask 0 keeps all units, mask i + 1 removes unit i."""

    @property
    def loss_increase(self) -> Array:
        """Increase of the loss of each class's images without each unit, in nats, shape (units, C)."""
        return self.loss[1:] - self.loss[0]


Result = TypeVar("Result", bound=MaskedPredictions)


def _take(values: Array, steps: Array) -> Array:
    """Return for each column of `values` (S, C) the value in the row that `steps` (C,) names."""
    return np.take_along_axis(values, steps[None], axis=0)[0]


def join(parts: Sequence[Result]) -> Result:
    """Return one result for the classes of several.

    Args:
        parts: Results of different classes, for the same layers and images.

    Raises:
        InputError: Their numbers of removed units differ.
    """
    first = parts[0]
    if any(not np.array_equal(part.removed, first.removed) for part in parts):
        raise InputError("ablations with different numbers of removed units cannot be joined")
    fields: dict[str, Any] = {
        name: np.concatenate([getattr(part, name) for part in parts], axis=1) for name in ("hits", "called", "loss")
    }
    if isinstance(first, Ablation):
        orders = {part.units for part in parts if isinstance(part, Ablation)}
        fields["units"] = first.units if len(orders) == 1 else ()
    return replace(
        first,
        classes=tuple(name for part in parts for name in part.classes),
        images=np.concatenate([part.images for part in parts]),
        halves=tuple(join(halves) for halves in zip(*(part.halves for part in parts), strict=True)),
        **fields,
    )
