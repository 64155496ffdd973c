"""Write 16-bit precision into an ONNX stage: weights, casts and tensor types, streamed over external data.

TensorRT builds strongly typed networks: an operator runs in the type of its tensors, and nothing else decides. So the
types are written into the graph, once for every backend. Weights are converted while the file is saved, one at a time,
from the memory-mapped float32 file; the five gigabytes of the released network need a few hundred megabytes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir

from mapengine.runtime.errors import ExportError, InputError

from ..onnx_export import EMBED_LIMIT
from .policy import BFLOAT16, FLOAT16, FLOAT32, HALF_BOUNDARY, POLICY, PRECISIONS, Rule, node_type

FLOAT16_MAX = 65504.0
MARGIN = 8.0
"""Room that a tensor must have to be in FP16: measured inputs are few, and other images reach further. The largest
activations of vision transformers are constant to within a factor of two over images (Sun et al., arXiv 2402.17762)."""

_FOLLOWERS = frozenset({
    "Concat", "Expand", "Flatten", "Gather", "Identity", "Reshape", "Slice", "Split", "Squeeze", "Transpose",
    "Unsqueeze",
})  # fmt: skip
"""Operators that only move data. They keep the type that their data has, so that nothing is cast for their sake."""

_DATA_INPUTS = {"Resize": 1}
"""Operators of which only the first inputs have the operator's type (regions and scales of Resize stay float32)."""

_NUMPY = {FLOAT16: np.dtype(np.float16), BFLOAT16: np.dtype(ml_dtypes.bfloat16)}
_SUFFIX = {FLOAT32: "float32", FLOAT16: "float16", BFLOAT16: "bfloat16"}


@dataclass(frozen=True)
class Room:
    """A tensor in FP16: the largest magnitude that was measured, and how often it fits into FP16's range."""

    tensor: str
    largest: float
    factor: float


@dataclass(frozen=True)
class LoweredStage:
    """A stage with its precision written into the graph.

    Attributes:
        path, data_path: the files; small stages have their weights inside.
        dtypes: element type of every input and output, such as ``float16``.
        kept: modules that stay in float32 although the policy has them in FP16, because of their magnitudes.
        room: tensors in FP16 with what was measured of them, the fullest first; empty without measured ranges.
    """

    path: Path
    data_path: Path | None
    dtypes: Mapping[str, str]
    kept: tuple[str, ...]
    room: tuple[Room, ...]


def lower_precision(
    source: Path,
    target: Path,
    *,
    stage: str,
    precision: str,
    ranges: Mapping[str, float] | None = None,
    rules: Iterable[Rule] = POLICY,
) -> LoweredStage:
    """Rewrite a float32 stage so that the parts named by the policy run in 16 bit.

    Args:
        source: float32 ``.onnx`` of :func:`mapengine.export.export_stages`, any attention form.
        target: file to write, in another folder; weights that are too large for it go beside it, into
            ``<target>.data``.
        stage: name of the stage.
        precision: ``"fp16"`` or ``"bf16"``.
        ranges: largest magnitude per tensor of the float32 graph (:func:`.ranges.measure_ranges`). What would come
            within a factor of ``MARGIN`` of FP16's largest number stays in float32. Without them only the weights
            are checked.
        rules: the policy.

    Raises:
        InputError: the precision is unknown.
        ExportError: the graph cannot be written.
    """
    if precision not in PRECISIONS:
        raise InputError(f"precision {precision!r} is not one that is written into graphs; use {', '.join(PRECISIONS)}")
    model = ir.load(source)
    lowering = _Lowering(model, stage, precision, ranges or {}, tuple(rules))
    lowering.run()
    data_path = _save(model, target)
    return LoweredStage(
        path=target,
        data_path=data_path,
        dtypes={value.name or "": _SUFFIX[value.dtype] for value in (*model.graph.inputs, *model.graph.outputs)},
        kept=tuple(sorted(lowering.kept)),
        room=tuple(sorted(lowering.room.values(), key=lambda entry: (entry.factor, entry.tensor))),
    )


def module_of(node: ir.Node) -> str:
    """Name of the network's module that an operator belongs to."""
    return (node.name or "").rpartition("/")[0]


