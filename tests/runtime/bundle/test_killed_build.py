"""A build that is killed at any step leaves a bundle that loads, or nothing, and can be repeated."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from mapengine.runtime.bundle.manifest import Manifest
from mapengine.runtime.bundle.store import Bundle, BundleWriter, write_bundle
from mapengine.runtime.errors import OutputError
from mapengine.runtime.writing import staging

from ..writing.test_killed import hidden, run_until

Fill = Callable[[BundleWriter], Manifest]


def build(folder: Path, fill: Fill, version: str) -> None:
    with write_bundle(folder) as writer:
        writer.write_manifest(replace(fill(writer), created_by=version))


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are killed as POSIX has it")
@pytest.mark.parametrize("before", ["nothing", "an empty folder", "an older bundle"])
def test_killed_at_every_step(tmp_path: Path, fill_bundle: Fill, before: str) -> None:
    older = tmp_path / "older" / "engine"
    older.parent.mkdir()
    build(older, fill_bundle, "0.0.1")
    (older / "scene.glb").write_bytes(b"mine")
    for step in range(200):
        out = tmp_path / str(step) / "engine"
        out.parent.mkdir()
        if before == "an empty folder":
            out.mkdir()
        if before == "an older bundle":
            shutil.copytree(older, out)
        killed = run_until(step, lambda out=out: build(out, fill_bundle, "0.0.2"))  # type: ignore[misc]
        if before == "an older bundle":
            assert Bundle.open(out).manifest.created_by in ("0.0.1", "0.0.2")
            assert hidden(out.parent) == []  # opening tidies up
            assert (out / "scene.glb").read_bytes() == b"mine"
        build(out, fill_bundle, "0.0.3")
        assert Bundle.open(out).manifest.created_by == "0.0.3"
        assert hidden(out.parent) == []
        assert (out / "scene.glb").exists() == (before == "an older bundle")
        if not killed:
            return
    pytest.fail("it never ended")


def test_two_builds_at_once_do_not_mix(tmp_path: Path, fill_bundle: Fill, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(staging, "WAIT_SECONDS", 0.05)
    with write_bundle(tmp_path / "engine") as writer:
        fill_bundle(writer)
        with pytest.raises(OutputError, match="another process writes it now; wait until that is done"):
            build(tmp_path / "engine", fill_bundle, "0.0.2")
    assert Bundle.open(tmp_path / "engine").manifest.created_by == "0.1.0"
    build(tmp_path / "engine", fill_bundle, "0.0.2")
    assert Bundle.open(tmp_path / "engine").manifest.created_by == "0.0.2"
