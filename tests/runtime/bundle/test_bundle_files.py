"""Bundles whose files are replaced while they are read."""

from __future__ import annotations

import hashlib
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from mapengine.runtime.bundle import bundle_files
from mapengine.runtime.bundle.bundle_files import BundleFiles, while_replaced
from mapengine.runtime.bundle.file_record import FileRecord
from mapengine.runtime.bundle.store import Bundle
from mapengine.runtime.errors import BundleNotFoundError, BundleReplacedError, IntegrityError, MapEngineError

from ...stage_files import change_manifest, exchange

linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux exchanges two folders in one step")

CONTENT = b"weights" * 100
RECORD = FileRecord("a.data", hashlib.sha256(CONTENT).hexdigest(), len(CONTENT))


@pytest.fixture
def files(tmp_path: Path) -> BundleFiles:
    (tmp_path / "a.data").write_bytes(CONTENT)
    return BundleFiles(tmp_path)


def rename_over(path: Path, content: bytes) -> None:
    path.with_suffix(".new").write_bytes(content)
    os.replace(path.with_suffix(".new"), path)


def write_in_place(path: Path, content: bytes) -> None:
    path.write_bytes(content)


@pytest.mark.parametrize("change", [rename_over, write_in_place])
def test_a_file_that_is_another_than_before(files: BundleFiles, change: Callable[[Path, bytes], None]) -> None:
    assert files.read(RECORD) == CONTENT
    files.check_unchanged()
    change(files.folder / "a.data", CONTENT)  # the same content does not make it the same file
    for look in (files.check_unchanged, lambda: files.read(RECORD), lambda: files.check_presence(RECORD)):
        with pytest.raises(BundleReplacedError, match=r"a\.data was replaced or changed .*; run it again"):
            look()


def test_a_file_that_is_gone(files: BundleFiles) -> None:
    files.check_presence(RECORD)
    (files.folder / "a.data").unlink()
    with pytest.raises(BundleReplacedError):
        files.check_unchanged()
    with pytest.raises(BundleNotFoundError, match="lacks the file"):
        files.check_presence(RECORD)


def test_a_file_that_changes_while_it_is_hashed(files: BundleFiles, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bundle_files, "HASH_BLOCK", 64)
    real = hashlib.sha256

    class Meanwhile:
        def __init__(self) -> None:
            self.digest = real()

        def update(self, block: bytes) -> None:
            self.digest.update(block)
            write_in_place(files.folder / "a.data", CONTENT)

        def hexdigest(self) -> str:
            return self.digest.hexdigest()

    monkeypatch.setattr(hashlib, "sha256", Meanwhile)
    with pytest.raises(BundleReplacedError):
        files.hash("a.data")


def test_content_is_that_of_the_record(files: BundleFiles) -> None:
    other = FileRecord("a.data", "a" * 64, len(CONTENT))
    looks = (lambda: files.read(other), lambda: files.check_hashes([other]), lambda: files.mapped(other).__enter__())
    for look in looks:
        with pytest.raises(IntegrityError, match=r"a\.data differs from the hash"):
            look()
    with pytest.raises(IntegrityError, match="takes more than 5 bytes"):
        files.read(RECORD, 5)
    with files.mapped(RECORD) as content:
        assert bytes(content) == CONTENT


def test_a_file_is_hashed_once(files: BundleFiles, monkeypatch: pytest.MonkeyPatch) -> None:
    files.check_hashes([RECORD])
    monkeypatch.setattr(BundleFiles, "hash", lambda self, name: pytest.fail("it was hashed again"))
    files.check_hashes([RECORD])


def test_pipes_and_links_are_not_opened(files: BundleFiles) -> None:
    outside = files.folder.parent / "outside"
    outside.write_bytes(CONTENT)
    path = files.folder / "b.data"
    os.mkfifo(path)
    with pytest.raises(IntegrityError, match="is not a regular file"):
        files.open("b.data")  # and does not wait for a writer
    path.unlink()
    path.symlink_to(outside)
    with pytest.raises(IntegrityError, match="is a link that leaves the folder"):
        files.open("b.data")
    path.unlink()
    path.symlink_to("a.data")
    with files.open("b.data") as file:
        assert file.read() == CONTENT
    path.unlink()
    path.symlink_to("/dev/null")
    with pytest.raises(IntegrityError):
        files.open("b.data")


