"""Visits: calls one after the other, and that what is over is deleted."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mapengine.runtime.errors import InputError, MemoryLimitError
from mapengine.serving.app.call import CallOptions
from mapengine.serving.app.limits import UploadLimits
from mapengine.serving.app.visits import Visit, Visits

from .conftest import StandInEngine, photograph

Make = Callable[..., Visits]


def upload(visit: Visit, name: str = "a.png") -> int:
    content = photograph()
    return visit.receive(name, len(content), io.BytesIO(content)).number


def ask(visits: Visits, visit: Visit, **options: Any) -> None:
    visits.ask(visit, CallOptions((upload(visit),), **options))


def wait(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)


def call_of(visits: Visits, visit: Visit) -> dict[str, Any]:
    return visits.state(visit)["call"]


def finish(visits: Visits, visit: Visit) -> dict[str, Any]:
    wait(lambda: not visit.busy)
    return call_of(visits, visit)


def files_in(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def test_a_call_gives_a_result_and_its_uploads_are_deleted(open_visits: Make) -> None:
    visits = open_visits()
    visit = visits.new()
    other = upload(visit, "unused.png")
    ask(visits, visit)
    assert finish(visits, visit)["state"] == "done"
    result = visits.state(visit)["result"]
    assert (result["views"], result["points"], result["number"]) == (["a.png"], 56 * 42 - 1, 1)
    assert {"reading", "dense_head", "post-processing"} == set(result["seconds"])
    assert result["total"] == pytest.approx(sum(result["seconds"].values()))
    assert result["memory"]["before"] > 0
    assert [path.name for path in files_in(visits.folder) if path.suffix == ".png"] == ["unused.png"]
    visit.uploads.remove([other])
    assert visit.result is not None
    assert visit.result.page.exists()


def test_calls_take_turns_and_know_how_many_come_first(open_visits: Make, stand_in: StandInEngine) -> None:
    stand_in.gate.clear()
    visits = open_visits(limits=UploadLimits(visits=3))
    first, second, third = (visits.new() for _ in range(3))
    ask(visits, first)
    wait(lambda: len(stand_in.calls) == 1)
    ask(visits, second)
    ask(visits, third)
    assert (call_of(visits, second)["ahead"], call_of(visits, third)["ahead"]) == (1, 2)
    second.stop()
    assert call_of(visits, second)["state"] == "cancelled"
    assert call_of(visits, third)["ahead"] == 1
    assert len(stand_in.calls) == 1
    stand_in.gate.set()
    assert [finish(visits, visit)["state"] for visit in (first, third)] == ["done", "done"]
    assert len(stand_in.calls) == 2


def test_a_call_that_runs_can_be_stopped(open_visits: Make, stand_in: StandInEngine) -> None:
    stand_in.gate.clear()
    visits = open_visits()
    visit = visits.new()
    ask(visits, visit)
    wait(lambda: len(stand_in.calls) == 1)
    with pytest.raises(InputError, match="not done yet"):
        ask(visits, visit)
    visit.stop()
    stand_in.gate.set()
    assert finish(visits, visit)["state"] == "cancelled"
    assert visit.result is None


@pytest.mark.parametrize(
    ("failure", "words"),
    [
        (MemoryLimitError("4 views take 9 GB, and 8 GB are free"), "9 GB"),
        (MemoryError(), "use fewer views"),
        (RuntimeError("odd"), "unexpected RuntimeError: odd"),
    ],
)
def test_a_failure_is_a_sentence_and_the_next_call_works(
    open_visits: Make, stand_in: StandInEngine, capfd: pytest.CaptureFixture[str], failure: Exception, words: str
) -> None:
    visits = open_visits()
    visit = visits.new()
    stand_in.failure = failure
    ask(visits, visit)
    state = finish(visits, visit)
    assert (state["state"], words in state["problem"]) == ("failed", True)
    assert files_in(visits.folder) == []
    assert ("Traceback" in capfd.readouterr().err) == isinstance(failure, RuntimeError)
    stand_in.failure = None
    ask(visits, visit)
    assert finish(visits, visit)["state"] == "done"


def test_a_message_names_files_as_their_owner_does(open_visits: Make) -> None:
    visits = open_visits()
    visit = visits.new()
    content = photograph()[:-40]  # the header is whole
    number = visit.receive("half.png", len(content), io.BytesIO(content)).number
    visits.ask(visit, CallOptions((number,)))
    problem = finish(visits, visit)["problem"]
    assert "half.png" in problem
    assert str(visits.folder) not in problem


def test_what_a_call_would_be_is_known_before(open_visits: Make) -> None:
    visits = open_visits(limits=UploadLimits())
    visit = visits.new()
    numbers = tuple(upload(visit, f"{index}.png") for index in range(5))
    found = visits.check(visit, CallOptions(numbers, every=2))
    assert found == {"count": 3, "first": ["0.png", "2.png", "4.png"], "last": "4.png"}
    assert visits.check(visit, CallOptions(numbers, max_views=2))["count"] == 2
    with pytest.raises(InputError, match="no file is chosen"):
        visits.check(visit, CallOptions(()))


def test_a_new_result_takes_the_place_of_the_last(open_visits: Make) -> None:
    visits = open_visits()
    visit = visits.new()
    for _ in range(2):
        ask(visits, visit)
        finish(visits, visit)
    assert len([path for path in files_in(visits.folder) if path.name == "page.html"]) == 1
    assert visits.state(visit)["result"]["number"] == 2


def test_who_leaves_leaves_nothing(open_visits: Make, stand_in: StandInEngine) -> None:
    visits = open_visits()
    visit = visits.new()
    ask(visits, visit)
    finish(visits, visit)
    upload(visit)
    stand_in.gate.clear()
    ask(visits, visit)
    wait(lambda: len(stand_in.calls) == 2)
    visits.end(visit)
    stand_in.gate.set()
    wait(lambda: not visit.busy)
    assert list(visits.folder.iterdir()) == []
    assert visit.wait(0, 0) is None
    with pytest.raises(InputError, match="has ended"):
        visits.find(visit.token)


def test_a_visit_ends_when_its_page_no_longer_listens(open_visits: Make) -> None:
    visits = open_visits(absent_seconds=0.1)
    listening, gone = visits.new(), visits.new()
    listening.listen(1)
    upload(gone)
    wait(lambda: not (visits.folder / gone.token).exists())
    assert visits.find(listening.token) is listening
    listening.listen(-1)
    wait(lambda: not list(visits.folder.iterdir()))


def test_too_many_pages_are_refused_until_one_is_idle(open_visits: Make) -> None:
    visits = open_visits(idle_seconds=0.2)
    first = visits.new()
    visits.new()
    with pytest.raises(InputError, match="2 pages are open"):
        visits.new()
    time.sleep(0.25)
    visits.new()
    with pytest.raises(InputError, match="has ended"):
        visits.find(first.token)


def test_closing_deletes_everything(open_visits: Make, stand_in: StandInEngine) -> None:
    visits = open_visits()
    visit = visits.new()
    upload(visit)
    stand_in.gate.clear()
    ask(visits, visit)
    stand_in.gate.set()
    visits.close()
    assert not visits.folder.exists()


def test_what_a_killed_server_left_is_deleted(open_visits: Make, temporary: Path) -> None:
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    (temporary / f"mapengine-app-{dead.pid}-abc" / "x").mkdir(parents=True)
    alive = temporary / f"mapengine-app-{os.getppid()}-abc"
    alive.mkdir()
    other = temporary / "mapengine-app-mine"
    other.mkdir()
    visits = open_visits()
    assert set(temporary.iterdir()) == {alive, other, visits.folder}
    assert oct(visits.folder.stat().st_mode)[-3:] == "700"


@pytest.mark.parametrize(
    "text",
    [
        *(b"[]", b"{", b"{}", b"\xff", b'{"files": [-1]}', b'{"files": [1.5]}', b'{"files": [0], "every": 0}'),
        *(b'{"files": [0], "size": "x"}', b'{"files": [0], "confidence_percentile": 101}', b'{"files": [0], "out": 1}'),
    ],
)
def test_what_no_page_sends_is_refused(text: bytes) -> None:
    with pytest.raises(InputError, match="the request"):
        CallOptions.of_json(text)
