"""The scores of a network's units, and how they are saved and loaded."""

from __future__ import annotations

import csv
import html
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from prune_fe.errors import CheckpointError, InputError
from prune_fe.file_types import require_path
from prune_fe.io import csv_cell, explain_disk_errors, nearest, replacing
from prune_fe.options import Natural, validate_value
from prune_fe.records import damaged, read_npz, write_npz
from prune_fe.scorers import resolve_scorer
from prune_fe.scorers.base import Scorer

if TYPE_CHECKING:
    import altair as alt
    import pandas as pd

Array = NDArray[Any]

METADATA = (
    "scorer",
    "classes",
    "images",
    "seconds",
    "settings",
    "own_seconds",
    "peak_bytes",
    "provenance",
    "other_scorers",
)
"""The fields of Scores that are not arrays."""

TYPES: Mapping[str, Any] = {
    "scorer": str,
    "classes": list,
    "images": int,
    "seconds": int | float,
    "settings": dict,
    "own_seconds": int | float,
    "peak_bytes": int | None,
    "provenance": dict,
    "other_scorers": dict,
}
"""The types of these fields in a file."""

FILE_NAME = "scores.npz"

MOST_BINS = 24
"""Largest number of bins of a histogram of scores."""


@dataclass(frozen=True)
class Scores:
    """The scores of a network's units, higher = keep, and the quantities that they were computed from.

    Attributes:
        scorer: Name of the scorer.
        keep: Layer name -> the score of each unit, (units,) float64, finite.
        raw: Quantity -> layer name -> (units,), or (classes, units) in the order of `classes`. The name of a quantity
            ends in its unit of measure, as in `feature_entropy_nats`. Layers of another scorer have other quantities.
        classes: Names of the classes that the images are of.
        images: Number of images.
        seconds: Duration of scoring, including the network's forward passes.
        settings: Settings of the scorer.
        own_seconds: Duration of the scorer alone.
        peak_bytes: Memory that the scorer needed in addition to the network's; None where it is not known.
        provenance: Hash of the network, its layers, and name and class of every image. Its `key` identifies all of it.
        other_scorers: Layer name -> name of the scorer that scored it in place of `scorer`, on another scale
            (`ScoreOptions.linear_scorer`).
    """

    scorer: str
    keep: Mapping[str, Array]
    raw: Mapping[str, Mapping[str, Array]] = field(default_factory=dict)
    classes: tuple[str, ...] = ()
    images: int = 0
    seconds: float = 0.0
    settings: Mapping[str, Any] = field(default_factory=dict)
    own_seconds: float = 0.0
    peak_bytes: int | None = None
    provenance: Mapping[str, Any] = field(default_factory=dict)
    other_scorers: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not isinstance(self.keep, Mapping):
            raise InputError(f"keep is a {type(self.keep).__name__}; it must be layer name -> scores")
        for layer, keep in self.keep.items():
            if not isinstance(keep, np.ndarray) or keep.ndim != 1 or keep.dtype.kind not in "fiu":
                raise InputError(f"layer {layer!r}: the scores are {_describe(keep)}, they must be real, one a unit")
            bad = np.flatnonzero(~np.isfinite(keep))
            if bad.size:
                raise InputError(f"layer {layer!r}, unit {bad[0]}: the score is {keep[bad[0]]}, it must be finite")

    def __repr__(self) -> str:
        units = sum(map(len, self.keep.values()))
        images = f", {self.images:,} images of {len(self.classes)} classes" if self.images else ""
        return f"Scores({self.scorer}: {len(self.keep)} layers, {units:,} units{images})"

    def _repr_html_(self) -> str:
        """Return a row for each layer, for notebooks."""
        import pandas as pd

        columns = ["layer", "units", *self._scorer_column, *self.raw]
        return f"<p>{html.escape(repr(self))}</p>" + str(pd.DataFrame(self._layer_rows(), columns=columns).to_html())

    def to_pandas(self) -> pd.DataFrame:
        """Return a row for each unit: layer, unit, keep, and each quantity, which is the mean of the classes."""
        import pandas as pd

        columns = ["layer", "unit", *self._scorer_column, "keep", *self.raw]
        return pd.DataFrame(self._unit_rows(), columns=columns)

    def plot(self, quantity: str | None = None) -> alt.LayerChart | alt.Chart:
        """Return a chart of the scores, or of a quantity that they were computed from, which a notebook shows.

        Args:
            quantity: One of `raw`, such as "feature_entropy_nats": its mean over the units of each layer, from the
                first layer to the last. None: how the scores of all layers are distributed, each layer standardised.

        Raises:
            InputError: There is no such quantity.
        """
        import pandas as pd

        from prune_fe.charts import histogram, layer_profile, standalone

        if quantity is None:
            values = standardised(self)
            counts, edges = np.histogram(values, bins=histogram_bins(len(values)))
            frame = pd.DataFrame({"start": edges[:-1], "end": edges[1:], "count": counts})
            return standalone(histogram(frame, "standardised score", f"Distribution of the scores: {self.scorer}"))
        if quantity not in self.raw:
            raise InputError(f"quantity {quantity!r}: {nearest(quantity, self.raw)}")
        rows = [
            {"criterion": self.scorer_of(layer), "depth": depth, "layer": layer}
            | dict.fromkeys(("value", "low", "high"), self.layer_mean(quantity, layer))
            for depth, layer in enumerate(self.keep, start=1)
            if layer in self.raw[quantity]
        ]
        title = quantity.replace("_", " ")
        return standalone(layer_profile(pd.DataFrame(rows), title, f"{title} of each layer"))

    @property
    def _scorer_column(self) -> list[str]:
        """The column "scorer", which is there if the layers have several."""
        return ["scorer"] if self.other_scorers else []

    @property
    def about(self) -> dict[str, Any]:
        """Where the scores come from, in short: without the list of the images, which the key identifies."""
        names = ("key", "model_sha256", "linear_scorer")
        known = {name: self.provenance[name] for name in names if name in self.provenance}
        return {"scorer": self.scorer, "settings": dict(self.settings), "images": self.images} | known

    def scorer_of(self, layer: str) -> str:
        """Return the name of the scorer that scored a layer."""
        return self.other_scorers.get(layer, self.scorer)

    def weakest(self, layer: str, count: int) -> list[int]:
        """Return the `count` units of `layer` with the lowest scores, lowest first, equal scores by unit number.

        Raises:
            InputError: The layer has no scores.

        >>> Scores("random", {"conv": np.array([3.0, 1.0, 1.0, 2.0])}).weakest("conv", 3)
        [1, 2, 3]
        """
        if layer not in self.keep:
            raise InputError(f"layer {layer!r} has no scores; scored are {', '.join(self.keep)}")
        count = validate_value(Natural, count, "count")
        return weakest(self.keep[layer], count)

    @property
    def has_classes(self) -> bool:
        """Whether `of_class` gives each class its own scores, for every layer."""
        scorer = self._known_scorer()
        if scorer is None or len(self.classes) < 2 or self.other_scorers:
            return False
        return all(self._keep_of_class(scorer, layer, 0) is not None for layer in self.keep)

    def of_class(self, label: int | str) -> Scores:
        """Return the scores of one class alone: for feature entropy its own H/ε, by which figure 12 orders the units.

        The units are in the order of `score(…, classes=[label])`, without another pass over the images.

        Args:
            label: Name of the class, or its index in `classes`.

        Raises:
            InputError: There is no such class, or the scorer keeps nothing for each class.
        """
        names = list(self.classes)
        if isinstance(label, str) and label not in names:
            raise InputError(f"class {label!r}: no such class; {nearest(label, names[:20])}")
        row = names.index(label) if isinstance(label, str) else validate_value(Natural, label, "label")
        if row >= len(names):
            raise InputError(f"class {row}: the scores are of {len(names)} classes, numbered from 0")
        scorer = self._known_scorer()
        own = {} if scorer is None else {layer: self._keep_of_class(scorer, layer, row) for layer in self.keep}
        keep = {layer: values for layer, values in own.items() if values is not None}
        if len(keep) < max(len(self.keep), 1):
            raise InputError(
                f"the scores of {self.scorer} are of all classes together; score(…, classes=[{row}]) gives those of one"
            )
        raw = {
            quantity: {layer: values[row : row + 1] if values.ndim == 2 else values for layer, values in layers.items()}
            for quantity, layers in self.raw.items()
        }
        return replace(self, keep=keep, raw=raw, classes=(names[row],))

    def _known_scorer(self) -> Scorer | None:
        """Return the scorer, if it is one that has a name."""
        try:
            return resolve_scorer(self.scorer, dict(self.settings))
        except InputError:  # a function of the user's own
            return None

    def _keep_of_class(self, scorer: Scorer, layer: str, row: int) -> Array | None:
        known = {name: layers[layer] for name, layers in self.raw.items() if layer in layers}
        quantities = {name: torch.tensor(values) for name, values in known.items()}
        if not any(values.ndim == 2 for values in quantities.values()):
            return None
        try:
            keep = scorer.keep_of_class(quantities, row, max(self.images, 1))
        except KeyError:  # quantities of another version
            return None
        return None if keep is None else keep.numpy()

    def layer_mean(self, quantity: str, layer: str) -> float:
        """Return the mean of a quantity over the units and classes of a layer where it is finite; inf if nowhere.

        For `feature_entropy_nats` it is the entropy of a layer in figures 5, 6, 9 and 11 of Zhao & Zhang (2022).
        """
        if layer not in self.raw.get(quantity, {}):
            raise InputError(f"layer {layer!r} has no {quantity!r}; known are {', '.join(self.raw) or 'none'}")
        return float(_finite_mean(self.raw[quantity][layer].reshape(-1, 1))[0])

    def save(self, folder: Path) -> None:
        """Write scores.csv, classes.csv, layers.csv and scores.npz to a folder, which is created if it is missing.

        The tables have a row for each unit (with means over the classes), for each unit and class (where a quantity
        is known for each class), and for each layer (with means over its units). Where another scorer scored some
        layers, scores.csv and layers.csv name the scorer of each row. scores.npz holds everything; it is written last,
        so that it marks a finished folder.
        """
        folder.mkdir(parents=True, exist_ok=True)
        by_class = [q for q, layers in self.raw.items() if any(values.ndim == 2 for values in layers.values())]
        if by_class:
            _write_table(folder / "classes.csv", ["layer", "unit", "class", *by_class], self._class_rows(by_class))
        scorer = self._scorer_column
        _write_table(folder / "layers.csv", ["layer", "units", *scorer, *self.raw], self._layer_rows())
        _write_table(folder / "scores.csv", ["layer", "unit", *scorer, "keep", *self.raw], self._unit_rows())
        metadata = {name: getattr(self, name) for name in METADATA}
        arrays = {f"keep/{layer}": keep for layer, keep in self.keep.items()}
        for quantity, by_layer in self.raw.items():
            arrays |= {f"{quantity}/{layer}": values for layer, values in by_layer.items()}
        names = {"layers": list(self.keep), "quantities": list(self.raw)}
        write_npz(folder / FILE_NAME, metadata | names, arrays)

    def _layer_rows(self) -> Iterator[list[Any]]:
        for layer, keep in self.keep.items():
            means = (self.layer_mean(q, layer) if layer in layers else "" for q, layers in self.raw.items())
            yield [layer, len(keep), *self._scorer_cell(layer), *means]

    def _unit_rows(self) -> Iterator[list[Any]]:
        for layer, keep in self.keep.items():
            scorer, missing = self._scorer_cell(layer), [""] * len(keep)
            means = [
                _over_classes(by_layer[layer]).astype(float).tolist() if layer in by_layer else missing
                for by_layer in self.raw.values()
            ]
            for unit, score in enumerate(keep.astype(float).tolist()):
                yield [layer, unit, *scorer, score, *(mean[unit] for mean in means)]

    def _class_rows(self, quantities: Sequence[str]) -> Iterator[list[Any]]:
        for layer, keep in self.keep.items():
            known = {q: self.raw[q][layer] for q in quantities if layer in self.raw[q] and self.raw[q][layer].ndim == 2}
            for unit in range(len(keep) if known else 0):
                for index, name in enumerate(self.classes):
                    values = (float(known[q][index, unit]) if q in known else "" for q in quantities)
                    yield [layer, unit, name, *values]

    def _scorer_cell(self, layer: str) -> list[str]:
        """Return the cell of the column "scorer", which is there if the layers have several."""
        return [self.scorer_of(layer)] if self.other_scorers else []


