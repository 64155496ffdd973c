"""Measure 16-bit stages against float32: the policy, and changes of one of its rows.

    python benchmarks/studies/precision.py --model preset:tiny --json benchmarks/results/precision-tiny.json

The graphs that TensorRT gets run in ONNX Runtime, emulated (``mapengine.export.precision.runnable``): float32
arithmetic on values that are rounded wherever the 16-bit graph stores them. Per stage the inputs are those of the
float32 engine, so that errors of one stage do not reach the next; end to end all stages are in 16 bit.
"""

from __future__ import annotations

import argparse
import gc
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mapengine.export import export_stages, load_model
from mapengine.export.bundles.parity_cases import parity_cases
from mapengine.export.precision import POLICY, LoweredStage, Rule, lower_precision, measure_magnitudes, runnable
from mapengine.export.precision.policy import INPUT, OUTPUT
from mapengine.runtime.backends.host_pipeline import Pipeline
from mapengine.runtime.backends.onnxruntime import OnnxRuntimeBackend
from mapengine.runtime.bundle.build_record import Headroom
from mapengine.runtime.bundle.manifest import STAGES
from mapengine.runtime.checks.parity import measure_parity
from mapengine.runtime.errors import ParityError
from mapengine.runtime.inputs.prepared import prepare_views
from mapengine.runtime.system.origin import record_origin
from mapengine.runtime.system.sizes import parse_pixels
from mapengine.runtime.typed_json.codec import encode
from mapengine.runtime.writing.files import write_record

Arrays = dict[str, np.ndarray]
Calls = dict[str, list[tuple[Arrays, Arrays]]]
"""Stage to the inputs and float32 outputs of its calls."""
Magnitudes = Mapping[str, Mapping[str, float]] | None
HALF = {"fp16": "float16", "bf16": "bfloat16"}
CHOSEN = "the policy"
TIGHTEST = 5
"""Tensors that the record names."""


def row(stage: str, module: str, operators: str | None, kind: str) -> Rule:
    """Return a row that goes before the policy's."""
    names = None if operators is None else frozenset(operators.split())
    return Rule(stage, module, names, kind, kind, "candidate")  # type: ignore[arg-type]


def export_float32(model: str, folder: Path) -> Path:
    """Write the float32 stages of a model into the folder, and return it."""
    folder.mkdir()
    export_stages(load_model(model), folder)
    return folder


def candidates(precision: str) -> dict[str, tuple[Rule, ...]]:
    """Return candidates: name to the rows that go before the policy's."""
    half = HALF[precision]
    views32 = (
        row("aggregator", "view_features_*", OUTPUT, "float32"),
        row("dense_head", "view_features_*", INPUT, "float32"),
    )
    head32 = row("dense_head", "dense_head*", None, "float32")
    geometry32 = row("geometry_encoder", "*", None, "float32")
    convolutions = "ray_dirs_encoder.conv_in ray_dirs_encoder.encoder.* depth_encoder.conv_in depth_encoder.encoder.*"
    named: dict[str, tuple[Rule, ...]] = {
        CHOSEN: (),
        "heads and geometry encoders float32, as upstream": (*views32, head32, geometry32),
        "everything in 16 bit": (row("*", "*", None, half),),
        "residual stream in 16 bit": (
            row("*", "*blocks.*", "Add Mul", half),
            row("aggregator", "info_sharing", "Add", half),
            row("image_encoder", "encoder.model", "Add", half),
        ),
        "LayerScale in 16 bit": (row("*", "*.ls[12]", "Mul", half),),
        "LayerNorm in 16 bit": (row("*", "*norm*", "LayerNormalization", half),),
        "activation of the MLP float32": (row("*", "*blocks.*.mlp", None, "float32"),),
        "patch embedding float32": (row("image_encoder", "*.patch_embed.proj", "Conv", "float32"),),
        "view features float32": views32,
        "dense head float32": (head32,),
        "last convolution of the dense head in 16 bit": (row("dense_head", "dense_head.1.conv2.2", None, "float16"),),
        "convolutions of the pose head in 16 bit": (row("dense_head", "pose_head.[pr]*", "Conv Relu Add", half),),
        "pose head in 16 bit": (row("dense_head", "pose_head*", "Conv Relu Add ReduceMean Gemm", half),),
        "scale head in 16 bit": (row("aggregator", "scale_head.*", None, half),),
        "geometry encoders float32": (geometry32,),
        "geometry encoders in 16 bit, with norms": (row("geometry_encoder", "*", None, half),),
    }
    if precision == "bf16":
        last = row("dense_head", "dense_head.1.conv2.2", None, "float32")
        named["dense head in bfloat16"] = (last, row("dense_head", "dense_head.[01]*", None, half))
        named["convolutions of the geometry encoders in bfloat16"] = (
            row("geometry_encoder", convolutions, None, half),
        )
        named["patch embedding in bfloat16"] = (row("image_encoder", "*.patch_embed.proj", "Conv", half),)
    return named


