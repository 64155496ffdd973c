"""Write a float32 stage again in float16 or bfloat16: casts, and weights of low precision.

TensorRT builds strongly typed networks, so the types are in the graph. A node computes in the type that
:mod:`.assign` assigned; a value that is read in another type than it was made in passes one ``Cast``, which all its
readers of that type share.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import onnx
import onnx_ir as ir

from mapengine.runtime.bundle.build_record import Headroom
from mapengine.runtime.bundle.manifest import TensorSpec
from mapengine.runtime.errors import ExportError

from ..graphs.files import is_floating, load_float32_graph, module_of
from ..graphs.weights import converted, save_model
from .assign import Assignment, assign_types, dtype_name, floating_inputs
from .policy import POLICY, Precision, Rule


@dataclass(frozen=True)
class LoweredStage:
    """A stage in 16 bit: its files and interface, and what the measured magnitudes decided.

    Attributes:
        name: of the stage.
        path: the ``.onnx`` file. data_path: its weights, or None if they are inside.
        opset: of the standard operators.
        inputs, outputs: name, dtype and shape.
        kept_layers: modules that the policy would run in float16 and that stay in float32, because a tensor or weight
            would come too close to float16's largest number.
        headroom: the float16 tensors, least room first; empty when no magnitudes were given. ``tensor`` is the node
            that makes it, an input's name, or ``<module>/scores``.
    """

    name: str
    path: Path
    data_path: Path | None
    opset: int
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    kept_layers: tuple[str, ...]
    headroom: tuple[Headroom, ...]


def lower_precision(
    source: Path,
    target: Path,
    *,
    stage: str,
    precision: Precision,
    magnitudes: Mapping[str, float] | None,
    policy: Sequence[Rule] = POLICY,
) -> LoweredStage:
    """Write ``source`` as ``target`` with the types of the policy.

    Weights are mapped, converted and written one at a time. The same source gives the same bytes.

    Args:
        source: a float32 stage of :func:`mapengine.export.graphs.tracing.export_stages`.
        target: ``.onnx`` file to write, not ``source``.
        stage: its name.
        precision: column of the policy.
        magnitudes: of this stage, from :func:`.magnitudes.measure_magnitudes`. Without them nothing protects a float16
            tensor from overflow.
        policy: another table, for measurements.

    Raises:
        ExportError: the file is not a float32 stage, or the magnitudes are of another graph.
    """
    if precision not in ("fp16", "bf16"):
        raise ExportError(f"{stage}: precision {precision!r} cannot be written into a graph; use fp16 or bf16")
    if target.resolve() == source.resolve():
        raise ExportError(f"{stage}: {target} is the float32 stage itself; give another file for the result")
    model = load_float32_graph(source, stage)
    assignment = assign_types(model, stage, precision, policy, magnitudes)
    with removed_on_failure(target):
        _Rewriter(model, assignment).run()
        data_path = save_model(model, target)
        onnx.checker.check_model(str(target))
    return LoweredStage(
        name=stage,
        path=target,
        data_path=data_path,
        opset=model.opset_imports[""],
        inputs=tuple(_spec(value) for value in model.graph.inputs),
        outputs=tuple(_spec(value) for value in model.graph.outputs),
        kept_layers=tuple(assignment.kept),
        headroom=tuple(assignment.headroom),
    )


class _Rewriter:
    def __init__(self, model: ir.Model, assignment: Assignment) -> None:
        self._graph = model.graph
        self._assignment = assignment
        self._types: dict[ir.Value, ir.DataType] = {}
        self._casts: dict[tuple[ir.Value, ir.DataType], ir.Value] = {}
        self._names = {node.name for node in model.graph}

    def run(self) -> None:
        """Change the graph in place."""
        weights = self._weights()
        for value in self._graph.inputs:
            if value in self._assignment.boundary:
                self._set(value, self._assignment.boundary[value])
        for node, dtype in self._assignment.nodes.items():
            for index, value in list(floating_inputs(node)):
                if value.is_initializer():
                    node.replace_input_with(index, weights[value, dtype])
                elif self._types[value] != dtype:
                    node.replace_input_with(index, self._cast(value, dtype))
            for value in node.outputs:
                if is_floating(value):
                    self._set(value, dtype)
        for index, value in enumerate(self._graph.outputs):
            wanted = self._assignment.boundary.get(value)
            if wanted is not None and self._types[value] != wanted:
                self._graph.outputs[index] = self._output(value, wanted)

    def _set(self, value: ir.Value, dtype: ir.DataType) -> None:
        self._types[value] = dtype
        value.dtype = dtype

    def _weights(self) -> dict[tuple[ir.Value, ir.DataType], ir.Value]:
        """Make every weight in the types that its readers compute in; one that has a single type keeps its name."""
        wanted: dict[ir.Value, dict[ir.DataType, None]] = {}
        for node, dtype in self._assignment.nodes.items():
            for _, value in floating_inputs(node):
                if value.is_initializer():
                    wanted.setdefault(value, {})[dtype] = None
        made: dict[tuple[ir.Value, ir.DataType], ir.Value] = {}
        for value, dtypes in wanted.items():
            for dtype in dtypes:
                made[value, dtype] = value if value.dtype == dtype else self._weight(value, dtype, len(dtypes) == 1)
        return made

    def _weight(self, value: ir.Value, dtype: ir.DataType, only: bool) -> ir.Value:
        assert value.const_value is not None
        assert value.name is not None
        name = value.name if only else f"{value.name}.{dtype_name(dtype)}"
        tensor = converted(value.const_value, dtype, name)
        if only:  # in place, so that the order of the weights in the file stays that of the source
            value.const_value = tensor
            value.dtype = dtype
            return value
        copy = ir.Value(name=name, shape=value.shape, type=ir.TensorType(dtype), const_value=tensor)
        self._graph.register_initializer(copy)
        return copy

    def _cast(self, value: ir.Value, dtype: ir.DataType, name: str | None = None) -> ir.Value:
        key = (value, dtype)
        if key not in self._casts:
            producer = value.producer()
            module = module_of(producer) if producer is not None else self._graph.name or ""
            output = ir.Value(
                name=name or f"{value.name}.{dtype_name(dtype)}", shape=value.shape, type=ir.TensorType(dtype)
            )
            cast = ir.node(
                "Cast", [value], {"to": int(dtype)}, outputs=[output], name=self._node_name(f"{module}/Cast")
            )
            if producer is None:
                self._graph.insert_before(self._graph[0], cast)
            else:
                self._graph.insert_after(producer, cast)
            self._casts[key] = output
        return self._casts[key]

    def _output(self, value: ir.Value, dtype: ir.DataType) -> ir.Value:
        """Make an output in another type than it is made in: the cast takes the name."""
        name = value.name
        value.name = f"{name}.{dtype_name(self._types[value])}"
        cast = self._casts.pop((value, dtype), None)
        if cast is None:
            return self._cast(value, dtype, name)
        cast.name = name
        return cast

    def _node_name(self, name: str) -> str:
        count, unique = 1, name
        while unique in self._names:
            count += 1
            unique = f"{name}_{count}"
        self._names.add(unique)
        return unique


def _spec(value: ir.Value) -> TensorSpec:
    assert value.name is not None
    assert value.shape is not None
    assert value.dtype is not None
    axes = tuple(axis if isinstance(axis, int) else str(axis.value) for axis in value.shape)
    return TensorSpec(value.name, dtype_name(value.dtype), axes)


@contextlib.contextmanager
def removed_on_failure(target: Path) -> Iterator[None]:
    """Remove a stage's files where writing them does not end well."""
    try:
        yield
    except BaseException:
        for path in (target, target.with_name(f"{target.name}.data")):
            with contextlib.suppress(OSError):
                path.unlink()
        raise
