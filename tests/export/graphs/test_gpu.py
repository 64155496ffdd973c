"""Quantised products of ``qkv`` become three, and compute the same."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper

from mapengine.export.graphs.gpu import separate_products_for_gpu

from ..small_graphs import run_graph, save_graph


def write_graph(path: Path, quantized: bool) -> None:
    rng = np.random.default_rng(0)
    stored = {
        "w": rng.integers(-127, 128, (4, 12)).astype(np.int8),
        "s": rng.uniform(0.01, 0.1, 12).astype(np.float32),
        "full": rng.standard_normal((4, 12)).astype(np.float32),
    }
    weight = "wide" if quantized else "full"
    nodes = [helper.make_node("MatMul", ["x", weight], ["y"], name="blocks.0.attn.qkv/MatMul")]
    if quantized:
        nodes.insert(0, helper.make_node("DequantizeLinear", ["w", "s"], ["wide"], axis=1, name="read"))
        del stored["full"]
    else:
        del stored["w"], stored["s"]
    ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["n", size]) for n, size in (("x", 4), ("y", 12))]
    save_graph(path, nodes, ends, stored)


def test_three_products_compute_the_same(tmp_path: Path) -> None:
    path, scratch = tmp_path / "stage.onnx", tmp_path / "scratch"
    scratch.mkdir()
    write_graph(path, quantized=True)
    written, count = separate_products_for_gpu(path, scratch)
    assert (written, count) == (scratch / "stage.onnx", 1)
    onnx.checker.check_model(str(written), full_check=True)
    graph = onnx.load(written).graph
    assert [node.op_type for node in graph.node].count("MatMul") == 3
    assert "blocks.0.attn.qkv/MatMul.0" in {node.name for node in graph.node}
    assert {tuple(tensor.dims) for tensor in graph.initializer} == {(4, 4), (4,)}
    assert {tensor.data_type for tensor in graph.initializer} == {TensorProto.INT8, TensorProto.FLOAT}
    x = np.random.default_rng(1).standard_normal((5, 4)).astype(np.float32)
    np.testing.assert_allclose(run_graph(written, x), run_graph(path, x), rtol=1e-5, atol=1e-6)


def test_what_is_not_quantised_stays(tmp_path: Path) -> None:
    path = tmp_path / "stage.onnx"
    write_graph(path, quantized=False)
    assert separate_products_for_gpu(path, tmp_path / "scratch") == (path, 0)