def standardised(scores: Scores) -> Array:
    """Return the scores of all layers, each layer with mean 0 and standard deviation 1."""
    layers = [(keep - keep.mean()) / (keep.std() or 1) for keep in scores.keep.values()]
    return np.concatenate(layers) if layers else np.empty(0)


def histogram_bins(count: int) -> int:
    """Return the number of bins for so many values: about their square root, from 5 to `MOST_BINS`."""
    return int(np.clip(np.ceil(np.sqrt(count)), 5, MOST_BINS))


def weakest(scores: Array, count: int) -> list[int]:
    """Return the indices of the `count` smallest of some scores (units,), smallest first, equal ones by index."""
    return np.argsort(scores, kind="stable")[:count].tolist()


def load_scores(folder: str | Path) -> Scores:
    """Load the scores that `Scores.save` wrote, to the bit.

    Args:
        folder: The folder, or one that holds a single folder of scores.

    Raises:
        CheckpointError: There are no scores, those of several scorers, or a damaged file.
    """
    folder = require_path(folder, "folder")
    path = folder / FILE_NAME
    if not path.exists():
        inner = sorted(folder.glob(f"*/{FILE_NAME}"))
        if len(inner) > 1:
            names = ", ".join(path.parent.name for path in inner)
            raise CheckpointError(f"{folder} holds scores of {names}: name one folder")
        if not inner:
            raise CheckpointError(f"{path}: no such file; Scores.save writes one")
        path = inner[0]
    metadata, arrays = read_npz(path)
    try:
        layers = metadata["layers"]
        keep = {layer: arrays[f"keep/{layer}"] for layer in layers}
        others = metadata.get("other_scorers", {})
        raw = {
            q: {layer: arrays[f"{q}/{layer}"] for layer in layers if not others or f"{q}/{layer}" in arrays}
            for q in metadata["quantities"]
        }
        # Files of earlier versions lack some fields.
        known = {name: metadata[name] for name in METADATA if name in metadata}
        _check_metadata(known)
        scores = Scores(keep=keep, raw=raw, **known | {"classes": tuple(metadata["classes"])})
        _check_shapes(scores)
        return scores
    except (KeyError, TypeError, ValueError) as error:
        raise damaged(path, f"not a scores file: {error}") from error


