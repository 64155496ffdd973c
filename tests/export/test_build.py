from __future__ import annotations

import copy
import errno
import hashlib
import shutil
import types
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from mapengine.export import build_engine
from mapengine.export import options as build_options
from mapengine.export.bundles import compilers as stage_compilers
from mapengine.export.bundles import onnx as onnx_bundle
from mapengine.export.bundles import references
from mapengine.export.bundles.parity_cases import parity_cases
from mapengine.export.compile import compile_engine
from mapengine.export.model.network.model import with_key_shares
from mapengine.export.model.presets import preset_config
from mapengine.export.model.reference import MapAnything
from mapengine.export.tensorrt import limits
from mapengine.export.tensorrt.settings import PlanSettings
from mapengine.runtime import Engine
from mapengine.runtime.backends.registry import available_backends
from mapengine.runtime.backends.tensorrt.flavour import Flavour
from mapengine.runtime.bundle.manifest import KeyShare
from mapengine.runtime.bundle.requests import AnySize, Range
from mapengine.runtime.bundle.stages import ADDED_STAGES, EVERY_STAGE, STAGES
from mapengine.runtime.bundle.store import Bundle, BundleWriter
from mapengine.runtime.errors import (
    BackendUnavailableError,
    InputError,
    MapEngineError,
    OutputError,
    ParityError,
    ProfileError,
)

from ..random_views import assert_close, mixed_views, random_views

Reference = Callable[..., MapAnything]


@pytest.fixture(scope="module")
def tiny(reference: Reference) -> MapAnything:
    return reference("preset:tiny")


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# A whole build, from tracing on


def test_manifest_describes_model_and_build(tiny_bundle: Path, tiny: MapAnything) -> None:
    manifest = Bundle.open(tiny_bundle).manifest  # checks the schema and every hash
    model = manifest.model
    assert (model.id, model.revision, model.data_norm_type) == ("preset:tiny", None, "dinov2")
    assert model.config == preset_config("tiny")
    assert model.weights_sha256 == tiny.weights_hash()
    assert model.parameters == sum(p.numel() for p in tiny.parameters())
    assert (model.embed_dim, model.dim, model.extra_tokens) == (
        tiny.config.image_encoder.block.dim,
        tiny.config.aggregator.block.dim,
        1,
    )
    assert (manifest.precision, manifest.attention, manifest.format) == ("fp32", "mha", "onnx")
    assert manifest.quantization is None
    assert manifest.created_by == metadata.version("mapengine")
    assert manifest.requests.views == Range(1, 4, 32)
    assert manifest.requests.sizes == AnySize(14, 518)
    assert {backend.name for backend in manifest.backends} == {"onnxruntime", "openvino"}
    for tool in ("torch", "onnx", "onnxscript", "numpy"):
        assert manifest.tools[tool] == metadata.version(tool)


def test_bundle_holds_what_its_manifest_names_and_nothing_else(tiny_bundle: Path) -> None:
    manifest = Bundle.open(tiny_bundle).manifest
    assert list(manifest.stages) == list(EVERY_STAGE)
    records = {record.file: record for record in manifest.files()}
    assert set(contents(tiny_bundle)) == {*records, "manifest.json"}
    for name, raw in contents(tiny_bundle).items():
        if name in records:
            assert (records[name].bytes, records[name].sha256) == (len(raw), hashlib.sha256(raw).hexdigest())


@pytest.mark.slow
def test_measured_parity_is_rounding(tiny_bundle: Path, tiny: MapAnything) -> None:
    parity = Bundle.open(tiny_bundle).manifest.parity
    assert parity is not None
    assert parity.cases == tuple(parity_cases("dinov2"))
    floating = {key for key, value in tiny.predict(random_views(1))[0].items() if value.dtype.kind == "f"}
    assert set(parity.outputs) == floating
    for key, output in parity.outputs.items():
        assert 0 <= output.max_rel < 2e-5, key
    assert any(output.max_abs > 0 for output in parity.outputs.values())
    geometry = parity.geometry
    assert geometry.depth_abs_rel < 1e-5
    assert geometry.ray_degrees < 1e-3
    assert geometry.rotation_degrees < 1e-3
    assert geometry.translation < 1e-4
    assert geometry.metric_scale < 1e-5


