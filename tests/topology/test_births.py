"""birth_times against persistent homology, on every kind of map it may be given."""

from collections.abc import Callable
from pathlib import Path
from typing import get_args

import hypothesis.extra.numpy as hnp
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from ripser import ripser

from prune_fe.errors import InputError
from prune_fe.topology import birth_times, portable
from prune_fe.topology.births import CHUNK_ELEMENTS, Rank, chunk_shape, has_hole, layout_of
from prune_fe.topology.graph import MAX_ROWS
from prune_fe.topology.jobs import Layout

Draw = Callable[[str, int, int], torch.Tensor]

RECORDED = Path(__file__).resolve().parents[2].parent / "shared/data/birth_times.npz"


def births_by_homology(values: np.ndarray) -> tuple[int, int]:
    """Both numbers of one map (m, m), from the whole persistence diagram.

    The edges' values become 1, 2, … in falling order first: ripser computes in float32, and reads only one triangle.
    """
    weights = np.maximum(values, values.T)
    off_diagonal = ~np.eye(len(values), dtype=bool)
    steps, numbers = np.unique(-weights[off_diagonal], return_inverse=True)
    if len(steps) < 2:
        return 0, 0
    distances = np.zeros(values.shape)
    distances[off_diagonal] = numbers + 1
    bars = ripser(distances, maxdim=1, distance_matrix=True)["dgms"][1]
    if len(bars) == 0:
        return 0, 0
    edges = int(bars[:, 0].min())
    return 1 + int((values > -steps[edges - 1]).sum()), edges


