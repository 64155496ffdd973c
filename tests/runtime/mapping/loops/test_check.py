"""Two visits of one place pass, and nothing else does: other places, calls that contradict, depth that does not fit."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from mapengine.runtime.inputs.prepared import prepare_views
from mapengine.runtime.mapping.frames import MAP_OUTPUTS, Frame, KnownFrame
from mapengine.runtime.mapping.loops.check import LoopCheck, check_loop
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
    sightings: Sightings, engine: RevisitingEngine, truth: Walk, number: int, window: int, given: str = ""
) -> None:
    """Keep a frame as a window of its own, whose frame is that camera."""
    (encoded,) = engine.encode([truth.view(number, given)])
    (view,) = prepare_views([encoded], data_norm_type="dinov2", encoder="perfect").views
    (prediction,) = engine.infer([view], outputs=MAP_OUTPUTS, **OPTIONS)
    sightings.add(Frame(number, encoded, view), window, KnownFrame.of(prediction, Similarity.identity()))


def checked(engine: RevisitingEngine, truth: Walk, kept: Sightings, *, scale: bool = False) -> LoopCheck:
    """Check frames 20 and 23 against 111 and 108, which see the same places."""
    numbers = (20, 23, 111, 108)
    for window, number in enumerate(numbers):
        keep(kept, engine, truth, number, window)
    # Each visit is right in itself; where they are to each other is what nobody knows.
    moved = Similarity.exp(np.array([0.1, 0.4, 0, 1, 2, 3]))
    poses = [Similarity.of_pose(truth.poses[number]) for number in numbers]
    placements = [*poses[:2], *(moved @ pose for pose in poses[2:])]
    first, second = ([kept.read(number) for number in side] for side in (numbers[:2], numbers[2:]))
    found = check_loop(engine, first, second, placements, OPTIONS, scale=scale)
    assert found is not None
    return found


def test_two_visits_of_a_place_pass_with_the_transform_between_them(
    visits: tuple[Walk, list[int]], sightings: Sightings
) -> None:
    truth, places = visits
    found = checked(RevisitingEngine(truth, places), truth, sightings)
    assert found.passed
    assert found.calls == 8
    wanted = np.linalg.inv(truth.poses[20]) @ truth.poses[111]
    np.testing.assert_allclose(found.relative.matrix(), wanted, atol=1e-4)
    assert found.degrees < 0.1
    assert found.offset < 1e-3


def test_calls_that_contradict_each_other_do_not_pass(visits: tuple[Walk, list[int]], sightings: Sightings) -> None:
    truth, places = visits
    engine = RevisitingEngine(truth, places)
    rng = np.random.default_rng(1)

    def guess(call: int, number: int, heads: dict[str, Array]) -> None:
        if number != engine.numbers(engine.calls[call])[0]:
            heads["cam_trans"] = heads["cam_trans"] + rng.normal(size=(1, 3))

    engine._err = guess
    found = checked(engine, truth, sightings)
    assert not found.passed
    assert found.offset > 0.15 * found.reach


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
    depth = truth.depth.copy()
    depth[100:] *= factor
    engine._truth = Walk(depth, truth.poses, truth.intrinsics)
    found = checked(engine, truth, sightings, scale=True)
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
