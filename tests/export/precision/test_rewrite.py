from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from mapengine.export.graphs.weights import converted
from mapengine.export.precision import LoweredStage, lower_precision
from mapengine.runtime.backends.onnxruntime import OnnxRuntimeBackend
from mapengine.runtime.bundle.manifest import STAGES
from mapengine.runtime.errors import ExportError

from ..graphs.test_tracing import TENSORRT_10_3_OPERATORS
from .conftest import FORMS, GRAPHS, NETWORKS, PRECISIONS, lower

Lowered = Callable[..., dict[str, LoweredStage]]
Exported = Callable[..., Path]

BOTH = [(form, precision) for form in FORMS for precision in PRECISIONS]


@pytest.mark.slow
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize(("network", "form"), GRAPHS)
def test_the_files_are_valid(network: str, form: str, precision: str, lowered: Lowered) -> None:
    for name, stage in lowered(form, network, precision).items():
        onnx.checker.check_model(str(stage.path), full_check=True)
        if precision == "fp16":
            OnnxRuntimeBackend(1).load_stage(name, stage.path)


@pytest.mark.parametrize(("form", "precision"), BOTH)
def test_names_and_origin_are_kept(form: str, precision: str, lowered: Lowered, exported: Exported) -> None:
    for name, stage in lowered(form, "preset:tiny", precision).items():
        before, after = onnx.load(exported(form) / f"{name}.onnx"), onnx.load(stage.path)
        assert after.metadata_props == before.metadata_props
        assert after.opset_import == before.opset_import
        assert (after.producer_name, after.producer_version) == (before.producer_name, before.producer_version)
        assert after.graph.name == name
        assert stage.opset == before.opset_import[0].version
        old, new = ([(n.name, n.op_type, n.domain) for n in model.graph.node] for model in (before, after))
        assert [entry for entry in new if entry in set(old)] == old
        added = [entry for entry in new if entry not in set(old)]
        assert {operator for _, operator, _ in added} <= {"Cast"}
        assert len({entry[0] for entry in new}) == len(new)
        modules = {node.rpartition("/")[0] for node, _, _ in old} | {name}
        assert {node.rpartition("/")[0] for node, _, _ in added} <= modules
        weights = {tensor.name for tensor in before.graph.initializer}
        assert {w for w in weights if "." in w} <= {tensor.name for tensor in after.graph.initializer}


@pytest.mark.parametrize(("form", "precision"), BOTH)
def test_interface(form: str, precision: str, lowered: Lowered, exported: Exported) -> None:
    for name, stage in lowered(form, "preset:tiny", precision).items():
        before, after = onnx.load(exported(form) / f"{name}.onnx").graph, onnx.load(stage.path).graph
        for old, new, specs in (
            (before.input, after.input, stage.inputs),
            (before.output, after.output, stage.outputs),
        ):
            assert [value.name for value in new] == [value.name for value in old] == [spec.name for spec in specs]
            for one, other, spec in zip(old, new, specs, strict=True):
                axes = [axis.dim_param or axis.dim_value for axis in one.type.tensor_type.shape.dim]
                assert [axis.dim_param or axis.dim_value for axis in other.type.tensor_type.shape.dim] == axes
                assert spec.shape == tuple(axes)
                wanted = "float16" if spec.name.startswith("view_features_") else "float32"
                assert spec.dtype == wanted
                assert helper.tensor_dtype_to_np_dtype(other.type.tensor_type.elem_type) == np.dtype(wanted)


def round_to_bfloat16(values: np.ndarray) -> np.ndarray:
    """Nearest even, by integer arithmetic on the bits of finite float32 numbers."""
    bits = values.view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000).astype(np.uint32).view(np.float32)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_weights_are_rounded_to_nearest_even(precision: str, lowered: Lowered, exported: Exported) -> None:
    counts = dict.fromkeys((TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16), 0)
    for name, stage in lowered("mha", "preset:tiny", precision).items():
        before = {
            t.name: numpy_helper.to_array(t) for t in onnx.load(exported("mha") / f"{name}.onnx").graph.initializer
        }
        for tensor in onnx.load(stage.path).graph.initializer:
            kind = tensor.data_type
            if kind not in counts:
                continue
            counts[kind] += 1
            original = before[tensor.name.removesuffix(".float16").removesuffix(".bfloat16")]
            found = numpy_helper.to_array(tensor).astype(np.float32)
            if kind == TensorProto.FLOAT16:
                # The nearest of all float16 numbers, found by search and not by conversion.
                grid = np.arange(0x7C00, dtype=np.uint16).view(np.float16).astype(np.float32)
                sample = np.abs(original.reshape(-1)[:500]).astype(np.float64)
                right = np.clip(np.searchsorted(grid, sample), 1, len(grid) - 1)
                nearest = np.minimum(sample - grid[right - 1], grid[right] - sample)
                assert np.array_equal(np.abs(sample - np.abs(found.reshape(-1)[:500])), np.abs(nearest)), tensor.name
            else:
                expected = round_to_bfloat16(original) if kind == TensorProto.BFLOAT16 else original
                assert np.array_equal(found, expected), tensor.name
    assert counts[TensorProto.FLOAT] > 20
    assert counts[TensorProto.FLOAT16] > 20
    assert (counts[TensorProto.BFLOAT16] > 20) == (precision == "bf16")


@pytest.mark.slow
@pytest.mark.parametrize("precision", PRECISIONS)
def test_the_same_source_gives_the_same_bytes(precision: str, exported: Exported, tmp_path: Path) -> None:
    for folder in ("a", "b"):
        lower(exported("mha"), tmp_path / folder, precision, None)
    for name in STAGES:
        assert (tmp_path / "a" / f"{name}.onnx").read_bytes() == (tmp_path / "b" / f"{name}.onnx").read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("precision", PRECISIONS)
