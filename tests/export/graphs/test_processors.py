"""Products whose results are cut become products of their own, and the stage computes the same."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from mapengine.export.graphs.processors import rewrite_for_processors
from mapengine.runtime.errors import ExportError

from ..small_graphs import run_graph, save_graph


def write_graph(path: Path, quantized: bool, cut: bool = True) -> None:
    """x (n, 4) times a weight (4, 12) plus a bias, cut into three of which the first and the last are multiplied."""
    rng = np.random.default_rng(0)
    stored = {"bias": rng.standard_normal(12).astype(np.float32)}
    nodes = []
    if quantized:
        stored |= {"w": rng.integers(-127, 128, (4, 12)).astype(np.int8), "s": rng.uniform(0.01, 0.1, 12).astype("f4")}
        nodes.append(helper.make_node("DequantizeLinear", ["w", "s"], ["weight"], axis=1, name="m/Dequantize"))
    else:
        stored["weight"] = rng.standard_normal((4, 12)).astype(np.float32)
    nodes += [
        helper.make_node("MatMul", ["x", "weight"], ["product"], name="m/MatMul"),
        helper.make_node("Add", ["product", "bias"], ["sum"], name="m/Add"),
        helper.make_node("Split", ["sum" if cut else "x"], ["a", "b", "c"] if cut else ["a", "b"], axis=-1,
                         num_outputs=3 if cut else 2, name="m/Split"),
        helper.make_node("Mul", ["a", "c" if cut else "b"], ["y"], name="m/Mul"),
    ]  # fmt: skip
    ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["n", None]) for n in ("x", "y")]
    save_graph(path, nodes, ends, stored)


@pytest.mark.parametrize("quantized", [False, True])
def test_the_parts_are_products_that_compute_the_same(tmp_path: Path, quantized: bool) -> None:
    path = tmp_path / "stage.onnx"
    write_graph(path, quantized)
    x = np.random.default_rng(1).standard_normal((5, 4)).astype(np.float32)
    before = run_graph(path, x)
    assert rewrite_for_processors(path, "stage") == (2 if quantized else 0)
    onnx.checker.check_model(str(path), full_check=True)
    graph = onnx.load(path).graph
    kinds = Counter(node.op_type for node in graph.node)
    assert (kinds["MatMul"], kinds["Add"], kinds["Split"], kinds["DequantizeLinear"]) == (3, 3, 0, 3 * quantized)
    assert all(tensor.dims[-1] == 4 for tensor in graph.initializer)  # nothing of the whole weight is left
    np.testing.assert_allclose(run_graph(path, x), before, rtol=1e-5, atol=1e-6)
    assert [entry.name for entry in tmp_path.iterdir()] == ["stage.onnx"]


def test_a_stage_without_such_a_product_keeps_its_bytes(tmp_path: Path) -> None:
    path = tmp_path / "stage.onnx"
    write_graph(path, quantized=False, cut=False)
    before = path.read_bytes()
    assert rewrite_for_processors(path, "stage") == 0
    assert path.read_bytes() == before


def test_a_file_that_is_no_stage_is_named(tmp_path: Path) -> None:
    (tmp_path / "stage.onnx").write_bytes(b"\x00no graph")
    with pytest.raises(ExportError, match=r"stage: .*stage.onnx is not a readable ONNX file"):
        rewrite_for_processors(tmp_path / "stage.onnx", "stage")


@pytest.mark.parametrize("per_tensor", [True, False])
def test_a_rotated_result_is_rounded_before_it_is_reshaped(tmp_path: Path, per_tensor: bool) -> None:
    """x (n, 8) in two blocks, each times a matrix, rounded to 8 bits with one scale."""
    rng = np.random.default_rng(0)
    stored = {
        "blocks": np.array([0, 2, 4]),
        "flat": np.array([0, 8]),
        "h": rng.standard_normal((4, 4)).astype(np.float32),
        "s": np.float32(0.05) if per_tensor else np.full(8, 0.05, np.float32),
        "zero": np.int8(0) if per_tensor else np.zeros(8, np.int8),
    }
    nodes = [
        helper.make_node("Reshape", ["x", "blocks"], ["apart"], name="r/Reshape"),
        helper.make_node("MatMul", ["apart", "h"], ["turned"], name="r/MatMul"),
        helper.make_node("Reshape", ["turned", "flat"], ["whole"], name="r/Reshape_2"),
        helper.make_node("QuantizeLinear", ["whole", "s", "zero"], ["q"], name="m/QuantizeLinear"),
        helper.make_node("DequantizeLinear", ["q", "s", "zero"], ["d"], name="m/DequantizeLinear"),
        helper.make_node("Mul", ["d", "d"], ["y"], name="m/Mul"),
    ]
    path = tmp_path / "stage.onnx"
    save_graph(path, nodes, [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["n", 8]) for n in "xy"], stored)
    x = rng.standard_normal((5, 8)).astype(np.float32)
    before, content = run_graph(path, x), path.read_bytes()
    assert rewrite_for_processors(path, "stage") == 0
    onnx.checker.check_model(str(path), full_check=True)
    kinds = [node.op_type for node in onnx.load(path).graph.node]
    if per_tensor:
        assert kinds == ["Reshape", "MatMul", "QuantizeLinear", "DequantizeLinear", "Reshape", "Mul"]
        np.testing.assert_array_equal(run_graph(path, x), before)
    else:  # scales of the channels have their places
        assert path.read_bytes() == content
