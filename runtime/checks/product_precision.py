"""The precision in which the backend runs the matrix products of a bundle, as the backend reports it.

A graph that asks for INT8 may run in float32: a kernel is missing, or a fusion does not match. Each stage runs once on
the bundle's golden input. ONNX Runtime's profiler and OpenVINO's execution graph say which kernel computed what;
for TensorRT the layers that the builder listed are in the manifest.
"""

from __future__ import annotations

import json
import math
import re
import tempfile
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..backends.contract import Arrays, StageRunner
from ..backends.host_pipeline import HostBackend, Pipeline
from ..backends.onnxruntime import OnnxRuntimeBackend
from ..backends.openvino import OpenVinoBackend
from ..bundle.manifest import Manifest
from ..bundle.store import Bundle
from ..errors import BackendError, ParityError
from .golden import run_golden

LOW: Mapping[str, tuple[str, ...]] = {"int8": ("int8", "uint8"), "fp8": ("float8_e4m3fn",)}
"""Element types that count as a precision."""

_ONNX_TYPES = {"float": "float32", "double": "float64", "float16": "float16", "int8": "int8", "uint8": "uint8"}
_PRODUCTS = re.compile("MatMul|Gemm|Conv|FullyConnected|Deconvolution|Convolution")
_NO_PRODUCT = re.compile("Convert|Nchwc?Reorder")
_OPENVINO_TYPES = {"i8": "int8", "u8": "uint8", "f32": "float32", "f16": "float16", "bf16": "bfloat16"}
_TENSORRT_TYPES = {
    "Int8": "int8",
    "FP8": "float8_e4m3fn",
    "Half": "float16",
    "Float": "float32",
    "BFloat16": "bfloat16",
}


@dataclass(frozen=True)
class Product:
    """A matrix product or convolution that ran, or several alike.

    Attributes:
        kernel: as the backend calls it. dtype: that it computes in, such as ``int8`` (or ``uint8``, its twin with an
            offset). macs: multiplications, of all of them; 0 where the backend does not say. count: how many there are.
    """

    kernel: str
    dtype: str
    macs: int
    count: int = 1


@dataclass(frozen=True)
class StageProducts:
    """The products of one stage."""

    stage: str
    products: tuple[Product, ...]

    def counts(self) -> dict[str, int]:
        """Return the number of products by type."""
        found: Counter[str] = Counter()
        for product in self.products:
            found[product.dtype] += product.count
        return dict(found.most_common())

    def share(self, dtypes: Iterable[str]) -> float | None:
        """Return the share of the multiplications in the given types; None where the backend does not say."""
        total = sum(product.macs for product in self.products)
        wanted = set(dtypes)
        return sum(p.macs for p in self.products if p.dtype in wanted) / total if total else None


def stage_products(bundle: Bundle, backend: str, threads: int | None = None) -> list[StageProducts]:
    """Run the golden input with a CPU backend and list the products of every stage that it used.

    For plans, what the builder listed.

    Raises:
        BackendError: the backend cannot run a stage or does not say what it ran.
        BundleReplacedError: the bundle is no longer the one that was opened.
    """
    if bundle.manifest.format == "plan":
        return listed_products(bundle.manifest)
    library: HostBackend = OpenVinoBackend(threads) if backend == "openvino" else OnnxRuntimeBackend(threads)
    look = _openvino if isinstance(library, OpenVinoBackend) else _onnxruntime
    arithmetic = bundle.manifest.arithmetic
    with bundle.unchanged():
        names = bundle.manifest.stages
        loaded = {name: library.load_stage(name, bundle.stage_path(name), arithmetic) for name in names}
        return [
            StageProducts(stage, tuple(look(library, bundle.stage_path(stage), given, arithmetic)))
            for stage, given in stage_inputs(bundle, loaded).items()
        ]


def check_product_precision(manifest: Manifest, products: Iterable[StageProducts], backend: str) -> None:
    """Refuse a backend that ran fewer products in 8 bits than the bundle asks for.

    Raises:
        ParityError: stage, numbers, and what to do.
    """
    if manifest.quantization is None:
        return
    found = {entry.stage: sum(entry.counts().get(dtype, 0) for dtype in LOW[manifest.precision]) for entry in products}
    for stage, wanted in manifest.quantization.products.items():
        if found.get(stage, 0) < wanted:
            raise ParityError(
                f"{backend} ran {found.get(stage, 0)} of the {wanted} products of {stage} in {manifest.precision} that "
                "this bundle asks for; use another backend or version, or a bundle in fp16 or fp32"
            )


class _Recorder:
    """A stage that keeps the inputs of its first call."""

    def __init__(self, stage: StageRunner) -> None:
        self._stage = stage
        self.inputs: dict[str, NDArray[Any]] | None = None

    def run(self, inputs: Arrays) -> dict[str, NDArray[np.float32]]:
        if self.inputs is None:
            self.inputs = {name: np.array(value) for name, value in inputs.items()}
        return self._stage.run(inputs)


