"""characterise against Betti numbers counted slowly, one complex a threshold."""

import sys
from itertools import combinations
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from prune_fe.errors import EnvironmentFault, InputError
from prune_fe.topology import birth_times, characterise
from prune_fe.topology.births import Rank
from prune_fe.topology.persistence import Characteristic, Complex

RECORDED = Path(__file__).resolve().parents[2].parent / "shared/data/birth_times.npz"
ALL = get_args(Characteristic)
RANKS = get_args(Rank)


def rank_over_gf2(rows: list[int]) -> int:
    """The rank of a matrix whose rows are the bits of whole numbers."""
    basis: list[int] = []
    for row in rows:
        for pivot in basis:
            row = min(row, row ^ pivot)  # noqa: PLW2901
        if row:
            basis.append(row)
    return len(basis)


def clique_betti(graph: np.ndarray, k: int) -> int:
    """β_k = simplices − rank ∂_k − rank ∂_(k+1) of the clique complex of a graph (m, m)."""

    def simplices(size: int) -> list[tuple[int, ...]]:
        corners = combinations(range(len(graph)), size)
        return [some for some in corners if all(graph[a, b] for a, b in combinations(some, 2))]

    def boundary_rank(size: int) -> int:
        if size < 2:
            return 0
        number = {face: i for i, face in enumerate(simplices(size - 1))}
        return rank_over_gf2([sum(1 << number[face] for face in combinations(s, size - 1)) for s in simplices(size)])

    return len(simplices(k + 1)) - boundary_rank(k + 1) - boundary_rank(k + 2)


def cubical_betti(pixels: np.ndarray, k: int) -> int:
    """Closed pixels: components join at corners, so the background's, which are the holes, do not."""
    if k == 0:
        return ndimage.label(pixels, np.ones((3, 3)))[1]
    return ndimage.label(~np.pad(pixels, 1))[1] - 1


def betti_curve(values: np.ndarray, k: int, complex: str, rank: str) -> list[int]:
    weights = np.maximum(values, values.T) if complex == "clique" else values
    edges = weights[~np.eye(len(values), dtype=bool)] if complex == "clique" else weights
    betti = clique_betti if complex == "clique" else cubical_betti
    levels = {t: betti(weights >= t, k) for t in {*values.ravel().tolist(), *edges.ravel().tolist()}}
    thresholds = values.ravel().tolist() if rank == "elements" else set(edges.ravel().tolist())
    return [levels[t] for t in sorted(thresholds, reverse=True)]


def slowly(values: np.ndarray, k: int, complex: str, rank: str) -> list[int]:
    """Birth, maximum and integral."""
    curve = betti_curve(values, k, complex, rank)
    birth = next((v for v, betti in enumerate(curve, start=1) if betti), 0)
    return [birth, max(curve, default=0), sum(curve)]


def numbers(values: np.ndarray, k: int, complex: Complex, rank: Rank) -> list[int]:
    return [int(characterise(values, by, k, complex, rank)) for by in ALL]


@st.composite
def tiny_maps(draw: st.DrawFn, square: bool, most: int = 6) -> np.ndarray:
    """Perhaps with a hole of dimension up to 2, symmetric, with few different values, or a large or small diagonal."""
    height = draw(st.integers(1, most))
    width = height if square else draw(st.integers(1, most))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    values = rng.standard_normal((height, width))
    if square and draw(st.booleans()):
        corner = np.arange(height) // 2
        values += 3.0 * (corner[:, None] != corner)  # 4-cycle, octahedron
        values = values[:, order := rng.permutation(height)][order]
    if square and draw(st.booleans()):
        values = np.maximum(values, values.T)
    if square:
        np.fill_diagonal(values, values.diagonal() + draw(st.sampled_from((0, -9, 9))))
    if levels := draw(st.sampled_from((0, 1, 2, 5))):
        values = np.round(values * levels) / levels
    if draw(st.booleans()):
        values = np.maximum(values, draw(st.sampled_from((0.0, 1.0, 9.0))))  # rectified, almost dead, dead
    return values.astype(draw(st.sampled_from((np.float16, np.float32, np.float64))))


@pytest.mark.parametrize("k", [0, 1, 2])
@settings(max_examples=80, deadline=None)
@given(tiny_maps(square=True), st.sampled_from(RANKS))
def test_clique_complexes_are_counted_right(k: int, values: np.ndarray, rank: Rank) -> None:
    assert numbers(values, k, "clique", rank) == slowly(values, k, "clique", rank)


