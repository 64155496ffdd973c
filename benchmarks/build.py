"""Measure the compilation of TensorRT plans on a machine without a GPU: time, memory, size, and layers.

    python benchmarks/build.py --model preset:giant --precisions fp16 bf16 --json benchmarks/results/build.json

Every stage of the network is compiled by TensorRT-RTX for its default GPUs, once per precision and requests, in a
process of its own. The time is from the ONNX file to the plan on the disk; the memory is the most that the compiling
process had resident. Device memory is what the plan reserves for intermediate tensors at its largest request, without
weights.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from mapengine.export.options import served_requests
from mapengine.export.precision import lower_precision
from mapengine.export.tensorrt import BuiltPlan, build_plan, gpu_chunks, stage_profiles
from mapengine.runtime.backends.tensorrt.flavour import Flavour, load_flavour
from mapengine.runtime.bundle.manifest import STAGES, TensorSpec
from mapengine.runtime.bundle.requests import Range, ServedRequests
from mapengine.runtime.system.children import child_command, child_environment
from mapengine.runtime.system.origin import record_origin
from mapengine.runtime.system.sizes import parse_pixels, parse_view_counts
from mapengine.runtime.typed_json.codec import encode
from mapengine.runtime.writing.files import write_record

BACKEND = "tensorrt-rtx"
REQUESTS = ("1:4:32/all", "1:8:64/518x518")


def export(model: str, folder: Path) -> None:
    """Trace the stages in float32, in a process of its own: PyTorch keeps gigabytes."""
    command = child_command("mapengine.cli", "export", model, folder, "--attention", "mha")
    subprocess.run(command, env=child_environment(), check=True)


def parse_request(text: str) -> ServedRequests:
    """Parse ``1:4:32/all`` or ``1:8:64/518x518,518x392``."""
    views, _, sizes = text.partition("/")
    counts = parse_view_counts(views)
    pairs = "all" if sizes == "all" else [parse_pixels(size) for size in sizes.split(",")]
    return served_requests(counts, pairs, gpu_chunks(Range(*counts)))


def tensors(path: Path) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
    """Return inputs and outputs of a graph."""
    import onnx_ir as ir

    names = {"FLOAT": "float32", "FLOAT16": "float16", "BFLOAT16": "bfloat16"}
    graph = ir.load(path).graph
    sides = []
    for values in (graph.inputs, graph.outputs):
        specs = []
        for value in values:
            axes = tuple(axis if isinstance(axis, int) else str(axis.value) for axis in value.shape or ())
            specs.append(TensorSpec(value.name or "", names[value.dtype.name if value.dtype else ""], axes))
        sides.append(tuple(specs))
    return sides[0], sides[1]


def compile_stage(flavour: Flavour, path: Path, plan: Path, requests: ServedRequests) -> BuiltPlan:
    """Compile one plan."""
    inputs, outputs = tensors(path)
    return build_plan(
        flavour,
        path,
        plan,
        name=path.stem,
        inputs=inputs,
        outputs=outputs,
        profiles=stage_profiles(requests, path.stem, flavour.name),
    )


def figures(plan: BuiltPlan) -> dict[str, Any]:
    """Return what the tables show of a plan."""
    return {
        "seconds": round(plan.seconds, 1),
        "peak_memory_gb": None if plan.peak_memory is None else round(plan.peak_memory / 1e9, 2),
        "plan_mb": round(plan.bytes / 1e6, 1),
        "device_memory_mb": None if plan.activation_memory is None else round(plan.activation_memory / 1e6, 1),
        **encode(plan.layers.record()),
        "warnings": list(plan.warnings),
    }


def measure(args: argparse.Namespace, source: Path, scratch: Path) -> dict[str, Any]:
    """Compile everything that was asked for, one after the other."""
    flavour, results = load_flavour(BACKEND), {}
    for precision in args.precisions:
        folder = source
        if precision != "fp32":
            folder = scratch / precision
            folder.mkdir()
            for stage in args.stages:
                print(f"{precision}: writing {stage}", flush=True)
                lower_precision(
                    source / f"{stage}.onnx",
                    folder / f"{stage}.onnx",
                    stage=stage,
                    precision=precision,
                    magnitudes=None,
                )
        results[precision] = {}
        for request in args.requests:
            results[precision][request] = {}
            for stage in args.stages:
                plan = compile_stage(flavour, folder / f"{stage}.onnx", scratch / "stage.plan", parse_request(request))
                results[precision][request][stage] = figures(plan)
                print(f"{precision} {request} {stage}: {json.dumps(figures(plan))}", flush=True)
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="preset:giant")
    parser.add_argument("--graphs", type=Path, help="folder with the exported stages; exported without it")
    parser.add_argument("--precisions", nargs="+", default=["fp16", "bf16"], choices=["fp32", "fp16", "bf16"])
    parser.add_argument("--requests", nargs="+", default=list(REQUESTS), help="min:opt:max/all or /WIDTHxHEIGHT,...")
    parser.add_argument("--stages", nargs="+", default=list(STAGES), choices=STAGES)
    parser.add_argument("--json", type=Path, default=Path("build/build.json"), help="where to write the record")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        source = args.graphs
        if source is None:
            source = Path(folder) / "fp32"
            export(args.model, source)
        results = measure(args, source, Path(folder))
    record = {
        "benchmark": "build",
        "what": "seconds to compile a stage, peak resident memory of the compiling process, size of the plan",
        "backend": BACKEND,
        "model": args.model,
        "attention": "mha",
        **record_origin("mapengine", "tensorrt_rtx", "torch", "onnx-ir", "numpy"),
        "results": results,
    }
    write_record(args.json, record)


if __name__ == "__main__":
    main()
