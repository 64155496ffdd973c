"""Find the first layer whose output in an engine differs from float32: ``mapengine verify --layers``.

The stages are exported again with one output per module. Polygraphy runs the float32 graph in ONNX Runtime and, on the
same inputs, the graph in the bundle's precision: in TensorRT where the GPU of its plans is here, otherwise in ONNX
Runtime with the rounding of 16 bit emulated. Every stage gets the inputs that float32 computed, so that an error of one
stage does not show up in the next.
"""

from __future__ import annotations

import math
import os
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from mapengine.runtime.backends.cuda.driver import driver_problem
from mapengine.runtime.backends.onnxruntime import OnnxRuntimeBackend
from mapengine.runtime.bundle.store import Bundle
from mapengine.runtime.checks.product_precision import stage_inputs
from mapengine.runtime.errors import BackendError, BackendUnavailableError, InputError

from ..bundles.onnx import write_graphs
from ..bundles.tolerances import TOLERANCE
from ..graphs.files import is_floating, module_of, save_variant
from ..model.reference import MapAnything
from ..precision import runnable

_PREFIX = "layer:"


@dataclass(frozen=True)
class LayerDifference:
    """How far the output of one module is from float32.

    Attributes:
        stage, layer: name of the stage, and of the module as in the network.
        max_abs: largest difference. max_rel: that difference over the largest value of the output.
    """

    stage: str
    layer: str
    max_abs: float
    max_rel: float


@dataclass(frozen=True)
class LayerComparison:
    """The modules of all stages, in running order.

    Attributes:
        compared: what ran against float32, such as ``tensorrt-rtx`` or ``onnxruntime, fp16 emulated``.
        tolerance: largest ``max_rel`` that counts as rounding.
        layers: every module that was compared.
    """

    compared: str
    tolerance: float
    layers: tuple[LayerDifference, ...]

    @property
    def first(self) -> LayerDifference | None:
        """The first module, in running order, that is outside the tolerance or not finite; None if there is none."""
        return next((layer for layer in self.layers if not layer.max_rel <= self.tolerance), None)

    def to_json(self) -> dict[str, Any]:
        """Return the record's part: ``compared``, the ``measure`` and its ``limit``, and every layer.

        A float that JSON lacks is its name, such as ``"nan"``.
        """
        layers = [{name: json_number(value) for name, value in vars(layer).items()} for layer in self.layers]
        return {"compared": self.compared, "measure": "max_rel", "limit": self.tolerance, "layers": layers}

    def worst(self, count: int = 5) -> list[LayerDifference]:
        """Return the modules with the largest relative difference, largest first."""
        # Not finite counts as the largest: NaN would break the order.
        return sorted(self.layers, key=lambda x: -x.max_rel if np.isfinite(x.max_rel) else -np.inf)[:count]


def json_number(value: Any) -> Any:
    """Return a float that JSON lacks (not finite) as its name, which ``float`` reads; anything else as it is."""
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def compare_layers(
    bundle: Bundle, model: MapAnything, progress: Callable[[str], None] | None = None
) -> LayerComparison:
    """Compare every module of a bundle's network with float32, on the bundle's golden input.

    Args:
        bundle: any precision and format.
        model: the model that it was built from.
        progress: called with a line per step.

    Raises:
        InputError: the bundle is in int8 or fp8.
        BackendUnavailableError: Polygraphy is not installed.
        BackendError: ONNX Runtime or TensorRT failed.
    """
    if bundle.manifest.quantization is not None:
        raise InputError(
            f"layers are compared in fp32, fp16 and bf16, and this bundle is {bundle.manifest.precision}; use "
            "compare_noise of mapengine.export.diagnosis.layer_noise"
        )
    try:
        import polygraphy.comparator  # noqa: F401  before the long work
    except ImportError as error:
        raise BackendUnavailableError(
            "comparing layers needs polygraphy, which is not installed; run: pip install 'mapengine[export]'"
        ) from error
    report = progress or (lambda line: None)
    manifest = bundle.manifest
    backend = manifest.backends[0].name if manifest.format == "plan" and driver_problem() is None else "onnxruntime"
    layers: list[LayerDifference] = []
    with tempfile.TemporaryDirectory() as scratch:
        folders = {precision: Path(scratch) / precision for precision in {"fp32", manifest.precision}}
        graphs: dict[str, dict[str, Path]] = {}
        for precision, folder in folders.items():
            folder.mkdir()
            written = write_graphs(
                model,
                folder,
                precision=precision,
                attention=manifest.attention,  # type: ignore[arg-type]
                origin={},
                report=report,
            )
            graphs[precision] = {stage.name: stage.path for stage in written.stages}
        report("running float32 for the inputs of every stage")
        for stage, inputs in float32_inputs(bundle, graphs["fp32"]).items():
            report(f"comparing the layers of {stage}")
            reference, other = (graphs[precision][stage] for precision in ("fp32", manifest.precision))
            known = _values_by_module(ir.load(other))
            shared = {m: value for m, value in _values_by_module(ir.load(reference)).items() if known.get(m) == value}
            left, right = (_with_outputs(path, shared, f"{side}.onnx") for path, side in ((reference, 1), (other, 2)))
            if backend == "onnxruntime":
                right = runnable(right, right.parent)
            layers += _compare(stage, left, right, backend, inputs)
    emulated = f", {manifest.precision} emulated" if backend == "onnxruntime" and manifest.precision != "fp32" else ""
    return LayerComparison(backend + emulated, TOLERANCE[manifest.precision], tuple(layers))


