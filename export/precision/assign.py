"""Decide the type that every node of a stage computes in, from the policy and from measured magnitudes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import onnx_ir as ir

from mapengine.runtime.bundle.build_record import Headroom
from mapengine.runtime.errors import ExportError

from ..graphs.files import FLOAT32, is_floating, module_of
from ..graphs.weights import largest_weight
from .policy import INPUT, OUTPUT, Precision, Rule, match

FP16_MAX, FP16_NORMAL = 65504.0, 2.0**-14
"""Largest finite float16, and the smallest that has all digits."""

MARGIN = 8.0
"""A tensor is stored in float16 only if its measured magnitude stays this factor away from both ends of the range.

The cases that are measured are few and small. Other images move the largest activation of a layer by a factor of two
or so, because weights and not scenes single out its channel; partial sums of a product exceed the sum; and rounding in
earlier layers adds a little. Below, a tensor's largest number is followed by many that are smaller.
"""

SCORES = "scores"
"""Key of the attention scores in a stage's magnitudes is ``<module>/scores``: no tensor of the graph holds them."""

ATTENTION = ("MultiHeadAttention", "Attention")

Magnitudes = Mapping[str, float]
"""Largest magnitude by tensor name, of one stage; infinity where NaN or infinity was met."""

FLOAT16 = ir.DataType.FLOAT16
_TYPES = {"float32": FLOAT32, "float16": FLOAT16, "bfloat16": ir.DataType.BFLOAT16}
_SETTINGS = {"Resize": (1, 2)}
"""Floating inputs that describe the operation and keep their type: region and scales."""


@dataclass
class Assignment:
    """Types of the nodes and of the stage's inputs and outputs."""

    nodes: dict[ir.Node, ir.DataType] = field(default_factory=dict)
    """Every node that has floating data, in graph order."""
    boundary: dict[ir.Value, ir.DataType] = field(default_factory=dict)
    kept: list[str] = field(default_factory=list)
    """Modules, inputs and outputs that the policy would run in float16 and the magnitudes kept in float32."""
    headroom: list[Headroom] = field(default_factory=list)


def scores_of(node: ir.Node) -> str:
    """Return the key of an attention node's scores in the magnitudes of its stage."""
    return f"{module_of(node)}/{SCORES}"


def floating_inputs(node: ir.Node) -> Iterator[tuple[int, ir.Value]]:
    """Yield position and value of the data that a node computes with."""
    if node.op_type in ("Shape", "Size"):
        return  # reads no data
    for index, value in enumerate(node.inputs):
        if value is not None and is_floating(value) and index not in _SETTINGS.get(node.op_type, ()):
            yield index, value


def assign_types(
    model: ir.Model, stage: str, precision: Precision, policy: Sequence[Rule], magnitudes: Magnitudes | None
) -> Assignment:
    """Assign a type to every node, input and output of a float32 stage.

    Raises:
        ExportError: no row of the policy fits a node, or the magnitudes are of another graph.
    """
    result = Assignment()
    limits = _Limits(stage, magnitudes)
    types: dict[ir.Value, ir.DataType] = {}
    for value in model.graph.inputs:
        if is_floating(value):
            rule = match(policy, stage, value.name or "", INPUT)
            wanted = limits.checked(_TYPES[rule.kind(precision)], value.name or "", [value], result)
            types[value] = result.boundary[value] = wanted
    for node in model.graph:
        data = [value for _, value in floating_inputs(node)]
        produced = [value for value in node.outputs if is_floating(value)]
        if not data and not produced:
            continue
        module = module_of(node)
        kind = match(policy, stage, module, node.op_type).kind(precision)
        if kind == "as input":
            found = {types[value] for value in data if not value.is_initializer()}
            chosen = found.pop() if len(found) == 1 else FLOAT32
        else:
            chosen = limits.checked(_TYPES[kind], module, [*data, *produced], result, node)
        result.nodes[node] = chosen
        types.update(dict.fromkeys(produced, chosen))
    for value in model.graph.outputs:
        if is_floating(value):
            rule = match(policy, stage, value.name or "", OUTPUT)
            result.boundary[value] = limits.checked(_TYPES[rule.kind(precision)], value.name or "", [value], result)
    result.kept = list(dict.fromkeys(result.kept))
    result.headroom = limits.headroom()
    return result


class _Limits:
    """Compares measured magnitudes with float16's range."""

    def __init__(self, stage: str, magnitudes: Magnitudes | None) -> None:
        self._stage = stage
        self._magnitudes = magnitudes
        self._weights: dict[ir.Value, float] = {}
        self._largest: dict[str, float] = {}

    def checked(
        self,
        wanted: ir.DataType,
        module: str,
        values: Sequence[ir.Value],
        result: Assignment,
        node: ir.Node | None = None,
    ) -> ir.DataType:
        """Return ``wanted``, or float32 where float16 would not hold the values; note in ``result`` which it was."""
        if wanted != FLOAT16:
            return wanted
        weights = [value for value in values if value.is_initializer()]
        found: list[tuple[str, float]] = []
        if self._magnitudes is not None:
            found = [(_label(value), self._measured(value.name or "")) for value in values if value not in weights]
            if node is not None and node.op_type in ATTENTION:
                # Scores near zero are as good as zero, so they have no lower end.
                found.append((scores_of(node), max(1.0, self._measured(scores_of(node)))))
        if not all(map(self._weight_fits, weights)) or not all(_fits(largest) for _, largest in found):
            result.kept.append(module)
            return FLOAT32
        for label, largest in found:  # of the parts of a split, the largest
            self._largest[label] = max(self._largest.get(label, 0.0), largest)
        return wanted

    def headroom(self) -> list[Headroom]:
        """Return the float16 tensors, least room first."""
        entries = [Headroom(self._stage, name, x, FP16_MAX / x) for name, x in self._largest.items() if x > 0]
        return sorted(entries, key=lambda entry: (entry.factor, entry.tensor))

    def _measured(self, name: str) -> float:
        assert self._magnitudes is not None
        if name not in self._magnitudes:
            raise ExportError(
                f"{self._stage}: the magnitude of {name} was not measured; measure the magnitudes of this export again"
            )
        return self._magnitudes[name]

    def _weight_fits(self, value: ir.Value) -> bool:
        """Return whether float16 holds a weight. It is known exactly, so it needs no margin above; a small bias is
        added to something larger."""
        if value not in self._weights:
            assert value.const_value is not None
            self._weights[value] = largest_weight(value.const_value)
        largest = self._weights[value]
        is_factor = value.shape is not None and len(value.shape) > 1
        return largest <= FP16_MAX and (largest == 0 or largest >= FP16_NORMAL or not is_factor)


def _fits(largest: float) -> bool:
    return largest == 0 or FP16_NORMAL * MARGIN <= largest <= FP16_MAX / MARGIN


def _label(value: ir.Value) -> str:
    """Return what made a tensor, which says more than the tracer's name for it."""
    producer = value.producer()
    return (producer.name if producer is not None else value.name) or ""


def dtype_name(dtype: ir.DataType) -> str:
    """Name of a type in NumPy and in manifests."""
    return next(name for name, known in _TYPES.items() if known == dtype)
