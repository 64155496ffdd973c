from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from mapengine.runtime.errors import ImageReadError, OutputError
from mapengine.runtime.writing.files import atomic_write
from mapengine.runtime.writing.recognition import marker


def tree(folder: Path) -> dict[str, str]:
    return {str(f.relative_to(folder)): f.read_text() for f in sorted(folder.rglob("*")) if f.is_file()}


KIND = "scene"
OLD = f"<!-- {marker(KIND)} --> old"
"""What is recognised as an older file of the kind."""

DISK_FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def raise_disk_full(*_: object, **__: object) -> None:
    raise DISK_FULL


def write_and_fail(path: Path, error: BaseException) -> None:
    with atomic_write(path, KIND) as temporary:
        temporary.write_text("half")
        raise error


def test_write_creates_parents_and_keeps_the_suffix(tmp_path: Path) -> None:
    with atomic_write(tmp_path / "a" / "b" / "x.npz", KIND) as temporary:
        assert temporary.suffix == ".npz"
        temporary.write_text("new")
    assert tree(tmp_path) == {"a/b/x.npz": "new"}


def test_write_replaces_follows_links_and_keeps_the_mode(tmp_path: Path) -> None:
    (tmp_path / "real.txt").write_text(OLD)
    (tmp_path / "real.txt").chmod(0o640)
    (tmp_path / "link.txt").symlink_to(tmp_path / "real.txt")
    with atomic_write(tmp_path / "link.txt", KIND) as temporary:
        temporary.write_text("new")
    assert (tmp_path / "link.txt").is_symlink()
    assert (tmp_path / "real.txt").read_text() == "new"
    assert (tmp_path / "real.txt").stat().st_mode & 0o777 == 0o640


@pytest.mark.parametrize("error", [ValueError("x"), KeyboardInterrupt(), ImageReadError("view 0: not an image.")])
def test_write_passes_other_errors_and_leaves_nothing(tmp_path: Path, error: BaseException) -> None:
    (tmp_path / "x.txt").write_text(OLD)
    with pytest.raises(type(error)) as caught:
        write_and_fail(tmp_path / "x.txt", error)
    assert caught.value is error
    assert tree(tmp_path) == {"x.txt": OLD}


def test_write_disk_full(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="disk is full") as caught:
        write_and_fail(tmp_path / "new" / "x.txt", DISK_FULL)
    assert caught.value.errno == errno.ENOSPC
    assert list(tmp_path.iterdir()) == []


def test_write_disk_full_seen_only_at_flush(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "x.txt").write_text(OLD)
    monkeypatch.setattr(os, "fsync", raise_disk_full)
    with pytest.raises(OutputError, match="disk is full"), atomic_write(tmp_path / "x.txt", KIND) as temporary:
        temporary.write_text("new")
    assert tree(tmp_path) == {"x.txt": OLD}


def test_write_no_permission(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "x.txt").write_text(OLD)
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(OutputError, match="no permission"), atomic_write(tmp_path / "x.txt", KIND):
        pytest.fail("the block must not run")
    assert tree(tmp_path) == {"x.txt": OLD}


@pytest.mark.parametrize("code", [errno.EACCES, errno.EROFS, errno.EDQUOT, errno.EIO])
def test_write_fails_in_the_block(tmp_path: Path, code: int) -> None:
    with pytest.raises(OutputError, match=r"x\.txt: could not be written: "):
        write_and_fail(tmp_path / "x.txt", OSError(code, os.strerror(code)))
    assert tree(tmp_path) == {}


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (OSError(errno.EIO, "Input/output error"), "Input/output error"),
        (OSError("the device went away"), "the device went away"),
        (OSError(), "OSError"),
    ],
)
def test_a_failure_without_a_sentence_of_ours_is_told_as_it_is(tmp_path: Path, error: OSError, reason: str) -> None:
    with pytest.raises(OutputError, match=f": could not be written: {reason}$"):
        write_and_fail(tmp_path / "x.txt", error)


def test_write_refuses_folders_files_in_the_way_and_devices(tmp_path: Path) -> None:
    (tmp_path / "file").write_text(OLD)
    (tmp_path / "folder").mkdir()
    for path, message in [
        (tmp_path / "folder", "it is a folder"),
        (tmp_path / "file" / "x.txt", "is a file, not a folder"),
        (tmp_path / "file" / "deep" / "x.txt", "is a file, not a folder"),
        (Path(os.devnull), "device"),
        (tmp_path / ("n" * 300), "name is too long"),
    ]:
        with pytest.raises(OutputError, match=message), atomic_write(path, KIND) as temporary:
            temporary.write_text("new")
    assert not Path(os.devnull).is_file()
    assert tree(tmp_path) == {"file": OLD}


def test_write_without_a_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(OutputError), atomic_write(tmp_path / "x.txt", KIND):
        pass
    assert tree(tmp_path) == {}


def test_two_writers_of_one_file_do_not_meet(tmp_path: Path) -> None:
    with atomic_write(tmp_path / "x.txt", KIND) as first:
        first.write_text(OLD)
        with atomic_write(tmp_path / "x.txt", KIND) as second:
            second.write_text(OLD + " second")
    assert tree(tmp_path) == {"x.txt": OLD}


def test_what_came_meanwhile_is_not_replaced(tmp_path: Path) -> None:
    def write() -> None:
        with atomic_write(tmp_path / "x", KIND) as new:
            new.write_text(OLD)
            (tmp_path / "x").write_text("thesis")

    with pytest.raises(OutputError, match="was not written by mapengine"):
        write()
    assert tree(tmp_path) == {"x": "thesis"}
