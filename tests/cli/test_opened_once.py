"""A command reads the manifest of its bundle once, in its own process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mapengine.runtime.bundle.bundle_files import BundleFiles
from mapengine.runtime.bundle.file_record import MANIFEST_NAME
from mapengine.runtime.memory.model import STAGES
from mapengine.runtime.profiling import memory as measurement

from .conftest import Cli


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The manifests that are read, in turn."""
    found: list[Path] = []
    original = BundleFiles.open

    def watch(self: BundleFiles, name: str) -> Any:
        if name == MANIFEST_NAME:
            found.append(self.folder / name)
        return original(self, name)

    monkeypatch.setattr(BundleFiles, "open", watch)
    return found


@pytest.mark.slow
@pytest.mark.parametrize(
    "command",
    [
        ("info", "BUNDLE"),
        ("verify", "BUNDLE", "--backend", "onnxruntime"),
        ("run", "BUNDLE", "SAMPLES", "--size", "112x84", "--backend", "onnxruntime"),
        ("plan", "BUNDLE", "--resolution", "112x84", "--backend", "onnxruntime", "--measure"),
        ("demo", "BUNDLE", "--size", "112x84", "--views", "2", "--backend", "onnxruntime", "--out", "OUT"),
        ("eval", "BUNDLE", "--size", "112x84", "--scenes", "1", "--tasks", "image-only-2", "--backend", "onnxruntime"),
        ("profile", "BUNDLE", "--resolution", "112x84", "--views", "1", "--runs", "1", "--warmup", "0",
         "--baselines", "none", "--backends", "onnxruntime", "--no-roofline"),
    ],
    ids=lambda command: command[0],
)  # fmt: skip
def test_a_command_opens_its_bundle_once(
    command: tuple[str, ...],
    cli: Cli,
    tiny_bundle: Path,
    samples: Path,
    tmp_path: Path,
    opened: list[Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("MAPENGINE_CACHE", str(tmp_path / "cache"))
    # What a measuring process finds; that process opens the bundle for itself.
    monkeypatch.setattr(measurement, "probe", lambda *shape, **kind: dict.fromkeys(STAGES, 10**8))
    places = {"BUNDLE": tiny_bundle, "SAMPLES": samples, "OUT": tmp_path / "out"}
    result = cli(*(places.get(word, word) for word in command))
    assert result.code == 0, result.err
    assert opened == [tiny_bundle / MANIFEST_NAME]


@pytest.mark.slow
@pytest.mark.usefixtures("shared_traces")
def test_a_build_reads_no_manifest(tmp_path: Path, opened: list[Path]) -> None:
    """It knows what it wrote."""
    from mapengine.export import build_engine, load_model

    build_engine(load_model("preset:tiny"), tmp_path / "engine", views=(1, 1, 2), resolutions=[(56, 42)])
    assert opened == []
