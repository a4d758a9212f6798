"""Any Betti curve of a feature map, in full: what the paper compares the birth of the first hole with. Slow."""

import importlib
from math import inf
from typing import Any, Literal, get_args

import numpy as np
import torch

from prune_fe.errors import EnvironmentFault, InputError
from prune_fe.topology.births import Rank, check, check_finite

Characteristic = Literal["birth", "maximum", "integral"]
Complex = Literal["clique", "cubical"]

LIBRARY = {"clique": "ripser", "cubical": "gudhi"}


def characterise(
    maps: torch.Tensor | np.ndarray,
    by: Characteristic,
    dimension: int = 1,
    complex: Complex = "clique",
    rank: Rank = "elements",
) -> torch.Tensor:
    """One whole number for the k-th Betti curve of each map, k = dimension; 0 when the curve is zero everywhere.

    The complex T(t) of a map U at the threshold t is, by `complex`,
      - "clique": the graph on U's m rows with the edge {i, j} where max(U[i, j], U[j, i]) ≥ t, i ≠ j, all cliques
        filled in (Feature Entropy, ICLR 2022, eqs. 3 and 5). Equal edges enter together;
      - "cubical": the closed pixels with U[i, j] ≥ t (appendix A.2), so that two that share a corner are connected.
    The curve β(v) is the k-th Betti number of T(a(v)) over GF(2) (eq. 6), v = 1, 2, …; the a(v) are, by `rank`,
      - "elements": all of U's elements in falling order, the diagonal too; equal ones give the same β several times;
      - "edges": the different values that the edges of a clique complex, or the pixels of a cubical one, have.
    The number is, by `by`,
      - "birth": the first v with β(v) ≠ 0 (eq. 7). For k = 0 that is always 1;
      - "maximum": the largest β(v), "integral": the sum of β(v) over all v (appendix A.3, table 5).

    maps: (..., m, m), or (..., height, width) for a cubical complex; float16, bfloat16, float32 or float64, all finite.
    Returns (...) int64 on the maps' device. Raises InputError for other maps or arguments, EnvironmentFault without
    the library that computes the homology (ripser for clique, gudhi for cubical complexes).

    >>> ring = np.array([[0, 9, 0, 6], [0, 0, 8, 0], [0, 0, 0, 7], [0, 0, 0, 0]], np.float32)
    >>> [int(characterise(ring, by)) for by in ("birth", "maximum", "integral")]
    [4, 1, 1]
    """
    for name, value, kind in (
        ("by", by, Characteristic),
        ("complex", complex, Complex),
        ("rank", rank, Rank),
    ):
        if value not in get_args(kind):
            raise InputError(f"{name} is {value!r}; allowed: {', '.join(get_args(kind))}")
    check_dimension(dimension, complex)
    check(maps, square=complex == "clique")
    library(complex)
    values = maps.detach().cpu().double().numpy() if isinstance(maps, torch.Tensor) else maps.astype(np.float64)
    check_finite(values, np.isfinite(values).all(axis=(-2, -1)))
    numbers = np.zeros(values.shape[:-2], np.int64)
    if values.size:
        fill(values.reshape(-1, *values.shape[-2:]), by, dimension, complex, rank, numbers.reshape(-1))
    return torch.from_numpy(numbers).to(maps.device if isinstance(maps, torch.Tensor) else "cpu")


def check_dimension(dimension: int, complex: Complex) -> None:
    """Raise InputError for a dimension that is none, or in which a map's complex has no hole."""
    if not isinstance(dimension, int) or isinstance(dimension, bool) or dimension < 0:
        raise InputError(f"dimension is {dimension!r}; allowed: 0, 1, 2, …")
    if complex == "cubical" and dimension > 1:
        raise InputError(f"dimension is {dimension}; allowed: 0, 1 for a cubical complex")


def library(complex: Complex) -> Any:
    """The module that computes the homology; EnvironmentFault when it is not installed."""
    try:
        return importlib.import_module(LIBRARY[complex])
    except ImportError as error:
        raise EnvironmentFault(
            f"the homology of a {complex} complex needs {LIBRARY[complex]}: pip install 'prune-fe[topology]' ({error})"
        ) from error