def _check_metadata(metadata: Mapping[str, Any]) -> None:
    """Raise TypeError where a field has another type than `Scores.save` writes."""
    for name, value in metadata.items():
        if not isinstance(value, TYPES[name]) or isinstance(value, bool):
            raise TypeError(f"{name!r} is a {type(value).__name__}")
    if not all(isinstance(name, str) for name in metadata["classes"]):
        raise TypeError("'classes' holds something else than names")
    if not all(isinstance(name, str) for pair in metadata.get("other_scorers", {}).items() for name in pair):
        raise TypeError("'other_scorers' holds something else than names")


def _check_shapes(scores: Scores) -> None:
    """Raise ValueError where a quantity does not have a real number for each unit, or each class and unit."""
    for quantity, layers in scores.raw.items():
        for layer, values in layers.items():
            units = len(scores.keep[layer])
            if values.shape not in ((units,), (len(scores.classes), units)) or values.dtype.kind not in "fiub":
                raise ValueError(f"{quantity!r} of layer {layer!r} is {_describe(values)}, the layer has {units} units")


def _describe(value: Any) -> str:
    """Return what kind of array something is, for an error message."""
    return f"{value.dtype} {value.shape}" if isinstance(value, np.ndarray) else f"a {type(value).__name__}"


def _write_table(path: Path, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Write a CSV table row by row, whole or not at all: that of the classes may have millions of rows."""
    with explain_disk_errors(path), replacing(path) as partial, partial.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        writer.writerows([csv_cell(cell) for cell in row] for row in rows)


def _over_classes(values: Array) -> Array:
    """Return (units,): the mean over the classes where there are any."""
    return values if values.ndim == 1 else _finite_mean(values)


def _finite_mean(values: Array) -> Array:
    """Return the mean of the finite values over the first axis; inf where there is none."""
    finite = np.isfinite(values)
    totals = np.where(finite, values, 0).sum(axis=0)
    return np.where(finite.any(axis=0), totals / np.maximum(finite.sum(axis=0), 1), np.inf)
