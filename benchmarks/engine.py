"""Time the CPU engines against PyTorch eager, as a ratio measured in one run. Writes JSON.

    python benchmarks/engine.py --model preset:giant --size 518x392 --json build/engine.json

Every contender lives in a process of its own, loaded once and then called in turn. One call is ``predict``: from
prepared views to metric predictions, without reading files and without masks. The baseline is this project's PyTorch
reference in eager mode with scaled-dot-product attention, on the same number of threads.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

from mapengine.runtime.system.children import Worker
from mapengine.runtime.system.machine import private_bytes, usable_processors
from mapengine.runtime.system.origin import record_origin
from mapengine.runtime.system.sizes import parse_pixels
from mapengine.runtime.writing.files import write_record

BASELINE = "pytorch-eager"
CONTENDERS = ("onnxruntime", "openvino")
Views = list[dict[str, Any]]


class Contender:
    """A contender in its process; see :class:`mapengine.runtime.profiling.workers.Service`."""

    def __init__(self, name: str, model: str, bundle: str, threads: int, views: Views) -> None:
        self.facts: dict[str, Any] = {}
        self._views = views
        if name == BASELINE:
            import torch

            from mapengine.export import load_model

            torch.set_num_threads(threads)
            self._predict: Any = partial(load_model(model).predict, use_amp=False)
        else:
            from mapengine.runtime import Engine

            self._predict = Engine.load(bundle, name, threads=threads, verify=False).predict

    def __call__(self) -> tuple[float, int]:
        """Return the seconds of a call, and the private bytes of the process after it."""
        start = time.perf_counter()
        self._predict(self._views)
        return time.perf_counter() - start, private_bytes()


def measure(args: argparse.Namespace, bundle: str) -> dict[str, Any]:
    """Call the contenders in turn and return the figures by name."""
    from mapengine.export.bundles.parity_cases import sample_inputs

    views = sample_inputs(args.size, ["kdp" if args.geometry else ""] * args.views, "dinov2")
    workers = {}
    for name in (BASELINE, *args.backends):
        workers[name] = Worker.start(name, partial(Contender, name, args.model, bundle, args.threads, views))
        workers[name].call()  # warms up
        print(f"{name}: loaded in {workers[name].load_s:.1f} s", flush=True)
    seconds: dict[str, list[float]] = {name: [] for name in workers}
    memory: dict[str, int] = {}
    for _ in range(args.rounds):
        for name, worker in workers.items():
            elapsed, memory[name] = worker.call()
            seconds[name].append(elapsed)
        print("  ".join(f"{name} {times[-1]:.2f} s" for name, times in seconds.items()), flush=True)
    for worker in workers.values():
        worker.close()
    return {
        name: {
            "median_s": round(statistics.median(times), 3),
            "min_s": round(min(times), 3),
            "max_s": round(max(times), 3),
            "times_baseline_speed": round(
                1 / statistics.median(own / base for own, base in zip(times, seconds[BASELINE], strict=True)), 2
            ),
            "load_s": round(workers[name].load_s, 1),
            "private_memory_gb": round(memory[name] / 1e9, 2),
        }
        for name, times in seconds.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="preset:giant")
    parser.add_argument("--bundle", help="an existing bundle of the model; built into a temporary folder without it")
    parser.add_argument("--size", default="518x392", type=parse_pixels)
    parser.add_argument("--views", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=usable_processors())
    parser.add_argument("--geometry", action="store_true", help="give camera, depth and pose for every view")
    parser.add_argument("--backends", nargs="+", default=list(CONTENDERS), choices=CONTENDERS)
    parser.add_argument("--json", type=Path, default=Path("build/engine.json"), help="where to write the record")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        bundle = args.bundle
        if bundle is None:
            from mapengine.export import build_engine, load_model

            bundle = os.path.join(folder, "bundle")
            build_engine(load_model(args.model), bundle, progress=print)
        results = measure(args, bundle)
    record = {
        "benchmark": "engine",
        "what": "seconds per call of predict, in turn in one run; ratio = baseline / contender per round",
        "baseline": BASELINE,
        "model": args.model,
        "views": args.views,
        "size": "{}x{}".format(*args.size),
        "geometry": args.geometry,
        "threads": args.threads,
        "rounds": args.rounds,
        **record_origin("mapengine", "torch", "onnxruntime", "openvino", "numpy"),
        "results": results,
    }
    write_record(args.json, record)


if __name__ == "__main__":
    main()