def both(maps: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return birth_times(maps, "elements"), birth_times(maps, "edges")


def random_maps(size: int, n: int = 8, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((n, size, size)).astype(np.float32)


@st.composite
def some_maps(draw: st.DrawFn, sizes: st.SearchStrategy[int]) -> np.ndarray:
    """One map: random, then perhaps symmetric, with few different values, rectified, saturated or with a flat patch."""
    size = draw(sizes)
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    values = rng.standard_normal((size, size)) if draw(st.booleans()) else rng.random((size, size))
    if draw(st.booleans()):
        values = np.maximum(values, values.T)
    levels = draw(st.sampled_from((0, 1, 2, 3, 5, 10, 50, 500)))
    if levels:
        values = np.round(values * levels) / levels
    low, high = sorted((draw(st.floats(0, 1)), draw(st.floats(0, 1))))
    if draw(st.booleans()):
        values = np.maximum(values, np.quantile(values, low))
    if draw(st.booleans()):
        values = np.minimum(values, np.quantile(values, high))
    if draw(st.booleans()):
        first, last = sorted((draw(st.integers(0, size)), draw(st.integers(0, size))))
        values[first:last, first:last] = rng.choice(values.reshape(-1))
    shift = draw(st.sampled_from((0.0, -10.0, 1e-3)))
    return (values + shift).astype(draw(st.sampled_from((np.float16, np.float32, np.float64))))


def check_against_homology(values: np.ndarray) -> None:
    assert tuple(int(number) for number in both(values)) == births_by_homology(values)


@pytest.mark.skipif(not RECORDED.exists(), reason=f"no recorded births at {RECORDED}")
@pytest.mark.parametrize("rank", get_args(Rank))
def test_recorded_births_come_out_again(rank: Rank) -> None:
    with np.load(RECORDED) as recorded:
        kinds = [name.removesuffix("_maps") for name in recorded.files if name.endswith("_maps")]
        assert sum(len(recorded[f"{kind}_maps"]) for kind in kinds) == 3340
        for kind in kinds:
            births = birth_times(recorded[f"{kind}_maps"], rank)
            np.testing.assert_array_equal(births, recorded[f"{kind}_{rank}"], err_msg=kind)


@settings(max_examples=500, deadline=None)
@given(some_maps(st.integers(1, 16)))
def test_small_maps_agree_with_persistent_homology(values: np.ndarray) -> None:
    check_against_homology(values)


@settings(max_examples=100, deadline=None)
@given(some_maps(st.integers(17, 64)))
def test_larger_maps_agree_with_persistent_homology(values: np.ndarray) -> None:
    check_against_homology(values)


@settings(max_examples=200, deadline=None)
@given(hnp.arrays(np.int8, hnp.array_shapes(min_dims=1, max_dims=1, min_side=36, max_side=36)))
def test_any_small_integers_agree_with_persistent_homology(values: np.ndarray) -> None:
    check_against_homology(values.reshape(6, 6).astype(np.float32))


@pytest.mark.parametrize("size", range(1, 65))
def test_every_size_agrees_with_persistent_homology(size: int) -> None:
    check_against_homology(random_maps(size, n=1, seed=size)[0])


@pytest.mark.parametrize("levels", [2, 3, 5, 10])
@pytest.mark.parametrize("size", [4, 8, 12, 16, 24, 32, 48, 64])
def test_maps_of_few_different_values_agree_with_persistent_homology(size: int, levels: int) -> None:
    for values in np.random.default_rng(levels).integers(0, levels, (4, size, size)).astype(np.float32):
        check_against_homology(values)


@pytest.mark.parametrize("share", [0.02, 0.1, 0.3])
@pytest.mark.parametrize("size", [20, 48, 72])
def test_saturated_maps_agree_with_persistent_homology(size: int, share: float) -> None:
    rng = np.random.default_rng(size)
    for smoothness in (0, 1, 3, 6):
        values = rng.standard_normal((size, size))
        for _ in range(smoothness):
            values = np.sum([np.roll(values, step, axis) for step in (-1, 0, 1) for axis in (0, 1)], axis=0)
        highest = np.quantile(values, 1 - share)
        check_against_homology(np.minimum(values, highest).astype(np.float32))


@pytest.mark.parametrize("levels", [0, 3, 10, 40])
@pytest.mark.parametrize("size", [8, 14, 28, 40, 64])
def test_holes_that_come_late_agree_with_persistent_homology(size: int, levels: int) -> None:
    # Sums of rows and columns fill the graph from few vertices on: holes, if any, come after many triangles.
    rng = np.random.default_rng(size)
    rows, columns = np.abs(rng.standard_normal((2, 400, size)))
    maps = rows[:, :, None] + columns[:, None, :] + 0.1 * rng.standard_normal((400, size, size))
    maps = (np.round(maps * levels) if levels else maps).astype(np.float32)
    births = birth_times(maps)
    np.testing.assert_array_equal(birth_times(maps.astype(np.float64)), births)  # as ranks, which leave no gaps
    late = np.flatnonzero(births > size)
    assert levels == 3 or len(late) >= 3
    for i in [*late[:10], *np.flatnonzero(births == 0)[:10]]:
        check_against_homology(maps[i])


def test_a_ring_by_hand() -> None:
    # The edges 0–1, 1–2, 2–3 come first; then 0–3 closes the ring. Element (3, 1) is larger than that one's, but its
    # edge comes last: its partner (1, 3) is irrelevant. The diagonal's 5 counts as an element and is no edge.
    values = np.array([[5, 9, 1, 6], [2, 0, 8, 0], [1, 3, 0, 7], [4, 0, 2, 0]], np.float32)
    assert [int(number) for number in both(values)] == [4, 4]
    values[0, 0] = 6.5
    assert [int(number) for number in both(values)] == [5, 4]
    values[1, 0] = 7.5  # a second element of an edge that is there already
    assert [int(number) for number in both(values)] == [6, 4]


def test_edges_of_equal_value_enter_at_one_step() -> None:
    ring = np.array([[0, 9, 0, 9], [0, 0, 9, 0], [0, 0, 0, 9], [0, 0, 0, 0]], np.float32)
    assert [int(number) for number in both(ring)] == [1, 1]
    ring[0, 2] = 9  # the diagonal of the square comes at the same step: no hole at its end
    assert [int(number) for number in both(ring)] == [0, 0]


@pytest.mark.parametrize("value", [-3.5, -0.0, 0.0, 7.0])
@pytest.mark.parametrize("size", [1, 3, 4, 14, 65])
def test_a_constant_map_has_no_birth(size: int, value: float) -> None:
    assert both(np.full((2, size, size), value, np.float32))[0].tolist() == [0, 0]


def test_minus_zero_equals_zero() -> None:
    maps = np.maximum(random_maps(14), 0)
    signed = np.where(maps == 0, np.where(random_maps(14, seed=1) > 0, np.float32(0), np.float32(-0.0)), maps)
    np.testing.assert_array_equal(both(signed), both(maps))


@pytest.mark.parametrize("shape", [(0, 5, 5), (3, 0, 5, 5), (0, 0), (2, 0, 0), (2, 3, 1, 1), (4, 4), (1, 2, 3, 4, 4)])
def test_every_leading_shape_is_kept(shape: tuple[int, ...]) -> None:
    from_array, from_tensor = birth_times(np.zeros(shape, np.float32)), birth_times(torch.zeros(shape))
    assert from_array.shape == tuple(from_tensor.shape) == shape[:-2]
    assert not from_array.any()
    assert not from_tensor.any()


def test_a_tensor_gives_a_tensor_and_an_array_an_array() -> None:
    maps = random_maps(8)
    from_array, from_tensor = birth_times(maps), birth_times(torch.from_numpy(maps))
    assert isinstance(from_array, np.ndarray)
    assert from_array.dtype == np.int32
    assert isinstance(from_tensor, torch.Tensor)
    assert from_tensor.dtype == torch.int32
    np.testing.assert_array_equal(from_tensor.numpy(), from_array)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_no_type_changes_the_order_of_the_values(dtype: torch.dtype) -> None:
    maps = torch.from_numpy(random_maps(14)).to(dtype)
    torch.testing.assert_close(birth_times(maps), birth_times(maps.double()))
    check_against_homology(maps[0].double().numpy())


def test_float64_values_that_float32_cannot_tell_apart_are_told_apart() -> None:
    values = random_maps(12, n=1)[0].astype(np.float64)
    squeezed = 1 + values * 1e-12
    assert len(np.unique(squeezed.astype(np.float32))) == 1
    assert both(squeezed) == both(values)


@pytest.mark.parametrize("kind", [np.float16, np.float32, np.float64])
def test_subnormal_and_extreme_values_keep_their_order(kind: type[np.floating]) -> None:
    limits = np.finfo(kind)
    ladder = np.array(
        [limits.min, -1, -limits.tiny, -limits.smallest_subnormal, 0, limits.smallest_subnormal, 1, limits.max]
    )
    picks = np.random.default_rng(0).integers(0, len(ladder), (6, 9, 9))
    np.testing.assert_array_equal(both(ladder.astype(kind)[picks]), both(picks.astype(np.float32)))


def test_strides_do_not_matter() -> None:
    maps = torch.from_numpy(random_maps(10, n=24)).reshape(4, 6, 10, 10)
    expected = birth_times(maps)
    wide = torch.zeros(4, 6, 20, 30)
    wide[:, :, ::2, ::3] = maps
    for strided in (maps.contiguous(memory_format=torch.channels_last), wide[:, :, ::2, ::3], maps.mT.contiguous().mT):
        assert not strided.is_contiguous()
        torch.testing.assert_close(birth_times(strided), expected)
    backwards = np.ascontiguousarray(maps.numpy()[:, ::-1, ::-1])[:, ::-1, ::-1]
    np.testing.assert_array_equal(birth_times(backwards), expected.numpy())
    torch.testing.assert_close(birth_times(maps[:1].expand(3, -1, -1, -1)), expected[:1].expand(3, -1))


DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


@pytest.mark.parametrize("size", [1, 3, 4, 7, 14, 28, 33, 57])
def test_channels_last_maps_give_the_same_as_plain_tensor_operations(kind: str, size: int, draw_maps: Draw) -> None:
    maps = draw_maps(kind, size, 40 if size < 20 else 6)
    for dtype in DTYPES:
        cast = maps.to(dtype)
        for rank in get_args(Rank):
            expected = portable.first_births(cast, rank == "edges", has_hole).view(2, -1)
            images = cast.view(2, -1, size, size).to(memory_format=torch.channels_last)
            assert torch.equal(birth_times(images, rank), expected), (dtype, rank)


@pytest.mark.parametrize(("size", "units"), [(7, 130), (14, 65), (56, 64), (65, 2), (112, 3), (225, 2)])
def test_channels_last_maps_of_many_units_or_rows_give_the_same(
    kind: str, size: int, units: int, draw_maps: Draw
) -> None:
    maps = draw_maps(kind, size, 2 * units).view(2, units, size, size)
    for dtype in DTYPES:
        cast = maps.to(dtype)
        for rank in get_args(Rank):
            expected = birth_times(cast.double(), rank)  # by ranks, each map by itself
            for threads in (1, 3):
                images = cast.to(memory_format=torch.channels_last)
                assert torch.equal(birth_times(images, rank, threads), expected), (dtype, rank, threads)


@pytest.mark.parametrize("size", [4, 14, 30])
def test_channels_last_maps_agree_with_persistent_homology(kind: str, size: int, draw_maps: Draw) -> None:
    maps = draw_maps(kind, size, 6).view(1, 6, size, size).to(memory_format=torch.channels_last)
    found = zip(*(birth_times(maps, rank)[0].tolist() for rank in get_args(Rank)), strict=True)
    assert list(found) == [births_by_homology(values) for values in maps[0].numpy()]


def test_channels_last_maps_are_constant_or_nearly() -> None:
    maps = torch.zeros(2, 70, 14, 14)
    maps[1, 3] = -2.5
    maps[0, 69, 3, 5] = 1
    maps[1, 68] = -0.0
    maps[1, 67] = torch.from_numpy(random_maps(14, n=1)[0])
    expected = birth_times(maps)
    assert expected.nonzero().tolist() == [[1, 67]]
    for dtype in DTYPES:
        cast = maps.to(dtype)
        found = birth_times(cast.to(memory_format=torch.channels_last))
        assert torch.equal(found, birth_times(cast.double().contiguous()))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("value", [torch.nan, -torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("size", [1, 3, 14, 70])
def test_the_first_element_of_channels_last_maps_that_is_not_finite_is_named(
    size: int, value: float, dtype: torch.dtype
) -> None:
    maps = torch.zeros(2, 66, size, size, dtype=dtype).to(memory_format=torch.channels_last)
    maps[1, 65, size - 1, 0] = maps[1, 64, size // 2, size // 3] = value
    with pytest.raises(InputError, match=rf"maps\[1, 64, {size // 2}, {size // 3}\] is -?(nan|inf)"):
        birth_times(maps)


def test_maps_are_read_where_they_lie_if_contiguous_or_channels_last(draw_maps: Draw) -> None:
    maps = draw_maps("random", 6, 60).view(4, 15, 6, 6)
    last = maps.to(memory_format=torch.channels_last)
    wide = torch.zeros(4, 15, 6, 12)
    wide[..., ::2] = maps
    in_place = {
        "contiguous": maps,
        "channels last": last,
        "some units": last[:, 3:7],
        "every second image": last[::2],
        "the same image again": last[:1].expand(3, -1, -1, -1),
        "one image": last[0],
        "some contiguous units": maps[:, 2:5],
        "units first": maps.transpose(0, 1),
        "more dimensions": last[None],
    }
    copied = {
        "transposed": maps.mT,
        "every second unit": last[:, ::2],
        "one unit": last[:, 3:4],
        "parts of rows": wide[..., ::2],
        "one number": maps[:1, :1, :1, :1].expand(4, 15, 6, 6),
    }
    for views, is_in_place in ((in_place, True), (copied, False)):
        for what, view in views.items():
            assert (layout_of(view).address == view.data_ptr()) == is_in_place, what
            for threads in (1, 2):
                expected = birth_times(view.double().contiguous())
                assert torch.equal(birth_times(view, threads=threads), expected), what


def test_few_images_are_divided_among_the_threads() -> None:
    for n_images, n_units, threads, expected in (
        (8, 512, 2, (1, 512)),
        (1, 512, 2, (1, 128)),
        (1, 100, 4, (1, 64)),
        (2, 24, 8, (1, 24)),
        (900, 8, 2, (113, 8)),
        (9000, 8, 2, (167, 8)),
        (2000, 1, 2, (250, 1)),
        (20000, 1, 2, (1337, 1)),
    ):
        layout = Layout(np.zeros(1), 0, 1, np.zeros(n_images), n_units, n_units)
        assert chunk_shape(layout, 14, threads) == expected
    assert chunk_shape(Layout(np.zeros(1), 0, 1, np.zeros(9), 512, 512), 224, 2) == (1, 128)
    maps = torch.from_numpy(random_maps(9, n=200)).view(1, 200, 9, 9)
    found = birth_times(maps.to(memory_format=torch.channels_last), threads=4)
    assert torch.equal(found, birth_times(maps))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_units_that_are_divided_into_unequal_parts_lose_nothing(dtype: torch.dtype) -> None:
    maps = torch.randn(1, 84, 70, 70).to(dtype)
    images = maps.contiguous(memory_format=torch.channels_last)
    layout = layout_of(images)
    assert chunk_shape(layout, 70, threads=2) == (1, 64)  # the last 20 are a part of their own
    assert torch.equal(birth_times(images, threads=2), birth_times(maps))


def test_maps_of_a_network_in_training_are_taken_and_left_as_they_are() -> None:
    maps = torch.from_numpy(random_maps(10)).requires_grad_()
    before = maps.detach().clone()
    births = birth_times(maps)
    assert not births.requires_grad
    assert maps.requires_grad
    torch.testing.assert_close(maps.detach(), before)


@pytest.mark.parametrize("channels_last", [False, True])
def test_a_read_only_array_is_taken(channels_last: bool) -> None:
    maps = random_maps(10)
    if channels_last:
        maps = np.ascontiguousarray(maps.transpose(1, 2, 0)).transpose(2, 0, 1)
    frozen = maps.copy()
    frozen.setflags(write=False)
    np.testing.assert_array_equal(birth_times(frozen), birth_times(maps))


@settings(max_examples=100, deadline=None)
@given(some_maps(st.integers(4, 40)), st.integers(0, 2**32 - 1))
def test_numbering_of_the_rows_and_transposition_do_not_matter(values: np.ndarray, seed: int) -> None:
    order = np.random.default_rng(seed).permutation(len(values))
    assert both(values.T) == both(values)
    assert both(values[np.ix_(order, order)]) == both(values)


@settings(max_examples=100, deadline=None)
@given(some_maps(st.integers(4, 40)))
def test_a_strictly_rising_function_of_the_values_does_not_matter(values: np.ndarray) -> None:
    order = np.unique(values, return_inverse=True)[1].reshape(values.shape)
    assert both(order.astype(np.float32) - 7) == both(values)
    assert both(np.exp(order / 1000.0)) == both(values)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_the_number_of_threads_does_not_matter(dtype: torch.dtype) -> None:
    maps = torch.from_numpy(np.maximum(random_maps(16, n=4 * CHUNK_ELEMENTS // 256 + 3), 0)).to(dtype)
    torch.testing.assert_close(birth_times(maps, threads=2), birth_times(maps, threads=1))
    torch.testing.assert_close(birth_times(maps), birth_times(maps, threads=1))


@pytest.mark.parametrize("size", [65, 112, 200])
def test_maps_of_more_than_64_rows_agree_with_their_upper_corner(size: int) -> None:
    # Rows that enter last, as cones over nothing, change neither number: the larger map's first hole is the smaller's.
    small = random_maps(30, n=1)[0] + 10
    large = np.zeros((size, size), np.float32)
    large[-30:, -30:] = small
    assert both(large) == both(small)


@pytest.mark.parametrize("kind", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("value", [np.nan, -np.nan, np.inf, -np.inf])
def test_the_first_element_that_is_not_finite_is_named(value: float, kind: type[np.floating]) -> None:
    maps = np.zeros((2, 3, 5, 5), kind)
    maps[1, 2, 4, 0] = maps[1, 0, 3, 1] = maps[1, 0, 3, 2] = value
    with pytest.raises(InputError, match=r"maps\[1, 0, 3, 1\] is -?(nan|inf); allowed: finite numbers"):
        birth_times(maps)
    with pytest.raises(InputError, match=r"maps\[3, 1\] is"):
        birth_times(torch.from_numpy(maps[1, 0]).requires_grad_())


def test_a_bfloat16_that_is_not_finite_is_named() -> None:
    with pytest.raises(InputError, match=r"maps\[0, 1\] is inf"):
        birth_times(torch.tensor([[0, torch.inf], [0, 0]], dtype=torch.bfloat16))


@pytest.mark.parametrize("shape", [(), (4,), (3, 4), (2, 4, 3)])
def test_the_shape_is_named_when_it_is_wrong(shape: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match=r"maps have shape \(.*\); allowed: \(\.\.\., m, m\)"):
        birth_times(np.zeros(shape, np.float32))


@pytest.mark.parametrize("kind", ["int32", "complex64", "bool", ">f4"])
def test_the_type_is_named_when_it_is_wrong(kind: str) -> None:
    with pytest.raises(InputError, match=f"maps are {kind}; allowed: float16, bfloat16, float32, float64"):
        birth_times(np.zeros((4, 4), kind))


def test_other_objects_are_refused_by_name() -> None:
    with pytest.raises(InputError, match="maps are a list; allowed: a torch tensor, a numpy array"):
        birth_times([[0.0]])  # type: ignore[type-var]


def test_maps_too_large_for_the_kernel_are_refused() -> None:
    size = MAX_ROWS + 1
    with pytest.raises(InputError, match=f"maps have {size} rows; allowed: at most {MAX_ROWS}"):
        birth_times(torch.zeros(1).expand(1, size, size))


def test_an_unknown_rank_is_named() -> None:
    with pytest.raises(InputError, match="rank is 'edge'; allowed: elements, edges"):
        birth_times(np.zeros((4, 4)), "edge")  # type: ignore[arg-type]


def test_no_threads_are_refused() -> None:
    with pytest.raises(InputError, match="threads is 0; allowed: 1 or more"):
        birth_times(np.zeros((4, 4)), threads=0)


@pytest.mark.parametrize("size", [40, 64, 100])
def test_a_hole_of_all_vertices_is_found_among_many_pairs_that_are_far_apart(size: int) -> None:
    ring = np.zeros((size, size), np.float32)
    for a in range(size - 1):
        ring[a, a + 1] = ring[a + 1, a] = 2 * size - a
    ring[0, -1] = 1
    maps = np.stack([ring, np.triu(ring, 1)])
    interleaved = torch.from_numpy(maps)[None].contiguous(memory_format=torch.channels_last)
    for form in (torch.from_numpy(maps)[None], interleaved):
        assert birth_times(form).tolist() == [[2 * size - 1, size]]
        assert birth_times(form, rank="edges").tolist() == [[size, size]]