class Recording:
    """A stage that is loaded for its first call after another stage's, and records its calls if asked to.

    One stage at a time is in memory, so that the full-size network fits.
    """

    loaded: Recording | None = None

    def __init__(self, name: str, path: Path, calls: Calls | None = None) -> None:
        self.name, self.path, self.calls = name, path, calls
        self.runner: Any = None

    def run(self, inputs: Mapping[str, np.ndarray]) -> Arrays:
        if self.runner is None:
            if Recording.loaded is not None:
                Recording.loaded.runner = None
                gc.collect()
            self.runner = OnnxRuntimeBackend().load_stage(self.name, self.path)
            Recording.loaded = self
        outputs = self.runner.run(inputs)
        if self.calls is not None:
            self.calls.setdefault(self.name, []).append((dict(inputs), dict(outputs)))
        return outputs


def predict(stages: Mapping[str, Path], cases: Mapping[str, Any], calls: Calls | None = None) -> dict[str, Any]:
    """Return the predictions of all cases."""
    pipeline = Pipeline({name: Recording(name, path, calls) for name, path in stages.items()})
    return {name: pipeline.forward(prepare_views(views)) for name, views in cases.items()}


def stage_error(name: str, path: Path, calls: Calls) -> float:
    """Return the relative root mean square error of a stage's worst output."""
    squares: dict[str, list[float]] = {}
    runner = Recording(name, path)
    for inputs, expected in calls.get(name, []):
        wanted = {key: value.astype(dtype_of(path, key)) for key, value in inputs.items()}
        for key, value in runner.run(wanted).items():
            want = expected[key].astype(np.float64)
            sums = squares.setdefault(key, [0.0, 0.0])
            sums[0] += float(np.square(value - want).sum())
            sums[1] += float(np.square(want).sum())
    return max((error / total) ** 0.5 for error, total in squares.values())


def dtype_of(path: Path, name: str) -> Any:
    """Return the NumPy type of an input."""
    import onnx

    (found,) = (v for v in onnx.load(path, load_external_data=False).graph.input if v.name == name)
    return onnx.helper.tensor_dtype_to_np_dtype(found.type.tensor_type.elem_type)


def lowered(
    exported: Path,
    folder: Path,
    precision: str,
    rules: Sequence[Rule],
    magnitudes: Magnitudes,
    stages: Sequence[str] = STAGES,
) -> dict[str, LoweredStage]:
    """Lower the stages to 16 bit; the rows stand before all of the policy but what makes counts and moves data."""
    policy = (*POLICY[:2], *rules, *POLICY[2:])
    folder.mkdir()
    return {
        stage: lower_precision(
            exported / f"{stage}.onnx",
            folder / f"{stage}.onnx",
            stage=stage,
            precision=precision,  # type: ignore[arg-type]
            magnitudes=None if magnitudes is None else magnitudes[stage],
            policy=policy,
        )
        for stage in stages
    }