def test_reading_begins_again_a_few_times(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bundle_files, "PAUSES", (0, 0))
    attempts: list[int] = []

    def read(succeeds_at: int) -> int:
        attempts.append(1)
        if len(attempts) < succeeds_at:
            raise BundleReplacedError("x")
        return len(attempts)

    assert while_replaced(lambda: read(3)) == 3
    attempts.clear()
    with pytest.raises(BundleReplacedError):
        while_replaced(lambda: read(4))
    assert len(attempts) == 3


@pytest.fixture
def twins(bundle_folder: Path, tmp_path: Path) -> tuple[Path, Path]:
    """Two bundles that differ in a file of the same size."""
    other = tmp_path / "other"
    shutil.copytree(bundle_folder, other)
    content = b"another" * 1000
    (other / "aggregator.onnx.data").write_bytes(content)
    digest = hashlib.sha256(content).hexdigest()
    change_manifest(other, lambda document: document["stages"]["aggregator"]["data"][0].update(sha256=digest))
    return bundle_folder, other


@pytest.mark.slow
@linux
@pytest.mark.parametrize("verify", [True, False])
@pytest.mark.parametrize("steps_between", [0, 1, 5])
def test_a_bundle_that_is_replaced_while_it_is_opened_is_one_of_the_two(
    twins: tuple[Path, Path], verify: bool, steps_between: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After every step that opening takes; and replaced again by the first, some steps later."""
    one, other = twins
    real = os.fstat
    digests = [Bundle.open(folder).digest for folder in (one, other)]
    steps = replace_at = 0

    def fstat(descriptor: int) -> os.stat_result:
        nonlocal steps
        steps += 1
        if steps == replace_at or (steps_between and steps == replace_at + steps_between):
            exchange(one, other)
        return real(descriptor)

    monkeypatch.setattr(os, "fstat", fstat)
    found = set()
    for attempt in range(1, 45, 1 if verify else 4):
        steps, replace_at = 0, attempt
        bundle = Bundle.open(one, verify=verify)
        replace_at = -100
        weights = bundle.files.hash("aggregator.onnx.data")
        assert weights == bundle.manifest.stages["aggregator"].data[0].sha256
        found.add(bundle.digest)
        if bundle.digest == digests[1] and steps_between == 0:
            exchange(one, other)
    assert found == set(digests) if steps_between == 0 else found <= set(digests)


@linux
def test_what_was_opened_and_replaced_is_refused(twins: tuple[Path, Path]) -> None:
    one, other = twins
    bundle = Bundle.open(one, verify=False)
    exchange(one, other)
    with pytest.raises(BundleReplacedError):
        bundle.check_hashes()
    with pytest.raises(BundleReplacedError), bundle.unchanged():
        pass
    with pytest.raises(BundleReplacedError), bundle.unchanged():
        raise MapEngineError("what a mixture of two bundles provokes")
    with pytest.raises(BundleReplacedError):
        bundle.golden()
    exchange(one, other)  # also for a moment: what was read meanwhile was the other
    with pytest.raises(BundleReplacedError), bundle.unchanged():
        pass


def test_a_file_that_is_added_replaces_nothing(bundle_folder: Path) -> None:
    """As kernels that a library compiled, or a scene."""
    bundle = Bundle.open(bundle_folder)
    (bundle_folder / "scene.glb").write_bytes(b"a result")
    with bundle.unchanged():
        assert bundle.golden()


@linux
def test_a_link_to_a_bundle_is_followed_once(twins: tuple[Path, Path], tmp_path: Path) -> None:
    one, other = twins
    link = tmp_path / "link"
    link.symlink_to(one)
    bundle = Bundle.open(link)
    link.unlink()
    link.symlink_to(other)
    with bundle.unchanged():
        assert bundle.files.hash("aggregator.onnx.data") == bundle.manifest.stages["aggregator"].data[0].sha256
