"""Bundles of TensorRT plans, compiled on the CPU by TensorRT-RTX."""

from __future__ import annotations

import shutil
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

from mapengine.export import build_engine, compile_engine
from mapengine.export.graphs.gpu import add_patch_features
from mapengine.export.model.reference import MapAnything
from mapengine.export.tensorrt.settings import PlanSettings
from mapengine.runtime import Engine
from mapengine.runtime.backends.host_pipeline import geometry_inputs
from mapengine.runtime.bundle.manifest import ADDED_STAGES, EVERY_STAGE, NORMALIZER, SCENE, STAGES, Manifest, Range
from mapengine.runtime.bundle.stages import CHUNKED_LIKE
from mapengine.runtime.bundle.store import Bundle
from mapengine.runtime.errors import BackendUnavailableError, InputError, IntegrityError, MapEngineError, VersionError
from mapengine.runtime.inputs.prepared import prepare_views

from ...documents import ROOT
from ...random_views import mixed_views
from ...shared_plans import REQUESTS, share_plans

SETTINGS = PlanSettings(("8.9", "12.0"), memory_limit=64 * 2**30)
"""As in the test of the command line, which shares the plans."""

BLOCKS = {"image_encoder": 3, "geometry_encoder": 0, "aggregator": 6, "dense_head": 0, NORMALIZER: 0, SCENE: 0}


@pytest.fixture(scope="module")
def tiny(reference: Any) -> MapAnything:
    return reference("preset:tiny")


@pytest.fixture(scope="module")
def compiled(
    tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory, shared_plan_folder: Path
) -> tuple[Path, Manifest]:
    """The shared float32 bundle as plans."""
    out = tmp_path_factory.mktemp("plans") / "engine"
    with warnings.catch_warnings(record=True) as caught, pytest.MonkeyPatch.context() as patch:
        warnings.simplefilter("always")
        share_plans(patch, shared_plan_folder)
        manifest = compile_engine(tiny_bundle, out, backend="tensorrt-rtx", settings=SETTINGS)
    texts = [str(entry.message) for entry in caught]
    assert any("aggregator: 6 of 6 attention blocks are not fused" in text for text in texts)  # float32
    return out, manifest


@pytest.mark.slow
def test_plans_take_the_place_of_the_graphs(compiled: tuple[Path, Manifest], tiny_bundle: Path) -> None:
    out, manifest = compiled
    source = Bundle.open(tiny_bundle).manifest
    assert Bundle.open(out).manifest == manifest  # schema and hashes
    assert {path.name for path in out.iterdir()} == {
        "manifest.json",
        "golden.npz",
        *(f"{name}.plan" for name in EVERY_STAGE),
    }
    assert (manifest.format, manifest.precision, manifest.attention) == ("plan", "fp32", "mha")
    assert (manifest.model, manifest.golden, manifest.parity) == (source.model, source.golden, source.parity)
    (backend,) = manifest.backends
    assert backend.name == "tensorrt-rtx"
    assert backend.version == backend.minimum_version == backend.maximum_version
    assert backend.compute_capability == ("8.9", "12.0")
    assert manifest.tools["tensorrt-rtx"] == backend.version


@pytest.mark.slow
def test_profiles_follow_from_the_request(compiled: tuple[Path, Manifest]) -> None:
    _, manifest = compiled
    assert manifest.requests.views == Range(1, 4, 32)
    assert dict(manifest.requests.chunks) == {"image_encoder": 8, "geometry_encoder": 8, "dense_head": 4}
    for name, stage in manifest.stages.items():
        (profile,) = stage.optimization_profiles
        axis = "views" if name == "aggregator" else "views_in_chunk"
        assert profile[axis].min == 1
        assert profile[axis].max == (
            32 if name == "aggregator" else manifest.requests.chunks[CHUNKED_LIKE.get(name, name)]
        )
        assert (profile["patch_rows"].min, profile["patch_rows"].max) == (1, 37)
        assert stage.opset is None


