"""What the options of the CPU backends cost and buy: threads, arena, precision hint, chunk size.

    python benchmarks/cpu_options.py --bundle build/giant --json benchmarks/results/cpu_options.json

One stage of a bundle is loaded once per variant, all variants in one process, and called in turn; the figures are
medians, and the ratio is variant / chosen setting per round (below 1: the variant is faster). Memory is what the
process holds privately more after the variant's first call than before it was loaded. For the precision hints the error
against float32 is shown, because a faster wrong setting is no choice.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from mapengine.runtime.backends.base import cpu_name, default_threads
from mapengine.runtime.bundle import Bundle

Arrays = dict[str, np.ndarray]
Variant = tuple[str, Callable[[Path], Callable[[Arrays], list[np.ndarray]]], int]
"""Name, loader, and views per call."""


def _onnxruntime(threads: int, arena: bool = False, spinning: bool = True) -> Callable[[Path], Any]:
    def load(path: Path) -> Callable[[Arrays], list[np.ndarray]]:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.enable_cpu_mem_arena = arena
        options.log_severity_level = 3
        options.add_session_config_entry("session.intra_op.allow_spinning", str(int(spinning)))
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        return lambda inputs: list(session.run(None, inputs))

    return load


def _openvino(threads: int, precision: str = "f32", hint: str = "LATENCY") -> Callable[[Path], Any]:
    def load(path: Path) -> Callable[[Arrays], list[np.ndarray]]:
        import openvino

        core = openvino.Core()
        options = {
            "INFERENCE_PRECISION_HINT": precision,
            "PERFORMANCE_HINT": hint,
            "INFERENCE_NUM_THREADS": str(threads),
        }
        compiled = core.compile_model(core.read_model(str(path)), "CPU", options)
        request = compiled.create_infer_request()

        def run(inputs: Arrays) -> list[np.ndarray]:
            results = request.infer(inputs, share_inputs=True)
            return [np.array(results[output]) for output in compiled.outputs]

        return run

    return load


def variants(stage: str, views: int, threads: int) -> tuple[list[Variant], list[Variant]]:
    """Variants of each backend for one stage; the first of each list is what the runtime chose."""
    chunk = views if stage == "aggregator" else 1
    onnx: list[Variant] = [
        ("onnxruntime (chosen)", _onnxruntime(threads), chunk),
        ("onnxruntime, memory arena", _onnxruntime(threads, arena=True), chunk),
        ("onnxruntime, no spinning", _onnxruntime(threads, spinning=False), chunk),
    ]
    vino: list[Variant] = [
        ("openvino (chosen)", _openvino(threads), chunk),
        ("openvino, throughput hint", _openvino(threads, hint="THROUGHPUT"), chunk),
        ("openvino, bf16", _openvino(threads, precision="bf16"), chunk),
    ]
    if threads > 1:
        onnx.append(("onnxruntime, 1 thread", _onnxruntime(1), chunk))
        vino.append(("openvino, 1 thread", _openvino(1), chunk))
    if stage != "aggregator":
        onnx.append((f"onnxruntime, {views} views at once", _onnxruntime(threads), views))
        vino.append((f"openvino, {views} views at once", _openvino(threads), views))
    return onnx, vino


def _inputs(bundle: Bundle, stage: str, views: int, width: int, height: int) -> Arrays:
    rng = np.random.default_rng(0)
    sizes = {
        "views": views,
        "views_in_chunk": views,
        "patch_rows": height // 14,
        "patch_columns": width // 14,
        "14*patch_rows": height,
        "14*patch_columns": width,
    }
    specs = bundle.manifest.stages[stage].inputs
    shapes = {spec.name: [sizes[a] if isinstance(a, str) else a for a in spec.shape] for spec in specs}
    return {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


def _private_bytes() -> int:
    text = Path("/proc/self/smaps_rollup").read_text(encoding="ascii")
    return next(int(line.split()[1]) * 1024 for line in text.splitlines() if line.startswith("Anonymous:"))


def _call(run: Callable[[Arrays], list[np.ndarray]], inputs: Arrays, views: int, chunk: int) -> np.ndarray:
    parts = [run({k: v[i : i + chunk] for k, v in inputs.items()})[0] for i in range(0, views, chunk)]
    return np.concatenate(parts)


def measure(bundle: Bundle, stage: str, group: list[Variant], args: argparse.Namespace) -> dict[str, Any]:
    """Time one backend's variants of one stage in turn."""
    inputs = _inputs(bundle, stage, args.views, *args.size)
    runs: dict[str, tuple[Callable[[Arrays], list[np.ndarray]], int]] = {}
    figures: dict[str, dict[str, Any]] = {}
    reference: np.ndarray | None = None
    for name, load, chunk in group:
        before = _private_bytes()
        runs[name] = load(bundle.stage_path(stage)), chunk
        output = _call(runs[name][0], inputs, args.views, chunk)
        reference = output if reference is None else reference
        error = float(np.abs(output - reference).max() / np.abs(reference).max())
        figures[name] = {"private_memory_gb": (_private_bytes() - before) / 1e9, "max_rel_error": error}
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(args.rounds):
        for name, (run, chunk) in runs.items():
            start = time.perf_counter()
            _call(run, inputs, args.views, chunk)
            times[name].append(time.perf_counter() - start)
    chosen = times[group[0][0]]
    for name, seconds in times.items():
        ratio = statistics.median(a / b for a, b in zip(seconds, chosen, strict=True))
        figures[name] = {
            "median_s": round(statistics.median(seconds), 4),
            "times_chosen": round(ratio, 3),
            "private_memory_gb": round(figures[name]["private_memory_gb"], 2),
            "max_rel_error": float(f"{figures[name]['max_rel_error']:.1e}"),
        }
        print(f"{stage:14} {name:36} {figures[name]}", flush=True)
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", required=True)
    parser.add_argument("--stages", nargs="+", default=["aggregator", "dense_head"])
    parser.add_argument("--size", default="518x392", type=lambda text: tuple(map(int, text.split("x"))))
    parser.add_argument("--views", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=default_threads())
    parser.add_argument("--json", type=Path, help="write the figures there")
    args = parser.parse_args()
    bundle = Bundle.open(args.bundle)
    results = {
        stage: {
            name: figures
            for group in variants(stage, args.views, args.threads)
            for name, figures in measure(bundle, stage, group, args).items()
        }
        for stage in args.stages
    }
    record = {
        "benchmark": "cpu_options",
        "model": bundle.manifest.model.id,
        "views": args.views,
        "size": "{}x{}".format(*args.size),
        "threads": args.threads,
        "rounds": args.rounds,
        "machine": {"cpu": cpu_name(), "system": platform.system()},
        "versions": {name: metadata.version(name) for name in ("mapengine", "onnxruntime", "openvino", "numpy")},
        "results": results,
    }
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
