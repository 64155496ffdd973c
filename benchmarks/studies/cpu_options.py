"""Measure options of the CPU backends: threads, arena, precision hint, chunk size.

    python benchmarks/studies/cpu_options.py --bundle build/giant --json benchmarks/results/cpu_options.json

One stage of a bundle is loaded once per variant, each variant in a process of its own, and called in turn; the figures
are medians, and the ratio is variant / chosen setting per round (below 1: the variant is faster). For the precision
hints the error against float32 is shown, because a faster wrong setting is no choice.
"""

from __future__ import annotations

import argparse
import functools
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from mapengine.runtime.bundle.store import Bundle
from mapengine.runtime.system.children import Worker
from mapengine.runtime.system.machine import private_bytes, usable_processors
from mapengine.runtime.system.origin import record_origin
from mapengine.runtime.system.sizes import parse_pixels
from mapengine.runtime.writing.files import write_record

Arrays = dict[str, np.ndarray]
Run = Callable[[Arrays], np.ndarray]
"""Runs a chunk and returns one output, late in the graph."""
Variant = tuple[Callable[..., Run], int, dict[str, Any]]
"""Loader, views per call, options."""
OUTPUT = 3
"""Aggregator: the last map; dense head: mask logits. The last output of stages that have fewer."""


class TimedVariant:
    """A variant in its process; see :class:`mapengine.runtime.profiling.workers.Service`."""

    def __init__(self, load: Callable[..., Run], path: Path, chunk: int, inputs: Arrays, **options: Any) -> None:
        self._run, self._chunk, self._inputs = load(path, **options), chunk, inputs
        self.facts = {"output": self._call()}

    def __call__(self) -> tuple[float, int]:
        """Return the seconds of a call, and the private bytes of the process after it."""
        start = time.perf_counter()
        self._call()
        return time.perf_counter() - start, private_bytes()

    def _call(self) -> np.ndarray:
        """Run all views, in chunks."""
        starts = range(0, len(next(iter(self._inputs.values()))), self._chunk)
        parts = [{name: value[i : i + self._chunk] for name, value in self._inputs.items()} for i in starts]
        return np.concatenate([self._run(part) for part in parts])


def load_onnxruntime(path: Path, threads: int, arena: bool = False, spinning: bool = True) -> Run:
    """Load a stage in ONNX Runtime; the defaults are what the runtime chose."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.enable_cpu_mem_arena = arena
    options.log_severity_level = 3
    options.add_session_config_entry("session.intra_op.allow_spinning", str(int(spinning)))
    inference_session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    output = inference_session.get_outputs()[: OUTPUT + 1][-1].name
    return lambda inputs: inference_session.run([output], inputs)[0]


def load_openvino(path: Path, threads: int, precision: str = "f32", hint: str = "LATENCY") -> Run:
    """Load a stage in OpenVINO; the defaults are what the runtime chose."""
    import openvino

    core = openvino.Core()
    model = core.read_model(str(path))
    options = {
        "INFERENCE_PRECISION_HINT": precision,
        "PERFORMANCE_HINT": hint,
        "INFERENCE_NUM_THREADS": str(threads),
    }
    request = core.compile_model(model, "CPU", options).create_infer_request()
    output = min(OUTPUT, len(model.outputs) - 1)
    return lambda inputs: np.array(request.infer(inputs, share_inputs=True)[output])


def variants(stage: str, views: int, threads: int) -> dict[str, dict[str, Variant]]:
    """Return per backend: variant name to loader, views per call and options. The first is what the runtime chose."""
    chunk = views if stage == "aggregator" else 1
    several: dict[str, dict[str, Any]] = {
        "onnxruntime": {"memory arena": {"arena": True}, "no spinning": {"spinning": False}},
        "openvino": {"throughput hint": {"hint": "THROUGHPUT"}, "bf16": {"precision": "bf16"}},
    }
    groups: dict[str, dict[str, Variant]] = {}
    for backend, load in (("onnxruntime", load_onnxruntime), ("openvino", load_openvino)):
        group: dict[str, Variant] = {f"{backend} (chosen)": (load, chunk, {"threads": threads})}
        for name, options in several[backend].items():
            group[f"{backend}, {name}"] = (load, chunk, {"threads": threads, **options})
        if threads > 1:
            group[f"{backend}, 1 thread"] = (load, chunk, {"threads": 1})
        if stage != "aggregator":
            group[f"{backend}, {views} views at once"] = (load, views, {"threads": threads})
        groups[backend] = group
    return groups


def make_inputs(bundle: Bundle, stage: str, views: int, width: int, height: int) -> Arrays:
    """Return random inputs of a stage."""
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


def measure(bundle: Bundle, stage: str, args: argparse.Namespace) -> dict[str, Any]:
    """Time the variants of one stage, one backend after the other."""
    inputs = make_inputs(bundle, stage, args.views, *args.size)
    path = bundle.stage_path(stage)
    results: dict[str, Any] = {}
    for group in variants(stage, args.views, args.threads).values():
        workers = []
        for name, (load, chunk, options) in group.items():
            workers.append(Worker.start(name, functools.partial(TimedVariant, load, path, chunk, inputs, **options)))
            print(f"{name}: loaded in {workers[-1].load_s:.1f} s", flush=True)
        rounds = [{worker.label: worker.call() for worker in workers} for _ in range(args.rounds)]
        chosen = workers[0]
        for worker in workers:
            wanted, seconds = chosen.facts["output"], [entry[worker.label][0] for entry in rounds]
            ratios = [entry[worker.label][0] / entry[chosen.label][0] for entry in rounds]
            error = np.abs(worker.facts["output"] - wanted).max() / np.abs(wanted).max()
            results[worker.label] = {
                "median_s": round(statistics.median(seconds), 4),
                "times_chosen": round(statistics.median(ratios), 3),
                "private_memory_gb": round(rounds[-1][worker.label][1] / 1e9, 2),
                "max_rel_error": float(f"{error:.1e}"),
            }
            print(f"{worker.label}: {results[worker.label]}", flush=True)
            worker.close()
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", required=True)
    parser.add_argument("--stages", nargs="+", default=["aggregator", "dense_head"])
    parser.add_argument("--size", default="518x392", type=parse_pixels)
    parser.add_argument("--views", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=usable_processors())
    parser.add_argument("--json", type=Path, default=Path("build/cpu_options.json"), help="where to write the record")
    args = parser.parse_args()
    bundle = Bundle.open(args.bundle)
    record = {
        "benchmark": "cpu_options",
        "model": bundle.manifest.model.id,
        "views": args.views,
        "size": "{}x{}".format(*args.size),
        "threads": args.threads,
        "rounds": args.rounds,
        **record_origin("mapengine", "onnxruntime", "openvino", "numpy"),
        "results": {stage: measure(bundle, stage, args) for stage in args.stages},
    }
    write_record(args.json, record)


if __name__ == "__main__":
    main()
