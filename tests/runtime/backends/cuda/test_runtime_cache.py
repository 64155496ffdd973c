"""Kernels that TensorRT-RTX compiled are there for the next process, and never in the way."""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from mapengine.runtime import Engine
from mapengine.runtime.backends.tensorrt import runtime_cache
from mapengine.runtime.system.private_files import PrivateFolder
from mapengine.runtime.writing import cached_records
from mapengine.runtime.writing.cache import cache_folder

from ....random_views import assert_close, random_views
from ....stage_files import change_manifest
from .conftest import copy_bundle
from .stand_in_driver import StandInDriver
from .stand_in_tensorrt import StandInTensorRt
from .stand_in_values import IRuntimeCache


@pytest.fixture
def rtx(
    driver: StandInDriver,
    make_library: Callable[[str, StandInDriver], StandInTensorRt],
    monkeypatch: pytest.MonkeyPatch,
) -> StandInTensorRt:
    monkeypatch.setattr(IRuntimeCache, "compiled", 0)
    monkeypatch.setattr(IRuntimeCache, "serialized", 0)
    return make_library("tensorrt-rtx", driver)


@pytest.fixture
def bundle(rtx: StandInTensorRt, plan_bundles: dict[str, Path], tmp_path: Path) -> Path:
    return copy_bundle(plan_bundles["tensorrt-rtx"], tmp_path / "bundle")


def run(bundle: Path, views: int = 2) -> int:
    """Load the bundle as a new process would and run it; how many kernels had to be compiled."""
    engine = Engine.load(bundle, verify=False)
    before = IRuntimeCache.compiled
    engine.predict(random_views(views))
    return IRuntimeCache.compiled - before


def build_again(bundle: Path) -> None:
    """Give the bundle another digest."""
    change_manifest(bundle, lambda document: document["tools"].update(build=str(random.random())))


def caches(folder: Path) -> list[str]:
    return sorted(path.name.split(".")[0] for path in folder.glob("*.cache"))


STAGES = ["aggregator", "dense_head", "geometry_encoder", "image_encoder", "image_normalizer", "scene"]


@pytest.mark.slow
def test_the_second_process_compiles_nothing(bundle: Path) -> None:
    assert run(bundle) == 4
    assert caches(bundle) == STAGES
    assert run(bundle) == 0
    assert run(bundle, views=3) > 0  # other shapes
    assert run(bundle) == run(bundle, views=3) == 0


@pytest.mark.slow
def test_the_cache_is_not_written_at_every_call(bundle: Path) -> None:
    engine = Engine.load(bundle, verify=False)
    engine.predict(random_views(2))
    written = {path.name: path.stat().st_mtime_ns for path in bundle.glob("*.cache")}
    count = IRuntimeCache.serialized
    for _ in range(3):
        engine.predict(random_views(2))
    assert IRuntimeCache.serialized == count
    engine.pipeline.close()  # once more at the end: the library compiles in the background too
    assert IRuntimeCache.serialized == count + len(STAGES)
    assert {path.name: path.stat().st_mtime_ns for path in bundle.glob("*.cache")} == written  # nothing is new


@pytest.mark.slow
@pytest.mark.parametrize(
    "damage",
    [
        lambda content: b"",
        lambda content: content[:20],
        lambda content: content[:-1],
        lambda content: content[:40] + b"X" + content[41:],
        lambda content: content + b"more",
        lambda content: os.urandom(len(content)),
    ],
)
def test_a_damaged_cache_is_ignored_and_replaced(
    damage: Callable[[bytes], bytes], bundle: Path, small: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(bundle)
    seen: list[bytes] = []
    original = IRuntimeCache.deserialize
    monkeypatch.setattr(IRuntimeCache, "deserialize", lambda self, blob: seen.append(blob) or original(self, blob))
    for path in bundle.glob("*.cache"):
        path.write_bytes(damage(path.read_bytes()))
    assert run(bundle) == 4
    assert seen == []  # the library never meets a damaged file
    assert run(bundle) == 0
    assert len(seen) == len(STAGES)


@pytest.mark.slow
def test_a_cache_that_the_library_does_not_want(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of another GPU or version, for example."""
    run(bundle)
    monkeypatch.setattr(IRuntimeCache, "deserialize", lambda self, blob: False)
    assert run(bundle) == 4


@pytest.mark.slow
def test_a_cache_is_of_one_bundle_and_one_device(
    bundle: Path, driver: StandInDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(bundle)
    monkeypatch.setattr(driver, "cuDriverGetVersion", lambda: 13010)
    monkeypatch.setattr("mapengine.runtime.backends.cuda.driver.devices", {})
    assert run(bundle) == 4
    assert len(list(bundle.glob("*.cache"))) == 2 * len(STAGES)
    build_again(bundle)
    assert run(bundle) == 4


@pytest.mark.slow
def test_old_caches_go(bundle: Path) -> None:
    for number in range(12):
        build_again(bundle)
        assert run(bundle) == 4
        for path in bundle.glob("*.cache"):
            os.utime(path, ns=(path.stat().st_atime_ns, path.stat().st_mtime_ns - 10**9))
        assert len(caches(bundle)) == len(STAGES) * min(number + 1, runtime_cache.MOST_FILES)
    assert run(bundle) == 0  # the newest stayed


@pytest.mark.slow
def test_a_folder_that_cannot_be_written(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = cached_records.private_folder

    def refuse(root: Path, rooms: tuple[str, ...] = (), **options: bool) -> AbstractContextManager[PrivateFolder]:
        if root == bundle:
            raise PermissionError
        return original(root, rooms, **options)

    monkeypatch.setattr(cached_records, "private_folder", refuse)
    assert run(bundle) == 4
    assert caches(bundle) == []
    home = cache_folder()
    assert home is not None
    assert set(caches(home / "kernels")) == set(STAGES)
    assert run(bundle) == 0


@pytest.mark.slow
def test_nowhere_to_write(bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("MAPENGINE_CACHE", str(tmp_path / "file"))
    monkeypatch.setattr(cached_records, "private_folder", lambda *_, **__: (_ for _ in ()).throw(OSError))
    assert run(bundle) == 4
    assert run(bundle) == 4
    assert caches(bundle) == []


@pytest.mark.slow
def test_caches_that_are_too_large_are_left_alone(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(bundle)
    monkeypatch.setattr(runtime_cache, "MAX_BYTES", 10)
    assert run(bundle) == 4  # not read
    build_again(bundle)
    run(bundle)
    assert len(caches(bundle)) == len(STAGES)  # not written


@pytest.mark.slow
def test_a_library_with_nothing_to_serialise(bundle: Path, small: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(IRuntimeCache, "serialize", lambda self: None)
    engine = Engine.load(bundle, verify=False)
    assert_close(engine.predict(random_views(2)), small.predict(random_views(2)))
    assert caches(bundle) == []


def test_tensorrt_has_none(
    driver: StandInDriver, make_library: Callable[[str, StandInDriver], StandInTensorRt], plan_bundles: dict[str, Path]
) -> None:
    make_library("tensorrt", driver)
    assert run(plan_bundles["tensorrt"]) == 0
    assert caches(plan_bundles["tensorrt"]) == []
