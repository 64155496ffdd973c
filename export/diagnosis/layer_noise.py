"""What each layer of an INT8 or FP8 bundle costs: ``mapengine verify --layers``.

The graphs of the bundle run as they are, on the backend that serves them, beside the network in float32. Two things
differ from the comparison of 16-bit bundles (:mod:`.layer_comparison`). Smoothing and rotation are folded into the
weights, and the bundle does not say which: compared is only what they leave as it was. These are queries and keys of
qkv, the gate of w12, and the whole of proj, w3, fc1 and fc2. And every layer loses something, so that errors add up
from block to block: attention and MLP of each block read the residual stream that float32 computed, and what is shown
is what they alone lose.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from mapengine.runtime.backends.onnxruntime import OnnxRuntimeBackend
from mapengine.runtime.backends.openvino import OpenVinoBackend
from mapengine.runtime.backends.registry import available_backends
from mapengine.runtime.bundle.manifest import Manifest
from mapengine.runtime.bundle.store import Bundle
from mapengine.runtime.errors import ExportError, InputError

from ..bundles.onnx import write_graphs
from ..graphs.files import FLOAT32, load_graph, save_variant
from ..model.reference import MapAnything
from ..precision import runnable
from ..quantization.layers import LinearLayer, find_layers
from .layer_comparison import float32_inputs, json_number

LEAST_SNR = 10.0
"""Decibels below which a layer is named: its error is a third of its output. The noisiest layers of a sound INT8
bundle of ``preset:tiny``, which read a SwiGLU's product, have 15 dB."""

_LAYER, _STREAM, _GIVEN = "layer:", "stream:", "given:"
_PARTS = {"qkv": (3, 2), "w12": (2, 1)}
"""Equal parts of a layer's output, and how many of them, the first ones, folding leaves alone: values come last."""


@dataclass(frozen=True)
class LayerNoise:
    """What a layer loses.

    Attributes:
        stage, layer: name of the stage, and of the module as in the network.
        precision: of its product: that of the bundle, or of what the bundle leaves.
        snr: power of its output over that of the error, in decibels: inf if they are equal, -inf if it is not finite.
            The output of proj, w3 and fc2 has the error of the layer before it as well.
        stream_snr: the same of the residual stream behind proj, w3 and fc2: what attention or MLP cost the network.
            None for other layers.
    """

    stage: str
    layer: str
    precision: str
    snr: float
    stream_snr: float | None


@dataclass(frozen=True)
class NoiseComparison:
    """The linear layers of all stages that have some in 8 bits, in running order.

    Attributes:
        compared: what ran against float32, such as ``openvino`` or ``onnxruntime, fp8 emulated``.
        least: signal-to-noise ratio in decibels below which a layer is named.
        layers: every layer.
    """

    compared: str
    least: float
    layers: tuple[LayerNoise, ...]

    @property
    def first(self) -> LayerNoise | None:
        """The first layer, in running order, that is below the least ratio; None if there is none."""
        return next((layer for layer in self.layers if layer.snr < self.least), None)

    def to_json(self) -> dict[str, Any]:
        """Return the record's part, as :meth:`.layer_comparison.LayerComparison.to_json` does."""
        layers = [{name: json_number(value) for name, value in vars(layer).items()} for layer in self.layers]
        return {"compared": self.compared, "measure": "snr", "limit": self.least, "layers": layers}

    def worst(self, count: int = 10) -> list[LayerNoise]:
        """Return the layers with the least ratio, least first."""
        return sorted(self.layers, key=lambda layer: layer.snr)[:count]


def check_comparable(manifest: Manifest) -> None:
    """Refuse a bundle that :func:`compare_noise` has no graphs of.

    Raises:
        InputError: it holds plans, or nothing in it is in 8 bits.
    """
    if manifest.quantization is None:
        raise InputError(
            f"the noise of layers is measured in int8 and fp8, and this bundle is {manifest.precision}; use "
            "compare_layers"
        )
    if manifest.format != "onnx":
        raise InputError(
            f"the layers of {manifest.precision} plans cannot be compared, as their graphs are not in the bundle; "
            "build int8 for onnxruntime or openvino from the same calibration and compare that bundle"
        )