class _Lowering:
    """One pass over the nodes of a stage, in running order."""

    def __init__(
        self, model: ir.Model, stage: str, precision: str, ranges: Mapping[str, float], rules: tuple[Rule, ...]
    ) -> None:
        self.graph = model.graph
        self.stage = stage
        self.precision = precision
        self.ranges = ranges
        self.rules = rules
        self.kept: set[str] = set()
        self.room: dict[str, Room] = {}
        self._casts: dict[tuple[str, ir.DataType], ir.Value] = {}
        self._weights: dict[str, float] = {}

    def run(self) -> None:
        graph = self.graph
        uses = {value: list(value.uses()) for value in graph.initializers.values()}
        for value in graph.inputs:
            if value.dtype == FLOAT32 and self._is_half_boundary(value):
                value.dtype = FLOAT16
        outputs = set(graph.outputs)
        for node in list(graph):
            kind = self._type(node)
            if kind is None:
                continue
            for position, value in enumerate(node.inputs[: _DATA_INPUTS.get(node.op_type)]):
                if value is not None and value.dtype in _SUFFIX and value.dtype != kind:
                    node.replace_input_with(position, self._cast(value, kind, node))
            for value in node.outputs:
                if value.dtype == FLOAT32:
                    value.dtype = kind
        for value, old in uses.items():
            if old and not value.uses() and value not in outputs:
                del graph.initializers[value.name]
        for position, value in enumerate(list(graph.outputs)):
            self._finish_output(position, value)

    def _type(self, node: ir.Node) -> ir.DataType | None:
        """Type that a node runs in; None for one without floating tensors, or whose types are its own affair."""
        inputs = [value for value in node.inputs[: _DATA_INPUTS.get(node.op_type)] if value is not None]
        floating = [value for value in inputs if value.dtype in _SUFFIX]
        if node.op_type in ("Shape", "Cast") or not any(value.dtype in _SUFFIX for value in node.outputs):
            # A comparison has no floating output, but its inputs must agree.
            return FLOAT32 if floating and node.op_type not in ("Shape", "Cast") else None
        if node.op_type in _FOLLOWERS:
            computed = {value.dtype for value in floating if not value.is_initializer()}
            return computed.pop() if len(computed) == 1 else FLOAT32
        kind = node_type(self.stage, module_of(node), self.precision, self.rules)
        if kind == FLOAT16 and not self._fits(node, [*floating, *node.outputs]):
            self.kept.add(module_of(node))
            return FLOAT32
        return kind

    def _fits(self, node: ir.Node, values: Iterable[ir.Value]) -> bool:
        """Whether all tensors of a node have room in FP16; notes how much."""
        found = {value.name or "": self._largest(value) for value in values}
        known = {name: largest for name, largest in found.items() if largest is not None}
        # Written so that a magnitude that is not a number does not fit.
        if not all(largest * MARGIN <= FLOAT16_MAX for largest in known.values()):
            return False
        for name, largest in known.items():
            label = f"{node.name}: {name}"
            if largest > 0 and name not in self.room:
                self.room[name] = Room(label, largest, FLOAT16_MAX / largest)
        return True

    def _largest(self, value: ir.Value) -> float | None:
        name = value.name or ""
        if value.const_value is None:
            origin = name.partition(":")[0] if value.producer() is not None else name
            return self.ranges.get(origin)
        if name not in self._weights:
            array = value.const_value.numpy()
            self._weights[name] = float(np.abs(array).max(initial=0.0))
        return self._weights[name]

    def _cast(self, value: ir.Value, kind: ir.DataType, user: ir.Node) -> ir.Value:
        key = (value.name or "", kind)
        if key not in self._casts:
            name = f"{value.name}:{_SUFFIX[kind]}"
            if value.const_value is not None:
                cast = _converted(value, name, kind)
                self.graph.register_initializer(cast)
            else:
                node = ir.node("Cast", [value], attributes={"to": int(kind)}, name=f"{module_of(user)}/Cast:{name}")
                cast = node.outputs[0]
                cast.name, cast.dtype, cast.shape = name, kind, value.shape
                producer = value.producer()
                if producer is None:
                    self.graph.insert_before(next(iter(self.graph)), node)
                else:
                    self.graph.insert_after(producer, node)
            self._casts[key] = cast
        return self._casts[key]

    def _is_half_boundary(self, value: ir.Value) -> bool:
        if not (value.name or "").startswith(HALF_BOUNDARY):
            return False
        largest = self.ranges.get(value.name or "", 0.0)
        return largest * MARGIN <= FLOAT16_MAX

    def _finish_output(self, position: int, value: ir.Value) -> None:
        """Give a stage output the type of the contract, under its own name."""
        wanted = FLOAT16 if self._is_half_boundary(value) else FLOAT32
        if value.dtype not in _SUFFIX or value.dtype == wanted:
            return
        producer = value.producer()
        if producer is None:
            raise ExportError(f"{self.stage}: output {value.name} is an input of the stage; export the model again.")
        name = value.name
        value.name = f"{name}:{_SUFFIX[value.dtype]}"
        node = ir.node("Cast", [value], attributes={"to": int(wanted)}, name=f"{module_of(producer)}/Cast:{name}")
        output = node.outputs[0]
        output.name, output.dtype, output.shape = name, wanted, value.shape
        self.graph.insert_after(producer, node)
        self.graph.outputs[position] = output


def _converted(value: ir.Value, name: str, kind: ir.DataType) -> ir.Value:
    """A weight in another type, computed when it is saved."""
    tensor = value.const_value
    assert tensor is not None

    def convert(source: ir.TensorProtocol = tensor) -> ir.Tensor:
        with np.errstate(over="ignore"):
            return ir.Tensor(source.numpy().astype(_NUMPY[kind]), name=name)

    lazy = ir.LazyTensor(convert, dtype=kind, shape=tensor.shape, name=name, cache=False)
    return ir.Value(name=name, type=ir.TensorType(kind), shape=value.shape, const_value=lazy)


def _save(model: ir.Model, target: Path) -> Path | None:
    weights = sum(v.const_value.nbytes for v in model.graph.initializers.values() if v.const_value is not None)
    data_path = target.with_name(target.name + ".data") if weights > EMBED_LIMIT else None
    try:
        ir.save(model, target, external_data=data_path.name if data_path else None)
        onnx.checker.check_model(str(target))
    except (onnx.checker.ValidationError, OSError) as error:
        reason = str(error).splitlines()[0]
        raise ExportError(f"{target.stem}: the graph could not be written in 16 bit ({reason}).") from error
    return data_path
