"""What a scorer says about the units of a network, and which of them are weakest."""

from __future__ import annotations

import csv
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from prune_fe.errors import CheckpointError, InputError
from prune_fe.io import safe_cell

Array = NDArray[Any]

ABOUT = ("scorer", "classes", "images", "seconds", "settings", "own_seconds", "peak_bytes", "provenance")
"""The fields of Scores that are no arrays."""


@dataclass(frozen=True)
class Scores:
    """One number a unit, higher = keep, and the quantities it came from.

    keep: layer name -> (units,) float64, finite.
    raw: quantity -> layer name -> (units,), or (classes, units) in the order of `classes`. The quantity's name ends
    in its unit of measure (`feature_entropy_nats`).
    seconds: of scoring, with the images' way through the network; own_seconds: of the scorer alone, and peak_bytes the
    memory that it needed on top of the network's (None: not known).
    provenance: the network's SHA-256, the layers, the name and label of every image; `key` stands for all of it.
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

    def __post_init__(self) -> None:
        for layer, keep in self.keep.items():
            bad = np.flatnonzero(~np.isfinite(keep))
            if bad.size:
                raise InputError(f"layer {layer!r}, unit {bad[0]}: the score is {keep[bad[0]]}, it must be finite")

    @property
    def about(self) -> dict[str, Any]:
        """Where the scores come from, without the list of the images: the key stands for it."""
        known = {name: self.provenance[name] for name in ("key", "model_sha256") if name in self.provenance}
        return {"scorer": self.scorer, "settings": dict(self.settings), "images": self.images} | known

    def weakest(self, layer: str, count: int) -> list[int]:
        """The `count` units of `layer` that go first, weakest first; equal units in the order of their number.

        >>> Scores("random", {"conv": np.array([3.0, 1.0, 1.0, 2.0])}).weakest("conv", 3)
        [1, 2, 3]
        """
        if layer not in self.keep:
            raise InputError(f"layer {layer!r} has no scores; scored are {', '.join(self.keep)}")
        return weakest(self.keep[layer], count)

    def layer_mean(self, quantity: str, layer: str) -> float:
        """The mean of a quantity over the units and classes of a layer, where it is finite; +∞ if nowhere. For
        feature_entropy_nats it is the layer's entropy in figures 5, 6, 9 and 11 of the paper."""
        values = self.raw[quantity][layer]
        return float(_finite_mean(values.reshape(-1, 1))[0])

    def save(self, folder: Path) -> None:
        """Write `scores.csv`, a row a unit with the mean over classes, `classes.csv`, a row a unit and class with what
        is known of each class, `layers.csv`, a row a layer with the mean over its units, and last `scores.npz` with
        everything."""
        folder.mkdir(parents=True, exist_ok=True)
        by_class = [quantity for quantity, layers in self.raw.items() if next(iter(layers.values())).ndim == 2]
        if by_class:
            with (folder / "classes.csv").open("w", newline="") as file:
                csv.writer(file).writerows(self._of_each_class(by_class))
        with (folder / "layers.csv").open("w", newline="") as file:
            table = csv.writer(file)
            table.writerow(["layer", "units", *self.raw])
            for layer, keep in self.keep.items():
                table.writerow([layer, len(keep), *(repr(self.layer_mean(quantity, layer)) for quantity in self.raw)])
        with (folder / "scores.csv").open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["layer", "unit", "keep", *self.raw])
            for layer, keep in self.keep.items():
                means = [_over_classes(quantity[layer]) for quantity in self.raw.values()]
                for unit, value in enumerate(keep):
                    writer.writerow([layer, unit, repr(float(value)), *(repr(float(mean[unit])) for mean in means)])
        about = {name: getattr(self, name) for name in ABOUT} | {
            "layers": list(self.keep),
            "quantities": list(self.raw),
        }
        arrays = {f"keep/{layer}": keep for layer, keep in self.keep.items()}
        for quantity, by_layer in self.raw.items():
            arrays |= {f"{quantity}/{layer}": values for layer, values in by_layer.items()}
        partial = folder / ".scores.npz"
        with partial.open("wb") as file:
            np.savez_compressed(file, allow_pickle=False, about=np.array(json.dumps(about)), **arrays)
        partial.replace(folder / "scores.npz")

    def _of_each_class(self, quantities: Sequence[str]) -> Iterator[Sequence[Any]]:
        yield ["layer", "unit", "class", *quantities]
        for layer, keep in self.keep.items():
            for unit in range(len(keep)):
                for number, name in enumerate(self.classes):
                    values = (repr(float(self.raw[quantity][layer][number, unit])) for quantity in quantities)
                    yield [layer, unit, safe_cell(name), *values]


def architecture(model: Any) -> str:
    """SHA-256 of what the network prints of itself: its modules and their settings, not its weights."""
    return hashlib.sha256(repr(model).encode()).hexdigest()


def weakest(keep: Array, count: int) -> list[int]:
    """The numbers of the `count` smallest entries of keep (units,), smallest first, ties by number."""
    return np.argsort(keep, kind="stable")[:count].tolist()


def load_scores(folder: str | Path) -> Scores:
    """The scores that Scores.save wrote to `folder`, or to the only folder of scores in it, to the bit."""
    path = Path(folder) / "scores.npz"
    if not path.exists():
        inner = sorted(Path(folder).glob("*/scores.npz"))
        if len(inner) > 1:
            raise CheckpointError(
                f"{folder} holds scores of {', '.join(p.parent.name for p in inner)}: name one folder"
            )
        if not inner:
            raise CheckpointError(f"{path}: no such file; Scores.save writes one")
        path = inner[0]
    try:
        with path.open("rb") as content, np.load(content, allow_pickle=False) as file:
            about = json.loads(str(file["about"]))
            layers = about["layers"]
            keep = {layer: file[f"keep/{layer}"] for layer in layers}
            raw = {q: {layer: file[f"{q}/{layer}"] for layer in layers} for q in about["quantities"]}
            known = {name: about[name] for name in ABOUT if name in about}
            return Scores(keep=keep, raw=raw, **known | {"classes": tuple(about["classes"])})
    except (OSError, ValueError, KeyError, EOFError, BadZipFile) as error:
        raise CheckpointError(f"{path}: not a scores file that can be read ({error})") from error


def _over_classes(values: Array) -> Array:
    return values if values.ndim == 1 else _finite_mean(values)


def _finite_mean(values: Array) -> Array:
    """The mean over the first axis, of the finite values; +∞ where there is none."""
    finite = np.isfinite(values)
    totals = np.where(finite, values, 0).sum(axis=0)
    return np.where(finite.any(axis=0), totals / np.maximum(finite.sum(axis=0), 1), np.inf)