def compare_noise(
    bundle: Bundle,
    model: MapAnything,
    backend: str | None = None,
    threads: int | None = None,
    progress: Callable[[str], None] | None = None,
) -> NoiseComparison:
    """Compare the linear layers of an INT8 or FP8 bundle of ONNX stages with float32, on the bundle's golden input.

    Args:
        bundle: its files are only read.
        model: the model that it was built from.
        backend: ``"onnxruntime"`` or ``"openvino"``; None for the first that serves the bundle. FP8 is always emulated
            in ONNX Runtime.
        threads: of the backend; all processors by default.
        progress: called with a line per step.

    Raises:
        InputError: see :func:`check_comparable`, or the backend does not serve the bundle.
        BackendUnavailableError: the backend or the processor lacks what the bundle needs.
        BackendError: the backend failed.
        ExportError: a stage is not of this network.
    """
    manifest = bundle.manifest
    check_comparable(manifest)
    assert manifest.quantization is not None
    report = progress or (lambda line: None)
    library = _library(manifest, backend, threads)
    emulated = ""
    found: list[LayerNoise] = []
    with tempfile.TemporaryDirectory() as scratch:
        full, low = Path(scratch) / "fp32", Path(scratch) / "bundle"
        full.mkdir()
        low.mkdir()
        written = write_graphs(
            model,
            full,
            precision="fp32",
            attention=manifest.attention,  # type: ignore[arg-type]
            origin={},
            report=report,
        )
        paths = {stage.name: stage.path for stage in written.stages}
        report("running float32 for the inputs of every stage")
        inputs = float32_inputs(bundle, paths)
        known = find_layers(model).values()
        # Where only weights are in 8 bits no product is, and all layers are.
        for stage in manifest.quantization.products or dict.fromkeys(layer.stage for layer in known):
            report(f"comparing the layers of {stage}")
            layers = [layer for layer in known if layer.stage == stage]
            places = _places(load_graph(paths[stage], stage), stage, layers)
            exact = OnnxRuntimeBackend(library.threads).load_stage(stage, _observed(paths[stage], places))
            wanted = exact.run(inputs[stage])
            path, quantized = _held(bundle.stage_path(stage), low, stage, places, layers)
            if isinstance(library, OnnxRuntimeBackend):
                runs = runnable(path, low)
                emulated = f", {manifest.precision} emulated" if runs != path else emulated
                path = runs
            given = {name: value for name, value in wanted.items() if name.startswith(_GIVEN)}
            rounded = library.load_stage(stage, path, manifest.arithmetic).run({**inputs[stage], **given})
            for layer in layers:
                precision = manifest.precision if layer.name in quantized else manifest.quantization.rest
                found.append(_noise(layer, precision, wanted, rounded))
    return NoiseComparison(library.name + emulated, LEAST_SNR, tuple(found))


def _library(manifest: Manifest, name: str | None, threads: int | None) -> OnnxRuntimeBackend | OpenVinoBackend:
    served = [info.name for info in manifest.backends]
    if name is not None and name not in served:
        raise InputError(f"the backend {name} does not serve this bundle; use {' or '.join(served)}")
    if name is None:
        # Where none is installed, making the first one says how to get it.
        name = next((known for known in served if known in available_backends()), served[0])
    if name == "openvino" and manifest.precision != "fp8":
        return OpenVinoBackend(threads)
    return OnnxRuntimeBackend(threads)


@dataclass(frozen=True)
class _Places:
    """Names of values in a float32 stage: outputs of layers, the stream behind them, and what the norms read.

    ``producers`` are the nodes that they come from, and which output of theirs: the tracer numbers values, so that
    those behind a rotation have other names in the bundle, while nodes are named after modules.
    """

    layers: Mapping[str, str]
    streams: Mapping[str, str]
    read: tuple[str, ...]
    producers: Mapping[str, tuple[str, int]]


def _places(model: ir.Model, stage: str, layers: list[LinearLayer]) -> _Places:
    nodes = {node.name: node for node in model.graph}
    outputs, streams, read = {}, {}, []
    for layer in layers:
        bias = nodes.get(f"{layer.name}/Add")
        if bias is None:
            raise ExportError(f"{stage}: the graph has no layer {layer.name}; give the model that the bundle is of")
        outputs[layer.name] = bias.outputs[0].name or ""
        if layer.kind in ("proj", "w3", "fc2"):
            streams[layer.name] = _stream(bias.outputs[0]).name or ""
        else:
            norm = nodes.get(f"{layer.block}.{'norm1' if layer.kind == 'qkv' else 'norm2'}/LayerNormalization")
            if norm is None or norm.inputs[0] is None:
                raise ExportError(f"{stage}: the graph has no norm before {layer.name}; export the stage again")
            read.append(norm.inputs[0].name or "")
    wanted = {*outputs.values(), *streams.values(), *read}
    producers = {
        value.name: (node.name or "", index)
        for node in model.graph
        for index, value in enumerate(node.outputs)
        if value.name in wanted
    }
    return _Places(outputs, streams, tuple(read), producers)


def _stream(value: ir.Value) -> ir.Value:
    """Return the residual stream to which a value, or what LayerScale makes of it, is added."""
    while True:
        (node,) = (use.node for use in value.uses())
        value = node.outputs[0]
        if node.op_type == "Add":
            return value


