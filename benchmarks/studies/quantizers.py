"""Compare INT8 by this project, nncf and ModelOpt, with their defaults, on the same products and calibration data.

    pip install nncf "nvidia-modelopt[onnx]"
    python benchmarks/studies/quantizers.py preset:nano --json benchmarks/results/quantizers-nano.json

All get the float32 graphs of the two transformer stages, the inputs that these have over the rendered calibration
cases, and the names of the same products: the linear layers of the blocks. ONNX Runtime runs what they return.
Signal-to-noise ratios of predictions are over other cases, kept accuracy over rendered scenes
(docs/guide/evaluation.md).
"""

from __future__ import annotations

import argparse
import re
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from prediction_noise import prediction_decibels

from mapengine.calibration.data.cases import Cases, make_cases, rendered_cases
from mapengine.calibration.evaluation import evaluate, retention
from mapengine.export import build_engine
from mapengine.export.graphs.tracing import export_stages
from mapengine.export.model.reference import MapAnything, load_model
from mapengine.export.quantization import CalibrationOptions, calibrate, fold_calibration
from mapengine.export.quantization.fold import correct_biases
from mapengine.export.quantization.layers import find_layers
from mapengine.export.quantization.qdq import quantize_stage
from mapengine.runtime import Engine
from mapengine.runtime.backends.contract import Arrays, StageRunner
from mapengine.runtime.backends.host_pipeline import Pipeline
from mapengine.runtime.backends.onnxruntime import OnnxRuntimeBackend
from mapengine.runtime.bundle.store import Bundle
from mapengine.runtime.system.origin import record_origin
from mapengine.runtime.writing.files import write_record

STAGES = ("image_encoder", "aggregator")
ATTENTION = "matmul"
"""Other quantisers do not know ONNX Runtime's fused operator."""
KEYS = ("depth_along_ray", "ray_directions", "cam_quats", "cam_trans", "metric_scaling_factor")
VALIDATION_SEED = 700_000
"""Of the scenes: none that is calibrated with or held out."""

Quantiser = Callable[[MapAnything, Bundle, Cases, Path], dict[str, Path]]


class Recorder:
    """A stage that keeps what it is given."""

    def __init__(self, stage: StageRunner) -> None:
        self.stage, self.inputs = stage, list[dict[str, Any]]()

    def run(self, inputs: Arrays) -> Any:
        self.inputs.append({name: np.array(value) for name, value in inputs.items()})
        return self.stage.run(inputs)


def engine_of(bundle: Bundle, replaced: Mapping[str, Path]) -> Engine:
    """Load the bundle with other files for some stages."""
    library = OnnxRuntimeBackend()
    stages = {n: library.load_stage(n, replaced.get(n, bundle.stage_path(n))) for n in bundle.manifest.stages}
    return Engine(bundle, library, Pipeline(stages))


def ours(model: MapAnything, bundle: Bundle, cases: Cases, folder: Path) -> dict[str, Path]:
    """Quantise with this project, everything in 8 bits."""
    calibration = calibrate(model, cases, CalibrationOptions())
    network = correct_biases(fold_calibration(model, calibration.layers), calibration)
    (folder / "full").mkdir()
    paths = {}
    for stage in export_stages(network, folder / "full", attention=ATTENTION):
        if stage.name in STAGES:
            layers = [layer for layer in calibration.layers if layer.stage == stage.name]
            paths[stage.name] = folder / stage.path.name
            quantize_stage(stage.path, paths[stage.name], stage=stage.name, layers=layers, precision="int8")
    return paths


def recorded_inputs(bundle: Bundle, cases: Cases) -> dict[str, list[dict[str, Any]]]:
    """Return the inputs of every stage over the cases, call by call."""
    library = OnnxRuntimeBackend()
    recorders = {name: Recorder(library.load_stage(name, bundle.stage_path(name))) for name in bundle.manifest.stages}
    engine = Engine(bundle, library, Pipeline(dict[str, StageRunner](recorders)))
    for views in cases.views.values():
        engine.predict(list(views))
    return {name: recorder.inputs for name, recorder in recorders.items()}


def nncf(model: MapAnything, bundle: Bundle, cases: Cases, folder: Path) -> dict[str, Path]:
    """Quantise with nncf in its mode for transformers (SmoothQuant and bias correction included)."""
    import nncf as library

    inputs = recorded_inputs(bundle, cases)
    products = {f"{name}/MatMul" for name in find_layers(model)}
    paths = {}
    for name in STAGES:
        graph = onnx.load(bundle.stage_path(name))
        others = [node.name for node in graph.graph.node if node.name not in products]
        quantized = library.quantize(
            graph,
            library.Dataset(inputs[name]),
            subset_size=len(inputs[name]),
            model_type=library.ModelType.TRANSFORMER,
            ignored_scope=library.IgnoredScope(names=others, validate=False),
        )
        paths[name] = folder / f"{name}.onnx"
        onnx.save(quantized, paths[name])
    return paths


