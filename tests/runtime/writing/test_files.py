from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from mapengine.runtime.errors import ImageReadError, OutputError
from mapengine.runtime.writing.files import atomic_folder, atomic_write


def tree(folder: Path) -> dict[str, str]:
    return {str(f.relative_to(folder)): f.read_text() for f in sorted(folder.rglob("*")) if f.is_file()}


DISK_FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def raise_disk_full(*_: object, **__: object) -> None:
    raise DISK_FULL


def write_and_fail(path: Path, error: BaseException) -> None:
    with atomic_write(path) as temporary:
        temporary.write_text("half")
        raise error


def test_write_creates_parents_and_keeps_the_suffix(tmp_path: Path) -> None:
    with atomic_write(tmp_path / "a" / "b" / "x.npz") as temporary:
        assert temporary.suffix == ".npz"
        assert temporary.parent == tmp_path / "a" / "b"
        temporary.write_text("new")
    assert tree(tmp_path) == {"a/b/x.npz": "new"}


def test_write_replaces_follows_links_and_keeps_the_mode(tmp_path: Path) -> None:
    (tmp_path / "real.txt").write_text("old")
    (tmp_path / "real.txt").chmod(0o640)
    (tmp_path / "link.txt").symlink_to(tmp_path / "real.txt")
    with atomic_write(tmp_path / "link.txt") as temporary:
        temporary.write_text("new")
    assert (tmp_path / "link.txt").is_symlink()
    assert (tmp_path / "real.txt").read_text() == "new"
    assert (tmp_path / "real.txt").stat().st_mode & 0o777 == 0o640


@pytest.mark.parametrize("error", [ValueError("x"), KeyboardInterrupt(), ImageReadError("view 0: not an image.")])
def test_write_passes_other_errors_and_leaves_nothing(tmp_path: Path, error: BaseException) -> None:
    (tmp_path / "x.txt").write_text("old")
    with pytest.raises(type(error)) as caught:
        write_and_fail(tmp_path / "x.txt", error)
    assert caught.value is error
    assert tree(tmp_path) == {"x.txt": "old"}


def test_write_disk_full(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="disk is full") as caught:
        write_and_fail(tmp_path / "new" / "x.txt", DISK_FULL)
    assert caught.value.errno == errno.ENOSPC
    assert list(tmp_path.iterdir()) == []


def test_write_disk_full_seen_only_at_flush(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "x.txt").write_text("old")
    monkeypatch.setattr(os, "fsync", raise_disk_full)
    with pytest.raises(OutputError, match="disk is full"), atomic_write(tmp_path / "x.txt") as temporary:
        temporary.write_text("new")
    assert tree(tmp_path) == {"x.txt": "old"}


def test_write_no_permission(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "x.txt").write_text("old")
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(OutputError, match="no permission"), atomic_write(tmp_path / "x.txt"):
        pytest.fail("the block must not run")
    assert tree(tmp_path) == {"x.txt": "old"}


@pytest.mark.parametrize("code", [errno.EACCES, errno.EROFS, errno.EDQUOT, errno.EIO])
def test_write_fails_in_the_block(tmp_path: Path, code: int) -> None:
    with pytest.raises(OutputError, match=r"x\.txt: could not be written: "):
        write_and_fail(tmp_path / "x.txt", OSError(code, os.strerror(code)))
    assert tree(tmp_path) == {}


def test_write_refuses_folders_files_in_the_way_and_devices(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("old")
    (tmp_path / "folder").mkdir()
    for path, message in [
        (tmp_path / "folder", "it is a folder"),
        (tmp_path / "file" / "x.txt", "is a file, not a folder"),
        (tmp_path / "file" / "deep" / "x.txt", "is a file, not a folder"),
        (Path(os.devnull), "device"),
        (tmp_path / ("n" * 300), "name is too long"),
    ]:
        with pytest.raises(OutputError, match=message), atomic_write(path) as temporary:
            temporary.write_text("new")
    assert not Path(os.devnull).is_file()
    assert tree(tmp_path) == {"file": "old"}


def test_write_without_a_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(OutputError), atomic_write(tmp_path / "x.txt"):
        pass
    assert tree(tmp_path) == {}


def fill(folder: Path) -> None:
    (folder / "sub").mkdir()
    (folder / "a.txt").write_text("new a")
    (folder / "sub" / "b.txt").write_text("new b")


def test_folder_is_created(tmp_path: Path) -> None:
    with atomic_folder(tmp_path / "p" / "out") as temporary:
        fill(temporary)
        assert not (tmp_path / "p" / "out").exists()
    assert tree(tmp_path) == {"p/out/a.txt": "new a", "p/out/sub/b.txt": "new b"}
    assert [f.name for f in (tmp_path / "p").iterdir()] == ["out"]


def fill_and_fail(folder: Path) -> None:
    fill(folder)
    raise DISK_FULL


def existing(folder: Path) -> dict[str, str]:
    (folder / "sub").mkdir()
    (folder / "sub" / "b.txt").write_text("old b")
    (folder / "sub" / "stale.bin").write_text("old")
    (folder / "mine.txt").write_text("keep")
    return tree(folder)


def test_folder_merges_into_an_existing_one(tmp_path: Path) -> None:
    existing(tmp_path)
    with atomic_folder(tmp_path, stale=["sub/stale.bin", "not/there.bin"]) as temporary:
        fill(temporary)
    assert tree(tmp_path) == {"a.txt": "new a", "mine.txt": "keep", "sub/b.txt": "new b"}
    assert not [f for f in tmp_path.iterdir() if f.name.startswith(".")]


@pytest.mark.parametrize("calls_before_failure", range(4))
def test_folder_puts_everything_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, calls_before_failure: int
) -> None:
    before = existing(tmp_path)
    calls = 0
    replace = os.replace

    def failing(source: Path, destination: Path) -> None:
        nonlocal calls
        calls += 1
        if calls == calls_before_failure + 1:
            raise_disk_full()
        replace(source, destination)

    monkeypatch.setattr(os, "replace", failing)
    with (
        pytest.raises(OutputError, match="disk is full"),
        atomic_folder(tmp_path, stale=["sub/stale.bin"]) as temporary,
    ):
        fill(temporary)
    assert tree(tmp_path) == before
    assert sorted(f.name for f in tmp_path.iterdir()) == ["mine.txt", "sub"]


def test_folder_failure_in_the_block_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="disk is full"), atomic_folder(tmp_path / "p" / "out") as temporary:
        fill_and_fail(temporary)
    assert list(tmp_path.iterdir()) == []


def test_folder_refuses_files_in_the_way(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("old")
    with pytest.raises(OutputError, match="not a folder"), atomic_folder(tmp_path / "out"):
        pytest.fail("the block must not run")
    (tmp_path / "dir" / "a.txt").mkdir(parents=True)
    with pytest.raises(OutputError, match="it is a folder"), atomic_folder(tmp_path / "dir") as temporary:
        fill(temporary)
    (tmp_path / "dir2").mkdir()
    (tmp_path / "dir2" / "sub").write_text("old")
    with pytest.raises(OutputError, match="not a folder"), atomic_folder(tmp_path / "dir2") as temporary:
        fill(temporary)
    assert tree(tmp_path) == {"dir2/sub": "old", "out": "old"}
