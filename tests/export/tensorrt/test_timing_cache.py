"""The timing cache saves time and nothing else: whatever is wrong with it, it is as good as none."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from mapengine.export.tensorrt import timing_cache
from mapengine.export.tensorrt.timing_cache import read_timings, timings_path, write_timings
from mapengine.runtime.writing import cached_records

KEY = ("tensorrt", "10.3.0", "GPU A, 8.7, driver for CUDA 12.6")
TIMINGS = os.urandom(3000)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MAPENGINE_CACHE", str(tmp_path / "cache"))


def written() -> Path:
    path = timings_path(*KEY)
    assert path is not None
    write_timings(*KEY, TIMINGS)
    return path


def test_it_comes_back_for_its_own_key_only() -> None:
    assert read_timings(*KEY) == b""
    path = written()
    assert read_timings(*KEY) == TIMINGS
    assert [file.name for file in path.parent.iterdir()] == [path.name]
    for other in (("tensorrt", "10.3.0", "GPU B"), ("tensorrt", "11.4.0", KEY[2]), ("other", *KEY[1:])):
        assert read_timings(*other) == b""


@pytest.mark.parametrize("spoil", ["cut", "flip", "empty", "header", "folder", "another"])
def test_damaged_or_foreign(spoil: str) -> None:
    path = written()
    content = bytearray(path.read_bytes())
    if spoil == "cut":
        path.write_bytes(content[:-1])
    elif spoil == "flip":
        content[-100] ^= 1
        path.write_bytes(content)
    elif spoil == "empty":
        path.write_bytes(b"")
    elif spoil == "header":
        path.write_bytes(content[5:])
    elif spoil == "folder":
        path.unlink()
        path.mkdir()
    else:
        # Someone copied the cache of another device over it.
        other = timings_path("tensorrt", "10.3.0", "GPU B")
        assert other is not None
        path.rename(other)
        assert read_timings("tensorrt", "10.3.0", "GPU B") == b""
    assert read_timings(*KEY) == b""


def test_too_large(monkeypatch: pytest.MonkeyPatch) -> None:
    written()
    monkeypatch.setattr(timing_cache, "MAX_BYTES", 1000)
    assert read_timings(*KEY) == b""


def test_nowhere_to_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("MAPENGINE_CACHE", str(tmp_path / "file"))
    write_timings(*KEY, TIMINGS)
    assert read_timings(*KEY) == b""
    monkeypatch.setattr(cached_records, "cache_folder", lambda: None)
    write_timings(*KEY, TIMINGS)
    assert read_timings(*KEY) == b""