def modelopt(model: MapAnything, bundle: Bundle, cases: Cases, folder: Path) -> dict[str, Path]:
    """Quantise with NVIDIA ModelOpt (entropy calibration)."""
    from modelopt.onnx.quantization import quantize
    from onnxruntime.quantization.calibrate import CalibrationDataReader

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self, calls: list[dict[str, Any]]) -> None:
            self.calls = calls
            self.rewind()

        def rewind(self) -> None:
            self.left = iter(self.calls)

        def get_first(self) -> dict[str, Any]:
            return self.calls[0]

        def get_next(self) -> dict[str, Any] | None:
            return next(self.left, None)

    inputs = recorded_inputs(bundle, cases)
    paths = {}
    for name in STAGES:
        paths[name] = folder / f"{name}.onnx"
        quantize(
            str(bundle.stage_path(name)),
            "int8",
            calibration_data_reader=Reader(inputs[name]),
            calibration_eps=["cpu"],
            op_types_to_quantize=["MatMul"],
            nodes_to_quantize=[re.escape(f"{layer}/MatMul") for layer in find_layers(model)],
            high_precision_dtype="fp32",
            output_path=str(paths[name]),
            log_level="ERROR",
        )
    return paths


QUANTISERS: dict[str, Quantiser] = {"mapengine": ours, "nncf": nncf, "ModelOpt": modelopt}


def quantised_products(paths: Mapping[str, Path]) -> int:
    """Count the products of two dequantised tensors."""
    count = 0
    for path in paths.values():
        graph = onnx.load(path).graph
        made = {output: node.op_type for node in graph.node for output in node.output}
        is_low = [all(made.get(name) == "DequantizeLinear" for name in n.input[:2]) for n in graph.node
                  if n.op_type == "MatMul"]  # fmt: skip
        count += sum(is_low)
    return count


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="what `mapengine build` takes")
    parser.add_argument("--scenes", type=int, default=50)
    parser.add_argument("--cases", type=int, default=8, help="to calibrate with, and as many to judge")
    parser.add_argument("--quantisers", nargs="+", default=list(QUANTISERS), choices=QUANTISERS)
    parser.add_argument("--json", type=Path, default=Path("build/quantizers.json"), help="where to write the record")
    args = parser.parse_args()
    model = load_model(args.model)
    views = list(rendered_cases(2 * args.cases, data_norm_type=model.data_norm_type).views.items())
    given, others = (make_cases(dict(part), "") for part in (views[: args.cases], views[args.cases :]))
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as scratch:
        build_engine(model, Path(scratch) / "bundle", views=(1, 4, 8), attention=ATTENTION)
        bundle = Bundle.open(Path(scratch) / "bundle", verify=False)
        exact = engine_of(bundle, {})
        wanted = [exact.predict(list(case)) for case in others.views.values()]
        float32 = {r.name: r.metrics for r in evaluate(exact, args.scenes, seed=VALIDATION_SEED).tasks}
        for name in args.quantisers:
            folder = Path(scratch) / name
            folder.mkdir()
            paths = QUANTISERS[name](model, bundle, given, folder)
            engine = engine_of(bundle, paths)
            found = {r.name: r.metrics for r in evaluate(engine, args.scenes, seed=VALIDATION_SEED).tasks}
            parts = list(retention(found, float32).values())
            results[name] = {
                "products": quantised_products(paths),
                "decibels": prediction_decibels(
                    (engine.predict(list(views)) for views in others.views.values()), wanted, KEYS
                ),
                "figures": len(parts),
                "kept_99": sum(part >= 0.99 for part in parts),
                "kept_median": round(float(np.median(parts)), 4),
                "kept_least": round(min(parts), 4),
            }
            print(f"{name}: {results[name]}", file=sys.stderr, flush=True)
    record = {
        "benchmark": "quantizers",
        "model": model.model_id,
        "scenes": args.scenes,
        "cases": args.cases,
        **record_origin("mapengine", "nncf", "nvidia-modelopt", "onnxruntime", "onnx", "torch", "numpy"),
        "results": results,
    }
    write_record(args.json, record)


if __name__ == "__main__":
    main()
