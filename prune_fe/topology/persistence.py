"""Betti curves of feature maps, in full and slowly: what the paper compares the birth of the first hole with."""

import importlib
from math import inf
from typing import Any, Literal, get_args

import numpy as np
import torch

from prune_fe.errors import EnvironmentFault, InputError
from prune_fe.topology.births import Rank, check_finite, check_maps

Characteristic = Literal["birth", "maximum", "integral"]
Complex = Literal["clique", "cubical"]

LIBRARIES = {"clique": "ripser", "cubical": "gudhi"}


def characterise(
    maps: torch.Tensor | np.ndarray,
    by: Characteristic,
    dimension: int = 1,
    complex: Complex = "clique",
    rank: Rank = "elements",
) -> torch.Tensor:
    """Return one characteristic of each map's k-th Betti curve, k = dimension; 0 if the curve is zero everywhere.

    The curve is β(v) = the k-th Betti number over GF(2) of the complex T(a(v)) (eq. 6), v = 1, 2, …, where T(t) is the
    complex of the map at threshold t and the a(v) are thresholds in falling order.

    Args:
        maps: (..., m, m), or (..., height, width) for a cubical complex; float16, bfloat16, float32 or float64, all
            finite.
        by: The characteristic. "birth": the first v with β(v) ≠ 0 (eq. 7), which is 1 for k = 0. "maximum": the
            largest β(v). "integral": the sum of β(v) over all v (appendix A.3, table 5).
        dimension: k.
        complex: The complex T(t) of a map U. "clique": the graph on U's m rows with the edge {i, j}, i ≠ j, where
            max(U[i, j], U[j, i]) ≥ t, all cliques filled in (Feature Entropy, ICLR 2022, eqs. 3 and 5). "cubical": the
            closed pixels with U[i, j] ≥ t (appendix A.2), so that two pixels that share a corner are connected.
        rank: The thresholds a(v). "elements": all elements of U, the diagonal too; equal elements repeat the same
            β(v). "edges": the different weights of the edges of a clique complex, or of the pixels of a cubical one.

    Returns:
        (...) int64 on the maps' device.

    Raises:
        InputError: The maps are of another type or shape or not finite, or an argument is not allowed.
        EnvironmentFault: The library that computes the homology is not installed (ripser for clique, gudhi for
            cubical complexes).

    >>> ring = np.array([[0, 9, 0, 6], [0, 0, 8, 0], [0, 0, 0, 7], [0, 0, 0, 0]], np.float32)
    >>> [int(characterise(ring, by)) for by in ("birth", "maximum", "integral")]
    [4, 1, 1]
    """
    for name, value, kind in (("by", by, Characteristic), ("complex", complex, Complex), ("rank", rank, Rank)):
        if value not in get_args(kind):
            raise InputError(f"{name} is {value!r}; allowed: {', '.join(get_args(kind))}")
    check_dimension(dimension, complex)
    check_maps(maps, square=complex == "clique")
    import_library(complex)
    values = maps.detach().cpu().double().numpy() if isinstance(maps, torch.Tensor) else maps.astype(np.float64)
    check_finite(values, np.isfinite(values).all(axis=(-2, -1)))
    shape = values.shape[:-2]
    numbers = np.zeros(shape, np.int64)
    if values.size:
        numbers = characteristics(values.reshape(-1, *values.shape[-2:]), by, dimension, complex, rank).reshape(shape)
    return torch.from_numpy(numbers).to(maps.device if isinstance(maps, torch.Tensor) else "cpu")


def check_dimension(dimension: int, complex: Complex) -> None:
    """Raise InputError for a dimension that is not a whole number, or in which the complex of a map has no holes."""
    if not isinstance(dimension, int) or isinstance(dimension, bool) or dimension < 0:
        raise InputError(f"dimension is {dimension!r}; allowed: 0, 1, 2, …")
    if complex == "cubical" and dimension > 1:
        raise InputError(f"dimension is {dimension}; allowed: 0, 1 for a cubical complex")


def import_library(complex: Complex) -> Any:
    """Return the module that computes the homology of the complex.

    Raises:
        EnvironmentFault: It is not installed.
    """
    try:
        return importlib.import_module(LIBRARIES[complex])
    except ImportError as error:
        raise EnvironmentFault(
            f"the homology of a {complex} complex needs {LIBRARIES[complex]}: "
            f"pip install 'prune-fe[topology]' ({error})"
        ) from error


