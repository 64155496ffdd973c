"""What a plan is made of: the layers that the builder reports, and what became of the graph's attention and products.

Two sources say the same in two forms. The builder's verbose log ends with a listing of layers and tensors, also where
no GPU can load the plan (:func:`parse_listing`; format seen with TensorRT-RTX 1.7). Where the engine can be loaded, the
EngineInspector gives JSON (:func:`parse_inspector`; written from NVIDIA's documentation, "Engine Inspector", with
``ProfilingVerbosity.DETAILED``, and not run on a GPU by this project).

A fused attention is one layer whose kernel is called ``_gemm_mha_v2`` or the like. One that is not fused (float32 on
TensorRT-RTX) is two layers of kind ``gemm`` that name the attention's node, with the softmax between them.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mapengine.runtime.bundle.stages import LayerRecord
from mapengine.runtime.errors import ExportError

from .graph import StageGraph

_HEAD = re.compile(r"Name: (.*?), LayerType: (\w+)")
_TENSOR = re.compile(r"\{ Name: (.*?), Dimensions: \[([^\]]*)\].*?Datatype: (\w+)")
_TACTIC = re.compile(r", TacticName: (.*?), (?:StreamId|Metadata): ")
_ORIGIN = re.compile(r"\[ONNX Layer: ([^\]]*)\]")
_SECTIONS = {key: re.compile(rf", {key}: \[(?:\]| ?(.*?)\}}\])") for key in ("Inputs", "Constants", "Outputs")}
_PORT = re.compile(r" Name: (.*), IOMode: (\w+), DataType: (\w+), Dimensions: \[([^\]]*)\](.*)")
_SHAPES = re.compile(r"MinShape: \[([^\]]*)\], OptShape: \[([^\]]*)\], MaxShape: \[([^\]]*)\]")

_SIZES = "ShapeHostToDevice"
"""The layer that brings sizes which the host computed to the GPU, where a graph makes indices of them."""
_FUSED = re.compile("mha", re.IGNORECASE)
_PRODUCT = re.compile("gemm|correlation|conv|matrixmultiply|runtime_fusion", re.IGNORECASE)
_MANIFEST_DTYPES = {
    "float": "float32", "half": "float16", "bf16": "bfloat16", "bfloat16": "bfloat16", "int32": "int32",
    "uint8": "uint8", "int64": "int64", "bool": "bool",
}  # fmt: skip
_DATATYPES = {"BF16": "BFloat16", "FP16": "Half", "FP32": "Float", "FP8": "FP8", "INT8": "Int8", "HALF": "Half"}
"""Words of the inspector's ``Format/Datatype`` that name a type otherwise than the builder's log."""


@dataclass(frozen=True)
class LayerTensor:
    """An input, constant or output of a layer; -1 is a dynamic axis; ``dtype`` as TensorRT prints it, such as Half."""

    name: str
    shape: tuple[int, ...]
    dtype: str


@dataclass(frozen=True)
class Layer:
    """One generated layer: its kind, kernel, tensors, and the ONNX nodes that it came from."""

    name: str
    kind: str
    tactic: str
    inputs: tuple[LayerTensor, ...]
    constants: tuple[LayerTensor, ...]
    outputs: tuple[LayerTensor, ...]
    origin: tuple[str, ...]

    @property
    def is_fused_attention(self) -> bool:
        """Whether this one kernel is a whole attention."""
        return bool(_FUSED.search(self.name) or _FUSED.search(self.tactic))

    @property
    def is_product(self) -> bool:
        """Whether this is a matrix product or a convolution, perhaps with what follows it fused to it."""
        return not self.is_fused_attention and bool(_PRODUCT.search(self.kind) or self.name.startswith("_gemm"))

    @property
    def datatypes(self) -> str:
        """``input x weight -> output`` of a product, such as ``Half x Half -> Half``.

        The weight is the largest constant of two axes or more, or the second input where both sides are computed. A
        fused layer has further inputs, such as the residual in another type: the product's own is of the weight's type
        wherever there is one.
        """
        matrices = [constant for constant in self.constants if sum(side > 1 for side in constant.shape) > 1]
        kinds = [tensor.dtype for tensor in self.inputs] or ["?"]
        weight = max(matrices, key=_elements).dtype if matrices else kinds[min(1, len(kinds) - 1)]
        source = weight if weight in kinds else kinds[0]
        return f"{source} x {weight} -> {self.outputs[0].dtype if self.outputs else '?'}"


@dataclass(frozen=True)
class Port:
    """An input or output of a plan, with its smallest, usual and largest shape per profile (empty for outputs).

    ``dtype`` is as in the manifest, such as ``float16``.
    """

    name: str
    is_input: bool
    dtype: str
    shape: tuple[int, ...]
    profiles: tuple[tuple[tuple[int, ...], ...], ...] = ()


@dataclass(frozen=True)
class LayerReport:
    """What became of a graph in a plan.

    Attributes:
        layers: everything that was generated.
        fused, unfused: modules of the attention blocks, in running order.
        products: datatypes of every matrix product and convolution, keyed by its ONNX node; more than one where the
            profiles of a plan differ.
        elsewhere: product nodes that no such layer names: folded into a constant, or computed element by element.
        macs: multiplications of the product nodes, see :class:`.graph.GraphProduct`.
    """

    layers: tuple[Layer, ...]
    fused: tuple[str, ...]
    unfused: tuple[str, ...]
    products: Mapping[str, tuple[str, ...]]
    elsewhere: tuple[str, ...]
    macs: Mapping[str, int]

    def record(self) -> LayerRecord:
        """Return what the manifest keeps."""
        counts: Counter[str] = Counter()
        macs: Counter[str] = Counter()
        for name, kinds in sorted(self.products.items()):
            for kind in kinds:
                counts[kind] += 1
                macs[kind] += self.macs[name]
        attention = len(self.fused) + len(self.unfused)
        return LayerRecord(
            attention, len(self.fused), self.unfused, dict(sorted(counts.items())), dict(sorted(macs.items()))
        )


def parse_listing(text: str) -> tuple[tuple[Layer, ...], tuple[Port, ...]]:
    """Read ``Layers:`` and ``I/O Tensors:`` of the builder's verbose log.

    Raises:
        ExportError: a layer is written in a form that is not known.
    """
    head, _, tail = text.partition("\nI/O Tensors:")
    layers = [_listed(line) for line in head.splitlines() if line.startswith("Name: ")]
    if not layers:
        raise ExportError("the builder's log lists no layers; this version of the library writes another form")
    return tuple(layers), tuple(_port(match) for match in map(_PORT.match, tail.splitlines()) if match)


def parse_inspector(text: str) -> tuple[Layer, ...]:
    """Read the JSON of ``EngineInspector.get_engine_information``.

    Raises:
        ExportError: it is not that JSON, or holds the names of layers only.
    """
    try:
        layers = json.loads(text)["Layers"]
        return tuple(_inspected(layer) for layer in layers)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ExportError(
            f"the engine inspector's report cannot be read ({type(error).__name__}); this version of the library "
            "writes another form"
        ) from error


def manifest_dtype(name: str) -> str:
    """Return the manifest's word for a type as TensorRT prints it (``Half``) or as its enumeration names it
    (``HALF``)."""
    return _MANIFEST_DTYPES.get(name.lower(), name)


def report_layers(layers: tuple[Layer, ...], graph: StageGraph) -> LayerReport:
    """Find the graph's attention blocks and products among the layers of its plan."""
    fused_nodes = {name for layer in layers if layer.is_fused_attention for name in layer.origin}
    product_layers = [layer for layer in layers if layer.is_product]
    computed = {name for layer in product_layers for name in layer.origin}
    fused: list[str] = []
    unfused: list[str] = []
    for block in graph.attention:
        # With several profiles a block may be fused in one of them only; then its products show up as well.
        whole = fused_nodes.intersection(block.nodes) and not computed.intersection(block.nodes)
        (fused if whole else unfused).append(block.module)
    products: dict[str, tuple[str, ...]] = {}
    for layer in product_layers:
        for name in layer.origin:
            if name in graph.products:
                products[name] = tuple(sorted({*products.get(name, ()), layer.datatypes}))
    elsewhere = tuple(name for name in graph.products if name not in products)
    macs = {name: product.macs for name, product in graph.products.items()}
    return LayerReport(layers, tuple(fused), tuple(unfused), products, elsewhere, macs)


