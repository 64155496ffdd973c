"""A GPU that is not there: the stand-in driver, the stand-in libraries, and bundles of "plans" for them."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mapengine.runtime import Engine
from mapengine.runtime.backend_table import CPU_BACKENDS
from mapengine.runtime.backends import registry
from mapengine.runtime.backends.cuda import driver as cuda
from mapengine.runtime.backends.tensorrt import backend, flavour
from mapengine.runtime.bundle.backend_info import BackendInfo
from mapengine.runtime.bundle.manifest import Range, ServedRequests, StageSpec
from mapengine.runtime.bundle.stages import CHUNKED_LIKE
from mapengine.runtime.bundle.store import Bundle, write_bundle
from mapengine.runtime.typed_json.codec import encode

from . import driver_abi
from .stand_in_driver import StandInDriver
from .stand_in_tensorrt import StandInTensorRt, write_plan

VERSIONS = {"tensorrt": "10.13.3.9", "tensorrt-rtx": "1.7.1.116"}
CHUNKS = {"image_encoder": 3, "geometry_encoder": 2, "dense_head": 2}
VIEWS = Range(1, 4, 8)


@pytest.fixture(scope="session")
def _installed(tmp_path_factory: pytest.TempPathFactory) -> None:
    driver_abi.install(tmp_path_factory.mktemp("shim"))


@pytest.fixture
def make_driver(
    _installed: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[..., StandInDriver]]:
    """Puts a new stand-in driver in place; its mistakes fail the test at the end."""
    monkeypatch.setenv("MAPENGINE_CACHE", str(tmp_path / "home"))  # no golden check or kernels of other tests
    made: list[StandInDriver] = []

    def make(*arguments: Any, **options: Any) -> StandInDriver:
        made.append(StandInDriver(*arguments, **options))
        driver_abi.set_driver(made[-1])
        monkeypatch.setattr(cuda, "devices", {})
        return made[-1]

    yield make
    for device in cuda.devices.values():
        device.failure = "the test is over"  # what goes away later leaves the next test's driver alone
    driver_abi.set_driver(None)
    assert [mistake for driver in made for mistake in driver.mistakes] == []


@pytest.fixture
def driver(make_driver: Callable[..., StandInDriver]) -> StandInDriver:
    """A GPU that runs nothing before somebody waits for it."""
    return make_driver()


@pytest.fixture
def make_library(monkeypatch: pytest.MonkeyPatch) -> Callable[[str, StandInDriver], StandInTensorRt]:
    """Puts a stand-in library on a stand-in GPU in place of the installed one of this name."""

    def make(name: str, gpu: StandInDriver) -> StandInTensorRt:
        library = StandInTensorRt(gpu, name, VERSIONS[name])
        monkeypatch.setattr(backend, "load_flavour", lambda name: flavour.Flavour(name, library, library.__version__))
        monkeypatch.setattr(backend, "driver_problem", lambda: None)
        monkeypatch.setattr(cuda, "driver_problem", lambda: None)
        monkeypatch.setattr(registry, "is_installed", lambda other: other in (name, *CPU_BACKENDS))
        return library

    return make


@pytest.fixture(params=["tensorrt", "tensorrt-rtx"])
def library(
    request: pytest.FixtureRequest, driver: StandInDriver, make_library: Callable[[str, StandInDriver], StandInTensorRt]
) -> StandInTensorRt:
    """Each library in turn."""
    return make_library(request.param, driver)


@pytest.fixture(scope="session")
def plan_bundles(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The tiny network as a bundle of "plans", per library."""
    graphs = tmp_path_factory.mktemp("graphs")
    return {name: _write_plans(tiny_bundle, graphs, tmp_path_factory.mktemp("plans") / name, name) for name in VERSIONS}


def _write_plans(source: Path, graphs: Path, folder: Path, name: str) -> Path:
    from mapengine.export.graphs.gpu import add_patch_features

    onnx = Bundle.open(source, verify=False)
    with write_bundle(folder) as writer:
        stages: dict[str, StageSpec] = {}
        for stage, spec in onnx.manifest.stages.items():
            graph = onnx.stage_path(stage)
            if stage == "geometry_encoder":
                graph, spec = add_patch_features(graph, graphs, spec)
            sides = {"patch_rows": Range(1, 2, 8), "patch_columns": Range(1, 3, 9)}
            if stage == "aggregator":  # two profiles: the second for many views
                profiles = tuple({"views": views, **sides} for views in (Range(1, 2, 4), VIEWS))
            else:
                most = CHUNKS[CHUNKED_LIKE.get(stage, stage)]
                profiles = ({"views_in_chunk": Range(1, most, most), **sides},)
            spec = replace(spec, optimization_profiles=profiles, opset=None, data=())
            # The geometry encoder needs more than the other stages, so that the first view that has any makes it grow.
            scratch = 2**16 if stage == "geometry_encoder" else 2**12
            write_plan(writer.folder / f"{stage}.plan", graph, encode(spec), scratch)
            stages[stage] = replace(spec, file=writer.record(f"{stage}.plan"))
        golden = writer.golden(onnx.golden())
        version = VERSIONS[name]
        info = BackendInfo(name, version, version, version, ("8.9",) if name == "tensorrt" else None)
        writer.write_manifest(
            replace(
                onnx.manifest,
                format="plan",
                backends=(info,),
                requests=ServedRequests(VIEWS, onnx.manifest.requests.sizes, CHUNKS),
                stages=stages,
                golden=replace(onnx.manifest.golden, file=golden),
            )
        )
    return folder


def copy_bundle(source: Path, target: Path) -> Path:
    """A copy without the kernels that other tests left beside the bundle."""
    return Path(shutil.copytree(source, target, ignore=shutil.ignore_patterns("*.cache")))


@pytest.fixture
def plan_bundle(library: StandInTensorRt, plan_bundles: dict[str, Path], tmp_path: Path) -> Path:
    """The bundle for ``library``, in a folder of its own."""
    return copy_bundle(plan_bundles[library.name], tmp_path / "plan-bundle")


@pytest.fixture
def device_engine(library: StandInTensorRt, plan_bundle: Path) -> Engine:
    """The tiny network on the stand-in GPU, with each library in turn."""
    return Engine.load(plan_bundle, library.name, verify=False)
