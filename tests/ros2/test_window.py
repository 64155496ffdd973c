"""Which frames are reconstructed together, and the world of the results, with a network that is always right."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from mapengine.runtime import EncodedView
from mapengine.runtime.inputs.encoded import ImageFeatures
from mapengine_ros.poses import OPTICAL_IN_BODY, matrix_of
from mapengine_ros.window import Window, WindowSize


def camera(index: int) -> np.ndarray:
    half = index / 9
    return matrix_of([index, 0.1 * index**2, -index], [0, np.sin(half), 0, np.cos(half)])


TRUTH = [camera(index) for index in range(12)]


class Perfect:
    """Sees in a view's only pixel which camera it is, and knows where all of them are."""

    def __init__(self) -> None:
        self.manifest = SimpleNamespace(requests=SimpleNamespace(views=SimpleNamespace(max=8)))
        self.encoded = 0
        self.ignored: list[bool] = []

    def encode(self, views: Any) -> list[EncodedView]:
        self.encoded += sum(not isinstance(view, EncodedView) for view in views)
        return [v if isinstance(v, EncodedView) else EncodedView(v, ImageFeatures(np.zeros(1)), "me") for v in views]

    def infer(self, views: Any, *, outputs: Any, ignore_pose_inputs: bool, **_: Any) -> list[dict[str, Any]]:
        self.ignored.append(ignore_pose_inputs)
        numbers = [int(view.view["img"].flat[0]) for view in views]
        first = np.linalg.inv(TRUTH[numbers[0]])
        return [{"camera_poses": (first @ TRUTH[number])[None]} for number in numbers]


def add(window: Window, *numbers: int, posed: tuple[int, ...] = ()) -> list[int]:
    views = [{"img": np.full((1, 3, 14, 14), number, np.float32)} for number in numbers]
    return window.add(views, [TRUTH[number] if number in posed else None for number in numbers])


def make(size: WindowSize) -> tuple[Window, Perfect]:
    engine: Any = Perfect()
    return Window(engine, size), engine


def test_sets_leave_and_keyframes_stay() -> None:
    window, engine = make(WindowSize(2, keyframe_every=3, keyframes=1))
    seen = []
    for number in range(8):
        add(window, number)
        seen.append(window.frames)
    assert seen == [[0], [0, 1], [0, 1, 2], [1, 2, 3], [2, 3, 4], [3, 4, 5], [4, 5, 6], [5, 6, 7]]
    assert engine.encoded == 8


def test_a_world_without_poses_stays_while_its_frames_leave() -> None:
    window, _ = make(WindowSize(2))
    for number in range(8):
        frame = add(window, number)[0]
        found = window.infer(outputs=[])[frame].pose
        np.testing.assert_allclose(found, OPTICAL_IN_BODY @ np.linalg.inv(TRUTH[0]) @ TRUTH[number], atol=1e-9)
    assert (window.worlds, window.is_given) == (1, False)


def test_a_window_of_one_begins_a_world_with_every_set() -> None:
    window, _ = make(WindowSize(1))
    for number in range(3):
        frame = add(window, number)[0]
        np.testing.assert_allclose(window.infer(outputs=[])[frame].pose, OPTICAL_IN_BODY, atol=1e-9)
    assert window.worlds == 3


def test_given_poses_are_the_world_also_when_they_stop() -> None:
    window, engine = make(WindowSize(2))
    for number in range(6):
        frame = add(window, number, posed=(0, 1, 2))[0]
        np.testing.assert_allclose(window.infer(outputs=[])[frame].pose, TRUTH[number], atol=1e-9)
        assert window.is_given
    assert engine.ignored == [False, False, False, False, True, True]
    assert window.worlds == 0


def test_a_posed_camera_of_a_set_is_the_reference() -> None:
    window, engine = make(WindowSize(1))
    frames = add(window, 3, 4, posed=(4,))
    found = window.infer(outputs=[])
    assert engine.ignored == [False]
    for frame, number in zip(frames, (3, 4), strict=True):
        np.testing.assert_allclose(found[frame].pose, TRUTH[number], atol=1e-9)


def test_a_set_is_taken_back() -> None:
    window, _ = make(WindowSize(3))
    add(window, 0, 1)
    add(window, 2, 3)
    window.take_back()
    assert len(window.frames) == 2
    with pytest.raises(IndexError):
        [window.take_back() for _ in range(2)]
