"""What is counted, timed and said."""

from __future__ import annotations

from mapengine_ros.diagnostics import ERROR, OK, PHASES, STALE, WARN, Record, Stopwatch


def levels(record: Record, silent: list[tuple[str, str]], now: float) -> dict[str, tuple[int, str]]:
    return {status.name: (status.level, status.message) for status in record.statuses(silent, {}, now)}


def test_levels_follow_what_happens() -> None:
    record = Record(["a", "b"])
    assert levels(record, [("a", "image")], 0) == {
        "engine": (OK, "waiting for images"),
        "a": (WARN, "no image has come yet"),
        "b": (OK, "images come"),
    }
    record.count("a", "received")
    record.refuse("a", "the encoding is odd", 10)
    assert levels(record, [], 11)["a"] == (WARN, "the encoding is odd")
    assert levels(record, [], 16)["a"] == (OK, "images come")
    assert levels(record, [("a", "image")], 16)["a"] == (STALE, "no images come")
    assert levels(record, [("a", "pose")], 16)["a"] == (WARN, "left out, because nothing comes: pose")
    record.fail(["a", "b"], "the backend is gone", 20)
    assert levels(record, [], 21)["engine"] == (ERROR, "the backend is gone")
    record.finish(["a"], {"total": 0.2})
    assert levels(record, [], 30)["engine"] == (OK, "reconstructing")
    assert record.counts("a") == {"received": 1, "refused": 1, "failed": 1, "used": 1}


def test_latencies_are_medians_by_phase() -> None:
    record = Record(["a"])
    for seconds in (0.1, 0.3, 0.2):
        record.finish(["a"], {"infer": seconds})
    assert record.latencies() == {"infer": 0.2}
    values = record.statuses([], {"bundle": "x"}, 0)[0].values
    assert (values["bundle"], values["infer, median ms"], values["infer, longest ms"]) == ("x", "200.0", "300.0")


def test_a_stopwatch_names_the_phases() -> None:
    watch = Stopwatch(0.0)
    for phase in PHASES[1:-1]:
        with watch.phase(phase):
            pass
    assert tuple(watch.finish()) == PHASES
