"""Measure the peak memory of calls with more and more views, and what `mapengine plan` says of them. Writes JSON.

    python benchmarks/memory.py --json benchmarks/results/memory-nano.json

Every call runs in a process of its own, which is the definition of the figure: resident memory of a program that loads
the bundle and makes this one call. The plan is measured first, on calls of at most 24 views.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

from mapengine.runtime.bundle.store import Bundle
from mapengine.runtime.memory.model import MemoryModel
from mapengine.runtime.profiling.memory import measure, probe
from mapengine.runtime.system.origin import record_origin
from mapengine.runtime.system.sizes import parse_pixels
from mapengine.runtime.writing.files import write_record

VIEWS = (1, 8, 48, 64, 128, 300)


def call(bundle: Bundle, model: MemoryModel, views: int, size: tuple[int, int], collect: bool) -> dict[str, Any]:
    """Return measured and planned peaks of one call."""
    backend = model.key["backend"]
    start = time.perf_counter()
    peaks = probe(bundle, backend, views, *size, geometry=True, collect=collect)
    seconds = time.perf_counter() - start
    planned = model.peak(views, *size, geometry=True, collect=collect)[1]
    measured = max(peaks.values())
    figures = {"measured_mb": measured / 1e6, "planned_mb": planned / 1e6, "ratio": planned / measured}
    print(f"{backend}, {views} views, {'all kept' if collect else 'streamed'}: {figures}", flush=True)
    return {**figures, "stages_mb": {name: value / 1e6 for name, value in peaks.items()}, "seconds": seconds}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="preset:nano")
    parser.add_argument("--size", default="140x112", type=parse_pixels)
    parser.add_argument("--views", type=int, nargs="+", default=list(VIEWS))
    parser.add_argument("--backends", nargs="+", default=["onnxruntime", "openvino"])
    parser.add_argument("--json", type=Path, default=Path("build/memory.json"), help="where to write the record")
    args = parser.parse_args()
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        from mapengine.export import build_engine, load_model

        build_engine(load_model(args.model), folder, views=(1, 4, max(args.views)), resolutions=[args.size])
        bundle = Bundle.open(folder)
        for backend in args.backends:
            model = measure(bundle, backend)
            results[backend] = {
                str(views): {
                    "kept" if collect else "streamed": call(bundle, model, views, args.size, collect)
                    for collect in (True, False)
                }
                for views in args.views
            }
    record = {
        "benchmark": "memory",
        "what": "peak resident memory of a process that loads the bundle and makes one call; views with geometry",
        "model": args.model,
        "size": "{}x{}".format(*args.size),
        **record_origin("mapengine", "onnxruntime", "openvino", "numpy"),
        "results": results,
    }
    write_record(args.json, record)


if __name__ == "__main__":
    main()
