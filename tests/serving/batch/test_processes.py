"""Workers and drivers that are killed: nothing is lost, nothing done twice, nothing half-written."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from PIL import Image

from mapengine.runtime import Scene
from mapengine.runtime.errors import OutputError
from mapengine.runtime.writing import staging
from mapengine.serving.batch.pools import LocalPool
from mapengine.serving.batch.records import read_result
from mapengine.serving.batch.run import Tally, run_batch
from mapengine.serving.batch.worker import Answer

from .small_scenes import InlinePool, leftovers, rows_of, small_batch, states_of, write_scene, write_scenes

pytestmark = pytest.mark.slow
PROGRAM = Path(sys.executable).parent / "mapengine"


def workers() -> list[psutil.Process]:
    """The processes that this one has started."""
    return psutil.Process().children()


def written(out: Path) -> dict[str, int]:
    """When the results that are there were written."""
    return {path.parent.name: path.stat().st_mtime_ns for path in out.glob("scenes/*/result.json")}


def wait_for(condition: Callable[[], Any], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not come"
        time.sleep(0.005)


def check_whole(out: Path, count: int) -> None:
    """All scenes are done, each result can be read, and nothing else is there."""
    assert list(states_of(out).values()) == ["done"] * count
    folders = sorted((out / "scenes").iterdir())
    assert len(folders) == count
    for folder in folders:
        found = read_result(folder)
        assert found is not None
        assert int(Scene.load(folder / "scene.npz").mask.sum()) == found.points
    assert leftovers(out) == []


def test_two_hundred_scenes_and_a_worker_that_is_killed(tiny_bundle: Path, tmp_path: Path) -> None:
    scenes, out = write_scenes(tmp_path / "scenes", 200), tmp_path / "out"
    before: dict[str, int] = {}
    killed: list[int] = []

    def kill(tally: Tally, answer: Answer) -> None:
        if tally.done in (20, 90):
            (victim, *_) = workers()
            killed.append(victim.pid)
            victim.kill()
            before.update(written(out))

    tally = run_batch(small_batch(tiny_bundle, scenes, out), LocalPool(2), progress=kill)
    assert (tally.done, tally.failed) == (200, 0)
    assert len(set(killed)) == 2
    check_whole(out, 200)
    assert before.items() <= written(out).items()  # not one of them was done again
    assert len({read_result(folder).run for folder in (out / "scenes").iterdir()}) == 1  # type: ignore[union-attr]
    assert workers() == []
    again = run_batch(small_batch(tiny_bundle, scenes, out), InlinePool())
    assert (again.before, again.todo) == (200, 0)


@pytest.fixture
def driver(tiny_bundle: Path, tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """A process that does 40 scenes with two workers, and has done some of them."""
    write_scenes(tmp_path / "scenes", 40)
    command = [PROGRAM, "batch", tiny_bundle, tmp_path / "scenes", tmp_path / "out", "--workers", "2"]
    command += ["--size", "56x42", "--backend", "onnxruntime", "--threads", "1"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        wait_for(lambda: len(written(tmp_path / "out")) >= 5 or process.poll() is not None)
        yield process
        process.kill()


def test_one_driver_at_a_time_and_the_next_goes_on_after_a_killed_one(
    driver: subprocess.Popen[str], tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, again = tmp_path / "out", small_batch(tiny_bundle, tmp_path / "scenes", tmp_path / "out")
    children = psutil.Process(driver.pid).children()
    os.kill(driver.pid, signal.SIGSTOP)  # alive, and not done before it is met
    with monkeypatch.context() as patch:
        patch.setattr(staging, "WAIT_SECONDS", 0.1)
        with pytest.raises(OutputError, match=r"out: another process writes it now; wait until that is done"):
            run_batch(again, InlinePool())
    assert not (out / "results.parquet").exists()
    driver.kill()
    driver.wait()
    wait_for(lambda: not any(child.is_running() for child in children), 10)  # they end with the one that started them
    before = written(out)
    assert 5 <= len(before) < 40
    tally = run_batch(again, InlinePool())
    assert (tally.before, tally.done) == (len(before), 40 - len(before))
    check_whole(out, 40)
    assert before.items() <= written(out).items()


def test_a_polite_end_leaves_a_table(driver: subprocess.Popen[str], tmp_path: Path) -> None:
    driver.terminate()
    _, said = driver.communicate(timeout=60)
    assert driver.returncode == 130
    assert "of 40 scenes are done; the same command goes on" in said
    assert set(states_of(tmp_path / "out").values()) == {"done", "pending"}
    assert leftovers(tmp_path / "out") == []


def test_a_scene_that_takes_more_memory_than_it_may(tiny_bundle: Path, tmp_path: Path) -> None:
    scenes, out = write_scenes(tmp_path / "scenes", 4), tmp_path / "out"
    Image.fromarray(np.zeros((9000, 9000), np.uint8)).save(scenes / "s001" / "0.png", compress_level=1)
    tally = run_batch(small_batch(tiny_bundle, scenes, out, memory=400_000_000), LocalPool(1))
    assert (tally.done, tally.failed) == (3, 1)
    row = rows_of(out)["s001"]
    assert row["state"] == "failed"
    assert "it takes more than the 400 MB of memory that a worker may take" in row["error"]
    assert leftovers(out) == []


def test_a_scene_that_kills_its_worker_is_given_up(tiny_bundle: Path, tmp_path: Path) -> None:
    scenes, out = write_scenes(tmp_path / "scenes", 3), tmp_path / "out"
    write_scene(scenes / "poison")
    Image.fromarray(np.zeros((4000, 4000), np.uint8)).save(scenes / "poison" / "0.png")  # long enough to be met
    over = threading.Event()
    kills = []

    def poison() -> None:
        """Kill the worker that is at work on the scene, every time."""
        while not over.wait(0.001):
            for found in out.glob(".mapengine-*/attempt-poison"):
                count = found.read_text().partition(" ")[0]
                if count not in kills:
                    kills.append(count)
                    for process in workers():
                        process.kill()

    thread = threading.Thread(target=poison)
    thread.start()
    try:
        tally = run_batch(small_batch(tiny_bundle, scenes, out), LocalPool(1))
    finally:
        over.set()
        thread.join()
    assert kills == ["1", "2", "3"]
    assert (tally.done, tally.failed) == (3, 1)
    assert "its worker ended 3 times while it was at work on this scene" in rows_of(out)["poison"]["error"]
    assert leftovers(out) == []
