"""A process that is killed at any step leaves the old result or the new one, and nothing that is not tidied up."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from mapengine.runtime.writing import replacement, staging
from mapengine.runtime.writing.files import write_text
from mapengine.runtime.writing.recognition import RECORD

from .deaths import dies_at, is_killed_at
from .test_files import tree
from .test_folders import content, fill, write

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are killed as POSIX has it")


def hidden(folder: Path) -> list[str]:
    return [path.name for path in folder.rglob("*") if path.name.startswith(".mapengine")]


def older(out: Path) -> None:
    write(out, "old")
    (out / "mine.txt").write_text("mine")
    (out / "sub" / "mine.txt").write_text("mine too")
    (out / "theirs").mkdir()
    (out / "theirs" / "x").write_text("x")


@pytest.mark.parametrize(
    "way", ["exchange", *(pytest.param(w, marks=pytest.mark.slow) for w in ("one by one", "inside"))]
)
@pytest.mark.parametrize("before", ["nothing", *(pytest.param(b, marks=pytest.mark.slow) for b in ("empty", "older"))])
def test_killed_at_every_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, before: str, way: str) -> None:
    if way == "one by one":
        monkeypatch.setattr(replacement, "exchange", lambda *_: False)
    if way == "inside":
        monkeypatch.setattr(os.path, "ismount", lambda path: Path(path).name == "out")
    for step in range(200):
        home = tmp_path / str(step)
        home.mkdir()
        out = home / "out"
        if before == "empty":
            out.mkdir()
        if before == "older":
            older(out)
        kept = {"mine.txt": "mine", "sub/mine.txt": "mine too", "theirs/x": "x"} if before == "older" else {}
        killed = dies_at(step, lambda out=out: write(out))  # type: ignore[misc]
        if way == "exchange" and before == "older":
            # As others see it, before anybody tidies up: the old result or the new one, never less.
            assert content(out)["a.txt"] in ("old a", "new a")
        staging.recover_folder(out)  # what opening does
        found = content(out) if out.exists() else {}
        new = {"a.txt": "new a", "sub/b.txt": "new b"} | kept
        old = {"a.txt": "old a", "sub/b.txt": "old b"} | kept if before == "older" else {}
        assert found in (old, new)
        assert killed or found == new
        write(out, "again")
        assert content(out) == {"a.txt": "again a", "sub/b.txt": "again b"} | kept
        assert (out / RECORD).exists()
        assert hidden(home) == []
        if not killed:
            assert step > 10
            return
    pytest.fail("it never ended")


@pytest.mark.slow
def test_a_killed_process_leaves_the_same(tmp_path: Path) -> None:
    """What the other tests call the end of a process is one."""
    for step in range(0, 200, 6):
        left, ended = {}, set()
        for end in (dies_at, is_killed_at):
            home = tmp_path / str(step) / end.__name__
            home.mkdir(parents=True)
            older(home / "out")
            ended.add(end(step, lambda home=home: write(home / "out")))  # type: ignore[misc]
            # A journal names inodes, which are others in another folder.
            left[end] = {path: text for path, text in tree(home).items() if not path.endswith("journal.json")}
        assert left[dies_at] == left[is_killed_at]
        if ended == {False}:
            return
        assert ended == {True}
    pytest.fail("it never ended")


@pytest.mark.slow
def test_a_file_killed_at_every_step(tmp_path: Path) -> None:
    for step in range(100):
        path = tmp_path / str(step) / "x.md"
        write_text(path, "profile", "<!-- mapengine profile --> old")
        killed = dies_at(step, lambda path=path: write_text(path, "profile", "<!-- mapengine profile --> new"))  # type: ignore[misc]
        assert path.read_text().endswith((" old", " new"))
        write_text(path.with_name("other.md"), "profile", "<!-- mapengine profile -->")  # another result tidies up too
        assert sorted(entry.name for entry in path.parent.iterdir()) == ["other.md", "x.md"]
        if not killed:
            assert path.read_text().endswith(" new")
            return
    pytest.fail("it never ended")


@pytest.mark.slow
def test_what_cannot_be_understood_is_not_removed(tmp_path: Path) -> None:
    """A journal that was damaged may stand beside the only copy of something."""
    out = tmp_path / "out"
    older(out)
    step = 0
    while True:  # find the moment after the exchange, when the old folder is in the staging folder
        dies_at(step, lambda: write(out))
        places = [path for path in tmp_path.iterdir() if path.name.startswith(".mapengine")]
        if places and (places[0] / "new" / "mine.txt").exists():
            break
        write(out, "old")
        step += 1
    (places[0] / "journal.json").write_text("{")
    with pytest.raises(OSError, match="was left by a process that was killed; move what is yours out"):
        write(out)
    assert (places[0] / "new" / "mine.txt").read_text() == "mine"


def test_a_living_process_is_not_tidied_up(tmp_path: Path) -> None:
    with staging.staging(tmp_path / "out") as place:
        place.new.mkdir()
        fill(place.new)
        child = os.fork()
        if child == 0:  # pragma: no cover
            staging.clean(tmp_path)
            os._exit(0)
        os.waitpid(child, 0)
        assert (place.new / "a.txt").exists()
