from __future__ import annotations

import numpy as np
import pytest

from mapengine.export.bundles.parity_cases import GOLDEN_SIZE, PARITY_SIZE, Views, golden_views, parity_cases
from mapengine.runtime.inputs.prepared import VIEW_KEYS, prepare_views


def flags(views: Views) -> list[tuple[bool, ...]]:
    """Which modalities of each view reach the network."""
    none = np.zeros((1, 5), bool)
    prepared = prepare_views(views)
    return [tuple((none if view is None else view.flags)[0].tolist()) for view in prepared.geometry]


def test_golden_views_use_every_modality_and_leave_one_view_plain() -> None:
    views = golden_views("dinov2")
    assert {view["img"].shape for view in views} == {(1, 3, GOLDEN_SIZE[1], GOLDEN_SIZE[0])}
    found = flags(views)
    assert tuple(map(any, zip(*found, strict=True))) == (True,) * 5
    assert not any(found[-1])


@pytest.mark.slow
def test_cases_cover_every_modality_alone_and_together() -> None:
    cases = parity_cases("dinov2")
    assert {view["img"].shape for views in cases.values() for view in views} == {(1, 3, PARITY_SIZE[1], PARITY_SIZE[0])}
    rays, depth, metric_depth, pose, metric_pose = range(5)
    wanted = {
        "image, 1 view": [set()],
        "images, 3 views": [set()] * 3,
        "calibrated": [{rays}] * 2,
        "posed": [{pose, metric_pose}] * 3,
        "depth": [{rays, depth, metric_depth}] * 2,
        "all inputs": [{rays, depth, metric_depth, pose, metric_pose}] * 3,
        "mixed": [{pose, metric_pose}, {rays, depth, metric_depth}, set(), {rays, pose, metric_pose}],
        "not metric": [{rays, depth, pose}] * 2,
    }
    found = {
        name: [{i for i, flag in enumerate(view) if flag} for view in flags(views)] for name, views in cases.items()
    }
    assert found == wanted


@pytest.mark.slow
@pytest.mark.parametrize("minimum", [2, 3, 6])
def test_cases_are_repeated_to_the_fewest_views_of_a_profile(minimum: int) -> None:
    plain, repeated = parity_cases("dinov2"), parity_cases("dinov2", (42, 28), minimum)
    assert len(repeated) == len(plain)
    for (name, views), (title, more) in zip(plain.items(), repeated.items(), strict=True):
        assert len(more) == max(len(views), minimum)
        assert title == (name if len(more) == len(views) else f"{name}, repeated to {minimum} views")
        assert more[0]["img"].shape == (1, 3, 28, 42)
        pattern = flags(views)
        assert flags(more) == [pattern[index % len(pattern)] for index in range(len(more))]


@pytest.mark.slow
def test_cases_are_valid_and_the_same_every_time() -> None:
    first, second = parity_cases("dinov2"), parity_cases("dinov2")
    for name, views in first.items():
        for one, other in zip(views, second[name], strict=True):
            assert set(one) == set(other) <= set(VIEW_KEYS)
            assert all(np.array_equal(one[key], other[key]) for key in one)


@pytest.mark.slow
def test_a_large_size_has_few_cases_but_every_modality() -> None:
    cases = parity_cases("dinov2", (168, 140))
    assert set(cases) < set(parity_cases("dinov2"))
    given = {key for views in cases.values() for view in views for key in view}
    assert given >= {"img", "intrinsics", "depth_z", "camera_poses"}
    assert any(len(views) == 1 for views in cases.values())
