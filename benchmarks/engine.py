"""Time the CPU engines against PyTorch eager, as a ratio measured in one run. Writes JSON.

    python benchmarks/engine.py --model preset:giant --size 518x392 --json build/engine.json

Contenders take turns: in every round each is loaded in a process of its own, called, and gone before the next is
loaded, so that the memory of one suffices; building a bundle has a process of its own, too. One call is ``predict``:
from prepared views to metric predictions, without reading files and without masks. The baseline is this project's
PyTorch reference in eager mode with scaled-dot-product attention, on the same number of threads; beside it stands the
same network through ``torch.compile``. A ratio is that of the medians of one round; the record has the median of the
rounds.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from mapengine.runtime.system.children import Worker
from mapengine.runtime.system.machine import peak_bytes, private_bytes, usable_processors
from mapengine.runtime.system.origin import record_origin
from mapengine.runtime.system.sizes import parse_pixels
from mapengine.runtime.writing.files import write_record

BASELINE, COMPILED = "pytorch-eager", "pytorch-compile"
CONTENDERS = (COMPILED, "onnxruntime", "openvino")
Views = list[dict[str, Any]]


class Contender:
    """A contender in its process; see :class:`mapengine.runtime.profiling.workers.Service`."""

    def __init__(self, name: str, model: str, bundle: str, threads: int, views: Views) -> None:
        self._views = views
        if name in (BASELINE, COMPILED):
            import torch

            from mapengine.export import load_model
            from mapengine.export.diagnosis.baselines import compile_stages

            torch.set_num_threads(threads)
            network = load_model(model)
            if name == COMPILED:  # in the call that warms up
                compile_stages(network)
            self._predict: Any = partial(network.predict, use_amp=False)
        else:
            from mapengine.runtime import Engine

            self._predict = Engine.load(bundle, name, threads=threads, verify=False).predict
        self.facts: dict[str, Any] = {"load_peak": peak_bytes()}

    def __call__(self) -> tuple[float, int]:
        """Return the seconds of a call, and the private bytes of the process after it."""
        start = time.perf_counter()
        self._predict(self._views)
        return time.perf_counter() - start, private_bytes()


class Builder:
    """Builds a bundle in its process."""

    def __init__(self, model: str, bundle: str) -> None:
        from mapengine.export import build_engine, load_model

        build_engine(load_model(model), bundle, progress=print)
        self.facts: dict[str, Any] = {}

    def __call__(self) -> None:
        """Do nothing more."""


@dataclass(frozen=True)
class Turn:
    """One contender's part of a round: seconds of its calls and of loading, private bytes, and the peak of loading."""

    seconds: list[float]
    load_s: float
    memory: int
    load_peak: int | None


def take_turn(name: str, args: argparse.Namespace, bundle: str, views: Views) -> Turn:
    """Load a contender, call it, and end its process."""
    worker = Worker.start(name, partial(Contender, name, args.model, bundle, args.threads, views))
    try:
        worker.call()  # warms up
        calls = [worker.call() for _ in range(args.calls)]
    finally:
        worker.close()
    seconds = [elapsed for elapsed, _ in calls]
    print(f"{name}: loaded in {worker.load_s:.1f} s, {statistics.median(seconds):.2f} s a call", flush=True)
    return Turn(seconds, worker.load_s, max(memory for _, memory in calls), worker.facts["load_peak"])


def measure(args: argparse.Namespace, bundle: str) -> dict[str, Any]:
    """Let the contenders take turns and return the figures by name."""
    from mapengine.export.bundles.parity_cases import sample_inputs

    views = sample_inputs(args.size, ["kdp" if args.geometry else ""] * args.views, "dinov2")
    turns: dict[str, list[Turn]] = {name: [] for name in (BASELINE, *args.backends)}
    for _ in range(args.rounds):
        for name, taken in turns.items():
            taken.append(take_turn(name, args, bundle, views))
    results = {}
    for name, taken in turns.items():
        times = [elapsed for turn in taken for elapsed in turn.seconds]
        ratios = [
            statistics.median(base.seconds) / statistics.median(own.seconds)
            for own, base in zip(taken, turns[BASELINE], strict=True)
        ]
        peaks = [turn.load_peak for turn in taken if turn.load_peak is not None]
        results[name] = {
            "median_s": round(statistics.median(times), 3),
            "min_s": round(min(times), 3),
            "max_s": round(max(times), 3),
            "times_baseline_speed": round(statistics.median(ratios), 2),
            "load_s": round(statistics.median(turn.load_s for turn in taken), 1),
            "load_peak_gb": round(max(peaks) / 1e9, 2) if peaks else None,
            "private_memory_gb": round(max(turn.memory for turn in taken) / 1e9, 2),
        }
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="preset:giant")
    parser.add_argument("--bundle", help="an existing bundle of the model; built into a temporary folder without it")
    parser.add_argument("--size", default="518x392", type=parse_pixels)
    parser.add_argument("--views", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3, help="turns of every contender")
    parser.add_argument("--calls", type=int, default=3, help="timed calls in a turn")
    parser.add_argument("--threads", type=int, default=usable_processors())
    parser.add_argument("--geometry", action="store_true", help="give camera, depth and pose for every view")
    parser.add_argument("--backends", nargs="+", default=list(CONTENDERS), choices=CONTENDERS)
    parser.add_argument("--json", type=Path, default=Path("build/engine.json"), help="where to write the record")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        bundle = args.bundle
        if bundle is None:
            bundle = os.path.join(folder, "bundle")
            Worker.start("building", partial(Builder, args.model, bundle)).close()
        results = measure(args, bundle)
    record = {
        "benchmark": "engine",
        "what": "seconds per call of predict, loaded in turn in one run; ratio = baseline / contender per round",
        "baseline": BASELINE,
        "model": args.model,
        "views": args.views,
        "size": "{}x{}".format(*args.size),
        "geometry": args.geometry,
        "threads": args.threads,
        "rounds": args.rounds,
        "calls": args.calls,
        **record_origin("mapengine", "torch", "onnxruntime", "openvino", "numpy"),
        "results": results,
    }
    write_record(args.json, record)


if __name__ == "__main__":
    main()
