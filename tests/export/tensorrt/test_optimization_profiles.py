"""Optimisation profiles: together they cover what the bundle serves, and nothing else."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mapengine.export.tensorrt.optimization_profiles import MAX_SIZE_PROFILES, gpu_chunks, shape_ends, stage_profiles
from mapengine.runtime.bundle.manifest import STAGES, TensorSpec
from mapengine.runtime.bundle.requests import AnySize, Range, ServedRequests

ALL = AnySize(14, 518)
CHUNKS = {"image_encoder": 8, "geometry_encoder": 8, "dense_head": 4}


def test_all_sizes_are_one_box() -> None:
    requests = ServedRequests(Range(1, 4, 32), ALL, CHUNKS)
    sides = {"patch_rows": Range(1, 28, 37), "patch_columns": Range(1, 37, 37)}
    assert stage_profiles(requests, "aggregator", "tensorrt-rtx") == ({"views": Range(1, 4, 32), **sides},)
    assert stage_profiles(requests, "image_encoder", "tensorrt-rtx") == ({"views_in_chunk": Range(1, 4, 8), **sides},)
    assert stage_profiles(requests, "dense_head", "tensorrt") == ({"views_in_chunk": Range(1, 4, 4), **sides},)


def test_tensorrt_tunes_the_aggregator_for_few_and_for_many_views() -> None:
    requests = ServedRequests(Range(1, 4, 32), ((518, 392),), CHUNKS)
    found = stage_profiles(requests, "aggregator", "tensorrt")
    assert [p["views"] for p in found] == [Range(1, 4, 4), Range(5, 32, 32)]
    assert all(p["patch_rows"] == Range(28, 28, 28) and p["patch_columns"] == Range(37, 37, 37) for p in found)
    only = ServedRequests(Range(4, 4, 4), ALL, CHUNKS)
    assert [p["views"] for p in stage_profiles(only, "aggregator", "tensorrt")] == [Range(4, 4, 4)]


def test_few_sizes_are_a_profile_each_and_many_are_one_box() -> None:
    sizes = ((518, 392), (518, 518), (392, 518), (518, 294), (252, 196))
    few = ServedRequests(Range(1, 2, 4), sizes[:MAX_SIZE_PROFILES], CHUNKS)
    found = stage_profiles(few, "image_encoder", "tensorrt-rtx")
    assert [(p["patch_columns"].max * 14, p["patch_rows"].max * 14) for p in found] == list(sizes[:4])
    assert all(p[axis].min == p[axis].max for p in found for axis in ("patch_rows", "patch_columns"))
    (box,) = stage_profiles(ServedRequests(Range(1, 2, 4), sizes, CHUNKS), "image_encoder", "tensorrt-rtx")
    assert (box["patch_rows"], box["patch_columns"]) == (Range(14, 28, 37), Range(18, 37, 37))


def test_small_boxes_hold_their_usual_size() -> None:
    (box,) = stage_profiles(ServedRequests(Range(1, 1, 1), AnySize(14, 140), {}), "aggregator", "tensorrt-rtx")
    assert (box["patch_rows"], box["patch_columns"]) == (Range(1, 10, 10), Range(1, 10, 10))


def test_a_chunk_is_no_larger_than_a_call_and_any_remainder_fits() -> None:
    requests = ServedRequests(Range(2, 3, 3), ALL, CHUNKS)
    assert stage_profiles(requests, "dense_head", "tensorrt-rtx")[0]["views_in_chunk"] == Range(1, 3, 3)
    whole = ServedRequests(Range(2, 6, 9), ALL, {})
    assert stage_profiles(whole, "image_encoder", "tensorrt-rtx")[0]["views_in_chunk"] == Range(1, 6, 9)


def test_default_chunks() -> None:
    assert gpu_chunks(Range(1, 4, 32)) == {"image_encoder": 8, "geometry_encoder": 8, "dense_head": 4}
    assert gpu_chunks(Range(1, 2, 3)) == {"image_encoder": 3, "geometry_encoder": 3, "dense_head": 3}


@pytest.mark.slow
@given(
    views=st.lists(st.integers(1, 64), min_size=3, max_size=3).map(sorted),
    sizes=st.lists(st.tuples(st.integers(1, 37), st.integers(1, 37)), min_size=0, max_size=6, unique=True),
    stage=st.sampled_from(STAGES),
    backend=st.sampled_from(["tensorrt", "tensorrt-rtx"]),
    asked=st.tuples(st.integers(1, 64), st.integers(1, 37), st.integers(1, 37)),
)
def test_every_request_has_a_profile(
    views: list[int],
    sizes: list[tuple[int, int]],
    stage: str,
    backend: str,
    asked: tuple[int, int, int],
) -> None:
    pairs = tuple((14 * columns, 14 * rows) for rows, columns in sizes)
    requests = ServedRequests(Range(*views), pairs or ALL, CHUNKS)
    found = stage_profiles(requests, stage, backend)
    assert all(r.min <= r.opt <= r.max for p in found for r in p.values())
    count, rows, columns = asked
    served = requests.views.min <= count <= requests.views.max and (not sizes or (rows, columns) in sizes)
    if stage == "aggregator":
        axes = {"views": count, "patch_rows": rows, "patch_columns": columns}
    else:
        axes = {"views_in_chunk": min(count, CHUNKS[stage]), "patch_rows": rows, "patch_columns": columns}
    covering = [p for p in found if all(p[a].min <= v <= p[a].max for a, v in axes.items())]
    if served:
        assert covering
        assert len(covering) == 1, "profiles overlap"


@pytest.mark.parametrize(
    ("axes", "expected"),
    [
        (("views_in_chunk", 3, "14*patch_rows", "14*patch_columns"), ((1, 3, 14, 28), (2, 3, 42, 56), (4, 3, 70, 84))),
        (("patch_rows", 5), ((1, 5), (3, 5), (5, 5))),
        ((1,), ((1,), (1,), (1,))),
    ],
)
def test_derived_axes_are_evaluated(axes: tuple[int | str, ...], expected: tuple[tuple[int, ...], ...]) -> None:
    profile = {"views_in_chunk": Range(1, 2, 4), "patch_rows": Range(1, 3, 5), "patch_columns": Range(2, 4, 6)}
    assert shape_ends(TensorSpec("x", "float32", axes), profile) == expected
