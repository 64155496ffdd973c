"""What cannot be written to is refused before anything is computed."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from mapengine.runtime.errors import OutputError
from mapengine.runtime.writing.output_checks import check_writable


def test_what_can_be_written_is_left_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "old").touch()
    for path in ("new", "deep/er/new", "old"):
        check_writable(tmp_path / path, "scene")
    (tmp_path / "empty").mkdir()
    for path in ("empty", "new", "deep/er/new"):
        check_writable(tmp_path / path, folder=True, kind="samples")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "old"]


@pytest.mark.parametrize(
    ("path", "folder", "words"),
    [
        ("folder", False, "it is a folder; give the name of a file"),
        ("file", True, "it is a file, not a folder"),
        ("file/new", False, "a part of the path is a file, not a folder"),
        ("file/new", True, "a part of the path is a file, not a folder"),
        ("loop", False, "loop of symbolic links"),
        ("n" * 300, False, "the name is too long"),
    ],
)
def test_what_is_in_the_way(tmp_path: Path, path: str, folder: bool, words: str) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    with pytest.raises(OutputError, match=words):
        check_writable(tmp_path / path, folder=folder, kind="samples")


@pytest.mark.skipif(os.name == "nt", reason="Windows has other devices")
def test_a_device_is_no_file() -> None:
    with pytest.raises(OutputError, match="it is a device or a pipe"):
        check_writable("/dev/null", "scene")


def test_permission(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Not by removing the permission: root, who often runs tests, may write anywhere.
    access = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: path != tmp_path and access(path, mode))
    for folder in (False, True):
        with pytest.raises(OutputError, match="no permission to write there"):
            check_writable(tmp_path / "deep" / "new", folder=folder, kind="samples")
