"""Attempts to have a planted or damaged cache believed, or written through. Each names the reason why it must fail."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mapengine.runtime.checks.golden import has_golden_record, write_golden_record
from mapengine.runtime.memory.model import STAGES, MemoryModel, Sample, known_model, remember_model
from mapengine.runtime.writing.cached_records import cache_problem, read_cached, write_cached

pytestmark = pytest.mark.skipif(os.name == "nt", reason="Windows has neither owners nor modes of this kind")

KEY = ("d" * 64, "onnxruntime", "1.32.0", "cpu: some processor")
MODEL_KEY = {"bundle": "d" * 64, "backend": "onnxruntime", "version": "1.32.0", "device": "cpu"}
MODEL = MemoryModel(
    MODEL_KEY,
    "mha",
    tuple(
        Sample(views, 140, 140, geometry, collect, dict.fromkeys(STAGES, 10**8 + 10**6 * views))
        for geometry in (False, True)
        for collect in (False, True)
        for views in (1, 6, 24)
    ),
)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MAPENGINE_CACHE", str(tmp_path / "cache"))
    write_golden_record(*KEY)
    remember_model(MODEL)
    assert has_golden_record(*KEY)
    assert known_model(MODEL_KEY) is not None
    return tmp_path / "cache"


def record(cache: Path, room: str = "verified") -> Path:
    (path,) = (cache / room).iterdir()
    return path


def test_what_is_kept_is_for_this_user_only(cache: Path) -> None:
    modes = {path.stat().st_mode & 0o777 for path in [cache, *cache.rglob("*")] if path.is_dir()}
    assert modes == {0o700}
    assert {path.stat().st_mode & 0o777 for path in cache.rglob("*") if path.is_file()} == {0o600}


def _other_user(path: Path, patch: pytest.MonkeyPatch) -> None:
    patch.setattr(os, "geteuid", lambda: path.stat().st_uid + 1)


def _become_link(path: Path) -> None:
    moved = path.rename(path.with_name(f"{path.name}-elsewhere"))
    path.symlink_to(moved.name)


PLANTED: dict[str, Callable[[Path, pytest.MonkeyPatch], object]] = {
    "everybody may write the folder": lambda cache, patch: cache.chmod(0o777),
    "everybody may write it, although only the owner removes": lambda cache, patch: cache.chmod(0o1777),
    "the group may write the folder": lambda cache, patch: cache.chmod(0o770),
    "everybody may write the room": lambda cache, patch: (cache / "verified").chmod(0o707),
    "the group may write the room": lambda cache, patch: (cache / "verified").chmod(0o720),
    "everybody may write the record": lambda cache, patch: record(cache).chmod(0o606),
    "the group may write the record": lambda cache, patch: record(cache).chmod(0o620),
    "all of it is another user's": lambda cache, patch: _other_user(cache, patch),
    "the room is a link": lambda cache, patch: _become_link(cache / "verified"),
    "the record is a link": lambda cache, patch: _become_link(record(cache)),
    "the record is a link to nothing": lambda cache, patch: (record(cache).unlink(), _dangle(cache)),
    "the record is a folder": lambda cache, patch: (p := record(cache), p.unlink(), p.mkdir()),
    "the record is a pipe": lambda cache, patch: (p := record(cache), p.unlink(), os.mkfifo(p)),
    "the record is of another room": lambda cache, patch: record(cache).write_bytes(
        record(cache, "memory").read_bytes()
    ),
    "the record is of another bundle": lambda cache, patch: record(cache).write_text(
        record(cache).read_text().replace("d" * 64, "e" * 64)
    ),
    "the record says that something else was checked": lambda cache, patch: record(cache).write_text(
        record(cache).read_text().replace("golden check", "nothing")
    ),
}


def _dangle(cache: Path) -> None:
    (cache / "verified" / f"{'0' * 32}.json").symlink_to("/nonexistent")


@pytest.mark.parametrize("reason", PLANTED)
def test_a_planted_record_does_not_skip_the_golden_check(
    cache: Path, monkeypatch: pytest.MonkeyPatch, reason: str
) -> None:
    PLANTED[reason](cache, monkeypatch)
    assert not has_golden_record(*KEY), reason


@pytest.mark.parametrize("target", ["a file of the user", "a file that is not there", "a folder"])
@pytest.mark.parametrize("mode", [0o700, 0o777])
def test_a_planted_link_is_not_written_through(cache: Path, target: str, mode: int) -> None:
    """In a folder that others may write nothing is written at all; in ours a link is replaced, not followed."""
    victim = cache.parent / "victim"
    if target == "a file of the user":
        victim.write_text("years of work")
    elif target == "a folder":
        victim.mkdir()
    path = record(cache)
    path.unlink()
    path.symlink_to(victim)
    (cache / "verified").chmod(mode)
    write_golden_record(*KEY)
    assert not victim.is_file() or victim.read_text() == "years of work"
    assert target != "a folder" or not list(victim.iterdir())
    assert target != "a file that is not there" or not victim.exists()
    assert has_golden_record(*KEY) == (mode == 0o700)
    assert path.is_symlink() == (mode != 0o700)


def test_a_cache_folder_that_is_a_link_of_somebody_else(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    link = cache.with_name("link")
    link.symlink_to("cache")
    monkeypatch.setenv("MAPENGINE_CACHE", str(link))
    assert has_golden_record(*KEY)  # of one's own it may be
    original = os.lstat

    def of_another(path: Any, **options: Any) -> os.stat_result:
        found = original(path, **options)
        return os.stat_result((*found[:4], found.st_uid + 4, *found[5:])) if Path(path) == link else found

    monkeypatch.setattr(os, "lstat", of_another)
    assert not has_golden_record(*KEY)


def test_it_is_said_why_nothing_is_kept(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert cache_problem() is None
    cache.chmod(0o777)
    assert "can be written by other users" in str(cache_problem())
    for value in ("/dev/null/x", "a\0b", "n" * 5000):
        monkeypatch.setattr("mapengine.runtime.writing.cached_records.cache_folder", lambda value=value: Path(value))
        assert cache_problem()
        write_golden_record(*KEY)
        assert not has_golden_record(*KEY)


@pytest.mark.parametrize("block", range(8))
def test_damaged_records_are_ignored_and_made_again(cache: Path, block: int) -> None:
    """Whatever the bytes: no error, and no plan from numbers that were not measured."""
    path, check = record(cache, "memory"), record(cache)
    good, checked = path.read_bytes(), check.read_bytes()
    for seed in range(25):
        draw = random.Random(25 * block + seed)
        for file, content in ((path, good), (check, checked)):
            damaged = bytearray(content)
            for _ in range(draw.randint(1, 4)):
                damaged[draw.randrange(len(damaged))] = draw.randrange(256)
            file.write_bytes(draw.choice([bytes(damaged), content[: draw.randrange(len(content))]]))
        model = known_model(MODEL_KEY)
        if model is not None:
            assert all(peak > 0 for peak in model.peaks(3, 140, 140).values())
            model.most_views(10**9, 140, 140)
        if has_golden_record(*KEY):
            assert json.loads(check.read_bytes())["key"] == json.loads(checked)["key"]
    write_golden_record(*KEY)
    remember_model(MODEL)
    assert has_golden_record(*KEY)
    assert known_model(MODEL_KEY) == MODEL


ODD: dict[str, object] = {
    "nothing is divided by zero": 0,
    "no memory is negative": -1,
    "not a number": float("nan"),
    "infinite": float("inf"),
    "more than any machine has": 10**300,
    "a number of 5000 digits": 10**400,
    "a truth value": True,
    "text": "1",
    "nothing": None,
    "a list": [],
}


@pytest.mark.parametrize("reason", ODD)
@pytest.mark.parametrize("field", ["peak", "views", "width", "samples"])
def test_a_memory_record_with_odd_numbers_is_none(cache: Path, reason: str, field: str) -> None:
    path = record(cache, "memory")
    document = json.loads(path.read_text())
    if field == "samples":
        document["samples"] = ODD[reason]
    for sample in document["samples"] if field != "samples" else ():
        if field == "peak":
            sample["peaks"] = dict.fromkeys(sample["peaks"], ODD[reason])
        else:
            sample[field] = ODD[reason]
    path.write_text(json.dumps(document))
    model = known_model(MODEL_KEY)
    assert model is None, reason


def test_samples_that_say_nothing_are_no_model(cache: Path) -> None:
    path = record(cache, "memory")
    document = json.loads(path.read_text())
    document["samples"] = [sample for sample in document["samples"] if not sample["geometry"]]
    path.write_text(json.dumps(document))
    assert known_model(MODEL_KEY) is None


def test_files_beside_a_bundle_are_held_to_the_same(tmp_path: Path) -> None:
    """Kernels that TensorRT-RTX compiled are native code."""
    bundle = tmp_path / "bundle"
    bundle.mkdir(mode=0o755)
    assert write_cached(bundle / "a.cache", b"kernels")
    assert read_cached(bundle / "a.cache", 100) == b"kernels"
    assert read_cached(bundle / "a.cache", 3) is None
    bundle.chmod(0o777)
    assert read_cached(bundle / "a.cache", 100) is None
    assert not write_cached(bundle / "b.cache", b"kernels")
    assert [path.name for path in bundle.iterdir()] == ["a.cache"]
