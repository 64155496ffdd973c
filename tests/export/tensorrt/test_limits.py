"""Known limits are refused with a sentence, and the real library still has them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from mapengine.export.tensorrt import build_plan, builder, limits, stage_profiles
from mapengine.export.tensorrt.graph import read_graph
from mapengine.export.tensorrt.limits import MAX_SCORE_BYTES, check_graph, check_limits, check_scores, score_bytes
from mapengine.runtime.backends.tensorrt.flavour import Flavour
from mapengine.runtime.bundle.manifest import TensorSpec
from mapengine.runtime.bundle.requests import AnySize, Range, ServedRequests
from mapengine.runtime.errors import BackendUnavailableError, ExportError, InputError

from ...refusals import refused
from .conftest import PROFILE, Stage

TENSORRT = Flavour("tensorrt", SimpleNamespace(), "10.3.0")
HEADS = {"image_encoder": 24, "aggregator": 24}


def requests(views: tuple[int, int, int]) -> ServedRequests:
    return ServedRequests(Range(*views), AnySize(14, 518), {"image_encoder": 8})


def transposed_convolution(folder: Path, dtype: int) -> Path:
    """One transposed convolution, as in the dense head."""
    weight = helper.make_tensor("w", dtype, [4, 4, 2, 2], np.ones(64).tolist())
    node = helper.make_node("ConvTranspose", ["x", "w"], ["y"], name="head.up/ConvTranspose", strides=[2, 2])
    graph = helper.make_graph(
        [node],
        "head",
        [helper.make_tensor_value_info("x", dtype, ["views_in_chunk", 4, 8, 8])],
        [helper.make_tensor_value_info("y", dtype, ["views_in_chunk", 4, 16, 16])],
        [weight],
    )
    path = folder / "head.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 22)], ir_version=10), path)
    return path


def build_it(rtx: Flavour, path: Path, folder: Path, dtype: str) -> None:
    build_plan(
        rtx,
        path,
        folder / "head.plan",
        name="dense_head",
        inputs=(TensorSpec("x", dtype, ("views_in_chunk", 4, 8, 8)),),
        outputs=(TensorSpec("y", dtype, ("views_in_chunk", 4, 16, 16)),),
        profiles=({"views_in_chunk": Range(1, 2, 2)},),
    )


@pytest.mark.slow
def test_transposed_convolution_in_bfloat16(rtx: Flavour, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = transposed_convolution(tmp_path, TensorProto.BFLOAT16)
    words = "dense_head|head.up/ConvTranspose|bfloat16|--precision fp16"
    refused(ExportError, words, lambda: build_it(rtx, path, tmp_path, "bfloat16"))
    assert check_graph("dense_head", TENSORRT, read_graph(path), ()) == ()
    # Without the refusal the library fails; when it no longer does, the limit can go.
    monkeypatch.setattr(builder, "check_graph", lambda *arguments: ())
    refused(ExportError, "could not build the plan|ConvTranspose", lambda: build_it(rtx, path, tmp_path, "bfloat16"))
    assert [file.name for file in tmp_path.iterdir()] == ["head.onnx"]


@pytest.mark.slow
def test_float32_attention_operator(
    rtx: Flavour, stage: Callable[..., Stage], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = stage("image_encoder", "fp32", "attention")

    def build() -> None:
        build_plan(
            rtx,
            made.path,
            tmp_path / "x.plan",
            name="image_encoder",
            inputs=made.inputs,
            outputs=made.outputs,
            profiles=stage_profiles(PROFILE, "image_encoder", rtx.name),
        )

    refused(ExportError, "image_encoder|operator Attention in float32|blocks.0.attn|--attention mha", build)
    monkeypatch.setattr(builder, "check_graph", lambda *arguments: ())
    refused(ExportError, "no fused kernel serves this attention|--attention mha", build)
    assert list(tmp_path.iterdir()) == []


def test_limits_from_the_options_alone(rtx: Flavour) -> None:
    usual = requests((1, 4, 32))
    for form in ("mha", "attention", "matmul"):
        for precision in ("fp16", "bf16"):
            assert check_limits(rtx, precision=precision, attention=form, requests=usual, heads=HEADS) == ()
    refused(
        InputError,
        "operator Attention in float32|--attention mha|--precision fp16",
        lambda: check_limits(rtx, precision="fp32", attention="attention", requests=usual, heads=HEADS),
    )
    refused(
        InputError,
        "aggregator|GiB of scores|32 views|--precision fp16 or bf16|at most 13 views",
        lambda: check_limits(rtx, precision="fp32", attention="mha", requests=usual, heads=HEADS),
    )
    encoder, aggregator = check_limits(
        rtx, precision="fp32", attention="mha", requests=requests((1, 4, 13)), heads=HEADS
    )
    assert "image_encoder" in encoder
    assert "aggregator" in aggregator
    assert (
        check_limits(rtx, precision="fp32", attention="mha", requests=requests((1, 1, 1)), heads={"aggregator": 2})
        == ()
    )


def test_scores_are_bounded_where_the_message_says(rtx: Flavour) -> None:
    for views in (13, 14):
        profiles = stage_profiles(requests((1, 4, views)), "aggregator", rtx.name)
        fits = score_bytes("aggregator", 24, profiles[0]) <= MAX_SCORE_BYTES
        assert fits == (views == 13)
        if fits:
            assert len(check_scores("aggregator", rtx, 24, profiles)) == 1
        else:
            refused(ExportError, "at most 13 views", lambda p=profiles: check_scores("aggregator", rtx, 24, p))
    one = ({"views": Range(1, 1, 1), "patch_rows": Range(1, 1, 400), "patch_columns": Range(1, 1, 400)},)
    refused(ExportError, "build for smaller sizes", lambda: check_scores("aggregator", rtx, 24, one))
    chunk = ({"views_in_chunk": Range(1, 1, 64), "patch_rows": Range(1, 1, 74), "patch_columns": Range(1, 1, 74)},)
    refused(ExportError, "chunks of at most 11 views", lambda: check_scores("image_encoder", rtx, 24, chunk))
    # 24 heads of (37 x 37 + 1) tokens of 8 views: what the builder holds twice.
    (box,) = stage_profiles(requests((1, 4, 8)), "image_encoder", rtx.name)
    assert score_bytes("image_encoder", 24, box) == 4 * 24 * 8 * 1370**2


def test_tensorrt_without_a_gpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(limits, "driver_problem", lambda: "this machine has no NVIDIA driver (libcuda.so.1 is missing)")
    words = "tensorrt compiles a plan on the GPU|no NVIDIA driver|--backend tensorrt-rtx"
    refused(
        BackendUnavailableError,
        words,
        lambda: check_limits(TENSORRT, precision="fp16", attention="matmul", requests=requests((1, 4, 8)), heads=HEADS),
    )
    refused(
        BackendUnavailableError,
        words,
        lambda: build_plan(
            TENSORRT, tmp_path / "a.onnx", tmp_path / "a.plan", name="x", inputs=(), outputs=(), profiles=()
        ),
    )
    monkeypatch.setattr(limits, "driver_problem", lambda: None)
    # With a GPU none of the limits of TensorRT-RTX holds.
    options = {"precision": "fp32", "attention": "attention", "requests": requests((1, 4, 64)), "heads": HEADS}
    assert check_limits(TENSORRT, **options) == ()
