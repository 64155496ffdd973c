"""Write INT8 or FP8 into a stage: explicit QuantizeLinear and DequantizeLinear around the inputs of linear layers.

A quantised product reads ``DequantizeLinear(QuantizeLinear(x))`` and ``DequantizeLinear(weight)`` and gives the type
that it gave before; bias, activation and residual stream are not touched. That one form runs as integer products with
the scales fused behind them in ONNX Runtime (``MatMulIntegerToFloat``) and OpenVINO, and TensorRT-RTX lists it as such
(:mod:`mapengine.export.graphs.products`). Activations have one scale per tensor, weights one per output channel and are
stored in 8 bits. A layer without a calibration gets the DequantizeLinear of its weight and no other
(:mod:`.weights_only`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray

from mapengine.calibration.ranges import FORMATS, LayerCalibration, NumberFormat, round_to_grid, weight_scales
from mapengine.runtime.errors import ExportError

from ..graphs.files import constant, load_float32_graph, load_graph
from ..graphs.weights import save_model
from ..precision.rewrite import removed_on_failure
from .layers import Roundable

_OPSET = 19
"""First opset whose QuantizeLinear knows float16 and FP8; everything that the stages use is the same in 18."""
_IR_VERSION = 9
"""First version of the file format that has FP8."""
_SMALLEST_FP16_SCALE = 2.0**-20
"""A subnormal has few digits left, which is no loss: values are rounded with the scale as it is stored."""

_TYPES = {"int8": ir.DataType.INT8, "fp8": ir.DataType.FLOAT8E4M3FN}


@dataclass(frozen=True)
class QuantizedStage:
    """A written stage.

    Attributes:
        path: the ``.onnx`` file. data_path: its weights, or None if they are inside.
        opset: of the standard operators.
        quantised: modules of the quantised products. skipped: those that were asked for and have a range of zero.
    """

    path: Path
    data_path: Path | None
    opset: int
    quantized: tuple[str, ...]
    skipped: tuple[str, ...]


def quantize_stage(
    source: Path,
    target: Path,
    *,
    stage: str,
    layers: Sequence[Roundable],
    precision: str,
    weights: Path | None = None,
) -> QuantizedStage:
    """Write ``source`` as ``target`` with the given layers in 8 bits.

    Weights are mapped, rounded and written one at a time. The same source gives the same bytes.

    Args:
        source: a stage, in float32 or in 16 bit.
        target: ``.onnx`` file to write, not ``source``.
        stage: its name.
        layers: of a calibration; the smoothing and rotation have to be in the weights already. Of one without a
            calibration only the weight is rounded.
        precision: ``int8`` or ``fp8``.
        weights: the stage in float32, where ``source`` is not: its weights would be rounded twice.

    Raises:
        ExportError: the file is no such stage, or lacks one of the layers.
    """
    if precision not in FORMATS:
        raise ExportError(f"{stage}: precision {precision!r} has no 8 bits; use {' or '.join(FORMATS)}")
    if target.resolve() == source.resolve():
        raise ExportError(f"{stage}: {target} is the source itself; give another file for the result")
    model = load_graph(source, stage)
    full = model if weights is None else load_float32_graph(weights, stage)
    writer = _Writer(model, full, stage, FORMATS[precision])
    used = tuple(layer for layer in layers if not isinstance(layer, LayerCalibration) or layer.largest > 0)
    for layer in used:
        writer.quantize(layer)
    if used:
        model.opset_imports[""] = max(model.opset_imports[""] or 0, _OPSET)
        model.ir_version = max(model.ir_version, _IR_VERSION)
    with removed_on_failure(target):
        data_path = save_model(model, target)
        onnx.checker.check_model(str(target))
    skipped = tuple(layer.name for layer in layers if layer not in used)
    opset = model.opset_imports[""]
    assert opset is not None
    return QuantizedStage(target, data_path, opset, tuple(layer.name for layer in used), skipped)


class _Writer:
    def __init__(self, model: ir.Model, full: ir.Model, stage: str, form: NumberFormat) -> None:
        self._graph, self._stage, self._form = model.graph, stage, form
        self._sources = full.graph.initializers
        self._products = {node.name: node for node in model.graph if node.op_type == "MatMul"}
        self._zero: ir.Value | None = None
        # Kept before any is replaced: without another source a weight is rounded from its own old value.
        self._tensors = {name: value.const_value for name, value in self._sources.items()}

    def quantize(self, layer: Roundable) -> None:
        """Change one product in place."""
        node = self._products.get(f"{layer.name}/MatMul")
        tensor = self._tensors.get(f"{layer.name}.weight")
        if node is None or tensor is None or len(node.inputs) != 2:
            raise ExportError(
                f"{self._stage}: the graph has no product {layer.name}/MatMul with a weight; export the stage again, "
                "or calibrate this model"
            )
        data, weight = node.inputs
        assert data is not None
        assert weight is not None
        assert data.dtype is not None
        dtype = data.dtype
        if isinstance(layer, LayerCalibration):
            node.replace_input_with(0, self._rounded_input(node, data, dtype, layer))
        scales = _stored(weight_scales(np.asarray(tensor.numpy(), np.float32), self._form), dtype)
        self._store_weight(weight, tensor, scales)
        per_channel = constant(self._graph, f"{layer.name}.weight_scale", scales)
        wide = self._insert(node, "DequantizeLinear", [weight, per_channel], {"axis": 1}, dtype, weight.shape)
        node.replace_input_with(1, wide)

    def _rounded_input(self, node: ir.Node, data: ir.Value, dtype: ir.DataType, layer: LayerCalibration) -> ir.Value:
        scale = constant(
            self._graph, f"{layer.name}.input_scale", _stored(np.array(layer.largest / self._form.largest), dtype)
        )
        zero = self._zero_point()
        stored = self._insert(node, "QuantizeLinear", [data, scale, zero], {}, _TYPES[self._form.name], data.shape)
        return self._insert(node, "DequantizeLinear", [stored, scale, zero], {}, dtype, data.shape)

    def _store_weight(self, weight: ir.Value, tensor: ir.TensorProtocol, scales: NDArray[Any]) -> None:
        form, dtype, name = self._form, _TYPES[self._form.name], weight.name or ""

        def convert() -> ir.Tensor:
            values = round_to_grid(np.asarray(tensor.numpy(), np.float32) / scales.astype(np.float32), form)
            return ir.Tensor(values.astype(dtype.numpy()), dtype=dtype, name=name)

        weight.const_value = ir.LazyTensor(convert, dtype=dtype, shape=ir.Shape(tensor.shape.numpy()), name=name)
        weight.dtype = dtype

    def _zero_point(self) -> ir.Value:
        """Return the zero that says the type, which all scales of a stage share."""
        if self._zero is None:
            dtype = _TYPES[self._form.name]
            self._zero = constant(self._graph, f"{self._stage}.zero_point", np.zeros((), dtype.numpy()))
        return self._zero

    def _insert(
        self,
        before: ir.Node,
        operator: str,
        inputs: Sequence[ir.Value],
        attributes: dict[str, Any],
        dtype: ir.DataType,
        shape: ir.Shape | None,
    ) -> ir.Value:
        module, suffix = (before.name or "").rpartition("/")[0], "_weight" if attributes else ""
        output = ir.Value(name=f"{module}/{operator}{suffix}", shape=shape, type=ir.TensorType(dtype))
        node = ir.node(operator, inputs, attributes, outputs=[output], name=f"{module}/{operator}{suffix}")
        self._graph.insert_before(before, node)
        return output


def _stored(scales: NDArray[Any], dtype: ir.DataType) -> NDArray[Any]:
    """Return scales in the type that the product computes in."""
    if dtype != ir.DataType.FLOAT:
        scales = np.maximum(scales, _SMALLEST_FP16_SCALE)
    return np.asarray(scales, dtype.numpy())
