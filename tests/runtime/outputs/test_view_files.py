"""Views that are written as they come: what is there when the stream ends early is said."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mapengine.runtime.errors import InputError, OutputError
from mapengine.runtime.outputs.view_files import load_view, save_views


def views(error: BaseException | None, count: int = 4) -> Iterator[dict[str, Any]]:
    for index in range(count):
        yield {"depth_z": np.full((1, 2, 2, 1), index, np.float32)}
    if error is not None:
        raise error


def test_views_come_back_and_those_of_another_run_stay(tmp_path: Path) -> None:
    files = save_views(tmp_path / "a", views(None), names=["a", "b", "c", "d"])
    assert [path.name for path in files] == [f"view-000{index}.npz" for index in range(4)]
    last = load_view(files[3])
    assert (set(last), str(last["name"]), last["depth_z"].max()) == ({"depth_z", "name", "frame"}, "d", 3)
    with pytest.raises(InputError, match="holds views of another run"):
        save_views(tmp_path / "a", views(None))


@pytest.mark.parametrize(("count", "words"), [(0, "no views are"), (1, "1 view is"), (4, "4 views are")])
def test_an_interrupted_stream_says_what_is_there(tmp_path: Path, count: int, words: str) -> None:
    with pytest.raises(KeyboardInterrupt, match=f"{words} complete in .*; nothing half-written is left"):
        save_views(tmp_path / "a", views(KeyboardInterrupt(), count))
    assert len(list((tmp_path / "a").iterdir())) == count
    assert all(load_view(path) for path in (tmp_path / "a").iterdir())


def test_a_full_disk_says_what_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synchronize, calls = os.fsync, 0

    def full(descriptor: int) -> None:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        synchronize(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OutputError, match=r"view-0002\.npz: .*the disk is full.*; 2 views are complete in"):
        save_views(tmp_path, views(None))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["view-0000.npz", "view-0001.npz"]


@pytest.mark.parametrize("folder", ["a\0b", "n" * 300, ""])
def test_folders_that_cannot_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folder: str) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(OutputError):
        save_views(folder, views(None))
    assert list(tmp_path.iterdir()) == []