@pytest.mark.slow
def test_layers_are_recorded(compiled: tuple[Path, Manifest]) -> None:
    _, manifest = compiled
    for name, stage in manifest.stages.items():
        assert stage.layers is not None
        assert (stage.layers.attention, stage.layers.fused) == (BLOCKS[name], 0)
        assert set(stage.layers.gemms) == (set() if name in ADDED_STAGES else {"Float x Float -> Float"})


@pytest.mark.slow
def test_geometry_plan_returns_the_sum(compiled: tuple[Path, Manifest], tiny_bundle: Path, tmp_path: Path) -> None:
    _, manifest = compiled
    stage = manifest.stages["geometry_encoder"]
    assert stage.inputs[-1].name == "patch_features"
    assert [(tensor.name, tensor.dtype) for tensor in stage.outputs] == [("features", "float32")]
    source = Bundle.open(tiny_bundle)
    path, spec = add_patch_features(
        source.stage_path("geometry_encoder"), tmp_path, source.manifest.stages["geometry_encoder"]
    )
    assert (spec.inputs, spec.outputs) == (stage.inputs, stage.outputs)
    prepared = prepare_views(mixed_views(4))
    given = [view for view in prepared.geometry if view is not None and view.has_any]
    inputs = geometry_inputs(given, 1, prepared.height, prepared.width)
    (added,) = onnxruntime.InferenceSession(source.stage_path("geometry_encoder")).run(None, inputs)
    patches = np.random.default_rng(0).normal(size=added.shape).astype(np.float32)
    (total,) = onnxruntime.InferenceSession(path).run(None, {**inputs, "patch_features": patches})
    np.testing.assert_array_equal(total, patches + added)


@pytest.mark.slow
def test_compiling_needs_no_pytorch(tiny_bundle: Path, tmp_path: Path, shared_plan_folder: Path) -> None:
    # The library runs in processes of its own; test_tolerances.py compiles with none that has PyTorch.
    program = f"""
import sys
from pathlib import Path
sys.modules["torch"] = None
import pytest
from mapengine.export import compile_engine
from mapengine.export.tensorrt.settings import PlanSettings
from tests.shared_plans import share_plans
share_plans(pytest.MonkeyPatch(), Path({str(shared_plan_folder)!r}))
settings = {SETTINGS!r}
manifest = compile_engine({str(tiny_bundle)!r}, {str(tmp_path / "engine")!r}, backend="tensorrt-rtx", settings=settings)
print(manifest.format)
"""
    result = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", program], capture_output=True, text=True, check=False, cwd=ROOT
    )
    assert (result.returncode, result.stdout.split()) == (0, ["plan"]), result.stderr


@pytest.mark.slow
@pytest.mark.usefixtures("traced", "shared_plans")
@pytest.mark.parametrize(("precision", "kind"), [("fp16", "Half"), ("bf16", "BFloat16")])
def test_sixteen_bit_plans_are_fused_and_their_graphs_are_right(
    precision: str, kind: str, tiny: MapAnything, tmp_path: Path
) -> None:
    parts: list[float] = []
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # nothing to warn of
        manifest = build_engine(
            tiny,
            tmp_path / "engine",
            backend="tensorrt-rtx",
            precision=precision,
            fraction=lambda fraction, phase: parts.append(fraction),
            **REQUESTS,
        )
    assert parts.count(1.0) >= len(STAGES)
    for name, stage in manifest.stages.items():
        assert stage.layers is not None
        assert (stage.layers.attention, stage.layers.fused, stage.layers.unfused) == (BLOCKS[name], BLOCKS[name], ())
        assert len(stage.optimization_profiles) == 2  # one per size
    for name in ("image_encoder", "aggregator"):
        gemms = manifest.stages[name].layers.gemms  # type: ignore[union-attr]
        assert sum(count for types, count in gemms.items() if types.startswith(f"{kind} x {kind}")) >= 2 * BLOCKS[name]
    dtypes = {tensor.name: tensor.dtype for tensor in manifest.stages["aggregator"].outputs}
    assert set(dtypes.values()) == {"float16", "float32"}
    assert dtypes["metric_scaling_factor"] == "float32"
    assert {tensor.dtype for tensor in manifest.stages["dense_head"].inputs} == {"float16"}
    assert manifest.reduced_precision is not None
    assert manifest.reduced_precision.kept_layers == ()
    assert manifest.reduced_precision.headroom[0].factor > 8
    assert manifest.parity is not None
    assert f"{precision} emulated" in manifest.parity.measured_with
    # FP16 keeps 99.9 % of float32; bfloat16 has three bits less.
    assert manifest.parity.geometry.depth_abs_rel < (1e-3 if precision == "fp16" else 8e-3)
    assert manifest.parity.geometry.depth_abs_rel > 1e-6  # float32 in disguise would be below


