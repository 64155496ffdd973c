"""Sets of messages that were taken at about one time, and topics that fall silent."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mapengine_ros.synchronizer import CAMERA_INFO, DEPTH, IMAGE, POSE, FrameSet, Synchronizer

MS = 1_000_000


def make(tolerance: float = 10, **cameras: tuple[str, ...]) -> Synchronizer:
    return Synchronizer(cameras, round(tolerance * MS), timeout=1.0)


def add(synchronizer: Synchronizer, camera: str, kind: str, stamp: float, now: float | None = None) -> FrameSet | None:
    """A message at ``stamp`` milliseconds, which arrives then."""
    at = stamp / 1000 if now is None else now
    return synchronizer.add(camera, kind, round(stamp * MS), (kind, stamp), at)


def stamps(found: FrameSet | None) -> Any:
    return found and {name: {kind: value[1] for kind, value in own.items()} for name, own in found.messages.items()}


def test_one_camera_gives_every_image() -> None:
    synchronizer = make(a=())
    found = [add(synchronizer, "a", IMAGE, stamp) for stamp in (1000, 1033, 1066)]
    assert [stamps(one) for one in found] == [{"a": {IMAGE: stamp}} for stamp in (1000, 1033, 1066)]
    assert found[2] is not None
    assert found[2].stamp == 1066 * MS


def test_two_cameras_are_matched_within_the_tolerance() -> None:
    synchronizer = make(a=(), b=())
    assert add(synchronizer, "a", IMAGE, 1000) is None
    assert stamps(add(synchronizer, "b", IMAGE, 1008)) == {"a": {IMAGE: 1000}, "b": {IMAGE: 1008}}
    assert add(synchronizer, "a", IMAGE, 1033) is None
    assert add(synchronizer, "b", IMAGE, 1050) is None  # 17 ms apart
    assert synchronizer.take_unmatched() == {}
    assert stamps(add(synchronizer, "a", IMAGE, 1055)) == {"a": {IMAGE: 1055}, "b": {IMAGE: 1050}}
    assert synchronizer.take_unmatched() == {"a": 1}
    assert synchronizer.take_unmatched() == {}


def test_the_nearest_pose_is_taken_and_images_wait_for_it() -> None:
    synchronizer = make(a=(POSE, DEPTH))
    for stamp in (995, 999, 1003):
        assert add(synchronizer, "a", POSE, stamp) is None
    assert add(synchronizer, "a", IMAGE, 1000) is None
    assert stamps(add(synchronizer, "a", DEPTH, 1000)) == {"a": {IMAGE: 1000, POSE: 999, DEPTH: 1000}}
    assert add(synchronizer, "a", IMAGE, 1033) is None
    assert add(synchronizer, "a", DEPTH, 1033) is None  # the latest pose is from 1003
    assert stamps(add(synchronizer, "a", POSE, 1036)) == {"a": {IMAGE: 1033, POSE: 1036, DEPTH: 1033}}


def test_a_camera_that_stops_is_left_out_after_the_timeout_and_comes_back() -> None:
    synchronizer = make(a=(), b=())
    assert add(synchronizer, "a", IMAGE, 1) is None
    assert add(synchronizer, "b", IMAGE, 2) is not None
    found = {stamp: add(synchronizer, "a", IMAGE, stamp) for stamp in range(100, 1500, 100)}
    first = next(stamp for stamp, one in found.items() if one)
    assert first == 1100  # more than a second after the last of b
    assert all(stamps(one) == {"a": {IMAGE: stamp}} for stamp, one in found.items() if stamp >= first)
    assert synchronizer.silent(1.4) == [("b", IMAGE)]
    assert synchronizer.take_unmatched() == {"a": 10}
    assert add(synchronizer, "b", IMAGE, 1405) is None  # a has been used at 1400
    assert synchronizer.silent(1.41) == []
    assert add(synchronizer, "a", IMAGE, 1500) is None
    assert stamps(add(synchronizer, "b", IMAGE, 1502)) == {"a": {IMAGE: 1500}, "b": {IMAGE: 1502}}


def test_cameras_that_begin_later_are_waited_for_however_long_nothing_came_before() -> None:
    synchronizer = make(a=(), b=())
    assert add(synchronizer, "a", IMAGE, 100_000) is None
    assert stamps(add(synchronizer, "b", IMAGE, 100_005)) == {"a": {IMAGE: 100_000}, "b": {IMAGE: 100_005}}


def test_poses_that_stop_are_left_out() -> None:
    synchronizer = make(a=(POSE,))
    assert add(synchronizer, "a", POSE, 1000) is None
    assert add(synchronizer, "a", IMAGE, 1000) is not None
    found = [add(synchronizer, "a", IMAGE, stamp) for stamp in range(1100, 2300, 100)]
    assert [stamps(one) for one in found if one] == [{"a": {IMAGE: 2100}}, {"a": {IMAGE: 2200}}]
    assert synchronizer.silent(2.2) == [("a", POSE)]


def test_the_newest_camera_info_counts_and_is_waited_for() -> None:
    synchronizer = make(a=(CAMERA_INFO,))
    assert add(synchronizer, "a", IMAGE, 1000) is None
    assert stamps(add(synchronizer, "a", CAMERA_INFO, 5, now=1.01)) == {"a": {IMAGE: 1000, CAMERA_INFO: 5}}
    add(synchronizer, "a", CAMERA_INFO, 7, now=1.02)
    assert stamps(add(synchronizer, "a", IMAGE, 9000)) == {"a": {IMAGE: 9000, CAMERA_INFO: 7}}  # it does not age


def test_a_camera_info_that_never_comes_is_left_out_after_the_timeout() -> None:
    synchronizer = make(a=(CAMERA_INFO,))
    found = [add(synchronizer, "a", IMAGE, stamp) for stamp in range(1000, 2300, 100)]
    assert [stamps(one) for one in found if one] == [{"a": {IMAGE: 2100}}, {"a": {IMAGE: 2200}}]
    assert synchronizer.silent(2.2) == [("a", CAMERA_INFO)]


def test_a_clock_that_is_set_back_begins_anew() -> None:
    synchronizer = make(a=(), b=())
    add(synchronizer, "a", IMAGE, 60_000, now=1.0)
    assert add(synchronizer, "b", IMAGE, 60_000, now=1.0) is not None
    assert add(synchronizer, "a", IMAGE, 1000, now=1.1) is None
    assert stamps(add(synchronizer, "b", IMAGE, 1000, now=1.1)) == {"a": {IMAGE: 1000}, "b": {IMAGE: 1000}}
    assert synchronizer.jumps == 1


def test_images_that_come_too_late_or_twice_are_dropped() -> None:
    synchronizer = make(a=())
    assert add(synchronizer, "a", IMAGE, 1000) is not None
    assert add(synchronizer, "a", IMAGE, 1000, now=1.01) is None
    assert add(synchronizer, "a", IMAGE, 990, now=1.02) is None
    assert synchronizer.take_unmatched() == {"a": 2}


def test_what_waits_for_a_partner_is_bounded() -> None:
    synchronizer = make(a=(), b=())
    for stamp in range(1000, 1990, 10):
        assert add(synchronizer, "a", IMAGE, stamp, now=1.0) is None
    assert synchronizer.take_unmatched() == {"a": 89}
    assert stamps(add(synchronizer, "b", IMAGE, 1950, now=1.0)) == {"a": {IMAGE: 1950}, "b": {IMAGE: 1950}}


@settings(max_examples=40)
@given(
    st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 400)), max_size=60),
    st.integers(0, 50),
)
def test_whatever_comes_a_set_is_within_the_tolerance_and_no_image_is_used_twice(
    messages: list[tuple[str, int]], tolerance: int
) -> None:
    synchronizer = make(tolerance, a=(), b=(), c=())
    counts = dict.fromkeys("abc", 0)
    used: dict[str, list[float]] = {name: [] for name in "abc"}
    for index, (camera, stamp) in enumerate(messages):
        counts[camera] += 1
        found = add(synchronizer, camera, IMAGE, stamp, now=index / 1000)
        for name, own in (stamps(found) or {}).items():
            used[name].append(own[IMAGE])
        if found is not None:
            chosen = [own[IMAGE][1] for own in found.messages.values()]
            assert set(found.messages) == set("abc")
            assert max(chosen) - min(chosen) <= tolerance
    unmatched = synchronizer.take_unmatched()
    for name in "abc":
        assert used[name] == sorted(set(used[name]))
        assert len(used[name]) + unmatched.get(name, 0) <= counts[name] <= len(used[name]) + unmatched.get(name, 0) + 10


def test_unknown_cameras_are_an_error_of_the_caller() -> None:
    with pytest.raises(KeyError):
        add(make(a=()), "b", IMAGE, 1)
