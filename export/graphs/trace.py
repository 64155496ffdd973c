"""Trace a module to an ONNX graph in one pass.

``torch.onnx.export`` traces a program a second time to break up operations for which it has no ONNX function. The
networks use a handful of those: they are rewritten one by one in the traced program, to the same graph in half the
time. A program with any other is traced twice, as ever.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import onnx_ir as ir
import torch
from torch import Tensor, fx, nn
from torch.export import ExportedProgram

from mapengine.runtime.errors import ExportError

from .exporter import export_program

aten = torch.ops.aten


def trace_graph(
    module: nn.Module,
    examples: tuple[Tensor, ...],
    *,
    dynamic_shapes: Any = None,
    input_names: Sequence[str],
    output_names: Sequence[str],
    opset_version: int,
) -> ir.Model:
    """Return the ONNX graph of ``module``.

    Args:
        module: in eval mode.
        examples: inputs to trace it with.
        dynamic_shapes: as of ``torch.export.export``.
        input_names: of the graph, in the order of ``examples``.
        output_names: of the graph.
        opset_version: opset to write; the exporter may write another one.

    Raises:
        ExportError: the module cannot be traced.
    """
    try:
        graph = export_program(
            capture_program(module, examples, dynamic_shapes),
            input_names=input_names,
            output_names=output_names,
            opset_version=opset_version,
        )
    except (torch.onnx.errors.OnnxExporterError, RuntimeError) as error:
        raise ExportError(f"tracing to ONNX opset {opset_version} failed ({error}).") from error
    if graph is None:
        raise ExportError("the ONNX exporter returned nothing.")
    return graph.model


def capture_program(module: nn.Module, examples: tuple[Tensor, ...], dynamic_shapes: Any) -> ExportedProgram:
    """Return the operations of ``module``, of which all have ONNX functions; the same for every opset.

    Raises:
        RuntimeError: the module cannot be traced.
    """
    # As torch.onnx.export does: a dynamic axis may be 1 in a call, so nothing is assumed that would exclude it.
    with (
        torch.fx.experimental._config.patch(backed_size_oblivious=True),  # type: ignore[attr-defined]
        # It keeps the results of operations for those with equal sizes, which are hard to find among symbols.
        torch._dynamo.config.patch(fake_tensor_cache_enabled=False),
    ):
        program = torch.export.export(
            module, examples, dynamic_shapes=dynamic_shapes, prefer_deferred_runtime_asserts_over_guards=True
        )
    for node in _operations(program):
        if (rewrite := _REWRITES.get(node.target)) is not None:
            rewrite(node)
    decompose = program.run_decompositions

    def run_decompositions(table: dict[Any, Callable[..., Any]] | None = None, **options: Any) -> ExportedProgram:
        if table is None or any(node.target in table for node in _operations(program)):
            return decompose(table, **options)
        return program

    program.run_decompositions = run_decompositions
    return program


def _operations(program: ExportedProgram) -> list[fx.Node]:
    return [node for node in program.graph.nodes if node.op == "call_function"]


def _source(node: fx.Node) -> tuple[fx.Node, Tensor]:
    """Return what a node reads first, and a tensor of that shape and type without values."""
    source = node.args[0]
    assert isinstance(source, fx.Node)
    return source, source.meta["val"]


def _cast(node: fx.Node) -> None:
    source, value = _source(node)
    dtype = cast(torch.dtype, node.args[1])
    if value.dtype == dtype:
        node.replace_all_uses_with(source)
        node.graph.erase_node(node)
    else:
        node.target, node.args, node.kwargs = aten._to_copy.default, (source,), {"dtype": dtype}


def _view(node: fx.Node) -> None:
    source, value = _source(node)
    if not value.is_contiguous():
        with node.graph.inserting_before(node):
            copy = node.graph.call_function(aten.clone.default, (source,), {"memory_format": torch.contiguous_format})
        copy.meta = {**node.meta, "val": value.contiguous()}
        node.args = (copy, node.args[1])
    node.target = aten.view.default


def _split(node: fx.Node) -> None:
    source, value = _source(node)
    chunks, axis = cast(tuple[int, int], node.args[1:])
    node.target, node.args = aten.split.Tensor, (source, -(-value.shape[axis] // chunks), axis % value.ndim)


def _difference(node: fx.Node) -> None:
    node.target, node.args = aten.sub.Tensor, (node.args[1], node.args[0])


def _transposed_convolution(node: fx.Node) -> None:
    given: list[Any] = list(node.args)
    defaults: list[Any] = [None, (1, 1), (0, 0), (0, 0), 1, (1, 1)]
    source, weight, bias, stride, padding, output_padding, groups, dilation = given + defaults[len(given) - 2 :]
    node.target = aten.convolution.default
    node.args = (source, weight, bias, stride, padding, dilation, True, output_padding, groups)


def _both(node: fx.Node) -> None:
    node.target = aten.bitwise_and.Tensor


def _nothing(node: fx.Node) -> None:
    node.graph.erase_node(node)


_REWRITES: Mapping[Any, Callable[[fx.Node], None]] = {
    aten.__and__.Tensor: _both,
    aten.chunk.default: _split,
    aten.conv_transpose2d.input: _transposed_convolution,
    aten.promote_types.default: _nothing,  # of types: its result is no part of the program
    aten.reshape.default: _view,
    aten.rsub.Scalar: _difference,
    aten.to.dtype: _cast,
}