def test_queries_keys_and_values_are_products_of_their_own(tiny_bundle: Path) -> None:
    """Both libraries on processors are slower where they cut the result of one product."""
    nodes = onnx.load(tiny_bundle / "aggregator.onnx", load_external_data=False).graph.node
    names = [node.name for node in nodes if node.op_type == "MatMul"]
    assert {f"info_sharing.self_attention_blocks.0.attn.qkv/MatMul.{part}" for part in range(3)} <= set(names)
    assert not [node.name for node in nodes if node.op_type == "Split"]


def test_golden_file_is_the_references_word(tiny_bundle: Path, tiny: MapAnything) -> None:
    bundle = Bundle.open(tiny_bundle)
    tolerance = bundle.manifest.golden.tolerance
    floating = {key for key, value in tiny.predict(random_views(1))[0].items() if value.dtype.kind == "f"}
    assert set(tolerance) == floating
    golden = bundle.golden()
    for key, limit in tolerance.items():
        largest = max(float(np.abs(golden[f"out.{view}.{key}"]).max()) for view in range(3))
        assert limit.rtol == 1e-4
        assert limit.atol == pytest.approx(1e-4 * largest)


@pytest.mark.slow
def test_engine_of_the_bundle_equals_the_reference(tiny_bundle: Path, tiny: MapAnything) -> None:
    engine = Engine.load(tiny_bundle)
    assert_close(engine.predict(mixed_views(6)), tiny.predict(mixed_views(6)))


# Options


@pytest.mark.slow
def test_a_bundle_with_fewer_keys_is_the_reference_with_as_many(few_keys_bundle: Path, tiny: MapAnything) -> None:
    manifest = Bundle.open(few_keys_bundle).manifest
    assert manifest.key_shares == (KeyShare(0, 0.25), KeyShare(2, 1.0), KeyShare(4, 0.5))
    assert (manifest.attention, manifest.shares_by_block) == ("mha", {0: 0.25, 4: 0.5})
    assert tiny.config.aggregator.key_shares == ()
    few, views = with_key_shares(tiny, manifest.shares_by_block), random_views(4, "", 70, 56)
    wanted, dense = few.predict(views, use_amp=False), tiny.predict(views, use_amp=False)
    for backend in ("onnxruntime", "openvino"):
        if backend in available_backends():
            engine = Engine.load(few_keys_bundle, backend)  # its golden check passes
            found = engine.predict(views)
            assert_close(found, wanted)
            with pytest.raises(AssertionError):
                assert_close(found, dense)


@pytest.mark.slow
@pytest.mark.parametrize("attention", ["native:kv=0.25", "int8:kv=0.5@4"])
def test_a_finished_bundle_has_chosen_its_keys(attention: str, few_keys_bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"chooses keys, which the ONNX files of .* chose already; leave out kv="):
        compile_engine(few_keys_bundle, tmp_path / "engine", backend="onnxruntime-cuda", attention=attention)


@pytest.mark.slow
def test_steps_are_reported_and_passed_on(traced: list[dict[str, Any]], tiny: MapAnything, tmp_path: Path) -> None:
    lines: list[str] = []
    manifest = build_engine(tiny, tmp_path / "engine", attention="matmul", progress=lines.append)
    assert manifest.attention == traced[0]["attention"] == "matmul"
    assert traced[0]["metadata"]["mapengine.weights_sha256"] == tiny.weights_hash()
    assert lines == [
        "computing reference outputs",
        *(f"exporting {name}" for name in (*STAGES, *ADDED_STAGES)),
        "rewriting the stages for processors",
        "checking the engine with onnxruntime",
        "measuring parity with PyTorch",
    ]
    assert [path.name for path in tmp_path.iterdir()] == ["engine"]
    assert Bundle.open(tmp_path / "engine").manifest == manifest


