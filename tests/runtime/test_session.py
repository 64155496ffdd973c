"""A session gives what a fresh call over its frames gives, whatever came and went."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mapengine.runtime import EncodedView, Engine, InputError, ProfileError, Session

from ..engine_views import same, views_of
from ..random_views import random_views

FRAMES = 7


@pytest.mark.slow
@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    window=st.one_of(st.none(), st.integers(1, 3)),
    every=st.one_of(st.none(), st.integers(1, 4)),
    forced=st.sets(st.integers(0, FRAMES - 1), max_size=2),
    dropped=st.one_of(st.none(), st.integers(0, FRAMES - 1)),
)
def test_frames_and_results_are_those_of_a_fresh_call(
    engine: Engine, window: int | None, every: int | None, forced: set[int], dropped: int | None
) -> None:
    views = random_views(FRAMES, "k", 42, 28)
    session = Session(engine, window=window, keyframe_every=every)
    for number, view in enumerate(views):
        assert session.add(view, keyframe=number in forced) == number
    keys = {n for n in range(FRAMES) if n in forced or (every is not None and n % every == 0)}
    others = [n for n in range(FRAMES) if n not in keys]
    expected = sorted(keys | set(others if window is None else others[-window:]))
    assert session.frames == expected
    if dropped in expected and len(expected) > 1:
        session.drop(dropped)
        expected.remove(dropped)
    assert session.frames == expected
    fresh = engine.infer([views[n] for n in expected])
    assert same(session.infer(), fresh)
    assert same(list(session.infer_stream()), fresh)


def test_only_new_frames_are_encoded(engine: Engine) -> None:
    session = Session(engine, window=2)
    for view in views_of(("", "", "")):
        session.add(view)
    stages: list[str] = []
    session.infer(progress=lambda stage, done, total: stages.append(stage))
    assert "image_encoder" not in stages
    assert len(stages) == 3  # the aggregator once, the head per view


@pytest.mark.slow
def test_what_is_known_of_a_frame_can_change(engine: Engine) -> None:
    plain, known = views_of(("", "")), views_of(("kp", "kdp"))
    session = Session(engine)
    for view in plain:
        session.add(view)
    for number, view in enumerate(known):
        session.update(number, **{key: value for key, value in view.items() if key not in ("img", "data_norm_type")})
    assert same(session.infer(), engine.infer(known))
    for number in range(2):
        session.update(number, camera_poses=None, intrinsics=None, depth_z=None)
    assert same(session.infer(), engine.infer(plain))
    with pytest.raises(InputError, match="cannot be changed"):
        session.update(0, img=plain[1]["img"])
    with pytest.raises(InputError, match="frame 5 is not in use"):
        session.update(5, intrinsics=None)
    with pytest.raises(InputError, match=r"frame 9 is not in use; in use are \[0, 1\]"):
        session.drop(9)


def test_wrong_windows_and_frames(engine: Engine) -> None:
    for name in ("window", "keyframe_every", "max_keyframes"):
        for value in (0, -1, 1.5, True):
            with pytest.raises(InputError, match=f"{name} is "):
                Session(engine, **{name: value})
    most = engine.manifest.requests.views.max
    for counts in ({"window": most + 1}, {"max_keyframes": most + 1}, {"window": 8, "max_keyframes": most - 7}):
        words = " and ".join(f"{name} is {value}" for name, value in counts.items())
        with pytest.raises(InputError, match=f"{words}, .* up to {most} views"):
            Session(engine, **counts)
    with pytest.raises(InputError, match=f"no room for keyframes; give at most {most - 1}"):
        Session(engine, window=most, keyframe_every=30)
    with pytest.raises(InputError, match="no room for keyframes"):
        Session(engine, window=most).add(views_of(("",))[0], keyframe=True)
    session = Session(engine)
    session.add(views_of(("",))[0])
    with pytest.raises(InputError, match="one size"):
        session.add(views_of(("",), size=(56, 56))[0])
    with pytest.raises(InputError):
        session.add({"img": np.zeros(3)})
    assert session.frames == [0]


def test_too_many_frames_without_a_window_are_refused_and_leave_the_session_as_it_was(engine: Engine) -> None:
    session = Session(engine)
    most = engine.manifest.requests.views.max
    encoded = frame_of(engine)
    for _ in range(most):
        session.add(encoded)
    with pytest.raises(ProfileError, match=f"{most + 1} frames .* up to {most} views; give the session a window"):
        session.add(encoded)
    assert session.frames == list(range(most))


def frame_of(engine: Engine) -> EncodedView:
    return engine.encode(random_views(1, "", 28, 28))[0]


@pytest.mark.slow
@pytest.mark.parametrize("limit", [None, 3])
def test_a_long_video_keeps_the_latest_keyframes(small: Engine, limit: int | None) -> None:
    session = Session(small, window=8, keyframe_every=30, max_keyframes=limit)
    most = small.manifest.requests.views.max - 8 if limit is None else limit
    encoded = frame_of(small)
    for frame in range(1100):
        assert session.add(encoded) == frame
        keyframes = list(range(0, frame + 1, 30))[-most:]
        others = [number for number in range(frame + 1) if number % 30][-8:]
        assert session.frames == sorted(keyframes + others)
    assert len(session.infer()) == len(session.frames) == most + 8


def test_keyframes_leave_for_one_that_is_asked_for(small: Engine) -> None:
    session = Session(small, window=1, max_keyframes=2)
    views = random_views(6, "", 28, 28)
    for number, view in enumerate(views):
        session.add(view, keyframe=number in (0, 2, 4))
    assert session.frames == [2, 4, 5]
    session.drop(2)
    assert same(session.infer(), small.infer([views[4], views[5]]))  # the first in use is the reference


def test_a_session_begins_on_a_bundle_that_serves_no_single_view(rewritten: Callable[..., Path]) -> None:
    def two_or_more(manifest: dict[str, Any]) -> None:
        manifest["profile"]["views"] = {"min": 2, "opt": 4, "max": 8}

    engine = Engine.load(rewritten(two_or_more), "onnxruntime", threads=1, verify=False)
    session = Session(engine, window=7, keyframe_every=30)
    views = random_views(2, "", 28, 28)
    session.add(views[0])
    with pytest.raises(ProfileError, match="built for 2 to 8"):
        session.infer()
    session.add(views[1])
    assert same(session.infer(), engine.infer(views))
