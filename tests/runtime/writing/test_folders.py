"""Folders appear whole, replace only what is ours, and take over what else is in the old one."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from mapengine.runtime.errors import OutputError
from mapengine.runtime.writing import replacement, staging
from mapengine.runtime.writing.folders import atomic_folder
from mapengine.runtime.writing.recognition import RECORD

from .test_files import raise_disk_full, tree

KIND = "samples"


def fill(folder: Path, text: str = "new") -> None:
    (folder / "sub").mkdir()
    (folder / "a.txt").write_text(f"{text} a")
    (folder / "sub" / "b.txt").write_text(f"{text} b")


def write(folder: Path, text: str = "new") -> None:
    with atomic_folder(folder, KIND) as temporary:
        fill(temporary, text)


def write_one(folder: Path, name: str) -> None:
    with atomic_folder(folder, KIND) as temporary:
        (temporary / name).parent.mkdir(exist_ok=True)
        (temporary / name).write_text("new")


def write_and_fail(folder: Path) -> None:
    with atomic_folder(folder, KIND) as temporary:
        fill(temporary)
        raise_disk_full()


def content(folder: Path) -> dict[str, str]:
    return {name: text for name, text in tree(folder).items() if Path(name).name != RECORD}


@pytest.fixture(params=["exchange", "one by one", "inside"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """How a folder takes the place of another: as this system does, without an exchange, and within the folder."""
    if request.param == "one by one":
        monkeypatch.setattr(replacement, "exchange", lambda *_: False)
    if request.param == "inside":
        monkeypatch.setattr(os.path, "ismount", lambda path: Path(path).name == "out")
    return str(request.param)


@pytest.fixture
def older(tmp_path: Path) -> Path:
    """An older result with a stale file, and what the user put there."""
    out = tmp_path / "out"
    with atomic_folder(out, KIND) as temporary:
        fill(temporary, "old")
        (temporary / "sub" / "stale.bin").write_text("old")
        (temporary / "gone").mkdir()
        (temporary / "gone" / "c.txt").write_text("old c")
    (out / "mine.txt").write_text("mine")
    (out / "sub" / "mine.txt").write_text("mine too")
    (out / "theirs" / "deep").mkdir(parents=True)
    (out / "theirs" / "deep" / "x").write_text("x")
    (out / "theirs" / "empty").mkdir()
    (out / "link").symlink_to("mine.txt")
    return out


def test_a_new_folder_appears_whole(tmp_path: Path) -> None:
    with atomic_folder(tmp_path / "p" / "out", KIND) as temporary:
        fill(temporary)
        assert not (tmp_path / "p" / "out").exists()
    assert content(tmp_path) == {"p/out/a.txt": "new a", "p/out/sub/b.txt": "new b"}
    assert [f.name for f in (tmp_path / "p").iterdir()] == ["out"]


def test_an_older_result_is_replaced_and_nothing_else(older: Path, way: str) -> None:
    older.chmod(0o750)
    write(older)
    assert content(older) == {
        "a.txt": "new a",
        "link": "mine",
        "mine.txt": "mine",
        "sub/b.txt": "new b",
        "sub/mine.txt": "mine too",
        "theirs/deep/x": "x",
    }
    assert (older / "link").is_symlink()
    assert (older / "theirs" / "empty").is_dir()
    assert not (older / "gone").exists()
    assert older.stat().st_mode & 0o777 == 0o750
    assert [f.name for f in older.parent.iterdir()] == ["out"]
    write(older, "third")  # and again
    assert content(older)["a.txt"] == "third a"


def test_the_current_folder_stays_the_current_one(older: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(older)
    number = older.stat().st_ino
    write(Path())
    assert Path("a.txt").read_text() == "new a"
    assert older.stat().st_ino == number
    assert [f.name for f in older.parent.iterdir()] == ["out"]


@pytest.mark.slow
def test_the_folder_is_there_all_the_time(older: Path) -> None:
    """Nobody who looks at any moment finds it missing, or the files of two results."""
    found: set[str] = set()
    stop = threading.Event()

    def look() -> None:
        while not stop.is_set():
            found.add((older / "a.txt").read_text())

    thread = threading.Thread(target=look)
    thread.start()
    for number in range(6):
        write(older, str(number % 2))
    stop.set()
    thread.join()
    assert found <= {"old a", "0 a", "1 a"}


@pytest.mark.parametrize("calls_before_failure", range(8))
@pytest.mark.parametrize("name", ["replace", "rename", "mkdir", "scandir"])
def test_a_failure_puts_everything_back(
    older: Path, way: str, monkeypatch: pytest.MonkeyPatch, name: str, calls_before_failure: int
) -> None:
    before = tree(older)
    calls = 0
    original: Callable[..., object] = getattr(os, name)

    def failing(*arguments: object, **options: object) -> object:
        nonlocal calls
        calls += 1
        if calls == calls_before_failure + 1:
            raise_disk_full()
        return original(*arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(os, name, failing)
        with suppress(OutputError):
            write(older)
    write_started = content(older) != {k: v for k, v in before.items() if Path(k).name != RECORD}
    staging.recover_folder(older)
    after = tree(older)
    if write_started:
        assert after["a.txt"] == "new a"
        assert "sub/stale.bin" not in after
    else:
        assert after == before
    assert {after["mine.txt"], after["sub/mine.txt"], after["theirs/deep/x"]} == {"mine", "mine too", "x"}
    staging.clean(older.parent)
    staging.clean(older)
    assert [f.name for f in older.parent.iterdir()] == ["out"]
    write(older, "again")
    assert content(older)["a.txt"] == "again a"


def test_a_failure_in_the_block_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="disk is full"):
        write_and_fail(tmp_path / "p" / "out")
    assert list(tmp_path.iterdir()) == []


def test_what_is_in_the_way_is_refused(older: Path, way: str) -> None:
    before = tree(older)
    (older.parent / "file").write_text("old")
    with pytest.raises(OutputError, match="not a folder"), atomic_folder(older.parent / "file", KIND):
        pytest.fail("the block must not run")
    for name, message in [
        ("mine.txt", "is in the way and not ours"),
        ("theirs", "is in the way and not ours"),
        ("link/x", "not a folder"),
        ("mine.txt/x", "not a folder"),
    ]:
        with pytest.raises(OutputError, match=message):
            write_one(older, name)
    assert tree(older) == before


def test_a_folder_that_is_not_ours_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.docx").write_text("years of work")
    with pytest.raises(OutputError, match="no samples that mapengine wrote"):
        write(tmp_path)
    write(tmp_path / "other")
    with (
        pytest.raises(OutputError, match="no COLMAP model that mapengine wrote"),
        atomic_folder(tmp_path / "other", "COLMAP model"),
    ):
        pytest.fail("the block must not run")
    (tmp_path / "other" / "a.txt").write_text("improved by hand")
    with pytest.raises(OutputError, match="was changed since mapengine wrote it"):
        write(tmp_path / "other")
    assert tree(tmp_path)["other/a.txt"] == "improved by hand"
    assert tree(tmp_path)["thesis.docx"] == "years of work"


def test_only_one_process_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(staging, "WAIT_SECONDS", 0.1)
    with atomic_folder(tmp_path / "out", KIND) as temporary:
        fill(temporary)
        with pytest.raises(OutputError, match="another process writes it now"):
            write(tmp_path / "out", "second")
    assert content(tmp_path / "out")["a.txt"] == "new a"


def test_a_second_one_waits_for_a_short_while(tmp_path: Path) -> None:
    entered = threading.Event()

    def first() -> None:
        with atomic_folder(tmp_path / "out", KIND) as temporary:
            fill(temporary, "first")
            entered.set()

    thread = threading.Thread(target=first)
    thread.start()
    entered.wait()
    write(tmp_path / "out", "second")
    thread.join()
    assert content(tmp_path / "out")["a.txt"] == "second a"


def test_an_exchange_that_fails_for_another_reason(older: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> bool:
        raise OSError(errno.EACCES, "Permission denied")

    before = tree(older)
    monkeypatch.setattr(replacement, "exchange", refuse)
    with pytest.raises(OutputError, match="no permission"):
        write(older)
    assert tree(older) == before
    assert [f.name for f in older.parent.iterdir()] == ["out"]


def test_somebody_elses_staging_folder_is_left_alone(older: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (".mapengine-0123456789abcdef", ".mapengine-0123456789abcdef-0123456789ab"):
        (older.parent / name).symlink_to(older)
    (older.parent / ".mapengine-notes").mkdir()
    write(older)
    assert len(list(older.parent.iterdir())) == 4
    assert content(older)["mine.txt"] == "mine"
