"""Files of ablations: one npz file holds the ablations of one order, for every class that is finished."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from prune_fe.ablation.curves import Ablation, Result, UnitAblation, join
from prune_fe.errors import CheckpointError
from prune_fe.experiment.results import ADVICE
from prune_fe.records import read_npz, write_npz
from prune_fe.scoring.scores import Array


def save_ablations(path: Path, parts: Sequence[Result]) -> None:
    """Write ablations of different classes to one file, whole or not at all.

    Args:
        path: The file; its folder is created.
        parts: Ablations of the same layers and numbers of removed units, each of one or more classes.
    """
    joined = join(parts)
    # Single units have no order; their rows are empty.
    units = [part.units if isinstance(part, Ablation) else () for part in parts for _ in part.classes]
    arrays: dict[str, Array] = {"units": np.array(units, dtype=np.int64), "removed": joined.removed}
    for number, half in enumerate(joined.halves):
        arrays |= {f"{number}/{name}": getattr(half, name) for name in ("images", "hits", "called", "loss")}
    # Rounding makes the loss of all images differ from what its halves give, so it is kept as well.
    arrays["loss"] = joined.loss
    about = {
        "layers": joined.layers,
        "classes": joined.classes,
        "outputs": joined.outputs,
        "how": joined.how,
        "all_images": [half.all_images for half in joined.halves],
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    write_npz(path, about, arrays)


def finished_classes(path: Path) -> set[str]:
    """Return the names of the classes in a file, without reading their ablations; a missing file has none.

    Raises:
        CheckpointError: The file is damaged.
    """
    if not path.exists():
        return set()
    try:
        about, _ = read_npz(path, names=())
        return set(about["classes"])
    except CheckpointError as error:
        raise CheckpointError(f"{error}; {ADVICE}") from error
    except (KeyError, TypeError) as error:
        raise _damaged(path, error) from error


def load_ablations(path: Path, n_units: int) -> dict[str, Ablation]:
    """Return the cumulative ablation of each class in a file that `save_ablations` wrote.

    Args:
        path: The file; a missing one has no classes.
        n_units: Length of the order in which units were removed.

    Returns:
        Name of the class -> its ablation.

    Raises:
        CheckpointError: The file is damaged.
    """
    return _load(path, n_units, lambda order, fields: Ablation(units=order, **fields))


def load_unit_ablations(path: Path) -> dict[str, UnitAblation]:
    """Return the ablation of single units for each class in a file that `save_ablations` wrote.

    Args:
        path: The file; a missing one has no classes.

    Returns:
        Name of the class -> its ablation.

    Raises:
        CheckpointError: The file is damaged.
    """
    return _load(path, 0, lambda _, fields: UnitAblation(**fields))


Maker = Callable[[tuple[int, ...], dict[str, Any]], Result]
"""Function that makes an ablation from its order and its other fields."""


def _load(path: Path, n_units: int, make: Maker[Result]) -> dict[str, Result]:
    if not path.exists():
        return {}
    try:
        about, arrays = read_npz(path)
        orders = arrays["units"].reshape(len(about["classes"]), n_units).tolist()
        return {
            name: _class_ablation(about, arrays, number, partial(make, tuple(order)))
            for number, (name, order) in enumerate(zip(about["classes"], orders, strict=True))
        }
    except CheckpointError as error:
        raise CheckpointError(f"{error}; {ADVICE}") from error
    except (ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
        raise _damaged(path, error) from error


def _damaged(path: Path, error: Exception) -> CheckpointError:
    return CheckpointError(f"{path}: damaged ({error}); {ADVICE}")


def _class_ablation(
    about: Mapping[str, Any], arrays: Mapping[str, Array], number: int, make: Callable[[dict[str, Any]], Result]
) -> Result:
    """Return the ablation of class number `number` of a file."""
    columns = slice(number, number + 1)
    common: dict[str, Any] = {
        "layers": tuple(about["layers"]),
        "removed": arrays["removed"],
        "classes": (about["classes"][number],),
        "outputs": about["outputs"],
        "how": about["how"],
    }
    halves = tuple(
        make(
            {
                "images": arrays[f"{half}/images"][columns],
                "all_images": about["all_images"][half],
                "hits": arrays[f"{half}/hits"][:, columns],
                "called": arrays[f"{half}/called"][:, columns],
                "loss": arrays[f"{half}/loss"][:, columns],
                **common,
            }
        )
        for half in (0, 1)
    )
    images = halves[0].images + halves[1].images
    # Files of earlier versions do not have the loss of all images.
    loss = arrays["loss"][:, columns] if "loss" in arrays else sum(half.loss * half.images for half in halves) / images
    return make(
        {
            "images": images,
            "all_images": sum(half.all_images for half in halves),
            "hits": halves[0].hits + halves[1].hits,
            "called": halves[0].called + halves[1].called,
            "loss": loss,
            "halves": halves,
            **common,
        }
    )
