"""The record of passed golden checks: it saves time and never gets in the way."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from mapengine.runtime.checks.golden import has_golden_record, write_golden_record
from mapengine.runtime.writing import cached_records

KEY = ("d" * 64, "onnxruntime", "1.32.0", "cpu: some processor")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MAPENGINE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_remembers_exactly_what_was_checked(cache: Path) -> None:
    assert not has_golden_record(*KEY)
    write_golden_record(*KEY)
    write_golden_record(*KEY)
    assert has_golden_record(*KEY)
    for position in range(4):
        other = list(KEY)
        other[position] += "x"
        assert not has_golden_record(*other)
    assert len(list(cache.rglob("*.json"))) == 1


@pytest.mark.parametrize("content", [b"", b"{", b"null", b"[]", b"\xff", b"[" * 100_000, b"{}", b'{"bundle": 1}'])
def test_a_damaged_record_means_checking_again(cache: Path, content: bytes) -> None:
    write_golden_record(*KEY)
    (record,) = cache.rglob("*.json")
    record.write_bytes(content)
    assert not has_golden_record(*KEY)
    write_golden_record(*KEY)
    assert has_golden_record(*KEY)


def test_the_record_of_another_key_does_not_count(cache: Path) -> None:
    write_golden_record(*KEY)
    (record,) = cache.rglob("*.json")
    content = record.read_bytes()
    write_golden_record("e" * 64, *KEY[1:])
    for path in cache.rglob("*.json"):
        path.write_bytes(content)
    assert not has_golden_record("e" * 64, *KEY[1:])


def test_a_cache_that_cannot_be_used(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache.write_text("a file where the folder should be")
    write_golden_record(*KEY)
    assert not has_golden_record(*KEY)
    assert cache.read_text() == "a file where the folder should be"
    cache.unlink()
    with monkeypatch.context() as patch:
        patch.setattr(os, "rename", _refuse)
        patch.setattr(os, "replace", _refuse)
        write_golden_record(*KEY)
    assert not has_golden_record(*KEY)
    assert not cache.exists() or not any(path.is_file() for path in cache.rglob("*"))
    write_golden_record(*KEY)
    (record,) = cache.rglob("*.json")
    record.unlink()
    record.mkdir()
    write_golden_record(*KEY)
    assert not has_golden_record(*KEY)
    with monkeypatch.context() as patch:
        patch.setattr(cached_records, "cache_folder", lambda: None)
        write_golden_record(*KEY)
        assert not has_golden_record(*KEY)


def _refuse(*_: object, **__: object) -> None:
    raise OSError(errno.EROFS, os.strerror(errno.EROFS))