def stage_inputs(bundle: Bundle, stages: Mapping[str, StageRunner]) -> dict[str, dict[str, NDArray[Any]]]:
    """Return what every stage reads when ``stages`` run the golden input of a bundle; of several calls the first."""
    recorders = {name: _Recorder(stage) for name, stage in stages.items()}
    run_golden(bundle, Pipeline(dict[str, StageRunner](recorders)))
    return {name: recorder.inputs for name, recorder in recorders.items() if recorder.inputs is not None}


def _onnxruntime(
    library: HostBackend, path: Path, inputs: Mapping[str, NDArray[Any]], arithmetic: str
) -> list[Product]:
    """Read the profile of one run: operator, types and shapes of every node after fusion."""
    assert isinstance(library, OnnxRuntimeBackend)  # which computes what the file says
    with tempfile.TemporaryDirectory() as folder:
        events = parse_profile(library.profile_stage(path, inputs, Path(folder) / "profile"))
    products = []
    for event in events:
        arguments = event.get("args", {})
        operator = str(arguments.get("op_name", ""))
        if not str(event.get("name", "")).endswith("_kernel_time") or not _is_product(operator):
            continue
        # One entry per input, such as {"int8": [64, 192]}. A weight that the library packed has left the list, so the
        # type is that of the activations, which the kernel of a product shares with its weights.
        given = [next(iter(entry.items())) for entry in arguments["input_type_shape"] if entry]
        made = next(iter(arguments["output_type_shape"][0].values()))
        dtype, data = given[0]
        length = data[-1] if data else 1
        if "Conv" in operator:
            length = math.prod(given[1][1][1:]) if len(given) > 1 and len(given[1][1]) == len(data) else 0
        products.append(Product(operator, _ONNX_TYPES.get(dtype, dtype), math.prod(made) * length))
    return products


def _openvino(library: HostBackend, path: Path, inputs: Mapping[str, NDArray[Any]], arithmetic: str) -> list[Product]:
    """Read the execution graph after one run: kernel and precision of every node, and its shapes."""
    assert isinstance(library, OpenVinoBackend)
    products = []
    for node in library.execution_graph(path, inputs, arithmetic):
        if not _is_product(node.kind):
            continue
        weight = node.inputs[1]
        length = weight[-1] if node.kind.startswith("FullyConnected") else _length(node.kind, weight)
        macs = math.prod(node.output) * length if all(side >= 0 for side in (*node.output, length)) else 0
        products.append(Product(node.kernel, _openvino_type(node.kernel, node.precision), macs))
    return products


def _openvino_type(kernel: str, precision: str) -> str:
    """Return the type that a kernel multiplies in.

    Where only the weight is in 8 bits OpenVINO reports the precision ``i8``, and ends the kernel's name with the type
    that it multiplies in, as in ``brgemm_avx512_f32``.
    """
    suffix = kernel.rpartition("_")[2]
    return _OPENVINO_TYPES.get(suffix if suffix in ("f32", "f16", "bf16") else precision, precision)


def _length(kind: str, weight: tuple[int, ...]) -> int:
    return math.prod(weight[1:]) if kind in ("Convolution", "Deconvolution") else weight[-2]


def listed_products(manifest: Manifest) -> list[StageProducts]:
    """Return the products of plans as their builder listed them.

    Multiplications are per token, and said of the stages that work on tokens alone: those with products in 8 bits.

    Raises:
        BackendError: the manifest lists no layers.
    """
    entries = []
    for name, stage in manifest.stages.items():
        if stage.layers is None:
            raise BackendError(f"the manifest lists no layers of the stage {name}; build the bundle again")
        products = []
        tokens = manifest.quantization is not None and name in manifest.quantization.products
        for types, count in stage.layers.gemms.items():
            # ``Half x Int8 -> Half`` is weight-only quantisation, which computes in the type of the activations.
            source = types.partition(" x ")[0]
            macs = stage.layers.macs[types] if tokens else 0
            products.append(Product(types, _TENSORRT_TYPES.get(source, source), macs, count))
        entries.append(StageProducts(name, tuple(products)))
    return entries


def _is_product(operator: str) -> bool:
    return bool(_PRODUCTS.search(operator)) and not _NO_PRODUCT.search(operator)


def parse_profile(text: str) -> list[dict[str, Any]]:
    """Parse a profile that ONNX Runtime wrote, and return the events of nodes.

    Raises:
        BackendError: it is no such profile.
    """
    try:
        events = json.loads(text)
    except ValueError as error:
        raise BackendError("onnxruntime wrote a profile that cannot be read; use another version") from error
    return [event for event in events if isinstance(event, dict) and event.get("cat") == "Node"]