def fill(maps: np.ndarray, by: Characteristic, dimension: int, complex: Complex, rank: Rank, out: np.ndarray) -> None:
    """Write the number of each of the maps (maps, height, width) to out (maps,)."""
    betti_curve = clique_curve if complex == "clique" else cubical_curve

    def number(values: np.ndarray) -> int:
        levels, curve = betti_curve(values, dimension)
        return summary(curve, thresholds(values, levels, rank), by)

    constant = maps.min(axis=(1, 2)) == maps.max(axis=(1, 2))
    if constant.any():
        # All of them have the same number, and of dead units there are many.
        out[constant] = number(maps[constant][0])
    for i in np.flatnonzero(~constant):
        out[i] = number(maps[i])


def clique_curve(values: np.ndarray, dimension: int) -> tuple[np.ndarray, np.ndarray]:
    """(the S different values of the edges, rising; the Betti number before them and at each, falling: (S + 1,))."""
    m = len(values)
    weights = np.maximum(values, values.T)
    levels = np.unique(weights[~np.eye(m, dtype=bool)])
    if dimension > 0 and m < 2 * (dimension + 1):
        # The smallest complex with such a hole has two vertices a dimension more: 4-cycle, octahedron, …
        return levels, np.zeros(len(levels) + 1, np.int64)
    # ripser computes in float32, which whole numbers survive, and reads one triangle.
    distances = steps(weights, levels)
    np.fill_diagonal(distances, 0)
    # From here on the complex is a cone: one component, no holes.
    cone = int(distances.max(axis=1).min())
    curve = curve_of(clique_bars(distances, dimension, cone), len(levels), end=cone)
    curve[cone:] += dimension == 0
    return levels, curve


def clique_bars(distances: np.ndarray, dimension: int, cone: int) -> np.ndarray:
    """(bars, 2): the steps at which each class is born and dies; those that the cone ends die at infinity."""
    if cone < 2:
        # There are the points, and then the cone.
        return np.tile([0.0, inf], (len(distances) if dimension == 0 else 0, 1))
    diagrams = library("clique").ripser(distances, maxdim=dimension, thresh=cone - 1, distance_matrix=True)["dgms"]
    return diagrams[dimension]


def cubical_curve(values: np.ndarray, dimension: int) -> tuple[np.ndarray, np.ndarray]:
    """(the S different values of the pixels, rising; the Betti number before them and at each, falling: (S + 1,))."""
    levels = np.unique(values)
    cells = library("cubical").CubicalComplex(top_dimensional_cells=steps(values, levels).astype(np.float64))
    cells.compute_persistence(homology_coeff_field=2)
    bars = cells.persistence_intervals_in_dimension(dimension).reshape(-1, 2)
    return levels, curve_of(bars, len(levels), end=len(levels) + 1)


def steps(values: np.ndarray, levels: np.ndarray) -> np.ndarray:
    """How many levels (rising) are not below each value: the step at which it enters; 0 above all levels."""
    return len(levels) - np.searchsorted(levels, values)


def curve_of(bars: np.ndarray, n_steps: int, end: int) -> np.ndarray:
    """(n_steps + 1,): how many of the bars [birth, death) are alive at each step; what never dies, dies at `end`."""
    ends = np.minimum(bars, end).astype(np.int64)
    births, deaths = (np.bincount(column, minlength=n_steps + 2) for column in ends.T)
    return (births - deaths).cumsum()[: n_steps + 1]


def thresholds(values: np.ndarray, levels: np.ndarray, rank: Rank) -> np.ndarray:
    """(levels + 1,): how many v have the complex that is there before the first level, and at each level."""
    if rank == "elements":
        return np.bincount(steps(values, levels).reshape(-1), minlength=len(levels) + 1)
    return np.arange(len(levels) + 1).clip(max=1)


def summary(curve: np.ndarray, counts: np.ndarray, by: Characteristic) -> int:
    """The birth, maximum or integral of the curve whose i-th number stands counts[i] times."""
    if by == "integral":
        return int(curve @ counts)
    seen = np.where(counts > 0, curve, 0)
    if by == "maximum":
        return int(seen.max())
    return 1 + int(counts[: seen.nonzero()[0][0]].sum()) if seen.any() else 0