@pytest.mark.parametrize("k", [0, 1])
@settings(max_examples=150, deadline=None)
@given(tiny_maps(square=False, most=8), st.sampled_from(RANKS))
def test_cubical_complexes_are_counted_right(k: int, values: np.ndarray, rank: Rank) -> None:
    assert numbers(values, k, "cubical", rank) == slowly(values, k, "cubical", rank)


@pytest.mark.parametrize("rank", RANKS)
def test_a_hole_of_dimension_3_is_counted_right(rank: Rank) -> None:
    corner = np.arange(8) // 2
    values = np.where(corner[:, None] != corner, 1.0, 0.5) + np.eye(8) + np.random.default_rng(0).random((8, 8)) / 4
    assert numbers(values, 3, "clique", rank) == slowly(values, 3, "clique", rank)
    assert int(characterise(values, "maximum", 3)) == 1
    assert numbers(values[:7, :7], 3, "clique", rank) == [0, 0, 0]


def test_a_ring_by_hand() -> None:
    # The edges: 0–1 9, 1–2 8, 2–3 7, 0–3 6 close the ring; the chord 0–2 at 1 fills it. The elements at which it is
    # there: 6, 5 (on the diagonal), 4, 3, 2, 2.
    values = np.array([[5, 9, 1, 6], [2, 0, 8, 0], [1, 3, 0, 7], [4, 0, 2, 0]], np.float32)
    assert numbers(values, 1, "clique", "elements") == [4, 1, 6]
    assert numbers(values, 1, "clique", "edges") == [4, 1, 1]
    # Components: 3 at the element 9, 2 at 8, 1 at the fourteen others.
    assert numbers(values, 0, "clique", "elements") == [1, 3, 19]
    assert numbers(values, 0, "clique", "edges") == [1, 3, 9]
    values[0, 0] = 9.5  # before any edge: four components, and the birth comes one later
    assert numbers(values, 0, "clique", "elements") == [1, 4, 22]
    assert numbers(values, 1, "clique", "elements") == [5, 1, 5]
    assert numbers(values, 2, "clique", "elements") == [0, 0, 0]


def test_an_octahedron_by_hand() -> None:
    corner = np.arange(6) // 2
    values = (corner[:, None] != corner).astype(np.float32)  # 24 elements are 1, and then 12 are 0
    assert numbers(values, 2, "clique", "elements") == [1, 1, 24]
    assert numbers(values, 2, "clique", "edges") == [1, 1, 1]
    assert numbers(values, 1, "clique", "elements") == [0, 0, 0]
    assert numbers(values, 0, "clique", "elements") == [1, 1, 36]


def test_a_ring_of_pixels_by_hand() -> None:
    # The four sides (top, bottom, left, right) touch at corners only, and that closes the ring at the fourth pixel;
    # the centre fills it with the ninth. Top and bottom are two components until the left side comes.
    values = np.array([[5, 9, 4], [7, 1, 6], [3, 8, 2]], np.float32)
    for rank in RANKS:
        assert numbers(values, 1, "cubical", rank) == [4, 1, 5]
        assert numbers(values, 0, "cubical", rank) == [1, 2, 10]
    assert numbers(np.minimum(values, 2), 1, "cubical", "elements") == [1, 1, 8]
    assert numbers(np.minimum(values, 2), 1, "cubical", "edges") == [1, 1, 1]


@pytest.mark.parametrize("value", [0.0, -3.0])
def test_a_constant_map_has_components_and_no_holes(value: float) -> None:
    maps = np.full((5, 5), value, np.float32)
    for complex in get_args(Complex):
        assert numbers(maps, 1, complex, "elements") == [0, 0, 0]
        assert numbers(maps, 0, complex, "elements") == [1, 1, 25]
        assert numbers(maps, 0, complex, "edges") == [1, 1, 1]


def test_live_and_dead_maps_keep_their_places() -> None:
    maps = np.random.default_rng(0).standard_normal((3, 4, 7, 7))
    maps[0, 1], maps[2, 3], maps[1, 0] = 0, 0, 5
    for complex in get_args(Complex):
        for k in (0, 1):
            together = characterise(maps, "integral", k, complex)
            assert together.dtype == torch.int64
            assert together.tolist() == [[int(characterise(m, "integral", k, complex)) for m in row] for row in maps]


@pytest.mark.parametrize("rank", RANKS)
@settings(max_examples=60, deadline=None)
@given(st.integers(1, 24), st.integers(0, 2**32 - 1), st.sampled_from((0, 2, 10)))
def test_the_birth_of_the_first_hole_is_the_kernels(rank: Rank, size: int, seed: int, levels: int) -> None:
    maps = np.random.default_rng(seed).standard_normal((4, size, size)).astype(np.float32)
    if levels:
        maps = np.maximum(np.round(maps * levels), 0)
    np.testing.assert_array_equal(characterise(maps, "birth", rank=rank).numpy(), birth_times(maps, rank))


