"""Reference networks and their exported stages, each made once per test run."""

from __future__ import annotations

import functools
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock
from safetensors.torch import load_file, save_file

from mapengine.export import load_model
from mapengine.export.bundles import onnx as onnx_bundle
from mapengine.export.graphs.stages import make_stages
from mapengine.export.graphs.tracing import AttentionExport, ExportedStage, export_stages
from mapengine.export.model.reference import MapAnything

from ..goldens import DATA

METADATA = {"mapengine.version": "0.0.test", "mapengine.model": "a model", "mapengine.weights_sha256": "ab" * 32}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark as slow what needs traces of its own: another form of attention than the shared bundle's, other networks."""
    for item in items:
        if "exported" in getattr(item, "fixturenames", ()) and hasattr(item, "callspec"):
            values = item.callspec.params
            if (values.get("form", "mha"), values.get("network", "preset:tiny")) != ("mha", "preset:tiny"):
                item.add_marker(pytest.mark.slow)


@pytest.fixture(scope="session", autouse=True)
def _tracing_once(shared_traces: None) -> None:
    """All tests of exports share their traces."""


@pytest.fixture(scope="session")
def model_folder(shared_folder: Path) -> Callable[[str, str], Path]:
    """Folder of a golden network, in upstream's format, from a folder of ``tests/data`` and a configuration file."""

    def make(name: str, config: str = "config.json") -> Path:
        if config == "config.json":
            return DATA / name
        folder = shared_folder / f"{name}-{Path(config).stem}"
        with FileLock(f"{folder}.lock"):
            if not folder.exists():
                folder.mkdir()
                tensors = load_file(DATA / name / "model.safetensors")
                del tensors["info_sharing.view_pos_table"]
                save_file(tensors, folder / "model.safetensors")
                shutil.copy(DATA / name / config, folder / "config.json")
        return folder

    return make


@pytest.fixture(scope="session")
def reference(model_folder: Callable[[str, str], Path]) -> Callable[..., MapAnything]:
    """Loads ``preset:tiny`` or a golden network (folder of ``tests/data``, configuration file)."""

    @functools.cache
    def load(name: str, config: str = "config.json") -> MapAnything:
        return load_model(name if name.startswith("preset:") else model_folder(name, config))

    return load


@pytest.fixture(scope="session")
def exported(shared_folder: Path, reference: Callable[..., MapAnything]) -> Callable[..., Path]:
    """Folder with the ONNX stages of a network; each (network, attention form) is traced once per test run."""

    @functools.cache
    def export(attention: AttentionExport, name: str = "preset:tiny", config: str = "config.json") -> Path:
        folder = shared_folder / f"stages-{attention}-{name.replace(':', '-')}-{Path(config).stem}"
        with FileLock(f"{folder}.lock"):
            done = folder / "done"
            if not done.exists():
                folder.mkdir(exist_ok=True)
                export_stages(reference(name, config), folder, attention=attention, metadata=METADATA)
                done.touch()
        return folder

    return export


@contextmanager
def copied_stages(exported: Callable[..., Path]) -> Iterator[list[dict[str, Any]]]:
    """Copy stages that were traced before where a build would trace them; yields what the build asked for."""
    calls: list[dict[str, Any]] = []

    def copy(network: MapAnything, folder: Path, **options: Any) -> list[ExportedStage]:
        calls.append(options)
        stages = []
        for stage in make_stages(network).values():
            options["progress"](stage.name)
            path = Path(shutil.copy(exported("mha") / f"{stage.name}.onnx", folder))
            stages.append(ExportedStage(stage.name, path, None, 20, stage.inputs, stage.outputs))
        return stages

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(onnx_bundle, "export_stages", copy)
        yield calls


@pytest.fixture
def traced(exported: Callable[..., Path]) -> Iterator[list[dict[str, Any]]]:
    """:func:`copied_stages` during a test."""
    with copied_stages(exported) as calls:
        yield calls