@pytest.mark.slow
@pytest.mark.usefixtures("traced")
def test_profile_of_sizes_and_counts(tiny: MapAnything, tmp_path: Path) -> None:
    manifest = build_engine(tiny, tmp_path / "e", views=(2, 2, 3), resolutions=[(70, 42), (42, 42), (70, 42)])
    assert manifest.requests.views == Range(2, 2, 3)
    assert manifest.requests.sizes == ((70, 42), (42, 42))
    assert manifest.parity is not None
    assert "image, 1 view, repeated to 2 views" in manifest.parity.cases
    assert "mixed" not in manifest.parity.cases  # four views
    engine = Engine.load(tmp_path / "e")
    assert_close(
        engine.predict(random_views(3, width=70, height=42)), tiny.predict(random_views(3, width=70, height=42))
    )
    with pytest.raises(ProfileError, match="1 view in one call"):
        engine.predict(random_views(1, width=70, height=42))
    with pytest.raises(ProfileError, match="42x28"):
        engine.predict(random_views(2, width=42, height=28))


@pytest.mark.slow
@pytest.mark.usefixtures("traced")
def test_profile_of_many_views_is_measured_too(tiny: MapAnything, tmp_path: Path) -> None:
    manifest = build_engine(tiny, tmp_path / "engine", views=(5, 6, 8))
    assert manifest.parity is not None
    assert len(manifest.parity.cases) == 8


@pytest.mark.slow
@pytest.mark.usefixtures("traced")
def test_openvino_checks_the_same_files(tiny: MapAnything, tmp_path: Path) -> None:
    manifest = build_engine(tiny, tmp_path / "engine", backend="openvino", views=(1, 2, 2))
    assert manifest.parity is not None
    assert max(output.max_rel for output in manifest.parity.outputs.values()) < 1e-4
    assert Engine.load(tmp_path / "engine", "onnxruntime").backend == "onnxruntime"


WRONG_OPTIONS: list[tuple[dict[str, Any], str]] = [
    ({"precision": "fp64"}, "precision 'fp64' is not built for onnxruntime by this version; use fp32 or fp16 or int8$"),
    ({"precision": "fp8"}, "'fp8' is not built for onnxruntime.*, or the backend tensorrt or tensorrt-rtx"),
    (
        {"precision": "bf16"},
        "'bf16' is not built for onnxruntime.*, or the backend openvino or onnxruntime-cuda or tensorrt or tens",
    ),
    (
        {"precision": "int4", "backend": "tensorrt-rtx"},
        "'int4' is not built for tensorrt-rtx.*use fp32 or fp16 or bf16 or int8 or fp8",
    ),
    (
        {"backend": "cuda"},
        "backend 'cuda' is unknown; use onnxruntime, openvino, onnxruntime-cuda, tensorrt, tens",
    ),
    (
        {"settings": PlanSettings(("8.9",))},
        "memory_limit and optimization_level are options of tensorrt and tens",
    ),
    (
        {"backend": "tensorrt-rtx", "settings": PlanSettings(("8.7",))},
        r"not for sm_87; build on a machine with that GPU",
    ),
    (
        {"precision": "fp8", "backend": "tensorrt-rtx", "settings": PlanSettings(("8.9", "8.6"))},
        r"sm_86 has no FP8; use --precision int8 or fp16, or a target from sm_89",
    ),
    ({"backend": "tensorrt-rtx", "settings": PlanSettings(("ada",))}, "target 'ada' is no compute capability"),
    ({"backend": "tensorrt-rtx", "attention": "attention"}, "no kernel for the operator Attention in float32"),
    ({"backend": "tensorrt-rtx", "views": (1, 8, 512)}, "use --precision fp16 or bf16, or build for at most"),
    ({"attention": "flesh"}, "attention 'flesh' is no kernel.*or auto, native, mha, attention, matmul"),
    (
        {"attention": "flash"},
        "attention 'flash' is for onnxruntime-cuda, tensorrt, tensorrt-rtx, .*leave it out for",
    ),
    ({"calibration": "photos"}, "calibration is for int8 and fp8"),
    ({"views": (0, 1, 2)}, "views 0:1:2 is not min:opt:max"),
    ({"views": (4, 2, 8)}, "views 4:2:8"),
    ({"views": (1, 9, 8)}, "views 1:9:8"),
    ({"views": (1, 4)}, r"views is \(1, 4\); give"),
    ({"views": (1, 2.5, 4)}, "give the fewest, usual and most"),
    ({"views": (True, 2, 4)}, "give the fewest, usual and most"),
    ({"views": None}, "views is None; give the fewest, usual and most"),
    ({"views": (1, 2, 2**21)}, "views 1:2:2097152 is not min:opt:max"),
    ({"resolutions": "518"}, "give 'all' or"),
    ({"resolutions": []}, "resolutions is empty"),
    ({"resolutions": [(100, 98)]}, "resolution 100x98 is not a multiple of 14 pixels; sizes of the table are 252x518"),
    ({"resolutions": [(-14, 14)]}, "resolution -14x14"),
    ({"resolutions": [518]}, "give 'all' or"),
    ({"resolutions": [("a", "b")]}, "give 'all' or"),
    ({"resolutions": [(56.5, 84)]}, "give 'all' or .* pairs of whole numbers"),
    ({"resolutions": [(14 * 2**20, 14)]}, "resolution 14680064x14 is larger than"),
    ({"resolutions": None}, "give 'all' or"),
]


