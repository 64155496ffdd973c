"""Threads that share one engine."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from mapengine.runtime import Engine, InputError

from ...engine_views import same, views_of

CALLS: list[tuple[tuple[str, ...], tuple[int, int], dict[str, Any]]] = [
    (("", ""), (84, 56), {}),
    (("kdp", "", "p"), (56, 84), {"minibatch_size": 2}),
    (("kd",), (70, 42), {"apply_mask": False}),
    (("p", "k", "", "r"), (84, 56), {"use_multiview_confidence": True}),
]
ROUNDS = 4


@pytest.mark.slow
def test_four_threads_get_what_serial_calls_get(engine: Engine) -> None:
    work = [(views_of(mix, size), options) for mix, size, options in CALLS]
    serial = [engine.infer(views, **options) for views, options in work]
    start = threading.Barrier(len(work))

    def call(index: int) -> list[bool]:
        start.wait()
        views, options = work[index]
        return [same(engine.infer(views, **options), serial[index]) for _ in range(ROUNDS)]

    with ThreadPoolExecutor(len(work)) as pool:
        assert list(pool.map(call, range(len(work)))) == [[True] * ROUNDS] * len(work)


@pytest.mark.slow
def test_a_failing_thread_does_not_disturb_the_others(engine: Engine) -> None:
    views = views_of(("kdp", "p"))
    expected = engine.infer(views)
    start = threading.Barrier(4)

    def call(index: int) -> bool:
        start.wait()
        for _ in range(ROUNDS):
            if index % 2:
                with pytest.raises(InputError, match=r"view 1: unknown key 'pose'"):
                    engine.infer([views[0], {**views[1], "pose": 1}], ignore_pose_inputs=True)
            elif not same(engine.infer(views), expected):
                return False
        return True

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(call, range(4)))


@pytest.mark.slow
def test_one_thread_at_a_time_reuses_results_of_none(engine: Engine) -> None:
    """A backend's buffers are written again by its next call; what was returned before must not change."""
    first = engine.infer(views_of(("", "")))
    kept = [{key: value.copy() for key, value in prediction.items()} for prediction in first]
    engine.infer(views_of(("kdp", "kdp")))
    assert same(first, kept)
