"""A session gives what a fresh call over its frames gives, whatever came and went."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mapengine.runtime import Engine, InputError, ProfileError, Session

from ..engine_views import same, views_of
from ..random_views import random_views

FRAMES = 7


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
    for name in ("window", "keyframe_every"):
        for value in (0, -1, 1.5, True):
            with pytest.raises(InputError, match=f"{name} is "):
                Session(engine, **{name: value})
    most = engine.manifest.requests.views.max
    with pytest.raises(InputError, match=f"up to {most} views"):
        Session(engine, window=most + 1)
    session = Session(engine)
    session.add(views_of(("",))[0])
    with pytest.raises(InputError, match="one size"):
        session.add(views_of(("",), size=(56, 56))[0])
    with pytest.raises(InputError):
        session.add({"img": np.zeros(3)})
    assert session.frames == [0]


def test_too_many_keyframes_are_refused_and_leave_the_session_as_it_was(engine: Engine) -> None:
    session = Session(engine)
    view = random_views(1, "", 28, 28)[0]
    most = engine.manifest.requests.views.max
    encoded = engine.encode([view])[0]
    for _ in range(most):
        session.add(encoded)
    with pytest.raises(ProfileError):
        session.add(encoded)
    assert session.frames == list(range(most))
