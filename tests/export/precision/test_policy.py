from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
from onnx import TensorProto, shape_inference

from mapengine.export.precision import POLICY, LoweredStage
from mapengine.export.precision.policy import INPUT, LAYOUT, OUTPUT, Rule, match
from mapengine.runtime.bundle.manifest import STAGES
from mapengine.runtime.errors import ExportError

from .conftest import FORMS, GRAPHS, PRECISIONS

Lowered = Callable[..., dict[str, LoweredStage]]
FLOATS = {TensorProto.FLOAT: "float32", TensorProto.FLOAT16: "float16", TensorProto.BFLOAT16: "bfloat16"}


def floating(path: Path) -> tuple[onnx.GraphProto, dict[str, str]]:
    """A graph and the floating type of its tensors, as strict shape inference finds them."""
    model = onnx.load(path)
    graph = shape_inference.infer_shapes(model, check_type=True, strict_mode=True, data_prop=True).graph
    types = {v.name: v.type.tensor_type.elem_type for v in (*graph.value_info, *graph.input, *graph.output)}
    types |= {tensor.name: tensor.data_type for tensor in graph.initializer}
    return graph, {name: FLOATS[kind] for name, kind in types.items() if kind in FLOATS}


@pytest.mark.slow
def test_every_row_decides_about_a_node(exported: Callable[..., Path]) -> None:
    used: set[Rule] = set()
    for network, form in GRAPHS:
        for stage in STAGES:
            graph, types = floating(exported(form, network) / f"{stage}.onnx")
            for node in graph.node:
                if node.op_type != "Shape" and any(name in types for name in (*node.input, *node.output)):
                    used.add(match(POLICY, stage, node.name.rpartition("/")[0], node.op_type))
            for operator, values in ((INPUT, graph.input), (OUTPUT, graph.output)):
                used |= {match(POLICY, stage, value.name, operator) for value in values}
    assert [rule.reason for rule in POLICY if rule not in used] == []


def test_rows_are_complete() -> None:
    for rule in POLICY:
        assert re.fullmatch(r"[A-Z][^\n]+\.", rule.reason), rule.reason
        assert len(rule.reason) < 120
        # ONNX has neither convolution in bfloat16 before opset 22, and TensorRT for RTX builds no transposed one.
        assert rule.bf16 != "bfloat16" or rule.operators is None or not rule.operators & {"Conv", "ConvTranspose"}
        assert rule.fp16 in ("float32", "float16", "as input")
        assert (rule.fp16 == "as input") == (rule.bf16 == "as input")
        assert (rule.fp16 == "float32") == (rule.bf16 == "float32")


def test_a_node_that_no_row_fits_is_refused() -> None:
    with pytest.raises(ExportError, match=r"^aggregator: no row of the precision policy fits new_head/MatMul; add one"):
        match(POLICY, "aggregator", "new_head", "MatMul")


def test_an_unknown_layer_is_not_taken_for_a_block() -> None:
    assert match(POLICY, "dense_head", "pose_head.more_mlps.0", "Gemm").fp16 == "float32"
    assert match(POLICY, "aggregator", "scale_head.mlp.0.0", "Gemm").fp16 == "float32"


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize(("network", "form"), GRAPHS)
def test_types_follow_the_table(network: str, form: str, precision: str, lowered: Lowered) -> None:
    for stage, written in lowered(form, network, precision).items():
        assert written.kept_layers == ()
        graph, types = floating(written.path)
        names = {name for node in onnx.load(written.path).graph.node for name in node.input}
        assert names  # the file itself, not only what inference added
        for node in graph.node:
            # Region and scales of a resizing describe the operation.
            read = node.input[:1] if node.op_type == "Resize" else node.input
            data = {types[name] for name in read if name in types}
            made = {types[name] for name in node.output if name in types}
            if node.op_type in ("Shape", "Cast") or not data | made:
                continue
            rule = match(POLICY, stage, node.name.rpartition("/")[0], node.op_type)
            if node.op_type in LAYOUT:
                assert data == made, node.name
            else:
                assert data | made == {rule.kind(precision)}, node.name  # type: ignore[arg-type]
        for operator, values in ((INPUT, graph.input), (OUTPUT, graph.output)):
            for value in values:
                assert types[value.name] == match(POLICY, stage, value.name, operator).kind(precision)  # type: ignore[arg-type]


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("form", FORMS)
def test_nothing_of_integer_meaning_is_in_16_bit(
    form: str, precision: str, lowered: Lowered, exported: Callable[..., Path]
) -> None:
    for stage, written in lowered(form, "preset:tiny", precision).items():
        before, after = onnx.load(exported(form) / f"{stage}.onnx").graph, floating(written.path)
        kinds = {v.name: v.type.tensor_type.elem_type for v in (*before.value_info, *before.input, *before.output)}
        kinds |= {tensor.name: tensor.data_type for tensor in before.initializer}
        indices = {name for name, kind in kinds.items() if kind not in FLOATS}
        assert indices & set(after[1]) == set()
        for node in after[0].node:
            if node.op_type in ("Cast", "Range"):
                # What is made from an integer or a truth value stays exact.
                (made,) = node.output
                assert node.input[0] in after[1] or after[1].get(made, "float32") == "float32", node.name
            if node.op_type in ("Reshape", "Expand", "Gather", "Slice", "Unsqueeze", "Squeeze", "Split"):
                assert not set(node.input[1:]) & set(after[1]), node.name
            if node.op_type == "Resize":
                assert {after[1][name] for name in node.input[1:] if name in after[1]} <= {"float32"}, node.name


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize(("network", "form"), GRAPHS)
def test_a_block_has_four_casts_and_attention_none_inside(
    network: str, form: str, precision: str, lowered: Lowered
) -> None:
    """Behind each norm and before each residual sum, so that query, key and value reach the scores as they are made."""
    for stage in ("image_encoder", "aggregator"):
        graph = onnx.load(lowered(form, network, precision)[stage].path).graph
        casts: dict[str, list[str]] = {}
        for node in graph.node:
            block = re.match(r".*blocks\.\d+", node.name)
            if node.op_type == "Cast" and block:
                casts.setdefault(block[0], []).append(node.name.removeprefix(f"{block[0]}."))
        blocks = {match[0] for node in graph.node if (match := re.match(r".*blocks\.\d+", node.name))}
        assert set(casts) == blocks
        for names in casts.values():
            last = "mlp.w3/Cast" if "mlp.w3/Cast" in names else "mlp.fc2/Cast"
            assert sorted(names) == sorted(["norm1/Cast", "attn.proj/Cast", "norm2/Cast", last])