def _listed(line: str) -> Layer:
    head, tactic = _HEAD.match(line), _TACTIC.search(line)
    sections = {key: pattern.search(line) for key, pattern in _SECTIONS.items()}
    copies_sizes = head is not None and head[2] == _SIZES  # which no kernel does
    if (
        head is None
        or (tactic is None and not copies_sizes)
        or sections["Inputs"] is None
        or sections["Outputs"] is None
    ):
        raise ExportError(f"the builder's log lists a layer in an unknown form: {line[:80]!r}")
    tensors = {
        key: tuple(
            LayerTensor(name, _shape(shape), dtype)
            for name, shape, dtype in _TENSOR.findall((match[1] or "") + "}" if match else "")
        )
        for key, match in sections.items()
    }
    origin = tuple(_ORIGIN.findall(line.rpartition(", Metadata: ")[2]))
    return Layer(
        head[1],
        head[2],
        "" if tactic is None else tactic[1],
        tensors["Inputs"],
        tensors["Constants"],
        tensors["Outputs"],
        origin,
    )


def _port(match: re.Match[str]) -> Port:
    profiles = tuple(tuple(_shape(shape) for shape in shapes) for shapes in _SHAPES.findall(match[5]))
    return Port(match[1], match[2] == "Input", manifest_dtype(match[3]), _shape(match[4]), profiles)


def _inspected(layer: Mapping[str, Any]) -> Layer:
    def tensors(key: str) -> tuple[LayerTensor, ...]:
        return tuple(
            LayerTensor(str(item["Name"]), tuple(int(side) for side in item.get("Dimensions", ())), _datatype(item))
            for item in layer.get(key, ())
        )

    constants = tensors("Constants")
    if not constants and isinstance(layer.get("Weights"), Mapping):
        # A convolution says the type and the number of its weights, but no shape.
        weights = layer["Weights"]
        constants = (LayerTensor("weights", (2, int(weights["Count"])), _canonical(str(weights["Type"]))),)
    return Layer(
        str(layer["Name"]),
        str(layer.get("LayerType", "")),
        str(layer.get("TacticName", "")),
        tensors("Inputs"),
        constants,
        tensors("Outputs"),
        tuple(_ORIGIN.findall(str(layer.get("Metadata", "")))),
    )


def _datatype(item: Mapping[str, Any]) -> str:
    return _canonical(str(item.get("Datatype") or item.get("Format/Datatype", "?")))


def _canonical(text: str) -> str:
    for word in text.replace(".", " ").split():
        if word.upper() in _DATATYPES:
            return _DATATYPES[word.upper()]
    return text.split()[0] if text.split() else "?"


def _elements(tensor: LayerTensor) -> int:
    count = 1
    for side in tensor.shape:
        count *= max(side, 1)
    return count


def _shape(text: str) -> tuple[int, ...]:
    return tuple(int(side) for side in text.split(",") if side.strip())