def float32_inputs(bundle: Bundle, graphs: Mapping[str, Path]) -> dict[str, dict[str, NDArray[Any]]]:
    """Return what every stage reads when float32 graphs, a file per stage, run the golden input of a bundle."""
    library = OnnxRuntimeBackend()
    return stage_inputs(bundle, {name: library.load_stage(name, path) for name, path in graphs.items()})


def _values_by_module(model: ir.Model) -> dict[str, str]:
    """Return the last floating value that each module computes, keyed by the module's name, in running order."""
    values: dict[str, str] = {}
    for node in model.graph:
        module = module_of(node)
        if module and node.op_type != "Cast" and is_floating(node.outputs[0]):
            values.pop(module, None)  # so that the order is that of the last value
            values[module] = node.outputs[0].name or ""
    return values


def _with_outputs(path: Path, values: Mapping[str, str], name: str) -> Path:
    """Write the graph with ``values`` as float32 outputs, beside the original, whose weights it shares."""
    model = ir.load(path)
    named = {value.name: value for node in model.graph for value in node.outputs}
    for module, value in values.items():
        node = ir.node("Cast", [named[value]], attributes={"to": int(ir.DataType.FLOAT)}, name=f"{_PREFIX}{module}")
        output = node.outputs[0]
        output.name, output.dtype = f"{_PREFIX}{module}", ir.DataType.FLOAT
        model.graph.append(node)
        model.graph.outputs.append(output)
    return save_variant(model, path, path.with_name(name))


def _compare(
    stage: str, reference: Path, other: Path, backend: str, inputs: Mapping[str, NDArray[Any]]
) -> list[LayerDifference]:
    from polygraphy.backend.onnxrt import OnnxrtRunner, SessionFromOnnx
    from polygraphy.comparator import Comparator
    from polygraphy.exception import PolygraphyException
    from polygraphy.logger import G_LOGGER

    def session(path: Path) -> Any:
        return OnnxrtRunner(SessionFromOnnx(str(path), providers=["cpu"]))

    try:
        with G_LOGGER.verbosity(G_LOGGER.CRITICAL):
            runners = [
                session(reference),
                session(other) if backend == "onnxruntime" else _tensorrt(other, backend, inputs),
            ]
            results = Comparator.run(runners, data_loader=[dict(inputs)])
            expected, found = (iterations[0] for _, iterations in results.items())
    except (PolygraphyException, RuntimeError) as error:
        raise BackendError(f"the layers of {stage} could not be compared ({str(error).splitlines()[0]})") from error
    differences = []
    for name, value in expected.items():
        if not name.startswith(_PREFIX):
            continue
        difference = float(np.abs(np.asarray(found[name], np.float64) - value).max(initial=0.0))
        largest = max(float(np.abs(value).max(initial=0.0)), 1e-12)
        differences.append(LayerDifference(stage, name.removeprefix(_PREFIX), difference, difference / largest))
    return differences


def _tensorrt(graph: Path, backend: str, inputs: Mapping[str, NDArray[Any]]) -> Any:
    """Return a runner that builds the graph for exactly these shapes on the GPU."""
    os.environ["POLYGRAPHY_USE_TENSORRT_RTX"] = "1" if backend == "tensorrt-rtx" else "0"
    from polygraphy.backend.trt import CreateConfig, EngineFromNetwork, NetworkFromOnnxPath, Profile, TrtRunner

    profile = Profile()
    for name, value in inputs.items():
        profile.add(name, min=value.shape, opt=value.shape, max=value.shape)
    network = NetworkFromOnnxPath(str(graph), strongly_typed=True)
    return TrtRunner(EngineFromNetwork(network, config=CreateConfig(profiles=[profile])))
