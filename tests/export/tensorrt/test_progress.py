"""Nested phases become one fraction that never falls."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from mapengine.export.tensorrt.progress import PhaseProgress


def test_phases_count_as_steps_of_their_parent() -> None:
    seen: list[tuple[float, str]] = []
    progress = PhaseProgress(lambda fraction, phase: seen.append((round(fraction, 6), phase)))
    progress.begin("Build", None, 2)
    progress.begin("Part", "Build", 4)
    progress.step("Part", 0)
    progress.step("Part", 1)
    progress.end("Part")
    progress.step("Build", 0)
    progress.step("Build", 1)
    progress.end("Build")
    assert [fraction for fraction, _ in seen] == [0, 0, 0.125, 0.25, 0.25, 0.5, 1, 1]
    assert seen[2][1] == "part"


def test_the_phases_that_compile_take_most_of_their_parent() -> None:
    seen: list[float] = []
    progress = PhaseProgress(lambda fraction, _: seen.append(fraction), 0.2, 0.8)
    progress.begin("Building engine", None, 2)
    progress.step("Building engine", 0)
    before = seen[-1]
    progress.begin("Building engine from subgraph", "Building engine", 2)
    progress.step("Building engine from subgraph", 0)
    progress.step("Building engine from subgraph", 1)
    assert before == 0.5
    assert seen[-1] - 0.2 > 0.9 * 0.6
    progress.end("Building engine")
    assert seen[-1] == 0.8
    assert seen == sorted(seen)


EVENTS = st.tuples(
    st.sampled_from(["begin", "step", "end"]),
    st.sampled_from(["Building engine", "Building engine from subgraph", "a", "b", "c"]),
    st.sampled_from([None, "Building engine", "Building engine from subgraph", "a", "b", "unknown"]),
    st.integers(0, 8),
)


@given(st.lists(EVENTS, max_size=40))
def test_any_order_of_events_is_monotone(events: list[tuple[str, str, str | None, int]]) -> None:
    seen: list[float] = []
    progress = PhaseProgress(lambda fraction, _: seen.append(fraction), 0.1, 0.9)
    for kind, name, parent, count in events:
        if kind == "begin" and parent != name:
            progress.begin(name, parent, count)
        elif kind == "step":
            progress.step(name, count)
        elif kind == "end":
            progress.end(name)
    assert seen == sorted(seen)
    assert all(0.1 <= fraction <= 0.9 for fraction in seen)
