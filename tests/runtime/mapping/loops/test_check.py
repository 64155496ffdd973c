"""Two visits of one place pass, and nothing else does: other places, calls that contradict, depth that does not fit."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from mapengine.runtime.inputs.prepared import prepare_views
from mapengine.runtime.mapping.frames import MAP_OUTPUTS, Frame, KnownFrame
from mapengine.runtime.mapping.loops.check import MOST_DOUBT, LoopCheck, check_loop
from mapengine.runtime.mapping.loops.sightings import Sightings
from mapengine.runtime.mapping.similarity import Similarity

from ..perfect import Walk
from .revisits import RevisitingEngine, there_and_back

Array = NDArray[Any]
OPTIONS = {"mask_edges": False}


@pytest.fixture(scope="module")
def visits() -> tuple[Walk, list[int]]:
    return there_and_back()


@pytest.fixture
def sightings() -> Iterator[Sightings]:
    kept = Sightings()
    yield kept
    kept.close()


def keep(
    sightings: Sightings,
    engine: RevisitingEngine,
    truth: Walk,
    number: int,
    window: int,
    given: str = "",
    size: float = 1.0,
    look: float = 1.0,
) -> None:
    """Keep a frame as a window of its own, whose frame is that camera, and whose lengths are so many times larger.

    ``look`` is what its image is multiplied by.
    """
    frame = truth.view(number, given)
    frame["img"][..., 1:, :] *= look  # the first row tells the engine which frame it is
    (encoded,) = engine.encode([frame])
    (view,) = prepare_views([encoded], data_norm_type="dinov2", encoder="perfect").views
    (prediction,) = engine.infer([view], outputs=MAP_OUTPUTS, **OPTIONS)
    sightings.add(
        Frame(number, encoded, view), window, KnownFrame.of(prediction, Similarity(np.eye(3), np.zeros(3), size))
    )


def checked(
    engine: RevisitingEngine,
    truth: Walk,
    kept: Sightings,
    *,
    scale: bool = False,
    size: float = 1.0,
    look: float = 1.0,
) -> LoopCheck:
    """Check frames 20 and 23 against 111, which sees the same place."""
    numbers = (20, 23, 111)
    for window, number in enumerate(numbers):
        there = number == 111
        keep(kept, engine, truth, number, window, size=size if there else 1.0, look=look if there else 1.0)
    # Each visit is right in itself; where they are to each other is what nobody knows.
    moved = Similarity.exp(np.array([0.1, 0.4, 0, 1, 2, 3]))
    poses = [Similarity.of_pose(truth.poses[number]) for number in numbers]
    first, second = [kept.read(number) for number in numbers[:2]], kept.read(numbers[2])
    found = check_loop(engine, first, second, [*poses[:2], moved @ poses[2]], OPTIONS, scale=scale)
    assert found is not None
    return found


def test_two_visits_of_a_place_pass_with_the_transform_between_them(
    visits: tuple[Walk, list[int]], sightings: Sightings
) -> None:
    truth, places = visits
    found = checked(RevisitingEngine(truth, places), truth, sightings)
    assert found.passed
    assert found.calls == 4
    wanted = np.linalg.inv(truth.poses[20]) @ truth.poses[111]
    np.testing.assert_allclose(found.relative.matrix(), wanted, atol=1e-4)
    assert found.degrees < 0.1
    assert found.offset < 1e-3


def test_the_first_call_ends_the_check_of_places_that_do_not_fit(
    visits: tuple[Walk, list[int]], sightings: Sightings
) -> None:
    truth, places = visits
    engine = RevisitingEngine(truth, places)

    def guess(call: int, number: int, heads: dict[str, Array]) -> None:
        if number != engine.numbers(engine.calls[call])[0]:
            heads["cam_trans"] = heads["cam_trans"] + np.array([[2.0, 0.5, -1.0]])

    engine._err = guess
    found = checked(engine, truth, sightings)
    assert not found.passed
    assert found.calls == 1


@pytest.mark.parametrize("call", [4, 5, 6])
def test_a_call_that_contradicts_those_before_it_ends_the_check(
    visits: tuple[Walk, list[int]], sightings: Sightings, call: int
) -> None:
    truth, places = visits
    engine = RevisitingEngine(truth, places)

    def turn(at: int, number: int, heads: dict[str, Array]) -> None:
        if at == call and number != engine.numbers(engine.calls[at])[0]:
            # Both cameras stand elsewhere, by depth and image alike: only the other calls tell.
            half = np.radians(25) / 2
            heads["cam_quats"] = np.array([[0, np.sin(half), 0, np.cos(half)]])

    engine._err = turn
    found = checked(engine, truth, sightings)
    assert not found.passed
    assert found.calls == call - 2  # three calls kept the frames


def test_rooms_that_are_shaped_alike_and_look_different_do_not_pass(
    visits: tuple[Walk, list[int]], sightings: Sightings
) -> None:
    truth, places = visits
    found = checked(RevisitingEngine(truth, places), truth, sightings, look=-1)
    # Nothing but the images speaks against it.
    assert found.agreement > 0.95
    assert found.overlap > 0.9
    assert not found.passed
    assert replace(found, likeness=1.0).passed


GOOD: dict[str, Any] = {
    "relative": Similarity.identity(),
    "degrees": 4.0,
    "offset": 0.15,
    "agreement": 0.85,
    "overlap": 0.7,
    "likeness": 0.825,
    "reach": 2.0,
    "growth": 0.1,
    "calls": 4,
}
"""Each sign is half of what is doubtful by itself."""


def test_each_sign_alone_can_speak_against_a_loop() -> None:
    assert LoopCheck(**GOOD).doubt == pytest.approx(0.5)
    assert LoopCheck(**GOOD).passed
    # So much that four signs of 0.5 and this one have more than the doubt that passes.
    much = (5 * MOST_DOUBT**2 - 4 * 0.5**2) ** 0.5
    for factor, passes in ((0.99, True), (1.01, False)):
        sign = much * factor
        bad = {
            "degrees": 8 * sign,
            "offset": 0.15 * 2 * sign,
            "agreement": 1 - 0.3 * sign,
            "overlap": 1 - 0.6 * sign,
            "likeness": 1 - 0.35 * sign,
        }
        for name, value in bad.items():
            assert LoopCheck(**{**GOOD, name: value}).passed is passes, name


def test_signs_that_are_each_nearly_doubtful_speak_against_a_loop_together() -> None:
    nearly = {"degrees": 7.2, "offset": 0.27, "agreement": 0.73, "overlap": 0.46, "likeness": 0.685}
    assert LoopCheck(**{**GOOD, **nearly}).doubt == pytest.approx(0.9)
    assert not LoopCheck(**{**GOOD, **nearly}).passed


def test_the_network_is_not_told_what_the_map_estimated(visits: tuple[Walk, list[int]], sightings: Sightings) -> None:
    truth, places = visits
    engine = RevisitingEngine(truth, places)
    keep(sightings, engine, truth, 20, 0)
    keep(sightings, engine, truth, 111, 1, "k")
    keep(sightings, engine, truth, 108, 2, "kd")
    known = [sightings.read(number).view.known for number in (20, 111, 108)]
    assert known == [(False, False, False), (True, False, False), (True, True, False)]
    for number in (111, 108):
        (given,) = prepare_views(engine.encode([truth.view(number, "kd")]), encoder="perfect").views
        kept = sightings.read(number).view
        assert kept.rays is not None
        assert given.rays is not None
        np.testing.assert_allclose(kept.rays, given.rays, atol=1e-5)


def test_places_that_only_look_alike_do_not_pass(visits: tuple[Walk, list[int]], sightings: Sightings) -> None:
    truth, places = visits
    engine = RevisitingEngine(truth, places)

    def same_place(call: int, number: int, heads: dict[str, Array]) -> None:
        # A network that is sure that both cameras stand at one place.
        heads["cam_trans"], heads["cam_quats"] = np.zeros((1, 3)), np.array([[0.0, 0, 0, 1]])

    engine._err = same_place
    depth = truth.depth.copy()
    depth[100:] *= np.linspace(0.3, 1, depth.shape[2])  # what is seen there has another shape
    other = Walk(depth, truth.poses, truth.intrinsics)
    engine._truth = other
    found = checked(engine, other, sightings)
    assert not found.passed
    assert found.agreement < 0.8


@pytest.mark.parametrize("factor", [0.8, 1.0, 1.2])
def test_the_lengths_of_both_visits_may_differ(
    visits: tuple[Walk, list[int]], sightings: Sightings, factor: float
) -> None:
    truth, places = visits
    engine = RevisitingEngine(truth, places)
    found = checked(engine, truth, sightings, scale=True, size=factor)
    assert found.relative.scale == pytest.approx(1 / factor, rel=0.06)


def test_sightings_are_as_they_were_and_leave_nothing_behind(visits: tuple[Walk, list[int]]) -> None:
    truth, places = visits
    engine, kept = RevisitingEngine(truth, places), Sightings()
    keep(kept, engine, truth, 7, 3, given="kd")
    one = kept.read(7)
    assert (7 in kept, 8 in kept, one.number, one.window) == (True, False, 7, 3)
    np.testing.assert_allclose(one.depth, truth.depth[7], rtol=1e-5)
    assert one.reach == pytest.approx(np.median(truth.depth[7][truth.depth[7] > 0]), rel=1e-5)
    assert one.view.pose is None
    with pytest.raises(KeyError):
        kept.read(8)
    kept.close()
    assert 7 not in kept