@pytest.mark.slow
def test_without_a_gpu_loading_says_what_is_missing(
    compiled: tuple[Path, Manifest], monkeypatch: pytest.MonkeyPatch
) -> None:
    out, _ = compiled
    monkeypatch.setattr("mapengine.runtime.backends.tensorrt.backend.driver_problem", lambda: "there is no driver")
    for backend in ("auto", "tensorrt-rtx"):
        with pytest.raises(BackendUnavailableError, match=r"needs an NVIDIA GPU, and there is no driver.*onnxruntime"):
            Engine.load(out, backend)
    with pytest.raises(VersionError, match="this bundle is for tensorrt-rtx, not for onnxruntime"):
        Engine.load(out, "onnxruntime")


@pytest.mark.slow
def test_an_altered_plan_is_refused_before_anything_else(compiled: tuple[Path, Manifest], tmp_path: Path) -> None:
    out = Path(shutil.copytree(compiled[0], tmp_path / "engine"))
    plan = out / "aggregator.plan"
    raw = bytearray(plan.read_bytes())
    raw[len(raw) // 2] ^= 1
    plan.write_bytes(raw)
    with pytest.raises(IntegrityError, match=r"aggregator.plan differs from the hash"):
        Engine.load(out)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"backend": "onnxruntime"},
            "'onnxruntime' is not one of a GPU; use onnxruntime-cuda or tensorrt or tens",
        ),
        ({"backend": "tensorrt-rtx", "settings": PlanSettings(("9.0",))}, r"not for sm_90; build on .* \(Hopper\)"),
        ({"backend": "tensorrt-rtx", "settings": PlanSettings(memory_limit=-1)}, "memory_limit is -1 bytes"),
        ({"backend": "tensorrt-rtx", "out": None}, "out is a NoneType; give the path of a folder"),
        ({"backend": "tensorrt-rtx", "out": "same"}, "is the bundle to compile; give another folder"),
    ],
)
def test_wrong_options(options: dict[str, Any], message: str, tiny_bundle: Path, tmp_path: Path) -> None:
    out = {"same": tiny_bundle, "": tmp_path / "engine"}.get(options.pop("out", ""))
    with pytest.raises(InputError, match=message):
        compile_engine(tiny_bundle, out, **options)  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_plans_cannot_be_compiled_again(compiled: tuple[Path, Manifest], tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is for a GPU already; give a bundle that was built with --backend"):
        compile_engine(compiled[0], tmp_path / "engine", backend="tensorrt-rtx")


@pytest.mark.slow
def test_a_failed_build_leaves_nothing(tiny_bundle: Path, tmp_path: Path) -> None:
    # A workspace of one byte is less than any kernel needs.
    with pytest.raises(MapEngineError) as caught:
        compile_engine(tiny_bundle, tmp_path / "engine", backend="tensorrt-rtx", settings=PlanSettings(memory_limit=1))
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []
