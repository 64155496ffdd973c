from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from mapengine.export.precision import LoweredStage, lower_precision, runnable
from mapengine.runtime.bundle.manifest import STAGES
from mapengine.runtime.errors import ExportError

from .conftest import FORMS, PRECISIONS
from .test_rewrite import large_stage

Lowered = Callable[..., dict[str, LoweredStage]]
KINDS = {"fp16": (TensorProto.FLOAT16, np.float16), "bf16": (TensorProto.BFLOAT16, ml_dtypes.bfloat16)}
LEVELS = onnxruntime.GraphOptimizationLevel


def session(path: Path, level: Any = LEVELS.ORT_ENABLE_ALL, optimized: Path | None = None) -> Any:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = level
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    if optimized is not None:
        options.optimized_model_filepath = str(optimized)
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def gated_stage(path: Path, kind: int, dtype: Any) -> dict[str, np.ndarray]:
    """A linear layer times its rectified self in 16 bit, between float32 ends; returns its weights."""
    rng = np.random.default_rng(1)
    weights = {"w": rng.standard_normal((32, 48)).astype(dtype), "b": rng.standard_normal(48).astype(dtype)}
    nodes = [
        helper.make_node("Cast", ["x"], ["low"], to=kind),
        helper.make_node("MatMul", ["low", "w"], ["product"]),
        helper.make_node("Add", ["product", "b"], ["sum"]),
        helper.make_node("Relu", ["sum"], ["gate"]),
        helper.make_node("Mul", ["sum", "gate"], ["gated"]),
        helper.make_node("Reshape", ["gated", "shape"], ["moved"]),
        helper.make_node("Cast", ["moved"], ["y"], to=TensorProto.FLOAT),
    ]
    ends = [
        helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 32]),
        helper.make_tensor_value_info("y", TensorProto.FLOAT, ["m", 24]),
    ]
    inner = [
        helper.make_tensor_value_info(name, kind, None) for name in ("low", "product", "sum", "gate", "gated", "moved")
    ]
    tensors = [numpy_helper.from_array(value, name) for name, value in weights.items()]
    tensors.append(numpy_helper.from_array(np.array([-1, 24]), "shape"))
    graph = helper.make_graph(nodes, "aggregator", ends[:1], ends[1:], tensors, value_info=inner)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)
    return weights


@pytest.mark.parametrize("level", [LEVELS.ORT_DISABLE_ALL, LEVELS.ORT_ENABLE_ALL], ids=["plain", "optimized"])
@pytest.mark.parametrize("precision", PRECISIONS)
def test_every_result_is_rounded(precision: str, level: Any, tmp_path: Path) -> None:
    """To the bit as NumPy computes it step by step, whatever ONNX Runtime merges."""
    kind, dtype = KINDS[precision]
    weights = gated_stage(tmp_path / "aggregator.onnx", kind, dtype)
    x = np.random.default_rng(2).standard_normal((40, 32)).astype(np.float32)
    (found,) = session(runnable(tmp_path / "aggregator.onnx", tmp_path), level).run(None, {"x": x})

    def rounded(values: np.ndarray) -> np.ndarray:
        return values.astype(np.float32).astype(dtype).astype(np.float32)

    wide = {name: value.astype(np.float64) for name, value in weights.items()}
    total = rounded(rounded(rounded(x).astype(np.float64) @ wide["w"]) + wide["b"])
    expected = rounded(total * np.maximum(total, 0)).reshape(-1, 24)
    assert np.array_equal(found, rounded(found))
    # The order of a float32 sum decides about the last bit where the exact sum lies between two 16-bit numbers.
    assert (found != expected).mean() < 0.005
    unit = 2.0**-7 if precision == "bf16" else 2.0**-10
    assert np.abs(found - expected).max() <= 4 * unit * np.abs(expected).max()


@pytest.mark.parametrize("precision", PRECISIONS)
def test_without_rounding_only_the_weights_are_those_of_16_bits(precision: str, tmp_path: Path) -> None:
    weights = gated_stage(tmp_path / "aggregator.onnx", *KINDS[precision])
    x = np.random.default_rng(2).standard_normal((40, 32)).astype(np.float32)
    (found,) = session(runnable(tmp_path / "aggregator.onnx", tmp_path, rounding=False)).run(None, {"x": x})
    total = x.astype(np.float64) @ weights["w"].astype(np.float64) + weights["b"].astype(np.float64)
    np.testing.assert_allclose(found, (total * np.maximum(total, 0)).reshape(-1, 24), rtol=1e-5, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("precision", PRECISIONS)
def test_without_rounding_a_stage_takes_and_gives_float32(precision: str, lowered: Lowered, tmp_path: Path) -> None:
    stages = lowered("mha", "preset:tiny", precision)
    low = set()
    for stage in stages.values():
        path = runnable(stage.path, tmp_path, rounding=False)
        one, other = onnx.load(stage.path).graph, onnx.load(path).graph
        for before, after in zip((*one.input, *one.output), (*other.input, *other.output), strict=True):
            assert before.name == after.name
            low.add(before.type.tensor_type.elem_type)
            assert after.type.tensor_type.elem_type not in (TensorProto.FLOAT16, TensorProto.BFLOAT16)
        onnx.checker.check_model(str(path), full_check=True)
    assert TensorProto.FLOAT16 in low


def test_overflow_is_infinite(tmp_path: Path) -> None:
    gated_stage(tmp_path / "aggregator.onnx", *KINDS["fp16"])
    run = session(runnable(tmp_path / "aggregator.onnx", tmp_path)).run
    (found,) = run(None, {"x": np.full((1, 32), 6e4, np.float32)})
    assert not np.isfinite(found).all()


@pytest.mark.slow
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("form", FORMS)
def test_the_optimizer_keeps_every_rounding(form: str, precision: str, lowered: Lowered, tmp_path: Path) -> None:
    for name, stage in lowered(form, "preset:tiny", precision).items():
        path = runnable(stage.path, tmp_path)
        session(path, optimized=tmp_path / "optimized.onnx")
        before, after = onnx.load(path).graph, onnx.load(tmp_path / "optimized.onnx").graph

        def roundings(graph: onnx.GraphProto) -> int:
            constants = {tensor.name for tensor in graph.initializer}
            casts = [node for node in graph.node if node.op_type == "Cast" and node.input[0] not in constants]
            targets = [entry.i for node in casts for entry in node.attribute if entry.name == "to"]
            return sum(target in (TensorProto.FLOAT16, TensorProto.BFLOAT16) for target in targets)

        # Common subexpressions are merged once: the same cast of the same tensor.
        assert roundings(after) >= 0.97 * roundings(before) > 10, name


@pytest.mark.slow
@pytest.mark.parametrize("precision", PRECISIONS)
def test_interface_is_that_of_the_stage(precision: str, lowered: Lowered, tmp_path: Path) -> None:
    for stage in lowered("attention", "preset:tiny", precision).values():
        one, other = onnx.load(stage.path).graph, onnx.load(runnable(stage.path, tmp_path)).graph
        assert list(one.input) == list(other.input)
        assert list(one.output) == list(other.output)
        onnx.checker.check_model(str(runnable(stage.path, tmp_path)), full_check=True)


def test_float32_stages_run_as_they_are(exported: Callable[..., Path], tmp_path: Path) -> None:
    for name in STAGES:
        path = exported("mha") / f"{name}.onnx"
        assert runnable(path, tmp_path) == path
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_large_weights_are_shared_or_copied(tmp_path: Path) -> None:
    (tmp_path / "low").mkdir()
    (tmp_path / "scratch").mkdir()
    stage = lower_precision(
        large_stage(tmp_path, 17, 1024),
        tmp_path / "low" / "aggregator.onnx",
        stage="aggregator",
        precision="bf16",
        magnitudes=None,
    )
    assert stage.data_path is not None
    x = np.random.default_rng(0).standard_normal((2, 1024)).astype(np.float32)
    results = []
    for folder in ("low", "scratch"):
        path = runnable(stage.path, tmp_path / folder)
        assert path.stat().st_size < 1e5
        results.append(session(path).run(None, {"x": x})[0])
    assert np.array_equal(*results)
    assert sorted(path.name for path in (tmp_path / "low").iterdir()) == [
        "aggregator.emulated.onnx",
        "aggregator.onnx",
        "aggregator.onnx.data",
    ]
    assert (tmp_path / "scratch" / "aggregator.onnx.data").stat().st_size == stage.data_path.stat().st_size
    shutil.rmtree(tmp_path / "scratch")
    assert stage.data_path.exists()


def test_missing_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"^aggregator: .*aggregator.onnx is missing; export the stage again$"):
        runnable(tmp_path / "aggregator.onnx", tmp_path)