def characteristics(maps: np.ndarray, by: Characteristic, dimension: int, complex: Complex, rank: Rank) -> np.ndarray:
    """Return the characteristic of each map: (maps, height, width) -> (maps,) int64."""
    betti_curve = clique_curve if complex == "clique" else cubical_curve

    def of_map(values: np.ndarray) -> int:
        levels, curve = betti_curve(values, dimension)
        return summarise(curve, thresholds_per_level(values, levels, rank), by)

    numbers = np.zeros(len(maps), np.int64)
    constant = maps.min(axis=(1, 2)) == maps.max(axis=(1, 2))
    if constant.any():
        # Dead units make many constant maps, and all of these have the same characteristic.
        numbers[constant] = of_map(maps[constant][0])
    for i in np.flatnonzero(~constant):
        numbers[i] = of_map(maps[i])
    return numbers


def clique_curve(values: np.ndarray, dimension: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the Betti curve of a map's clique complex.

    Args:
        values: The map, (m, m).
        dimension: Of the holes.

    Returns:
        The S different weights of the edges, rising; and (S + 1,), the Betti number before the first edge enters and
        at each weight in falling order.
    """
    m = len(values)
    weights = np.maximum(values, values.T)
    levels = np.unique(weights[~np.eye(m, dtype=bool)])
    if dimension > 0 and m < 2 * (dimension + 1):
        # Each dimension adds two vertices to the smallest complex with such a hole: 4-cycle, octahedron, …
        return levels, np.zeros(len(levels) + 1, np.int64)
    # ripser computes in float32, in which the numbers of steps are exact, and reads only one triangle.
    distances = entry_steps(weights, levels)
    np.fill_diagonal(distances, 0)
    # From this step on, one vertex has all others as neighbours: the complex is a cone, one component without holes.
    cone = int(distances.max(axis=1).min())
    curve = curve_from_bars(clique_bars(distances, dimension, cone), len(levels), end=cone)
    curve[cone:] += dimension == 0
    return levels, curve


def clique_bars(distances: np.ndarray, dimension: int, cone: int) -> np.ndarray:
    """Return the steps at which each homology class is born and dies, (bars, 2), infinity if it lives until the cone.

    Args:
        distances: The step at which each edge enters, (m, m).
        dimension: Of the homology classes.
        cone: The step from which on the complex is a cone.
    """
    if cone < 2:
        # Before the cone there are only points, at step 0.
        return np.tile([0.0, inf], (len(distances) if dimension == 0 else 0, 1))
    ripser = import_library("clique").ripser
    return ripser(distances, maxdim=dimension, thresh=cone - 1, distance_matrix=True)["dgms"][dimension]


def cubical_curve(values: np.ndarray, dimension: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the Betti curve of a map's cubical complex.

    Args:
        values: The map, (height, width).
        dimension: Of the holes.

    Returns:
        The S different values of the pixels, rising; and (S + 1,), the Betti number before the first pixel enters and
        at each value in falling order.
    """
    levels = np.unique(values)
    cells = import_library("cubical").CubicalComplex(
        top_dimensional_cells=entry_steps(values, levels).astype(np.float64)
    )
    cells.compute_persistence(homology_coeff_field=2)
    bars = cells.persistence_intervals_in_dimension(dimension).reshape(-1, 2)
    return levels, curve_from_bars(bars, len(levels), end=len(levels) + 1)


def entry_steps(values: np.ndarray, levels: np.ndarray) -> np.ndarray:
    """Return the step at which each value enters: how many levels (rising) are ≥ it, 0 above all levels."""
    return len(levels) - np.searchsorted(levels, values)


def curve_from_bars(bars: np.ndarray, n_steps: int, end: int) -> np.ndarray:
    """Return how many of the bars [birth, death) hold each step 0, …, n_steps; infinite bars die at step `end`."""
    ends = np.minimum(bars, end).astype(np.int64)
    births, deaths = (np.bincount(column, minlength=n_steps + 2) for column in ends.T)
    return (births - deaths).cumsum()[: n_steps + 1]


def thresholds_per_level(values: np.ndarray, levels: np.ndarray, rank: Rank) -> np.ndarray:
    """Return how many of the thresholds a(v) lie above all levels, and at each level, falling: (levels + 1,)."""
    if rank == "elements":
        return np.bincount(entry_steps(values, levels).reshape(-1), minlength=len(levels) + 1)
    return np.arange(len(levels) + 1).clip(max=1)


def summarise(curve: np.ndarray, counts: np.ndarray, by: Characteristic) -> int:
    """Return the birth, maximum or integral of the curve whose i-th number is repeated counts[i] times."""
    if by == "integral":
        return int(curve @ counts)
    seen = np.where(counts > 0, curve, 0)
    if by == "maximum":
        return int(seen.max())
    return 1 + int(counts[: seen.nonzero()[0][0]].sum()) if seen.any() else 0
