"""Real plans of the tiny network, compiled on the CPU by TensorRT-RTX in every precision and attention form."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from mapengine.export.tensorrt import BuiltPlan, build_plan, builder, stage_profiles
from mapengine.export.tensorrt.graph import read_graph
from mapengine.export.tensorrt.layers import Port
from mapengine.export.tensorrt.settings import PlanSettings
from mapengine.runtime.backends.tensorrt.flavour import Flavour
from mapengine.runtime.bundle.manifest import TensorSpec
from mapengine.runtime.bundle.requests import Range, ServedRequests
from mapengine.runtime.errors import ExportError, InputError, OutputError

from ...refusals import refused
from .conftest import PROFILE, Stage

Built = Callable[..., tuple[Path, BuiltPlan]]
KERNELS = {"fp32": "Float", "fp16": "Half", "bf16": "BFloat16"}
FORMS = ("mha", "attention", "matmul")


@pytest.mark.slow
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_attention_is_fused_and_linears_run_in_the_precision(
    built: Built, stage: Callable[..., Stage], precision: str, form: str
) -> None:
    # One of them for every architecture that the library compiles for by itself.
    targets = () if (precision, form) == ("fp16", "mha") else ("8.9",)
    path, plan = built("image_encoder", precision, form, targets)
    assert path.stat().st_size == plan.bytes > 100_000
    report, kernel = plan.layers, KERNELS[precision]
    assert report.fused == tuple(f"encoder.model.blocks.{i}.attn" for i in range(len(report.fused)))
    assert (len(report.fused), report.unfused, plan.warnings) == (3, (), ())
    graph = read_graph(stage("image_encoder", precision, form).path)
    assert set(report.products) | set(report.elsewhere) == set(graph.products)
    for block in range(3):
        for linear in ("attn.qkv", "attn.proj", "mlp.w12", "mlp.w3"):
            (kinds,) = report.products[f"encoder.model.blocks.{block}.{linear}/MatMul"]
            assert kinds.startswith(f"{kernel} x {kernel} -> ")
    record = report.record()
    assert (record.attention, record.fused) == (3, 3)
    assert sum(record.gemms.values()) == len(report.products)


@pytest.mark.slow
@pytest.mark.parametrize("form", ["mha", "matmul"])
def test_float32_attention_is_not_fused_and_says_so(built: Built, form: str) -> None:
    _, plan = built("image_encoder", "fp32", form)
    assert plan.layers.fused == ()
    assert plan.layers.unfused == tuple(f"encoder.model.blocks.{i}.attn" for i in range(3))
    assert len(plan.warnings) == 1
    assert "image_encoder: 3 of 3 attention blocks are not fused: encoder.model.blocks.0.attn, " in plan.warnings[0]
    assert set(plan.layers.record().gemms) == {"Float x Float -> Float"}


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
def test_aggregator(built: Built, precision: str) -> None:
    _, plan = built("aggregator", precision)
    blocks = tuple(f"info_sharing.self_attention_blocks.{i}.attn" for i in range(6))
    assert (plan.layers.unfused if precision == "fp32" else plan.layers.fused) == blocks
    kernel = KERNELS[precision]
    (kinds,) = plan.layers.products["info_sharing.self_attention_blocks.5.mlp.w12/MatMul"]
    assert kinds.startswith(f"{kernel} x {kernel}")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "precision"), [("dense_head", "bf16"), ("dense_head", "fp16"), ("geometry_encoder", "bf16")]
)
def test_stages_without_attention(built: Built, stage: Callable[..., Stage], name: str, precision: str) -> None:
    _, plan = built(name, precision)
    record = plan.layers.record()
    assert (record.attention, record.fused, record.unfused) == (0, 0, ())
    assert set(plan.layers.products) | set(plan.layers.elsewhere) == set(
        read_graph(stage(name, precision).path).products
    )
    assert "deconv" in {layer.kind for layer in plan.layers.layers} or name != "dense_head"
    assert plan.warnings == ()


@pytest.mark.slow
def test_what_is_known_of_a_plan(built: Built) -> None:
    _, plan = built("image_encoder", "fp16", "mha", ())
    assert plan.seconds > 0
    assert plan.targets == ()
    if sys.platform == "linux":
        assert plan.peak_memory is not None
        assert 50 * 2**20 < plan.peak_memory < 2 * 2**30
    assert plan.activation_memory is not None
    # Two views of 10 x 10 patches: queries, keys and values alone are this much.
    assert plan.activation_memory > 2 * 101 * 3 * 64 * 2


@pytest.mark.slow
def test_progress_ends_at_one_and_settings_are_taken(rtx: Flavour, stage: Callable[..., Stage], tmp_path: Path) -> None:
    made, seen = stage("dense_head"), []
    plan = build_plan(
        rtx,
        made.path,
        tmp_path / "x.plan",
        name="dense_head",
        inputs=made.inputs,
        outputs=made.outputs,
        profiles=stage_profiles(ServedRequests(Range(1, 1, 2), ((70, 56), (56, 70)), {}), "dense_head", rtx.name),
        settings=PlanSettings(targets=("sm_89", "8.6"), memory_limit=2**30, optimization_level=1),
        progress=lambda fraction, phase: seen.append((fraction, phase)),
    )
    fractions = [fraction for fraction, _ in seen]
    assert fractions == sorted(fractions)
    assert (fractions[0], fractions[-1]) == (0.0, 1.0)
    assert [seen[0][1], *(phase for _, phase in seen[-2:])] == ["reading the graph", "writing the plan", "done"]
    assert plan.targets == ("8.9", "8.6")
    assert [path.name for path in tmp_path.iterdir()] == ["x.plan"]


@pytest.mark.slow
def test_refusals(rtx: Flavour, stage: Callable[..., Stage], tmp_path: Path) -> None:
    made = stage("dense_head")
    (tmp_path / "wrong.onnx").write_bytes(b"\x08\x07rubbish" * 9)

    def run(path: Path = made.path, plan: str = "x.plan", **changes: object) -> None:
        values: dict[str, object] = {
            "inputs": made.inputs,
            "outputs": made.outputs,
            "profiles": stage_profiles(PROFILE, "dense_head", rtx.name),
            **changes,
        }
        build_plan(rtx, path, tmp_path / plan, name="dense_head", **values)  # type: ignore[arg-type]

    def settings(**values: object) -> dict[str, PlanSettings]:
        return {"settings": PlanSettings(**values)}  # type: ignore[arg-type]

    refused(InputError, "sm_87|Orin", lambda: run(**settings(targets=("sm_87",))))
    refused(InputError, "memory_limit|positive", lambda: run(**settings(memory_limit=0)))
    refused(InputError, "optimization_level|0 (fastest build) to 5", lambda: run(**settings(optimization_level=6)))
    words = "dense_head|memory limit|for the largest request|raise --memory-limit"
    refused(ExportError, words, lambda: run(**settings(memory_limit=2**20)))
    refused(ExportError, "wrong.onnx|cannot be read as an ONNX graph", lambda: run(tmp_path / "wrong.onnx"))
    refused(ExportError, "none.onnx|cannot be read as an ONNX graph", lambda: run(tmp_path / "none.onnx"))
    half = tuple(TensorSpec(spec.name, "float16", spec.shape) for spec in made.inputs)
    refused(ExportError, "dense_head|view_features_0 is float32|should be float16", lambda: run(inputs=half))
    refused(OutputError, "x.plan|is a file, not a folder", lambda: run(plan="wrong.onnx/x.plan"))
    assert [path.name for path in tmp_path.iterdir()] == ["wrong.onnx"]


@pytest.mark.slow
def test_the_finished_plan_is_compared_with_the_request(
    rtx: Flavour, stage: Callable[..., Stage], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = stage("dense_head")
    original = builder.parse_listing

    def altered(text: str) -> object:
        layers, ports = original(text)
        first = ports[0]
        return layers, (Port(first.name, True, first.dtype, first.shape, first.profiles[:0]), *ports[1:])

    monkeypatch.setattr(builder, "parse_listing", altered)
    refused(
        ExportError,
        "dense_head|view_features_0|profiles",
        lambda: build_plan(
            rtx,
            made.path,
            tmp_path / "x.plan",
            name="dense_head",
            inputs=made.inputs,
            outputs=made.outputs,
            profiles=stage_profiles(PROFILE, "dense_head", rtx.name),
        ),
    )
    assert list(tmp_path.iterdir()) == []