@pytest.mark.skipif(not RECORDED.exists(), reason=f"no recorded births at {RECORDED}")
@pytest.mark.parametrize("rank", RANKS)
def test_recorded_births_come_out_again(rank: Rank) -> None:
    with np.load(RECORDED) as recorded:
        kinds = [name.removesuffix("_maps") for name in recorded.files if name.endswith("_maps")]
        assert kinds
        for kind in kinds:
            births = characterise(recorded[f"{kind}_maps"], "birth", rank=rank)
            np.testing.assert_array_equal(births.numpy(), recorded[f"{kind}_{rank}"], err_msg=kind)


@pytest.mark.parametrize("complex", get_args(Complex))
def test_scaling_by_a_power_of_two_and_the_type_change_nothing(complex: Complex) -> None:
    maps = torch.randn(6, 9, 9, generator=torch.Generator().manual_seed(0)).bfloat16()
    for by in ALL:
        plain = characterise(maps, by, complex=complex)
        assert plain.any()
        for same in (maps * 0.5, maps * 1024, maps.float(), maps.double().requires_grad_(), maps.float().numpy()):
            assert torch.equal(characterise(same, by, complex=complex), plain)


def test_the_maps_are_left_as_they_are() -> None:
    maps = np.random.default_rng(0).standard_normal((2, 6, 6))
    maps.flags.writeable = False
    for complex in get_args(Complex):
        assert characterise(maps[..., ::-1], "maximum", complex=complex).shape == (2,)


@pytest.mark.parametrize("complex", get_args(Complex))
@pytest.mark.parametrize("shape", [(0, 5, 5), (0, 0), (3, 0, 0), (2, 0, 4, 4)])
def test_no_maps_and_empty_maps_have_no_holes(shape: tuple[int, ...], complex: Complex) -> None:
    found = characterise(np.zeros(shape, np.float32), "integral", 0, complex)
    assert found.shape == shape[:-2]
    assert not found.any()


@pytest.mark.parametrize("complex", get_args(Complex))
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_the_first_element_that_is_not_finite_is_named(value: float, complex: Complex) -> None:
    maps = np.zeros((2, 3, 5, 5), np.float16)
    maps[1, 2, 4, 0] = maps[1, 0, 3, 1] = value
    with pytest.raises(InputError, match=r"maps\[1, 0, 3, 1\] is -?(nan|inf); allowed: finite numbers"):
        characterise(maps, "maximum", complex=complex)
    with pytest.raises(InputError, match=r"maps\[3, 1\] is"):
        characterise(torch.from_numpy(maps[1, 0]), "maximum", complex=complex)


def test_wrong_arguments_say_what_is_allowed() -> None:
    maps = np.zeros((4, 4))
    with pytest.raises(InputError, match="by is 'death'; allowed: birth, maximum, integral"):
        characterise(maps, "death")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="complex is 'rips'; allowed: clique, cubical"):
        characterise(maps, "birth", complex="rips")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="rank is 'edge'; allowed: elements, edges"):
        characterise(maps, "birth", rank="edge")  # type: ignore[arg-type]
    for dimension in (-1, 1.0, True, "1"):
        with pytest.raises(InputError, match=f"dimension is {dimension!r}; allowed: 0, 1, 2, …"):
            characterise(maps, "birth", dimension)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="dimension is 2; allowed: 0, 1 for a cubical complex"):
        characterise(maps, "birth", 2, "cubical")


def test_wrong_maps_say_what_is_allowed() -> None:
    with pytest.raises(InputError, match=r"maps have shape \(2, 4, 3\); allowed: \(\.\.\., m, m\)"):
        characterise(np.zeros((2, 4, 3)), "birth")
    with pytest.raises(InputError, match=r"maps have shape \(4,\); allowed: \(\.\.\., height, width\)"):
        characterise(np.zeros(4), "birth", complex="cubical")
    with pytest.raises(InputError, match="maps are int64; allowed: float16"):
        characterise(np.zeros((4, 4), np.int64), "birth")


@pytest.mark.parametrize(("complex", "module"), [("clique", "ripser"), ("cubical", "gudhi")])
def test_a_missing_library_is_named(complex: Complex, module: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(EnvironmentFault, match=rf"needs {module}: pip install 'prune-fe\[topology\]'"):
        characterise(np.zeros((4, 4)), "birth", complex=complex)
