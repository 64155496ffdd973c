"""A run does what is missing or changed, records what fails, and refuses what it must not touch."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import pytest

from mapengine.runtime import Engine, Scene
from mapengine.runtime.errors import InputError, OutputError
from mapengine.serving.batch.job import Attempts, Job
from mapengine.serving.batch.records import read_result
from mapengine.serving.batch.run import BatchError, Tally, run_batch
from mapengine.serving.batch.worker import Answer

from ...stage_files import change_manifest
from .small_scenes import InlinePool, leftovers, rows_of, small_batch, states_of, write_scene, write_scenes

pytestmark = pytest.mark.slow  # the bundle is built once for all of them
Run = Callable[..., Tally]


@pytest.fixture
def run(tiny_bundle: Path, tmp_path: Path) -> Run:
    """Runs the scenes of ``tmp_path / "scenes"`` into ``tmp_path / "out"`` in this process."""

    def call(scenes: Path | str = tmp_path / "scenes", out: Path = tmp_path / "out", **changes: Any) -> Tally:
        watchers = {name: changes.pop(name) for name in ("planned", "progress") if name in changes}
        bundle = changes.pop("bundle", tiny_bundle)
        return run_batch(small_batch(bundle, scenes, out, **changes), InlinePool(), **watchers)

    return call


def counts(tally: Tally) -> tuple[int, int, int, int]:
    """Done now, done before, read again, failed."""
    return tally.done, tally.before, tally.reread, tally.failed


def test_a_result_is_what_run_gives(run: Run, tiny_bundle: Path, tmp_path: Path) -> None:
    write_scenes(tmp_path / "scenes", 2)
    assert counts(run(formats=("npz", "ply", "colmap"))) == (2, 0, 0, 0)
    engine = Engine.load(tiny_bundle, "onnxruntime", threads=1)
    expected = engine.reconstruct(tmp_path / "scenes" / "s001", size=(56, 42))
    folder = tmp_path / "out" / "scenes" / "s001"
    found = Scene.load(folder / "scene.npz")
    assert (found.points == expected.points).all()
    assert {path.name for path in folder.iterdir()} == {
        "scene.npz", "scene.ply", "colmap", "result.json", "mapengine.json"
    }  # fmt: skip
    row = rows_of(tmp_path / "out")["s001"]
    assert list(row) == ["id", "state", "seconds", "views", "points", "scale", "error"]
    assert (row["state"], row["views"], row["points"], row["error"]) == ("done", 2, int(expected.mask.sum()), None)
    assert row["scale"] == expected.metric_scale
    assert 0 < row["seconds"] < 100
    record = read_result(folder)
    assert record is not None
    assert record.bundle == engine.digest
    assert leftovers(tmp_path / "out") == []


def test_a_second_run_does_what_is_missing_or_changed(run: Run, tmp_path: Path) -> None:
    scenes = write_scenes(tmp_path / "scenes", 6)
    run()
    done = {path.name: os.stat(path / "result.json").st_mtime_ns for path in (tmp_path / "out" / "scenes").iterdir()}
    assert counts(run()) == (0, 6, 0, 0)
    shutil.rmtree(tmp_path / "out" / "scenes" / "s000")  # missing
    (tmp_path / "out" / "scenes" / "s001" / "scene.npz").unlink()  # missing in part
    write_scene(scenes / "s002", 99)  # other images
    shutil.copy(scenes / "s003" / "0.png", scenes / "s003" / "2.png")  # one more image
    os.utime(scenes / "s004" / "0.png")  # another time, the same bytes
    plans: list[str] = []
    tally = run(planned=lambda tally: plans.append(tally.plan()))
    assert plans == ["6 scenes: 1 are done, 5 to do (2 missing, 3 with files that were written to)"]
    assert counts(tally) == (4, 1, 1, 0)
    now = {path.name: os.stat(path / "result.json").st_mtime_ns for path in (tmp_path / "out" / "scenes").iterdir()}
    assert {name for name in done if done[name] == now[name]} == {"s004", "s005"}
    assert rows_of(tmp_path / "out")["s003"]["views"] == 3
    assert set(states_of(tmp_path / "out").values()) == {"done"}


def test_other_options_or_another_bundle_are_a_change(run: Run, tiny_bundle: Path, tmp_path: Path) -> None:
    write_scenes(tmp_path / "scenes", 2)
    lines = [{"id": n, "inputs": f"scenes/s00{n}"} for n in range(2)]
    listed = tmp_path / "list.jsonl"

    def write() -> None:
        listed.write_text("".join(json.dumps(line) + "\n" for line in lines))

    write()
    assert counts(run(listed)) == (2, 0, 0, 0)
    lines[0]["options"] = {"max_views": 1}
    write()
    assert counts(run(listed)) == (1, 1, 0, 0)
    assert [row["views"] for row in rows_of(tmp_path / "out").values()] == [1, 2]
    assert counts(run(listed, options={"mask_edges": False})) == (2, 0, 0, 0)
    assert counts(run(listed, formats=("ply",), options={"mask_edges": False})) == (2, 0, 0, 0)
    assert not (tmp_path / "out" / "scenes" / "0" / "scene.npz").exists()
    other = tmp_path / "other"
    shutil.copytree(tiny_bundle, other)
    assert counts(run(listed, bundle=other, formats=("ply",), options={"mask_edges": False})) == (0, 2, 0, 0)
    change_manifest(other, lambda document: document["model"].update(id="another"))
    assert counts(run(listed, bundle=other, formats=("ply",), options={"mask_edges": False})) == (2, 0, 0, 0)


def test_images_that_a_list_names_elsewhere_count(run: Run, tmp_path: Path) -> None:
    write_scene(tmp_path / "images")
    (tmp_path / "scenes").mkdir()
    views = [{"image": "../images/0.png"}, {"image": "../images/1.png"}]
    (tmp_path / "scenes" / "a.json").write_text(json.dumps(views))
    assert counts(run()) == (1, 0, 0, 0)
    assert counts(run()) == (0, 1, 0, 0)
    write_scene(tmp_path / "images", 5)
    assert counts(run()) == (1, 0, 0, 0)


def test_what_fails_is_recorded_and_tried_again(run: Run, tmp_path: Path) -> None:
    scenes = write_scenes(tmp_path / "scenes", 4)
    (scenes / "s001" / "0.png").write_bytes(b"\x89PNG\r\n\x1a\n and then noise")
    for view in range(2):
        (scenes / "s002" / f"{view}.png").unlink()
    tally = run()
    assert counts(tally) == (2, 0, 0, 2)
    rows = rows_of(tmp_path / "out")
    assert [row["state"] for row in rows.values()] == ["done", "failed", "failed", "done"]
    assert "0.png" in rows["s001"]["error"]
    assert "s002" in rows["s002"]["error"]
    assert not (tmp_path / "out" / "scenes" / "s001" / "scene.npz").exists()
    write_scene(scenes / "s001", 1)
    plans: list[str] = []
    assert counts(run(planned=lambda tally: plans.append(tally.plan()))) == (1, 2, 0, 1)
    assert "2 failed before" in plans[0]
    assert rows_of(tmp_path / "out")["s001"]["error"] is None


def test_a_wrong_option_fails_its_scene_alone(run: Run, tmp_path: Path) -> None:
    write_scenes(tmp_path / "scenes", 1)
    rows = [{"id": "a", "inputs": "scenes/s000"}, {"id": "b", "inputs": "scenes/s000", "options": {"max_viws": 1}}]
    (tmp_path / "list.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert counts(run(tmp_path / "list.jsonl")) == (1, 0, 0, 1)
    assert "max_viws" in rows_of(tmp_path / "out")["b"]["error"]


def test_more_failures_than_may_be_stop_it(run: Run, tmp_path: Path) -> None:
    scenes = write_scenes(tmp_path / "scenes", 6)
    for image in scenes.glob("*/0.png"):
        image.write_bytes(b"noise")
    with pytest.raises(BatchError, match=r"2 scenes failed, and 1 may \(--max-failures\).*4 scenes are left"):
        run(max_failures=1)
    states = list(states_of(tmp_path / "out").values())
    assert sorted(states) == ["failed"] * 2 + ["pending"] * 4
    with pytest.raises(BatchError, match="1 scenes failed, and 0 may"):
        run(max_failures=0)
    assert run(max_failures=6).failed == 6


def test_ids_that_are_no_names_and_ids_that_are_there_twice(run: Run, tmp_path: Path) -> None:
    write_scenes(tmp_path / "scenes", 1)
    rows = [{"id": name, "inputs": "scenes/s000"} for name in ("../up", "a/b", "a%2Fb", "", "x" * 300)[:3]]
    (tmp_path / "list.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert run(tmp_path / "list.jsonl").done == 3
    assert set(states_of(tmp_path / "out")) == {"../up", "a/b", "a%2Fb"}
    assert len(list((tmp_path / "out" / "scenes").iterdir())) == 3
    assert sorted(path.name for path in tmp_path.iterdir()) == ["list.jsonl", "out", "scenes"]
    with (tmp_path / "list.jsonl").open("a") as file:
        file.write(json.dumps(rows[1]) + "\n")
    with pytest.raises(InputError, match=r"line 4: has the id 'a/b', which .*list.jsonl, line 2 has already"):
        run(tmp_path / "list.jsonl")
    (tmp_path / "list.jsonl").write_text(json.dumps({"id": "x" * 300, "inputs": "scenes/s000"}))
    with pytest.raises(InputError, match=r"line 1: the id .* is too long"):
        run(tmp_path / "list.jsonl")
    assert set(states_of(tmp_path / "out")) == {"../up", "a/b", "a%2Fb"}  # of the run that was one


def test_scenes_at_an_address_are_fetched_and_compared(run: Run, tmp_path: Path) -> None:
    system = fsspec.filesystem("memory")
    write_scenes(tmp_path / "here", 2)
    system.put(str(tmp_path / "here"), "/batch-test/scenes", recursive=True)
    assert counts(run("memory://batch-test/scenes")) == (2, 0, 0, 0)
    assert counts(run("memory://batch-test/scenes")) == (0, 2, 0, 0)
    write_scene(tmp_path / "new", 7)
    system.put(str(tmp_path / "new" / "0.png"), "/batch-test/scenes/s001/0.png")
    assert counts(run("memory://batch-test/scenes")) == (1, 1, 0, 0)
    rows = [
        {"id": "files", "inputs": ["scenes/s000/0.png", "memory://batch-test/scenes/s000/1.png"]},
        {"id": "pattern", "inputs": ["scenes/s001/*.png"]},
        {"id": "gone", "inputs": ["scenes/s009"]},
    ]
    system.pipe("/batch-test/list.jsonl", "\n".join(map(json.dumps, rows)).encode())
    tally = run("memory://batch-test/list.jsonl", tmp_path / "listed")
    assert counts(tally) == (2, 0, 0, 1)
    found = rows_of(tmp_path / "listed")
    assert [found[name]["views"] for name in ("files", "pattern")] == [2, 2]
    assert "memory://batch-test/scenes/s009" in found["gone"]["error"]
    assert counts(run("memory://batch-test/list.jsonl", tmp_path / "listed")) == (0, 2, 0, 1)
    assert leftovers(tmp_path / "listed") == []


def test_a_folder_that_is_not_ours_stays_as_it_is(run: Run, tmp_path: Path) -> None:
    write_scenes(tmp_path / "scenes", 2)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("mine")
    with pytest.raises(OutputError, match="not empty and no batch that mapengine wrote"):
        run()
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["mine.txt"]
    (tmp_path / "out" / "mine.txt").unlink()
    mine = tmp_path / "out" / "scenes" / "s001" / "mine.txt"
    run()
    mine.write_text("mine")
    write_scene(tmp_path / "scenes" / "s001", 8)
    assert counts(run()) == (1, 1, 0, 0)
    assert mine.read_text() == "mine"  # what a user put beside a result stays beside the new one
    shutil.rmtree(mine.parent)
    mine.parent.mkdir()
    mine.write_text("mine")
    assert counts(run()) == (0, 1, 0, 1)
    assert [path.name for path in mine.parent.iterdir()] == ["mine.txt"]
    assert "not empty and no scene of a batch" in rows_of(tmp_path / "out")["s001"]["error"]


def test_a_list_that_is_wrong_makes_nothing(run: Run, tmp_path: Path) -> None:
    (tmp_path / "list.jsonl").write_text('{"id": "a", "inputs": "x"}\n{"id": "b"}\n')
    with pytest.raises(InputError, match="line 2: inputs is None"):
        run(tmp_path / "list.jsonl")
    assert not (tmp_path / "out").exists()


def test_files_that_change_while_they_are_read_fail_their_scene(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_scenes(tmp_path / "scenes", 1)
    reconstruct = Engine.reconstruct_views

    def writing(self: Engine, *views: Any, **options: Any) -> Scene:
        write_scene(tmp_path / "scenes" / "s000", 5)
        return reconstruct(self, *views, **options)

    monkeypatch.setattr(Engine, "reconstruct_views", writing)
    assert run().failed == 1
    assert "written to while they were read" in rows_of(tmp_path / "out")["s000"]["error"]


def test_a_full_disk_stops_it(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_scenes(tmp_path / "scenes", 3)

    def full(self: Scene, path: Path, **options: Any) -> Path:
        error = OutputError(f"{path}: could not be written: the disk is full")
        error.errno = 28
        raise error

    monkeypatch.setattr(Scene, "save", full)
    with pytest.raises(BatchError, match="the disk is full; 0 scenes were done in this run, 3 are left"):
        run()
    assert set(states_of(tmp_path / "out").values()) == {"pending"}


def test_an_interrupt_says_how_far_it_came(run: Run, tmp_path: Path) -> None:
    write_scenes(tmp_path / "scenes", 5)

    def interrupt(tally: Tally, answer: Answer) -> None:
        if tally.done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt, match="2 of 5 scenes are done; the same command goes on"):
        run(progress=interrupt)
    assert sorted(states_of(tmp_path / "out").values()) == ["done"] * 2 + ["pending"] * 3
    assert leftovers(tmp_path / "out") == []
    assert counts(run()) == (3, 2, 0, 0)


def test_a_scene_is_given_up_after_three_dead_workers(tiny_bundle: Path, tmp_path: Path) -> None:
    write_scenes(tmp_path / "scenes", 2)

    class AfterDeaths(InlinePool):
        def run(self, job: Job, offsets: Any, count: int) -> Any:
            Attempts.of(job, "s000").write(3)
            Attempts.of(job, "s001").write(2)
            return super().run(job, offsets, count)

    tally = run_batch(small_batch(tiny_bundle, tmp_path / "scenes", tmp_path / "out"), AfterDeaths())
    assert counts(tally) == (1, 0, 0, 1)
    assert "its worker ended 3 times" in rows_of(tmp_path / "out")["s000"]["error"]