def test_jetpack_form_keeps_to_the_operators_of_old_parsers(precision: str, lowered: Lowered) -> None:
    for network in NETWORKS:
        for stage in lowered("matmul", network, precision).values():
            model = onnx.load(stage.path)
            assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", 18)]
            assert {node.op_type for node in model.graph.node} <= TENSORRT_10_3_OPERATORS


# Large weights


def large_stage(folder: Path, layers: int, width: int) -> Path:
    """A chain of linear layers named like a block's, with its weights in a file of their own."""
    rng = np.random.default_rng(0)
    value, nodes, weights = "x", [], []
    for index in range(layers):
        module = f"info_sharing.self_attention_blocks.{index}.mlp.w3"
        values = rng.standard_normal((width, width), np.float32) / np.float32(width**0.5)
        weights.append(numpy_helper.from_array(values, f"{module}.weight"))
        nodes.append(helper.make_node("MatMul", [value, f"{module}.weight"], [f"y{index}"], name=f"{module}/MatMul"))
        value = f"y{index}"
    shape = ["n", width]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in ("x", value)]
    inner = [helper.make_tensor_value_info(f"y{i}", TensorProto.FLOAT, shape) for i in range(layers - 1)]
    graph = helper.make_graph(nodes, "aggregator", ends[:1], ends[1:], weights, value_info=inner)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    path = folder / "aggregator.onnx"
    onnx.save(model, path, save_as_external_data=True, location="aggregator.onnx.data")
    return path


@pytest.mark.slow
@pytest.mark.parametrize("precision", PRECISIONS)
def test_weights_are_streamed(precision: str, tmp_path: Path) -> None:
    """One weight at a time is in memory (mapped pages are not): the limit is a sixth of what the weights take."""
    width, layers = 1024, 24
    source = large_stage(tmp_path, layers, width)
    (tmp_path / "low").mkdir()
    tracemalloc.start()
    try:
        stage = lower_precision(
            source, tmp_path / "low" / source.name, stage="aggregator", precision=precision, magnitudes=None
        )
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert stage.data_path is not None
    assert stage.data_path.stat().st_size == layers * width * width * 2
    assert peak < 4 * width * width * 4 == 16 * 2**20
    assert sorted(path.name for path in (tmp_path / "low").iterdir()) == ["aggregator.onnx", "aggregator.onnx.data"]
    first = ir.load(stage.path).graph.initializers["info_sharing.self_attention_blocks.0.mlp.w3.weight"].const_value
    original = ir.load(source).graph.initializers["info_sharing.self_attention_blocks.0.mlp.w3.weight"].const_value
    assert np.allclose(first.numpy().astype(np.float32), original.numpy(), rtol=2**-8, atol=2**-25)


def test_a_weight_is_read_when_it_is_written() -> None:
    class Untouched:
        shape = ir.Shape((2, 3))

        def numpy(self) -> Any:
            raise AssertionError("was read")

    tensor = converted(Untouched(), ir.DataType.FLOAT16, "w")  # type: ignore[arg-type]
    assert (tensor.nbytes, tensor.dtype) == (12, ir.DataType.FLOAT16)
    with pytest.raises(AssertionError, match="was read"):
        tensor.numpy()


def test_small_weights_stay_inside(lowered: Lowered) -> None:
    for stage in lowered("mha", "preset:tiny", "fp16").values():
        assert stage.data_path is None
        assert not stage.path.with_name(f"{stage.path.name}.data").exists()


# Refusals


def refused(words: str, source: Path, target: Path, **changes: Any) -> None:
    options = {"stage": "dense_head", "precision": "fp16", "magnitudes": None, **changes}
    with pytest.raises(ExportError, match=words) as caught:
        lower_precision(source, target, **options)
    message = str(caught.value)
    assert message.startswith("dense_head: ")
    assert "\n" not in message
    assert not message.endswith(".")


def test_refusals_are_one_sentence(exported: Exported, lowered: Lowered, tmp_path: Path) -> None:
    source, target = exported("mha") / "dense_head.onnx", tmp_path / "dense_head.onnx"
    refused("precision 'int8' cannot be written", source, target, precision="int8")
    refused("is the float32 stage itself", source, source)
    refused("nothing.onnx is missing; export the stage again", tmp_path / "nothing.onnx", target)
    (tmp_path / "damaged.onnx").write_bytes(source.read_bytes()[:1000])
    refused("damaged.onnx is not a readable ONNX file", tmp_path / "damaged.onnx", target)
    refused(
        "tensor .* is not float32; give the stage as exported",
        lowered("mha", "preset:tiny", "fp16")["dense_head"].path,
        target,
    )
    refused("the magnitude of view_features_0 was not measured", source, target, magnitudes={})
    assert [path.name for path in tmp_path.iterdir()] == ["damaged.onnx"]


@pytest.mark.slow
def test_a_failure_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = large_stage(tmp_path, 17, 1024)
    (tmp_path / "low").mkdir()

    def fail(path: str) -> None:
        assert {file.name for file in (tmp_path / "low").iterdir()} == {"aggregator.onnx", "aggregator.onnx.data"}
        raise OSError("disk")

    monkeypatch.setattr(onnx.checker, "check_model", fail)
    with pytest.raises(OSError, match="disk"):
        lower_precision(source, tmp_path / "low" / source.name, stage="aggregator", precision="fp16", magnitudes=None)
    assert list((tmp_path / "low").iterdir()) == []
