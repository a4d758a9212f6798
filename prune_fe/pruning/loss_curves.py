"""Store the curves that `sensitivity` measures: loss and accuracy against the share of units that one group lost."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import TypeAdapter, ValidationError
from scipy.optimize import isotonic_regression
from torch import nn

from prune_fe.errors import CheckpointError, InputError
from prune_fe.file_types import require_path
from prune_fe.pruning.groups import Group, GroupId
from prune_fe.pruning.options import PruneOptions
from prune_fe.records import damaged, read_record, write_record
from prune_fe.scoring.fingerprint import hash_architecture, hash_weights
from prune_fe.scoring.scores import Scores

if TYPE_CHECKING:
    import pandas as pd

FILE_NAME = "sensitivity.json"

IDENTITY = {
    "architecture_sha256": "network",
    "model_sha256": "weights",
    "scores_sha256": "scores",
    "reduction": "reduction",
    "images_sha256": "images",
    "ratios": "ratios",
    "recovery": "recalibration",
}
"""Key of `Sensitivity.about` -> what it identifies, in words. Curves that agree in all of these keys are the same."""


@dataclass(frozen=True)
class CurvePoint:
    """The network after one group has lost units, while all other groups keep theirs.

    Attributes:
        ratio: Share of the group's units to remove.
        removed: Number of units that are removed.
        accuracy: Share of the images that are classified correctly.
        loss: Mean cross-entropy of an image in nats.
        macs: Share of the multiply-adds that are left.
        parameters: Share of the parameters that are left.
    """

    ratio: float
    removed: int
    accuracy: float
    loss: float
    macs: float
    parameters: float


@dataclass(frozen=True)
class LossCurve:
    """The loss and the accuracy of the network when one group alone loses units.

    Attributes:
        layers: The layers of the group, in the order in which they run.
        units: Number of units of the group.
        points: One for each ratio, ascending.
        reason: Why there are no points, or not all; None where all were measured.
    """

    layers: tuple[str, ...]
    units: int
    points: tuple[CurvePoint, ...] = ()
    reason: str | None = None

    @property
    def most_removed(self) -> int:
        """The largest number of units whose loss was measured."""
        return max((point.removed for point in self.points), default=0)

    def predict_increases(self, unpruned_loss: float, counts: Sequence[int]) -> NDArray[np.float64]:
        """Return by how much the loss rises when the group loses some numbers of units.

        On few images the measured loss also falls here and there, by chance. Therefore a curve that never falls is
        fitted to the measured increases by least squares (isotonic regression), raised to 0 where it is below, and
        interpolated linearly.

        Args:
            unpruned_loss: The loss of the whole network.
            counts: Numbers of removed units, none above `most_removed`.

        Returns:
            (counts,) increases in nats.
        """
        measured = {point.removed: point.loss - unpruned_loss for point in self.points}
        removed = np.array([0, *sorted(set(measured) - {0})])
        increases = np.array([0.0, *(measured[count] for count in removed[1:].tolist())])
        fitted = np.maximum(isotonic_regression(increases).x, 0)
        # The whole network has no increase, even if noise gives the fit another value there.
        fitted[0] = 0
        return np.interp(counts, removed, fitted)


@dataclass(frozen=True)
class Sensitivity:
    """The loss curves of all groups of a network, measured on held-out images.

    Attributes:
        curves: One for each group, in the order in which they run.
        accuracy: Accuracy of the whole network.
        loss: Its mean cross-entropy in nats.
        images: Number of images.
        about: What the curves are of: hashes of the network, the scores and the images, the ratios and the reduction.
    """

    curves: tuple[LossCurve, ...]
    accuracy: float
    loss: float
    images: int
    about: dict[str, Any] = field(default_factory=dict)

    def rows(self) -> Iterator[dict[str, Any]]:
        """Yield a dictionary for each group and ratio, and one for each group without points."""
        for number, curve in enumerate(self.curves, 1):
            group = {"group": number, "layers": ", ".join(curve.layers), "units": curve.units}
            reason = {"reason": curve.reason or ""}
            for point in curve.points:
                loss = point.loss - self.loss
                yield group | dataclasses.asdict(point) | {"loss_increase": loss} | reason
            if not curve.points:
                names = [entry.name for entry in dataclasses.fields(CurvePoint)]
                yield group | dict.fromkeys([*names, "loss_increase"]) | reason

    def table(self) -> pd.DataFrame:
        """Return a row for each group and ratio.

        Returns:
            Columns group (a number from 1), layers, units, ratio, removed, accuracy, loss, macs, parameters (see
            `CurvePoint`), loss_increase (over the whole network) and reason. A group without points has one row.
        """
        import pandas as pd

        return pd.DataFrame(list(self.rows()))

    def save(self, folder: str | Path) -> None:
        """Write sensitivity.json to a folder, which is made if it is missing; `load_sensitivity` reads it."""
        folder = require_path(folder, "folder")
        folder.mkdir(parents=True, exist_ok=True)
        write_record(folder / FILE_NAME, dataclasses.asdict(self))

    def curves_of(self, groups: Sequence[Group]) -> dict[GroupId, LossCurve]:
        """Return the curves by group.

        Raises:
            InputError: The network has other groups.
        """
        expected = [(group.layers, len(group.sets)) for group in groups]
        if expected != [(curve.layers, curve.units) for curve in self.curves]:
            raise InputError(
                f"sensitivity: it has curves of {len(self.curves)} groups, the network has {len(groups)} groups, and "
                "their layers or numbers of units differ; measure this network"
            )
        return {GroupId(number): curve for number, curve in enumerate(self.curves)}


def load_sensitivity(folder: str | Path) -> Sensitivity:
    """Load what `prune-fe sensitivity`, or `Sensitivity.save`, wrote to a folder.

    Args:
        folder: The folder, which holds sensitivity.json.

    Raises:
        CheckpointError: There is no finished measurement, or the file is damaged.
    """
    path = require_path(folder, "folder") / FILE_NAME
    if not path.exists():
        raise CheckpointError(f"{path}: no such file; prune-fe sensitivity writes one when it is finished")
    content = read_record(path)
    try:
        loaded: Sensitivity = TypeAdapter(Sensitivity).validate_python(content)
    except ValidationError as error:
        raise damaged(path, f"not a sensitivity file: {error.errors()[0]['msg']}") from error
    return loaded


def describe(model: nn.Module, scores: Scores) -> dict[str, Any]:
    """Return the part of `Sensitivity.about` that says which network and which scores the curves are of."""
    digest = hashlib.sha256()
    for layer, keep in scores.keep.items():
        digest.update(f"{layer} {keep.dtype} {keep.shape}".encode())
        digest.update(np.ascontiguousarray(keep).data)
    return {
        "model": type(model).__name__,
        "architecture_sha256": hash_architecture(model),
        "model_sha256": hash_weights(model),
        "scorer": scores.scorer,
        "scores_sha256": digest.hexdigest(),
    }


def find_differences(about: Mapping[str, Any], other: Mapping[str, Any]) -> str:
    """Return what differs between two descriptions, in words such as "weights, scores"; "" for the same curves.

    Args:
        about: One description.
        other: Another one; only keys that it has are compared.
    """
    return ", ".join(what for key, what in IDENTITY.items() if key in other and about.get(key) != other[key])


def check_sensitivity(sensitivity: Sensitivity | None, model: nn.Module, scores: Scores, options: PruneOptions) -> None:
    """Check that the ratio "auto" has curves of this network and these scores, and that other ratios have none.

    Args:
        sensitivity: The curves; None if none are given.
        model: The network that is pruned.
        scores: The scores that it is pruned by.
        options: The options of pruning.

    Raises:
        InputError: The curves are missing, have no effect, or were measured for something else.
    """
    if sensitivity is None:
        if options.is_auto:
            raise InputError("ratio: auto needs sensitivity=, what prune_fe.sensitivity measures for these scores")
        return
    if not isinstance(sensitivity, Sensitivity):
        raise InputError(
            f"sensitivity is a {type(sensitivity).__name__}; prune() needs what prune_fe.sensitivity returns"
        )
    if not options.is_auto:
        raise InputError("sensitivity has no effect without ratio: auto; leave it out, or ask for that ratio")
    here = describe(model, scores) | {"reduction": options.reduction}
    if what := find_differences(sensitivity.about, here):
        raise InputError(f"sensitivity was measured with another choice of {what}; measure it with this one")