@pytest.mark.parametrize(("options", "message"), WRONG_OPTIONS, ids=lambda value: str(value)[:40])
def test_wrong_options_are_refused_before_any_work(
    options: dict[str, Any], message: str, tiny: MapAnything, tmp_path: Path, traced: list[dict[str, Any]]
) -> None:
    with pytest.raises(InputError, match=message):
        build_engine(tiny, tmp_path / "engine", **options)
    assert traced == []
    assert list(tmp_path.iterdir()) == []


def test_counts_and_sizes_may_be_numpy_integers() -> None:
    requests = build_options.served_requests(tuple(np.array([1, 2, 3])), np.array([[56, 84], [70, 70]]), {})  # type: ignore[arg-type]
    assert requests.views == Range(1, 2, 3)
    assert requests.sizes == ((56, 84), (70, 70))
    assert type(requests.views.max) is int


@pytest.mark.parametrize(
    ("sizes", "most", "together"),
    [
        (AnySize(14, 518), 32, 1),
        (((518, 392),), 32, 1),
        (((140, 112),), 32, 8),  # 80 patches
        (((140, 112),), 2, 2),
        (((140, 112), (280, 224)), 32, 2),  # the largest decides
        (((14, 14),), 32, 32),
    ],
)
def test_small_images_are_encoded_together(sizes: Any, most: int, together: int) -> None:
    chunks = build_options.processor_chunks(sizes, Range(1, 1, most))
    assert chunks == {"image_encoder": together, "geometry_encoder": 1, "dense_head": 1}


def test_wrong_models_and_folders_are_refused_before_any_work(
    tiny: MapAnything, tmp_path: Path, traced: list[dict[str, Any]]
) -> None:
    with pytest.raises(InputError, match="the model is a str; give what load_model returns"):
        build_engine("preset:tiny", tmp_path / "engine")  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"the model is torch.float64 on cpu; give it in float32"):
        build_engine(copy.deepcopy(tiny).double(), tmp_path / "engine")
    with pytest.raises(InputError, match="out is a NoneType; give the path"):
        build_engine(tiny, None)  # type: ignore[arg-type]
    assert traced == []
    assert list(tmp_path.iterdir()) == []


# Failures on the way


def disk_full(*args: Any, **kwargs: Any) -> Any:
    raise OSError(errno.ENOSPC, "No space left on device")


