"""A build that is killed at any step leaves a bundle that loads, or nothing, and can be repeated."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from mapengine.runtime.bundle.manifest import Manifest
from mapengine.runtime.bundle.store import Bundle, BundleWriter, write_bundle
from mapengine.runtime.errors import OutputError
from mapengine.runtime.writing import staging

from ..writing.deaths import dies_at
from ..writing.test_killed import hidden

Fill = Callable[[BundleWriter], Manifest]


def build(folder: Path, files: Path, version: str) -> None:
    """Write the bundle ``files`` again, as one of another version."""
    manifest = Bundle.open(files, verify=False).manifest
    with write_bundle(folder) as writer:
        shutil.copytree(files, writer.folder, dirs_exist_ok=True)
        writer.write_manifest(replace(manifest, created_by=version))


@pytest.mark.slow
@pytest.mark.parametrize("before", ["nothing", "an empty folder", "an older bundle"])
def test_killed_at_every_step(tmp_path: Path, bundle_folder: Path, before: str) -> None:
    older = tmp_path / "older" / "engine"
    older.parent.mkdir()
    build(older, bundle_folder, "0.0.1")
    (older / "scene.glb").write_bytes(b"mine")
    for step in range(200):
        out = tmp_path / str(step) / "engine"
        out.parent.mkdir()
        if before == "an empty folder":
            out.mkdir()
        if before == "an older bundle":
            shutil.copytree(older, out)
        killed = dies_at(step, lambda out=out: build(out, bundle_folder, "0.0.2"))  # type: ignore[misc]
        if before == "an older bundle":
            assert Bundle.open(out).manifest.created_by in ("0.0.1", "0.0.2")
            assert hidden(out.parent) == []  # opening tidies up
            assert (out / "scene.glb").read_bytes() == b"mine"
        build(out, bundle_folder, "0.0.3")
        assert Bundle.open(out).manifest.created_by == "0.0.3"
        assert hidden(out.parent) == []
        assert (out / "scene.glb").exists() == (before == "an older bundle")
        if not killed:
            return
    pytest.fail("it never ended")


def test_two_builds_at_once_do_not_mix(
    tmp_path: Path, fill_bundle: Fill, bundle_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(staging, "WAIT_SECONDS", 0.05)
    with write_bundle(tmp_path / "engine") as writer:
        fill_bundle(writer)
        with pytest.raises(OutputError, match="another process writes it now; wait until that is done"):
            build(tmp_path / "engine", bundle_folder, "0.0.2")
    assert Bundle.open(tmp_path / "engine").manifest.created_by == "0.1.0"
    build(tmp_path / "engine", bundle_folder, "0.0.2")
    assert Bundle.open(tmp_path / "engine").manifest.created_by == "0.0.2"
