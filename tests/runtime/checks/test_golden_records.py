"""The record of passed golden checks: it saves time and never gets in the way."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from mapengine.runtime.checks.golden_records import is_verified, remember_verified
from mapengine.runtime.system import cached_records

KEY = ("d" * 64, "onnxruntime", "1.32.0", "cpu: some processor")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MAPENGINE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_remembers_exactly_what_was_checked(cache: Path) -> None:
    assert not is_verified(*KEY)
    remember_verified(*KEY)
    remember_verified(*KEY)
    assert is_verified(*KEY)
    for position in range(4):
        other = list(KEY)
        other[position] += "x"
        assert not is_verified(*other)
    assert len(list(cache.rglob("*.json"))) == 1


@pytest.mark.parametrize("content", [b"", b"{", b"null", b"[]", b"\xff", b"[" * 100_000, b"{}", b'{"bundle": 1}'])
def test_a_damaged_record_means_checking_again(cache: Path, content: bytes) -> None:
    remember_verified(*KEY)
    (record,) = cache.rglob("*.json")
    record.write_bytes(content)
    assert not is_verified(*KEY)
    remember_verified(*KEY)
    assert is_verified(*KEY)


def test_the_record_of_another_key_does_not_count(cache: Path) -> None:
    remember_verified(*KEY)
    (record,) = cache.rglob("*.json")
    content = record.read_bytes()
    remember_verified("e" * 64, *KEY[1:])
    for path in cache.rglob("*.json"):
        path.write_bytes(content)
    assert not is_verified("e" * 64, *KEY[1:])


def test_a_cache_that_cannot_be_used(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache.write_text("a file where the folder should be")
    remember_verified(*KEY)
    assert not is_verified(*KEY)
    assert cache.read_text() == "a file where the folder should be"
    cache.unlink()
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", _refuse)
        remember_verified(*KEY)
    assert not is_verified(*KEY)
    assert not cache.exists() or not any(path.is_file() for path in cache.rglob("*"))
    remember_verified(*KEY)
    (record,) = cache.rglob("*.json")
    record.unlink()
    record.mkdir()
    remember_verified(*KEY)
    assert not is_verified(*KEY)
    with monkeypatch.context() as patch:
        patch.setattr(cached_records, "cache_folder", lambda: None)
        remember_verified(*KEY)
        assert not is_verified(*KEY)


def _refuse(*_: object) -> None:
    raise OSError(errno.EROFS, os.strerror(errno.EROFS))
