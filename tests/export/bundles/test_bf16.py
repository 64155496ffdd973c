"""BF16 bundles for OpenVINO, and INT8 ones with BF16 around the products: float32 tensors that the library rounds."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("openvino", reason="OpenVINO is not installed")

from mapengine.calibration.data.cases import rendered_cases
from mapengine.export import build_engine, compile_engine, load_model
from mapengine.export.quantization import CalibrationOptions, calibrate
from mapengine.runtime import Engine, InputError
from mapengine.runtime.backends.openvino import OpenVinoBackend
from mapengine.runtime.bundle.stages import STAGES
from mapengine.runtime.bundle.store import Bundle
from mapengine.runtime.checks.product_precision import stage_products
from mapengine.runtime.errors import BackendUnavailableError, MapEngineError

from ...engine_views import views_of

SIZE = (140, 112)
HAS_BF16 = OpenVinoBackend(1).has_bf16()
processor = pytest.mark.skipif(not HAS_BF16, reason="this processor multiplies no bfloat16")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if not HAS_BF16:
        pytest.skip("this processor multiplies no bfloat16")
    folder = tmp_path_factory.mktemp("bf16") / "bundle"
    # The trained network: random weights make far more of a rounding error than any network that is of use.
    model = load_model("preset:nano")
    build_engine(model, folder, precision="bf16", backend="openvino", views=(1, 2, 4), resolutions=[(140, 112)])
    return folder


@pytest.mark.slow
def test_it_is_near_but_not_equal_to_float32(bundle: Path) -> None:
    engine = Engine.load(bundle)
    assert (engine.backend, engine.manifest.precision) == ("openvino", "bf16")
    parity = engine.manifest.parity
    assert parity is not None
    assert max(output.max_rel for output in parity.outputs.values()) > 1e-4  # float32 is below, see parity.md
    # Measured: 0.005 and 0.14 degrees. BF16 keeps eight bits, 0.004 of a value, and the whole stream is rounded.
    assert parity.geometry.depth_abs_rel < 0.01
    assert parity.geometry.rotation_degrees < 0.4
    assert len(engine.infer(views_of(("kdp", "kp", ""), SIZE))) == 3


@pytest.mark.slow
def test_its_transformers_run_in_bfloat16_and_nothing_else_does(bundle: Path) -> None:
    opened = Bundle.open(bundle)
    products = stage_products(opened, "openvino")
    assert {entry.stage for entry in products} == set(STAGES)
    for entry in products:
        counts = entry.counts()
        assert ("bfloat16" in counts) == (entry.stage in ("image_encoder", "aggregator")), (entry.stage, counts)


@pytest.mark.slow
def test_no_other_backend_takes_it(bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(MapEngineError, match="openvino"):
        Engine.load(bundle, "onnxruntime")
    with pytest.raises(InputError, match="build plans in bf16 from the model"):
        compile_engine(bundle, tmp_path / "plans", backend="tensorrt-rtx")


@pytest.mark.slow
def test_a_processor_without_bfloat16_is_told_so(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    library = OpenVinoBackend(1)
    monkeypatch.setattr(library, "has_bf16", lambda: False)
    with pytest.raises(BackendUnavailableError, match="no bfloat16 products; build the bundle in fp32"):
        library.load_stage("aggregator", tiny_bundle / "aggregator.onnx", "bf16")
    library.load_stage("dense_head", tiny_bundle / "dense_head.onnx", "bf16")


@pytest.mark.slow
def test_what_int8_leaves_runs_in_bfloat16_if_asked_for(tmp_path: Path) -> None:
    # Where it is refused, the smallest network is refused as well.
    model, size = (load_model("preset:nano"), SIZE) if HAS_BF16 else (load_model("preset:tiny"), (56, 42))
    options = CalibrationOptions(method="max", smooth=False, rotate=False, correct_bias=False)
    ranges = calibrate(model, rendered_cases(2, size, model.data_norm_type), options)
    serving = {"views": (1, 2, 4), "resolutions": [SIZE], "calibration": ranges, "rest": "bf16"}
    if not HAS_BF16:
        with pytest.raises(BackendUnavailableError, match="in int8 with fp32 around it"):
            build_engine(model, tmp_path / "bundle", precision="int8", backend="openvino", **serving)
        return
    manifest = build_engine(model, tmp_path / "bundle", precision="int8", backend="openvino", **serving)
    assert manifest.quantization is not None
    assert (manifest.quantization.rest, manifest.arithmetic) == ("bf16", "bf16")
    assert [backend.name for backend in manifest.backends] == ["openvino"]
    for entry in stage_products(Bundle.open(tmp_path / "bundle"), "openvino"):
        counts = entry.counts()
        assert counts.get("int8", 0) + counts.get("uint8", 0) == manifest.quantization.products.get(entry.stage, 0)
        rounded = entry.stage in ("image_encoder", "aggregator")
        assert ("bfloat16" in counts) == rounded, (entry.stage, counts)
        assert ("float32" in counts) != rounded, (entry.stage, counts)
    assert manifest.parity is not None
    assert manifest.parity.geometry.depth_abs_rel < 0.02
    with pytest.raises(InputError, match="build plans in bf16 from the model"):
        compile_engine(tmp_path / "bundle", tmp_path / "plans", backend="tensorrt-rtx")


@pytest.mark.parametrize(
    ("precision", "backend", "rest", "message"),
    [
        ("int8", "onnxruntime", "bf16", "rest is for int8 with openvino; leave it out for int8 with onnxruntime"),
        ("bf16", "openvino", "bf16", "rest is for int8 with openvino; leave it out for bf16"),
        ("int8", "openvino", "fp16", "rest 'fp16' is not built; use fp32 or bf16"),
    ],
)
def test_other_builds_have_no_choice_of_the_rest(
    precision: str, backend: str, rest: str, message: str, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=message):
        build_engine(load_model("preset:tiny"), tmp_path / "bundle", precision=precision, backend=backend, rest=rest)
    assert not (tmp_path / "bundle").exists()