def _observed(path: Path, places: _Places) -> Path:
    """Write the float32 stage with outputs at all places, beside the original."""
    model = load_graph(path, path.stem)
    named = {value.name: value for node in model.graph for value in node.outputs}
    for prefix, values in ((_LAYER, places.layers), (_STREAM, places.streams)):
        for layer, value in values.items():
            _expose(model.graph, named[value], f"{prefix}{layer}")
    for value in places.read:
        _expose(model.graph, named[value], f"{_GIVEN}{value}")
    return save_variant(model, path, path.with_name(f"{path.stem}.observed.onnx"))


def _held(
    path: Path, folder: Path, stage: str, places: _Places, layers: list[LinearLayer]
) -> tuple[Path, frozenset[str]]:
    """Write the stage of the bundle with outputs at the places and inputs for what norms and residual additions read,
    in ``folder``; return it and the names of its layers in 8 bits."""
    model = load_graph(path, stage)
    graph = model.graph
    named = {value.name: value for node in graph for value in node.outputs}
    nodes = {node.name: node for node in graph}

    def known(name: str) -> ir.Value:
        producer, index = places.producers[name]
        if producer not in nodes:
            raise ExportError(f"{stage}: the bundle has no operation {producer}; build it again with this version")
        return nodes[producer].outputs[index]

    quantized = frozenset(
        layer.name
        for layer in layers
        if any(f"{layer.name}/DequantizeLinear_weight{part}" in named for part in ("", ".0"))
    )
    start = graph[0]
    for name in places.read:
        held = known(name)
        assert held.dtype is not None
        assert held.shape is not None
        given = ir.Value(name=f"{_GIVEN}{name}", shape=ir.Shape([None] * len(held.shape)), type=ir.TensorType(FLOAT32))
        graph.inputs.append(given)
        read = given
        if held.dtype != FLOAT32:
            cast = ir.node("Cast", [given], {"to": int(held.dtype)}, name=f"{_GIVEN}{name}/Cast")
            graph.insert_before(start, cast)
            read = cast.outputs[0]
            read.type, read.shape = held.type, held.shape
        # Not an output of the stage: that stays what the blocks compute.
        for node, index in list(held.uses()):
            node.replace_input_with(index, read)
    for layer in layers:
        name = places.layers[layer.name]
        separate = f"{layer.name}/Add.0" in named
        value = _joined(graph, named, layer) if separate else known(name)
        _expose(graph, value, f"{_LAYER}{layer.name}")
        if layer.name in places.streams:
            _expose(graph, known(places.streams[layer.name]), f"{_STREAM}{layer.name}")
    return save_variant(model, path, folder / path.name), quantized


def _joined(graph: ir.Graph, named: Mapping[str | None, ir.Value], layer: LinearLayer) -> ir.Value:
    """Join the output of a layer that is several products (``graphs/products.py``)."""
    parts = [named[f"{layer.name}/Add.{index}"] for index in range(_PARTS[layer.kind][0])]
    node = ir.node("Concat", parts, {"axis": -1}, name=f"{_LAYER}{layer.name}/Concat")
    node.outputs[0].type = parts[0].type
    graph.append(node)
    return node.outputs[0]


def _expose(graph: ir.Graph, value: ir.Value, name: str) -> None:
    """Make a value an output of the graph, as float32."""
    output = value
    if value.dtype != FLOAT32 or value.is_graph_output():
        node = ir.node("Cast", [value], {"to": int(FLOAT32)}, name=name)
        output = node.outputs[0]
        output.type, output.shape = ir.TensorType(FLOAT32), value.shape
        graph.append(node)
    # Renamed where it can be: OpenVINO drops a cast to the same type, and knows the output by either name then.
    output.name = name
    graph.outputs.append(output)


def _noise(
    layer: LinearLayer, precision: str, wanted: Mapping[str, NDArray[Any]], found: Mapping[str, NDArray[Any]]
) -> LayerNoise:
    parts, unchanged = _PARTS.get(layer.kind, (1, 1))
    name, stream = f"{_LAYER}{layer.name}", f"{_STREAM}{layer.name}"
    width = wanted[name].shape[-1] // parts * unchanged
    return LayerNoise(
        layer.stage,
        layer.name,
        precision,
        _snr(wanted[name][..., :width], found[name][..., :width]),
        _snr(wanted[stream], found[stream]) if stream in wanted else None,
    )


def _snr(wanted: NDArray[Any], found: NDArray[Any]) -> float:
    """Return the signal-to-noise ratio in decibels."""
    error = float(np.square(np.asarray(found, np.float64) - wanted).sum())
    if not np.isfinite(error):
        return float("-inf")
    signal = max(float(np.square(np.asarray(wanted, np.float64)).sum()), 1e-300)
    return float("inf") if error == 0 else 10 * float(np.log10(signal / error))