def interrupt(*args: Any, **kwargs: Any) -> Any:
    raise KeyboardInterrupt


def wrong_reference(views: Any, predictions: Any) -> dict[str, Any]:
    """A golden file with outputs that are not those of the engine."""
    return golden_pack(views, [{**entry, "cam_trans": entry["cam_trans"] + 1} for entry in predictions])


golden_pack = onnx_bundle.pack

FAILURES: dict[str, tuple[Any, str, Any, type[BaseException]]] = {
    "disk full while tracing": (onnx_bundle, "export_stages", disk_full, OutputError),
    "disk full at the golden file": (BundleWriter, "golden", disk_full, OutputError),
    "disk full at the manifest": (BundleWriter, "write_manifest", disk_full, OutputError),
    "interrupted while measuring": (references, "measure_parity", interrupt, KeyboardInterrupt),
    "interrupted while tracing": (onnx_bundle, "export_stages", interrupt, KeyboardInterrupt),
    "wrong results": (onnx_bundle, "pack", wrong_reference, ParityError),
}


@pytest.mark.slow
@pytest.mark.usefixtures("traced")
@pytest.mark.parametrize("before", ["nothing", "older bundle"])
@pytest.mark.parametrize("failure", FAILURES)
def test_failed_build_leaves_what_was_there(
    failure: str,
    before: str,
    tiny: MapAnything,
    tiny_bundle: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    out = tmp_path / "engine"
    if before == "older bundle":
        shutil.copytree(tiny_bundle, out)
        (out / "scene.glb").write_bytes(b"saved by the user")
    old = contents(tmp_path)
    owner, name, replacement, error = FAILURES[failure]
    monkeypatch.setattr(owner, name, replacement)
    with pytest.raises(error) as caught:
        build_engine(tiny, out)
    assert contents(tmp_path) == old
    assert out.exists() == (before == "older bundle")
    assert len(list(tmp_path.iterdir())) == (1 if before == "older bundle" else 0)
    if issubclass(error, MapEngineError):
        assert "\n" not in str(caught.value)
    if error is OutputError:
        assert "the disk is full" in str(caught.value)
    if error is ParityError:
        assert "cam_trans of view 0 differs from the reference" in str(caught.value)


def test_tensorrt_needs_a_gpu_and_says_so_before_any_work(
    tiny: MapAnything, tmp_path: Path, traced: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    library = types.SimpleNamespace(__version__="10.3.0")
    monkeypatch.setattr(stage_compilers, "load_flavour", lambda name: Flavour(name, library, "10.3.0"))
    monkeypatch.setattr(limits, "driver_problem", lambda: "this machine has no NVIDIA driver")
    with pytest.raises(BackendUnavailableError, match=r"compiles a plan on the GPU that runs it, and .*tensorrt-rtx"):
        build_engine(tiny, tmp_path / "engine", backend="tensorrt", precision="fp16")
    assert traced == []
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@pytest.mark.usefixtures("traced")
def test_older_bundle_is_replaced(tiny: MapAnything, tiny_bundle: Path, tmp_path: Path) -> None:
    out = tmp_path / "engine"
    shutil.copytree(tiny_bundle, out)
    (out / "scene.glb").write_bytes(b"saved by the user")
    build_engine(tiny, out, views=(1, 2, 3))
    assert Bundle.open(out).manifest.requests.views == Range(1, 2, 3)
    assert (out / "scene.glb").read_bytes() == b"saved by the user"


def test_folder_that_is_no_bundle_is_not_touched(
    tiny: MapAnything, tmp_path: Path, traced: list[dict[str, Any]]
) -> None:
    (tmp_path / "thesis.tex").write_text("three years of work")
    with pytest.raises(OutputError, match="is not empty and holds no engine bundle"):
        build_engine(tiny, tmp_path)
    assert traced == []
    assert contents(tmp_path) == {"thesis.tex": b"three years of work"}
