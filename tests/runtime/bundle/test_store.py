"""Opening, refusing and writing bundles."""

from __future__ import annotations

import errno
import io
import json
import os
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mapengine.runtime.bundle import bundle_files
from mapengine.runtime.bundle import store as bundle_module
from mapengine.runtime.bundle.manifest import Manifest
from mapengine.runtime.bundle.store import Bundle, BundleWriter, write_bundle
from mapengine.runtime.errors import (
    BundleError,
    BundleNotFoundError,
    IntegrityError,
    ManifestError,
    OutputError,
    VersionError,
)
from mapengine.runtime.typed_json.codec import encode

from ...stage_files import change_manifest, graph_bytes

Fill = Callable[[BundleWriter], Manifest]
FUZZ = settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
needs_links = pytest.mark.skipif(os.name == "nt", reason="symbolic links need a privilege on Windows")


def snapshot(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_open_gives_manifest_paths_and_golden(bundle_folder: Path) -> None:
    bundle = Bundle.open(bundle_folder)
    assert bundle.manifest.model.id == "preset:tiny"
    assert bundle.stage_path("dense_head") == bundle_folder / "dense_head.onnx"
    golden = bundle.golden()
    np.testing.assert_array_equal(golden["in"], np.arange(6, dtype=np.float32))
    assert golden["out"].dtype == bool
    assert Bundle.open(str(bundle_folder), verify=False) == bundle


def test_digest_follows_every_file(bundle_folder: Path, tmp_path: Path, fill_bundle: Fill) -> None:
    with write_bundle(tmp_path / "other") as writer:
        manifest = fill_bundle(writer)
        stages = dict(manifest.stages)
        head = stages["dense_head"]
        (writer.folder / "dense_head.onnx").write_bytes(graph_bytes(head.inputs, head.outputs, stored=101))
        stages["dense_head"] = replace(head, file=writer.record("dense_head.onnx"))
        writer.write_manifest(replace(manifest, stages=stages))
    assert Bundle.open(tmp_path / "other").digest != Bundle.open(bundle_folder).digest


def test_what_is_no_bundle(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    (tmp_path / "empty").mkdir()
    with pytest.raises(BundleNotFoundError, match="missing does not exist"):
        Bundle.open(tmp_path / "missing")
    with pytest.raises(BundleNotFoundError, match="is a file, not a folder"):
        Bundle.open(tmp_path / "file")
    with pytest.raises(BundleNotFoundError, match=r"it has no manifest\.json; run mapengine build"):
        Bundle.open(tmp_path / "empty")
    with pytest.raises(BundleNotFoundError):
        Bundle.open("\0")
    with pytest.raises(BundleNotFoundError):
        Bundle.open("a" * 5000)
    (tmp_path / "empty" / "manifest.json").mkdir()
    with pytest.raises(ManifestError, match="not a regular file"):
        Bundle.open(tmp_path / "empty")


@pytest.mark.parametrize("name", ["aggregator.onnx", "aggregator.onnx.data", "golden.npz"])
def test_missing_truncated_and_altered_files(bundle_folder: Path, name: str) -> None:
    path = bundle_folder / name
    content = path.read_bytes()
    path.unlink()
    with pytest.raises(BundleNotFoundError, match=f"lacks the file {name}"):
        Bundle.open(bundle_folder)
    for damaged in (content[:-1], content + b"\0", b""):
        path.write_bytes(damaged)
        for verify in (True, False):
            with pytest.raises(IntegrityError, match=f"{name} has {len(damaged)} bytes, but its manifest says"):
                Bundle.open(bundle_folder, verify=verify)
    path.write_bytes(bytes([content[0] ^ 1]) + content[1:])
    with pytest.raises(IntegrityError, match=f"{name} differs from the hash"):
        Bundle.open(bundle_folder)
    path.unlink()
    path.mkdir()
    with pytest.raises(IntegrityError, match=f"{name} is not a regular file"):
        Bundle.open(bundle_folder)


@needs_links
def test_links(bundle_folder: Path, tmp_path: Path) -> None:
    stage = bundle_folder / "aggregator.onnx"
    outside = tmp_path / "outside.onnx"
    stage.rename(outside)
    stage.symlink_to(outside)
    with pytest.raises(IntegrityError, match="is a link that leaves the folder"):
        Bundle.open(bundle_folder)
    stage.unlink()
    stage.symlink_to(stage)
    with pytest.raises(BundleNotFoundError, match="cannot be read"):
        Bundle.open(bundle_folder)
    stage.unlink()
    outside.rename(bundle_folder / "kept.onnx")
    stage.symlink_to("kept.onnx")
    (tmp_path / "link").symlink_to(bundle_folder)
    assert Bundle.open(tmp_path / "link").stage_path("aggregator").resolve() == bundle_folder / "kept.onnx"
    manifest = bundle_folder / "manifest.json"
    manifest.rename(tmp_path / "manifest.json")
    manifest.symlink_to(tmp_path / "manifest.json")
    with pytest.raises(IntegrityError, match="is a link that leaves the folder"):
        Bundle.open(bundle_folder)


@needs_links
def test_a_pipe_in_place_of_a_file_does_not_hang(bundle_folder: Path) -> None:
    for name, error in (("aggregator.onnx", IntegrityError), ("manifest.json", ManifestError)):
        (bundle_folder / name).unlink()
        os.mkfifo(bundle_folder / name)
        with pytest.raises(error, match="not a regular file"):
            Bundle.open(bundle_folder)


def test_an_unreadable_file(bundle_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = os.open

    def refuse(path: str, *args: object) -> int:
        if os.path.basename(path) == "dense_head.onnx":
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)
        return original(path, *args)  # type: ignore[arg-type]

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(BundleNotFoundError, match=r"dense_head.onnx cannot be read \(Permission denied\)"):
        Bundle.open(bundle_folder)


def test_manifest_of_a_newer_version_and_an_oversized_one(bundle_folder: Path) -> None:
    path = bundle_folder / "manifest.json"
    document = json.loads(path.read_text())
    path.write_text(json.dumps(document | {"schema_version": 99}))
    with pytest.raises(VersionError, match="newer mapengine"):
        Bundle.open(bundle_folder)
    with path.open("wb") as file:
        file.truncate(2**33)  # sparse: takes no space
    with pytest.raises(ManifestError, match="is larger than"):
        Bundle.open(bundle_folder)


def test_the_manifest_is_checked_before_the_files(bundle_folder: Path) -> None:
    path = bundle_folder / "manifest.json"
    path.write_text(path.read_text().replace('"fp32"', '"fp31"'))
    for stage in bundle_folder.glob("*.onnx*"):
        stage.unlink()
    with pytest.raises(ManifestError, match="precision must be one of"):
        Bundle.open(bundle_folder)


@FUZZ
@given(raw=st.binary(max_size=300))
def test_random_bytes_as_manifest(bundle_folder: Path, raw: bytes) -> None:
    (bundle_folder / "manifest.json").write_bytes(raw)
    with pytest.raises(BundleError):
        Bundle.open(bundle_folder)


def test_truncated_manifest_at_many_lengths(bundle_folder: Path) -> None:
    path = bundle_folder / "manifest.json"
    raw = path.read_bytes().rstrip()
    for length in (*range(0, 30), *range(30, len(raw), 101), len(raw) - 1):
        path.write_bytes(raw[:length])
        with pytest.raises(ManifestError):
            Bundle.open(bundle_folder)


@pytest.mark.slow
@FUZZ
@given(position=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
def test_a_flipped_bit_in_the_manifest_is_refused(bundle_folder: Path, position: float, bit: int) -> None:
    path = bundle_folder / "manifest.json"
    raw = bytearray(path.read_bytes())
    index = int(position * len(raw))
    raw[index] ^= 1 << bit
    flipped = bundle_folder.with_name("flipped")
    flipped.mkdir(exist_ok=True)
    for file in bundle_folder.iterdir():
        (flipped / file.name).write_bytes(file.read_bytes() if file != path else bytes(raw))
    with pytest.raises(BundleError):
        Bundle.open(flipped)


def test_large_files_are_hashed_across_blocks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fill_bundle: Fill
) -> None:
    monkeypatch.setattr(bundle_files, "HASH_BLOCK", 64)
    with write_bundle(tmp_path / "bundle") as writer:
        fill_bundle(writer)
    monkeypatch.undo()
    Bundle.open(tmp_path / "bundle")  # the same hashes with another block size


def _compressed_zeros() -> bytes:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, zeros=np.zeros(10**5))
    return buffer.getvalue()


@pytest.mark.slow
def test_golden_that_is_no_archive_of_numbers(bundle_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = bundle_folder / "golden.npz"
    content = path.read_bytes()

    def archive(**arrays: np.ndarray) -> bytes:
        buffer = io.BytesIO()
        np.savez(buffer, allow_pickle=True, **arrays)  # type: ignore[arg-type]
        return buffer.getvalue()

    def golden(content: bytes) -> dict[str, np.ndarray]:
        """What is read when the manifest names this content."""
        path.write_bytes(content)
        record = encode(BundleWriter(bundle_folder).record("golden.npz"))
        change_manifest(bundle_folder, lambda document: document["golden"].update(record))
        return Bundle.open(bundle_folder).golden()

    for damaged in (
        b"",
        content[:-30],
        b"x" * 100,
        archive(a=np.array([object()], dtype=object)),
        archive(a=np.array(["text"])),
        archive(a=np.array(["2020"], dtype="datetime64[D]")),
    ):
        with pytest.raises(IntegrityError, match=r"golden\.npz (is not an archive|holds something other)"):
            golden(damaged)
    with zipfile.ZipFile(path, "w") as zipped:
        zipped.writestr("note.txt", "not an array")
    with pytest.raises(IntegrityError, match="other than arrays"):
        golden(path.read_bytes())
    bundle = Bundle.open(bundle_folder)
    with monkeypatch.context() as patch:
        patch.setattr(bundle_module, "MAX_GOLDEN_BYTES", 5000)
        with pytest.raises(IntegrityError, match="unpacks to more than"):
            golden(_compressed_zeros())
        patch.setattr(bundle_module, "MAX_GOLDEN_BYTES", 10)
        with pytest.raises(IntegrityError, match="takes more than 10 bytes"):
            bundle.golden()
    path.unlink()
    with pytest.raises(BundleNotFoundError, match=r"golden\.npz cannot be read"):
        bundle.golden()


def test_golden_is_what_the_manifest_says_without_verification_too(bundle_folder: Path) -> None:
    bundle = Bundle.open(bundle_folder, verify=False)
    path = bundle_folder / "golden.npz"
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(IntegrityError):
        bundle.golden()


def test_writing_replaces_a_bundle_and_keeps_other_files(bundle_folder: Path, fill_bundle: Fill) -> None:
    (bundle_folder / "scene.glb").write_bytes(b"a result of the user")
    (bundle_folder / "manifest.json").write_text(
        json.dumps(
            {
                "schema_version": 99,
                "created_by": "9.0",
                "stages": {
                    "aggregator": {"file": "aggregator.plan", "kernel": {"file": "dense_64.sm_90.cubin"}},
                    "y": {"file": "../sibling"},
                    "z": {"file": "thesis.docx"},
                },
            }
        )
    )
    for name in ("aggregator.plan", "dense_64.sm_90.cubin"):
        (bundle_folder / name).write_bytes(b"old")
    (bundle_folder / "thesis.docx").write_bytes(b"years of work")
    (bundle_folder.parent / "sibling").write_bytes(b"not ours")
    with write_bundle(bundle_folder) as writer:
        fill_bundle(writer)
    Bundle.open(bundle_folder)
    assert (bundle_folder / "scene.glb").exists()
    assert (bundle_folder.parent / "sibling").exists()
    assert (bundle_folder / "thesis.docx").read_bytes() == b"years of work"
    assert not list(bundle_folder.glob("*.plan")) + list(bundle_folder.glob("*.cubin"))
    assert [path.name for path in bundle_folder.parent.iterdir() if path.name.startswith(".")] == []


OTHER_MANIFEST = '{"schema_version": 1, "created_by": "x", "stages": {"compile": {"file": "photo.jpg"}}}'


@pytest.mark.parametrize("manifest", [None, "", "[]", '{"name": "web app"}', OTHER_MANIFEST])
def test_writing_refuses_a_folder_with_something_else(tmp_path: Path, manifest: str | None) -> None:
    (tmp_path / "photo.jpg").write_bytes(b"x")
    if manifest is not None:
        (tmp_path / "manifest.json").write_text(manifest)
    before = snapshot(tmp_path)
    with pytest.raises(OutputError, match="holds no engine bundle; choose another folder"), write_bundle(tmp_path):
        pytest.fail("the block must not run")
    assert snapshot(tmp_path) == before


def test_writing_to_a_file_and_into_an_empty_folder(tmp_path: Path, fill_bundle: Fill) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(OutputError, match="is a file, not a folder"), write_bundle(tmp_path / "file"):
        pytest.fail("the block must not run")
    (tmp_path / "empty").mkdir()
    with write_bundle(tmp_path / "empty") as writer:
        fill_bundle(writer)
    Bundle.open(tmp_path / "empty")


@pytest.mark.parametrize("error", [KeyboardInterrupt(), ValueError("x"), OSError(errno.ENOSPC, "No space left")])
@pytest.mark.parametrize("existing", [False, True])
def test_a_failure_leaves_everything_as_it_was(
    tmp_path: Path, fill_bundle: Fill, error: BaseException, existing: bool
) -> None:
    if existing:
        with write_bundle(tmp_path / "deep" / "bundle") as writer:
            fill_bundle(writer)
    before = snapshot(tmp_path)
    expected = OutputError if isinstance(error, OSError) else type(error)

    def fail() -> None:
        with write_bundle(tmp_path / "deep" / "bundle") as writer:
            fill_bundle(writer)
            raise error

    with pytest.raises(expected) as caught:
        fail()
    assert snapshot(tmp_path) == before
    assert [path.name for path in tmp_path.iterdir()] == (["deep"] if existing else [])
    if isinstance(error, OSError):
        assert "the disk is full" in str(caught.value)


def test_a_bundle_without_manifest_or_with_a_wrong_one_is_not_written(tmp_path: Path, fill_bundle: Fill) -> None:
    target = tmp_path / "bundle"
    with pytest.raises(OutputError, match="call write_manifest first"), write_bundle(target) as writer:
        (writer.folder / "x").write_bytes(b"x")

    def fill_and(change: Callable[[BundleWriter, Manifest], None]) -> None:
        with write_bundle(target) as writer:
            change(writer, fill_bundle(writer))

    def shrink(writer: BundleWriter, manifest: Manifest) -> None:
        (writer.folder / "dense_head.onnx").write_bytes(b"")
        writer.write_manifest(manifest)

    def lose(writer: BundleWriter, manifest: Manifest) -> None:
        (writer.folder / "dense_head.onnx").unlink()
        writer.write_manifest(manifest)

    with pytest.raises(IntegrityError, match="has 0 bytes"):
        fill_and(shrink)
    with pytest.raises(BundleNotFoundError, match="lacks the file"):
        fill_and(lose)
    with pytest.raises(BundleNotFoundError, match="cannot be read"):
        fill_and(lambda writer, manifest: print(writer.record("nothing.onnx")))
    with pytest.raises(ManifestError, match="precision must be one of"):
        fill_and(lambda writer, manifest: print(writer.write_manifest(replace(manifest, precision="fp64"))))
    with pytest.raises(ManifestError, match="cannot be written as JSON"):
        fill_and(lambda writer, m: print(writer.write_manifest(replace(m, tools={"torch": object()}))))  # type: ignore[dict-item]
    with pytest.raises(OutputError, match="golden array 'text' has dtype"):
        fill_and(lambda writer, manifest: print(writer.golden({"text": np.array(["x"])})))
    assert list(tmp_path.iterdir()) == []


def test_the_bundle_opens_before_it_is_in_place(tmp_path: Path, fill_bundle: Fill) -> None:
    with write_bundle(tmp_path / "bundle") as writer:
        manifest = fill_bundle(writer)
        measured = Bundle.open(writer.folder)
        assert measured.manifest == manifest
        writer.write_manifest(replace(manifest, parity=None))
        assert not (tmp_path / "bundle").exists()
    assert Bundle.open(tmp_path / "bundle").manifest.parity is None