def geometry(found: Mapping[str, Any], reference: Mapping[str, Any]) -> dict[str, float] | None:
    """Return the differences end to end, or None where a prediction is not finite."""
    try:
        parity = measure_parity(found, reference, "")
    except ParityError:
        return None
    return {key: rounded(value) for key, value in encode(parity.geometry).items()}


def rounded(value: float) -> float:
    """Round to three digits."""
    return float(f"{value:.2e}")


def concerns(rules: Sequence[Rule], stage: str) -> bool:
    """Return whether rows are about a stage."""
    return not rules or any(rule.stages in ("*", stage) for rule in rules)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="preset:tiny")
    parser.add_argument("--size", default="140x112", type=parse_pixels)
    parser.add_argument("--cases", nargs="+", help="names of parity cases; all by default")
    parser.add_argument("--candidates", nargs="+", help="only candidates whose name contains one of these words")
    parser.add_argument("--precisions", nargs="+", default=["fp16", "bf16"], choices=["fp16", "bf16"])
    parser.add_argument("--exported", type=Path, help="folder with the float32 stages; exported anew without it")
    parser.add_argument("--json", type=Path, default=Path("build/precision.json"), help="where to write the record")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=args.exported) as scratch:
        folder = Path(scratch)
        exported = args.exported or export_float32(args.model, folder / "fp32")
        cases = parity_cases("dinov2", args.size)
        cases = {name: views for name, views in cases.items() if args.cases is None or name in args.cases}
        results = measure(exported, folder, cases, args.precisions, args.candidates)
    record = {
        "benchmark": "precision",
        "model": args.model,
        "size": "{}x{}".format(*args.size),
        "cases": list(cases),
        **record_origin("mapengine", "onnx", "onnx-ir", "onnxruntime", "numpy"),
        "results": results,
    }
    write_record(args.json, record)


def measure(
    exported: Path, folder: Path, cases: Mapping[str, Any], precisions: Sequence[str], words: Sequence[str] | None
) -> dict[str, Any]:
    """Return errors by precision and candidate, and the float16 tensors with the least room."""
    stages = {name: exported / f"{name}.onnx" for name in STAGES}
    magnitudes = measure_magnitudes(stages, cases)
    calls: Calls = {}
    reference = predict(stages, cases, calls)
    results: dict[str, Any] = {}
    for precision in precisions:
        chosen: dict[str, Path] = {}
        errors: dict[str, Any] = {}
        room: list[Headroom] = []
        for number, (name, rules) in enumerate(candidates(precision).items()):
            if number and words is not None and not any(word in name for word in words):
                continue
            touched = [stage for stage in STAGES if concerns(rules, stage)]
            place = folder / f"{precision}-{number}"
            graphs = lowered(exported, place, precision, rules, magnitudes, touched)
            paths = {stage: runnable(graph.path, place) for stage, graph in graphs.items()}
            chosen = chosen or paths
            room = room or [entry for graph in graphs.values() for entry in graph.headroom]
            errors[name] = {
                "stages": {stage: rounded(stage_error(stage, paths[stage], calls)) for stage in touched},
                "end_to_end": geometry(predict({**chosen, **paths}, cases), reference),
            }
            print(precision, name, errors[name], flush=True)
            if not number and precision == "fp16":
                plain = {stage: graph.path for stage, graph in graphs.items()}
                errors["float16 graph in ONNX Runtime, not emulated"] = {
                    "stages": {stage: rounded(stage_error(stage, plain[stage], calls)) for stage in touched},
                    "end_to_end": geometry(predict(plain, cases), reference),
                }
            if number:
                shutil.rmtree(place)
        room.sort(key=lambda entry: entry.factor)
        results[precision] = {"errors": errors, "headroom": encode(room[:TIGHTEST])}
    return results


if __name__ == "__main__":
    main()
