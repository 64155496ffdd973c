"""A mapper finds places that it sees again and takes the drift out; what only looks alike changes nothing."""

from __future__ import annotations

import importlib.util
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from mapengine.runtime import BackendUnavailableError, Mapper

from ..perfect import Walk
from .revisits import PLACES, RevisitingEngine, there_and_back

Array = NDArray[Any]


@pytest.fixture(scope="module")
def visits() -> tuple[Walk, list[int]]:
    return there_and_back()


def mapped(engine: Any, truth: Walk, known: str = "kd", **options: Any) -> Mapper:
    chosen = {"window": 12, "overlap": 4, "join": "align", "transform": "rigid", "mask_edges": False, **options}
    mapper = Mapper(engine, **chosen)
    for number in range(len(truth.poses)):
        mapper.add(truth.view(number, known))
    mapper.finish()
    return mapper


@pytest.fixture(scope="module")
def closed(visits: tuple[Walk, list[int]]) -> Mapper:
    """The map of the walk with its loops closed."""
    truth, places = visits
    return mapped(RevisitingEngine(truth, places), truth, loops=True)


def end_error(mapper: Mapper, truth: Walk) -> float:
    """How far the last camera is from the first, of the same place, in the map."""
    relative = np.linalg.inv(mapper.poses[0]) @ mapper.poses[-1]
    wanted = np.linalg.inv(truth.poses[0]) @ truth.poses[-1]
    return float(np.linalg.norm(relative[:3, 3] - wanted[:3, 3]))


@pytest.mark.slow
@pytest.mark.parametrize("transform", ["rigid", "similarity"])
def test_loops_take_the_drift_out_of_a_closed_walk(
    visits: tuple[Walk, list[int]], closed: Mapper, transform: str
) -> None:
    truth, places = visits
    without = mapped(RevisitingEngine(truth, places), truth, loops=False, transform=transform)
    found = closed
    if transform != "rigid":
        found = mapped(RevisitingEngine(truth, places), truth, loops=True, transform=transform)
    assert without.loops == []
    assert end_error(without, truth) > 0.3
    assert end_error(found, truth) < end_error(without, truth) / 3
    assert len(found.loops) >= 3
    for loop in found.loops:
        assert loop.believed
        assert abs(places[loop.first] - places[loop.second]) <= 6


@pytest.mark.slow
def test_a_window_that_was_brought_to_another_length_is_what_a_loop_moves(visits: tuple[Walk, list[int]]) -> None:
    truth, places = visits

    def mistake(call: int, number: int, heads: dict[str, Array]) -> None:
        numbers = engine.numbers(engine.calls[call])
        if sorted(numbers) == list(range(48, 60)) and number < 52:  # what it shares with the window before
            heads["depth_along_ray"] = heads["depth_along_ray"] / 1.5

    off = []
    for loops in (False, True):
        engine = RevisitingEngine(truth, places)
        engine._err = mistake
        mapper = mapped(engine, truth, transform="similarity", loops=loops)
        off.append(np.linalg.norm((mapper.poses - truth.poses)[:, :3, 3], axis=1).mean())
    assert off[1] < 0.08 * off[0]  # 0.095 where every window is as uncertain as the others


@pytest.mark.slow
def test_frames_between_keyframes_move_with_the_window_that_a_loop_moves(visits: tuple[Walk, list[int]]) -> None:
    truth, places = visits
    options: dict[str, Any] = {"keyframes": "features", "keyframe_threshold": 0.3, "window": 4, "overlap": 2}
    without = mapped(RevisitingEngine(truth, places), truth, loops=False, **options)
    found = mapped(RevisitingEngine(truth, places), truth, loops=True, **options)
    assert found.keyframes.mean() < 0.3
    assert any(loop.believed for loop in found.loops)
    assert end_error(found, truth) < end_error(without, truth) / 3
    steps = np.linalg.norm(np.diff(found.poses[:, :3, 3], axis=0), axis=1)
    assert steps.max() < 0.2  # nothing is left behind


@pytest.mark.slow
def test_frames_that_are_handed_out_later_are_where_the_loop_put_them(
    visits: tuple[Walk, list[int]], closed: Mapper
) -> None:
    truth, places = visits
    mapper = Mapper(
        RevisitingEngine(truth, places), window=12, overlap=4, join="align", transform="rigid", mask_edges=False
    )
    for number in range(len(truth.poses)):
        for frame in mapper.add(truth.view(number, "kd")):
            np.testing.assert_allclose(frame.pose, mapper.poses[frame.number], atol=1e-12)
    assert mapper.loops
    mapper.finish()
    np.testing.assert_array_equal(closed.poses, mapper.poses)


@pytest.mark.slow
def test_frames_that_only_look_like_earlier_ones_change_nothing(visits: tuple[Walk, list[int]]) -> None:
    truth, _ = visits
    # The second half looks like places of the first in which it is not.
    looks = [*range(PLACES), *((7 * place) % PLACES for place in range(PLACES))]
    engine = RevisitingEngine(truth, looks)
    rng = np.random.default_rng(2)
    drift = engine._err

    def err(call: int, number: int, heads: dict[str, Array]) -> None:
        drift(call, number, heads)
        reference = engine.numbers(engine.calls[call])[0]
        if abs(number - reference) > 30:  # the network knows nothing about them
            heads["cam_trans"] = heads["cam_trans"] + rng.normal(size=(1, 3))

    engine._err = err
    found = mapped(engine, truth, loops=True)
    assert found.loops == []
    checks = [call for call in engine.calls if len(call.views) == 2]
    assert 0 < len(checks) <= found.summary["windows"]  # most end with the first call, and none is repeated nearby
    plain = mapped(RevisitingEngine(truth, looks), truth, loops=False)
    np.testing.assert_array_equal(found.poses, plain.poses)


def test_given_poses_need_no_loops(visits: tuple[Walk, list[int]]) -> None:
    truth, places = visits
    found = mapped(RevisitingEngine(truth, places), truth, "kdp", loops=True)
    assert found.loops == []
    np.testing.assert_allclose(found.poses, truth.poses, atol=0.1)


@pytest.mark.slow
def test_windows_in_the_world_of_given_poses_stay_when_a_later_submap_meets_them(
    visits: tuple[Walk, list[int]],
) -> None:
    truth, places = visits
    views = [truth.view(number, "kdp" if 56 <= number < PLACES else "kd") for number in range(2 * PLACES)]
    views[PLACES]["img"] = np.zeros_like(views[PLACES]["img"])  # a break: the poses are of no use afterwards
    engine: Any = RevisitingEngine(truth, places)
    maps = []
    for loops in (False, True):
        mapper = Mapper(engine, window=12, overlap=4, transform="rigid", mask_edges=False, loops=loops)
        for view in views:
            mapper.add(view)
        mapper.finish()
        maps.append(mapper)
    without, found = maps
    assert any(loop.second < 56 and loop.believed for loop in found.loops)
    np.testing.assert_allclose(found.poses[:PLACES], without.poses[:PLACES], atol=1e-9)
    off = [np.linalg.norm((mapper.poses - truth.poses)[-1, :3, 3]) for mapper in maps]
    assert off[1] < 0.7 * off[0]


def test_loops_are_wanted_or_not(monkeypatch: pytest.MonkeyPatch, visits: tuple[Walk, list[int]]) -> None:
    truth, places = visits
    engine: Any = RevisitingEngine(truth, places)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(BackendUnavailableError, match=r"mapengine\[map\]"):
        Mapper(engine, loops=True)
    Mapper(engine, loops=False)
    Mapper(engine)
